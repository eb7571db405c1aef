// y = x @ W^T of many tokens in eight bits, W 2:4, by the sparse tensor cores of Hopper, fed from shared memory; times both
// scales, plus the bias, where the sums are made.
//
// A cluster is CLUSTER blocks that multiply the same 256 tokens by 128 features each: of x every block fetches its share
// and sends it to all. In a block one thread copies, STAGES steps of 128 columns ahead, and two warpgroups multiply,
// each 64 features. x and W lie in memory tile by tile, each as it is to lie in shared memory, so that a tile is one copy. A
// block goes through many tiles of y; while its warpgroups write one, the copies of the next are under way.
//
// It stands behind ptx.cu and hopper.cu. Set by whoever compiles it: BF16 (else fp16) of y and the bias, FP8, CLUSTER,
// STAGES, and SHARED_BYTES, which it is launched with.

constexpr int WARPGROUPS = 2, FEATURES = 64, TOKENS = 256, COLUMNS = 128;  // features of a warpgroup; columns of a step
constexpr int THREADS = 128 * (WARPGROUPS + 1);
constexpr int X_BYTES = TOKENS * COLUMNS, SHARE_BYTES = X_BYTES / CLUSTER;
constexpr int VALUES_BYTES = FEATURES * COLUMNS / 2, PLACES_BYTES = FEATURES * COLUMNS / 8;
constexpr int W_BYTES = WARPGROUPS * (VALUES_BYTES + PLACES_BYTES), STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int OUT_TOKENS = 32, OUT_BYTES = OUT_TOKENS * FEATURES * 2;  // that a warpgroup turns at a time

constexpr int OUT = STAGES * STAGE_BYTES, SCALES = OUT + WARPGROUPS * OUT_BYTES;
constexpr int FULL = SCALES + WARPGROUPS * TOKENS * 4, EMPTY = FULL + 8 * STAGES;
static_assert(EMPTY + 8 * STAGES == SHARED_BYTES, "what is counted where it is launched");

// Which tile of y a cluster has in a turn. So many tiles of tokens stand side by side, and these go through all features
// before the next: what is read again, of x and of W, is then still in the cache.
struct Tile {
    int features, tokens;
    __device__ __forceinline__ Tile(int turn, int of_features, int of_tokens, int side_by_side) {
        const int first = turn / (side_by_side * of_features) * side_by_side;
        const int width = min(side_by_side, of_tokens - first), rest = turn - first * of_features;
        features = rest / width, tokens = first + rest % width;
    }
};

// The stage that is next, and the parity of its barriers' phase.
struct Stage {
    int index = 0;
    u32 parity;
    __device__ __forceinline__ explicit Stage(u32 parity) : parity(parity) {}
    __device__ __forceinline__ void next() {
        if (++index == STAGES) index = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void meet(int warpgroup) {
    asm volatile("bar.sync %0, 128;" ::"r"(1 + warpgroup) : "memory");
}

// A step of x, of which the share of this block goes to all of the cluster, and of this block's W.
__device__ __forceinline__ void copy_step(u32 memory, const u8* x, const u8* w, u32 block, Stage& stage) {
    const u32 at = memory + stage.index * STAGE_BYTES, full = memory + FULL + 8 * stage.index;
    wait_at(memory + EMPTY + 8 * stage.index, stage.parity);  // in every block of the cluster
    arrive_expecting(full, STAGE_BYTES);
    copy_tile_to_all(at + block * SHARE_BYTES, x + block * SHARE_BYTES, SHARE_BYTES, full);
    copy_tile(at + X_BYTES, w, W_BYTES, full);
    stage.next();
}

// The products of a tile. steps: even.
__device__ __forceinline__ void multiply_steps(Sum (&sums)[128], u32 memory, int steps, int warpgroup, Stage& stage) {
    const int thread = threadIdx.x % 128, warp = thread / 32;
    const bool tells = thread % 32 == 0 && warp < CLUSTER;  // one thread of a warpgroup for each block
    int before = 0;
    uint2 places[2];  // of two steps: those that a product reads stay until it is done
    for (int step = 0; step < steps; step += 2) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 x = memory + stage.index * STAGE_BYTES, values = x + X_BYTES + warpgroup * VALUES_BYTES;
            wait_at(memory + FULL + 8 * stage.index, stage.parity);
            places[half] = load8(x + X_BYTES + WARPGROUPS * VALUES_BYTES + warpgroup * PLACES_BYTES + 8 * thread);
            begin_products();
            multiply_tiles(sums, descriptor(values, 2), descriptor(x, 3), places[half].x, step + half > 0);
            multiply_tiles(sums, descriptor(values + 32, 2), descriptor(x + 64, 3), places[half].y, true);
            commit_products();
            wait_for_products<1>();  // the step before is done
            if (step + half > 0 && tells) arrive_at_block(memory + EMPTY + 8 * before, warp);
            before = stage.index;
            stage.next();
        }
    }
    end_products(sums);
    if (tells) arrive_at_block(memory + EMPTY + 8 * before, warp);
}

