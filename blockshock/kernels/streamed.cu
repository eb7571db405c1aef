// y = x Wᵀ (+ bias) for a 2:4 W and few tokens: W's kept values go by once, at the rate of memory.
//
// A block of eight warps multiplies 128 · ROW_TILES rows of W. 128 columns at a time, a stage of shared memory takes 64
// kept values of each row (as they lie, 128 bytes), their metadata in the order of the tensor core's fragments, and the
// same columns of x; STAGES of them are under way. Of eight bits these are 256 columns in as many bytes: what is called a
// column here are then two of them, and metadata are twice as many. SPLITS blocks share the columns of the same rows. They
// are a cluster, and each adds up its part of the rows out of the shared memory of all, in the order of the splits, so
// that the bits are the same each time. Without clusters (compute capability 8.x) partial sums go through memory to
// add_splits. Where a mask repeats in 16 rows and a step's columns (ONE_TILE), their metadata are those of all, and stay in
// registers.
//
// It stands behind ptx.cu and halves.cu or bytes.cu, and where y is to be the sum over RANKS GPUs behind fused_sum.cu. Set
// by whoever compiles it, beside what these take: TOKEN_TILES (of 8), ROW_TILES (of 16, for each warp), STAGES, SPLITS,
// BLOCKS (of an SM), ONE_TILE, AHEAD (memory is asked for two steps of a row at a time).

#ifndef RANKS
#define RANKS 0
#define PEERS
#endif

constexpr int WARPS = 8, THREADS = 32 * WARPS, TOKENS = 8 * TOKEN_TILES, ROWS = 16 * WARPS * ROW_TILES;
constexpr int PLACES_BYTES = 32 * sizeof(Places);  // of 16 rows
constexpr int VALUES_BYTES = ROWS * 128, METADATA_BYTES = ONE_TILE ? 0 : ROWS / 16 * PLACES_BYTES, X_BYTES = TOKENS * 256;
constexpr int STAGE_BYTES = VALUES_BYTES + METADATA_BYTES + X_BYTES;
constexpr int SUM_ROWS = ROWS + 4;  // padded, so that the fragments of a warp fall into 32 banks

// values: kept values (N, K/2). metadata: for each 16 rows and 128 columns, or for all of these, those of each lane. x: (tokens, K), rows x_row
// columns apart. y: (tokens, N). partials: (SPLITS, tokens, N) sums, without clusters.
extern "C" __global__ void
#if CLUSTERS && SPLITS > 1
__cluster_dims__(1, SPLITS, 1)
#endif
__launch_bounds__(THREADS, BLOCKS)
streamed_product(const u16* __restrict__ values, const Places* __restrict__ metadata, const u16* __restrict__ x,
                 const u16* __restrict__ bias, u16* __restrict__ y, Sum* __restrict__ partials,
                 int N, int K, int tokens, int x_row, int has_bias SCALES PEERS) {
    extern __shared__ __align__(128) u8 memory[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, split = blockIdx.y;
    const int steps = (K + 127) / 128, first = (long long)steps * split / SPLITS;
    const int count = (long long)steps * (split + 1) / SPLITS - first;
    const int tile0 = (blockIdx.x * WARPS + warp) * ROW_TILES, tiles = N / 16;
#if RANKS
    const Peers peers(peer0, peer1, peer2, peer3, rank, slot, turns);  // the turn comes from afar: asked for early
#endif

    // What this thread copies of each step: a piece of a row in every fourth of its warp's rows, and of every 16th token.
    const u8* values_from[ROW_TILES];
#if ONE_TILE
    const Places all_places = metadata[lane];
#else
    const Places* metadata_from[ROW_TILES];
#endif
    const long long row_bytes = K;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
        const int tile = min(tile0 + i, tiles - 1);  // rows beyond the last are copied from others, and not written
        values_from[i] = (const u8*)values + (16ll * tile + (lane >> 3)) * row_bytes + (lane & 7) * 16 + first * 128ll;
#if !ONE_TILE
        metadata_from[i] = metadata + ((long long)tile * steps + first) * 32 + lane;
#endif
    }
    const int token0 = threadIdx.x >> 4, piece = threadIdx.x & 15;
    const u16* x_from = x + (long long)token0 * x_row + first * 128ll + piece * 8;

    auto load_w = [&](int step) {
        if (step >= count) return;
        const u32 stage = shared_address(memory) + step % STAGES * STAGE_BYTES;
        const int columns = K - (first + step) * 128;
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = 4 * j + (lane >> 3);
                copy16<AHEAD>(stage + ((warp * ROW_TILES + i) * 16 + row) * 128 + (((lane & 7) ^ (row & 7)) << 4),
                              values_from[i] + 4 * j * row_bytes + step * 128ll, (lane & 7) * 16 < columns);
            }
#if !ONE_TILE
            copy_places(stage + VALUES_BYTES + (warp * ROW_TILES + i) * PLACES_BYTES + lane * (int)sizeof(Places),
                        metadata_from[i] + step * 32ll);
#endif
        }
    };
    auto load_x = [&](int step) {
        if (step >= count) return;
        const u32 stage = shared_address(memory) + step % STAGES * STAGE_BYTES;
        const int columns = K - (first + step) * 128;
#pragma unroll
        for (int j = 0; j < (TOKENS + 15) / 16; j++) {
            const int token = token0 + 16 * j;
            if (TOKENS % 16 == 0 || token < TOKENS)
                copy16(stage + VALUES_BYTES + METADATA_BYTES + token * 256 + ((piece ^ (token & 7)) << 4),
                       x_from + 16ll * j * x_row + step * 128ll, token < tokens && piece * 8 < columns);
        }
    };

    Sum sums[ROW_TILES][TOKEN_TILES][4] = {};
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) {
        load_w(step);
#if !EARLY
        load_x(step), commit_copies();
    }
#else
    }
    wait_for_kernel_before();  // W did not ask for it
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) load_x(step), commit_copies();
#endif
    for (int step = 0; step < count; step++) {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(STAGES - 2));
        __syncthreads();
        load_w(step + STAGES - 1), load_x(step + STAGES - 1), commit_copies();
        const u8* stage = memory + step % STAGES * STAGE_BYTES;
        const u32 values_at = shared_address(stage), x_at = values_at + VALUES_BYTES + METADATA_BYTES;
        Places places[ROW_TILES];
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++)
#if ONE_TILE
            places[i] = all_places;
#else
            places[i] = ((const Places*)(stage + VALUES_BYTES + (warp * ROW_TILES + i) * PLACES_BYTES))[lane];
#endif
#pragma unroll
        for (int j = 0; j < 4; j++) {
            Fragment a[ROW_TILES];
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++)
                load_fragment(a[i], values_at + ((warp * ROW_TILES + i) * 16 + (lane & 15)) * 128 +
                                        (((2 * j + (lane >> 4)) ^ (lane & 7)) << 4));
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++) {
                Fragment b;
                load_fragment(b, x_at + (n * 8 + (lane & 7)) * 256 + (((4 * j + (lane >> 3)) ^ (lane & 7)) << 4));
#pragma unroll
                for (int i = 0; i < ROW_TILES; i++) multiply_quarter(sums[i][n], a[i], b, places[i], j);
            }
        }
    }
    asm volatile("cp.async.wait_all;\n");
    __syncthreads();

    // The sums of this block, (token, row), where its stages were.
    Sum* mine = (Sum*)memory;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                mine[(n * 8 + (lane & 3) * 2 + (r & 1)) * SUM_ROWS + (warp * ROW_TILES + i) * 16 + (lane >> 2) +
                     (r >> 1) * 8] = sums[i][n][r];
    // Four rows of one token at a time: with clusters this block's share of them.
    constexpr int QUADS = ROWS / 4, SHARES = CLUSTERS ? SPLITS : 1, STRIDE = THREADS * SHARES;
    const int row0 = blockIdx.x * ROWS, item0 = threadIdx.x + THREADS * (split % SHARES);
    const u16* added = has_bias ? bias : nullptr;
#if CLUSTERS && SPLITS > 1
    cluster_arrive();
    cluster_wait();
#else
    __syncthreads();
#endif
    for (int item = item0; item < QUADS * tokens; item += STRIDE) {
        const int token = item / QUADS, row = item % QUADS * 4;
        if (row0 + row >= N) continue;
        Sum* place = mine + token * SUM_ROWS + row;
        const long long at = (long long)token * N + row0 + row;
#if CLUSTERS && SPLITS > 1
        Sums parts[SPLITS];
#pragma unroll
        for (int s = 0; s < SPLITS; s++) parts[s] = load_of_split(shared_address(place), s);
        Sums sum = parts[0];
#pragma unroll
        for (int s = 1; s < SPLITS; s++) add(sum, parts[s]);
#else
        const Sums sum = *(const Sums*)place;
#endif
#if RANKS
        const float4 finished = FINISHED(sum, token, row0 + row);
        peers.send(finished, at, (long long)tokens * N);
        *(float4*)place = finished;  // which no other thread reads
#else
        if (CLUSTERS || SPLITS == 1) write_rows(FINISHED(sum, token, row0 + row), y + at);
        else *(Sums*)(partials + (long long)split * tokens * N + at) = sum;
#endif
    }
#if CLUSTERS && SPLITS > 1
    cluster_have_read();
#endif
#if RANKS
    // Fours of a thread that are under way together.
    constexpr int ITEMS = (QUADS * TOKENS + STRIDE - 1) / STRIDE, MOST = RANKS == 2 ? 4 : 2;
    constexpr int TOGETHER = ITEMS < MOST ? ITEMS : MOST;
    for (int item = item0; item < QUADS * tokens; item += TOGETHER * STRIDE) {
        float4 sums[TOGETHER];
        long long at[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const int token = (item + i * STRIDE) / QUADS, row = (item + i * STRIDE) % QUADS * 4;
            at[i] = token < tokens && row0 + row < N ? (long long)token * N + row0 + row : -1;
            if (at[i] >= 0) sums[i] = *(const float4*)(mine + token * SUM_ROWS + row);
        }
        peers.add_up(sums, at, (long long)tokens * N);
#pragma unroll
        for (int i = 0; i < TOGETHER; i++)
            if (at[i] >= 0) write_rows(sums[i], y + at[i]);
    }
    peers.leave();
    __syncwarp();  // what came to one thread later than to another is behind them
#endif
#if CLUSTERS && SPLITS > 1
    cluster_wait();  // nobody leaves while its memory is read
#endif
}

// Without clusters: y out of the splits' partial sums, four rows a thread.
extern "C" __global__ void add_splits(const Sum* __restrict__ partials, const u16* __restrict__ bias,
                                      u16* __restrict__ y, int N, int tokens, int has_bias SCALES) {
    const long long size = (long long)tokens * N, at = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (at >= size) return;
    const u16* added = has_bias ? bias : nullptr;
    Sums sum = *(const Sums*)(partials + at);
    for (int s = 1; s < SPLITS; s++) add(sum, *(const Sums*)(partials + s * size + at));
    write_rows(FINISHED(sum, at / N, at % N), y + at);
}