// Scaled, rounded, and turned from the order of the sums into rows of tokens: 32 tokens of 64 features at a time. Of those
// chunk c, of eight features, is at c ^ (token % 8).
__device__ __forceinline__ void write_tile(const Sum (&sums)[128], u32 out, u32 of_tokens, const float (&of_features)[2],
                                           const float (&added)[2], u16* y, int warpgroup, int tokens, int features, int N) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
#pragma unroll
    for (int first = 0; first < TOKENS; first += OUT_TOKENS) {
        meet(warpgroup);  // of the tokens before all are read; of the first, all scales are there
#pragma unroll
        for (int some = 0; some < OUT_TOKENS; some += 16) {
            u32 rows[4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int eight = (first + some) / 8 + half;
                const uint2 both = load8(of_tokens + eight * 32 + lane % 4 * 8);
                const float scale = __uint_as_float(both.x), next = __uint_as_float(both.y);
#pragma unroll
                for (int below = 0; below < 2; below++) {  // eight features below
                    const Sum* sum = sums + 4 * eight + 2 * below;
                    const float of_feature = of_features[below];  // first: no sum times it overflows
                    rows[2 * half + below] = rounded(fmaf((float)sum[0] * of_feature, scale, added[below]),
                                                     fmaf((float)sum[1] * of_feature, next, added[below]));
                }
            }
            const int token = some + lane / 16 * 8 + lane % 8, chunk = warp * 2 + lane / 8 % 2;
            store_turned(out + token * 128 + ((chunk ^ (token % 8)) << 4), rows);
        }
        meet(warpgroup);
#pragma unroll
        for (int some = 0; some < OUT_TOKENS; some += 16) {
            const int token = some + thread / 8, chunk = thread % 8;
            const uint4 eight = load16(out + token * 128 + ((chunk ^ (token % 8)) << 4));
            if (first + token < tokens && chunk * 8 < features)
                __stcs((uint4*)(y + (long long)(first + token) * N + chunk * 8), eight);  // nobody reads it soon
        }
    }
}

// w: (features in 128s, steps, W_BYTES), x: (tokens in 256s, steps, X_BYTES), as layouts have them. N: a multiple of eight.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
wgmma_product(const u8* __restrict__ w, const u8* x, const u16* __restrict__ bias, u16* __restrict__ y,
              const float* of_tokens, const float* __restrict__ of_features, int N, int tokens, int steps,
              int side_by_side, int has_bias) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 memory = shared_address(shared), block = block_of_cluster();
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0), thread = threadIdx.x % 128;
    constexpr int BLOCK_FEATURES = WARPGROUPS * FEATURES;
    const int of_cluster = CLUSTER * BLOCK_FEATURES;
    const int feature_tiles = (N + of_cluster - 1) / of_cluster, token_tiles = (tokens + TOKENS - 1) / TOKENS;
    const int turns = feature_tiles * token_tiles, first = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            init_barrier(memory + FULL + 8 * i, 1);
            init_barrier(memory + EMPTY + 8 * i, CLUSTER * WARPGROUPS);  // all that read what this block sends
        }
        publish_barriers();
    }
    cluster_arrive();
    cluster_wait();
    wait_for_kernel_before();  // which quantises x
    if (warpgroup == WARPGROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");  // the others have the rest
        if (thread == 0) {
            Stage stage(1);  // all are empty
            for (int turn = first; turn < turns; turn += clusters) {
                const Tile tile(turn, feature_tiles, token_tiles, side_by_side);
                const u8* x_at = x + (long long)tile.tokens * steps * X_BYTES;
                const u8* w_at = w + ((long long)tile.features * CLUSTER + block) * steps * W_BYTES;
                for (int i = 0; i < steps; i++, x_at += X_BYTES, w_at += W_BYTES)
                    copy_step(memory, x_at, w_at, block, stage);
            }
        }
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const u32 out = memory + OUT + warpgroup * OUT_BYTES, scales = memory + SCALES + warpgroup * TOKENS * 4;
        Sum sums[128];
        Stage stage(0);
        for (int turn = first; turn < turns; turn += clusters) {
            const Tile tile(turn, feature_tiles, token_tiles, side_by_side);
            const int token0 = tile.tokens * TOKENS;
            const int feature0 = (tile.features * CLUSTER + block) * BLOCK_FEATURES + warpgroup * FEATURES;
            // Asked for before the products. What is beyond the last takes its scale, and is not written.
#pragma unroll
            for (int i = thread; i < TOKENS; i += 128) copy4(scales + 4 * i, of_tokens + min(token0 + i, tokens - 1));
            float of_mine[2], added[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int feature = min(feature0 + thread / 32 * 16 + thread % 32 / 4 + 8 * i, N - 1);
                of_mine[i] = of_features[feature], added[i] = has_bias ? widened(bias[feature]) : 0.0f;
            }
            multiply_steps(sums, memory, steps, warpgroup, stage);
            asm volatile("cp.async.wait_all;" ::: "memory");
            write_tile(sums, out, scales, of_mine, added, y + (long long)token0 * N + feature0, warpgroup,
                       tokens - token0, N - feature0, N);
        }
    }
    cluster_arrive();
    cluster_wait();  // no block leaves while others may still reach its barriers
}
