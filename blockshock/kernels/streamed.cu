// y = x Wᵀ (+ bias) for a 2:4 W and few tokens: W's kept values go by once, at the rate of memory.
//
// A block of eight warps multiplies 128 · ROW_TILES rows of W. 128 columns at a time, a stage of shared memory takes 64
// kept values of each row (as they lie, 128 bytes), their metadata in the order of the tensor core's fragments, and the
// same columns of x; STAGES of them are under way. SPLITS blocks share the columns of the same rows. They are a cluster,
// and each adds up its part of the rows out of the shared memory of all, in the order of the splits, so that the bits
// are the same each time. Without clusters (compute capability 8.x) partial sums go through memory to add_splits.
//
// Set by whoever compiles it: BF16 (else fp16), ORDERED (whether the compiler knows ordered metadata, which Hopper needs
// to be fast), TOKEN_TILES (of 8), ROW_TILES (of 16, for each warp), STAGES, SPLITS, BLOCKS (of an SM), CLUSTERS.

#if BF16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif
#if ORDERED
#define MMA "mma.sp::ordered_metadata"
#else
#define MMA "mma.sp"
#endif

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

constexpr int WARPS = 8, THREADS = 32 * WARPS, TOKENS = 8 * TOKEN_TILES, ROWS = 16 * WARPS * ROW_TILES;
constexpr int VALUES_BYTES = ROWS * 128, METADATA_BYTES = ROWS * 16, X_BYTES = TOKENS * 256;
constexpr int STAGE_BYTES = VALUES_BYTES + METADATA_BYTES + X_BYTES;
constexpr int SUM_ROWS = ROWS + 4;  // padded, so that the fragments of a warp fall into 32 banks

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes, or as many zeros.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ __forceinline__ void copy8(u32 to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(from));
}
// Of a quad's four threads, those of the pair SELECTOR hold the metadata of this product.
template <int SELECTOR>
__device__ __forceinline__ void multiply(float (&sums)[4], const u32 (&a)[4], const u32 (&b)[4], u32 metadata) {
    asm volatile(MMA ".sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;\n"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
                   "r"(metadata), "n"(SELECTOR));
}
__device__ __forceinline__ float widened(u16 value) {
#if BF16
    return __uint_as_float((u32)value << 16);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
#endif
}
__device__ __forceinline__ u32 rounded(float low, float high) {
    u16 a, b;
    asm("cvt.rn." TYPE ".f32 %0, %1;" : "=h"(a) : "f"(low));
    asm("cvt.rn." TYPE ".f32 %0, %1;" : "=h"(b) : "f"(high));
    return a | ((u32)b << 16);
}
// Four neighbouring rows of one token, with their bias, to y.
__device__ __forceinline__ void write_rows(float4 sum, const u16* bias, u16* to, int row) {
    if (bias) {
        sum.x += widened(bias[row]), sum.y += widened(bias[row + 1]);
        sum.z += widened(bias[row + 2]), sum.w += widened(bias[row + 3]);
    }
    *(uint2*)to = make_uint2(rounded(sum.x, sum.y), rounded(sum.z, sum.w));
}

#if CLUSTERS
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
__device__ __forceinline__ float4 load_of_split(u32 address, int split) {
    u32 there;
    float4 value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(split));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w) : "r"(there));
    return value;
}
#endif

// values: kept values (N, K/2). metadata: two words a lane for each 16 rows and 128 columns. x: (tokens, K), rows x_row
// elements apart. y: (tokens, N). partials: (SPLITS, tokens, N) float32, without clusters.
extern "C" __global__ void
#if CLUSTERS && SPLITS > 1
__cluster_dims__(1, SPLITS, 1)
#endif
__launch_bounds__(THREADS, BLOCKS)
streamed_product(const u16* __restrict__ values, const uint2* __restrict__ metadata, const u16* __restrict__ x,
                 const u16* __restrict__ bias, u16* __restrict__ y, float* __restrict__ partials,
                 int N, int K, int tokens, int x_row, int has_bias) {
    extern __shared__ __align__(128) u8 memory[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, split = blockIdx.y;
    const int steps = (K + 127) / 128, first = (long long)steps * split / SPLITS;
    const int count = (long long)steps * (split + 1) / SPLITS - first;
    const int tile0 = (blockIdx.x * WARPS + warp) * ROW_TILES, tiles = N / 16;

    // What this thread copies of each step: a piece of a row in every fourth of its warp's rows, and of every 16th token.
    const u8* values_from[ROW_TILES];
    const uint2* metadata_from[ROW_TILES];
    const long long row_bytes = K;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
        const int tile = min(tile0 + i, tiles - 1);  // rows beyond the last are copied from others, and not written
        values_from[i] = (const u8*)values + (16ll * tile + (lane >> 3)) * row_bytes + (lane & 7) * 16 + first * 128ll;
        metadata_from[i] = metadata + ((long long)tile * steps + first) * 32 + lane;
    }
    const int token0 = threadIdx.x >> 4, piece = threadIdx.x & 15;
    const u16* x_from = x + (long long)token0 * x_row + first * 128ll + piece * 8;

    auto load = [&](int step) {
        if (step < count) {
            const u32 stage = shared_address(memory) + step % STAGES * STAGE_BYTES;
            const int columns = K - (first + step) * 128;
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int row = 4 * j + (lane >> 3);
                    copy16(stage + ((warp * ROW_TILES + i) * 16 + row) * 128 + (((lane & 7) ^ (row & 7)) << 4),
                           values_from[i] + 4 * j * row_bytes + step * 128ll, (lane & 7) * 16 < columns);
                }
                copy8(stage + VALUES_BYTES + (warp * ROW_TILES + i) * 256 + lane * 8, metadata_from[i] + step * 32ll);
            }
#pragma unroll
            for (int j = 0; j < (TOKENS + 15) / 16; j++) {
                const int token = token0 + 16 * j;
                if (TOKENS % 16 == 0 || token < TOKENS)
                    copy16(stage + VALUES_BYTES + METADATA_BYTES + token * 256 + ((piece ^ (token & 7)) << 4),
                           x_from + 16ll * j * x_row + step * 128ll, token < tokens && piece * 8 < columns);
            }
        }
        asm volatile("cp.async.commit_group;\n");
    };

    float sums[ROW_TILES][TOKEN_TILES][4] = {};
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) load(step);
    for (int step = 0; step < count; step++) {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(STAGES - 2));
        __syncthreads();
        load(step + STAGES - 1);
        const u8* stage = memory + step % STAGES * STAGE_BYTES;
        const u32 values_at = shared_address(stage), x_at = values_at + VALUES_BYTES + METADATA_BYTES;
        uint2 places[ROW_TILES];
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++)
            places[i] = *(const uint2*)(stage + VALUES_BYTES + (warp * ROW_TILES + i) * 256 + lane * 8);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 a[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++)
                load_matrices(a[i], values_at + ((warp * ROW_TILES + i) * 16 + (lane & 15)) * 128 +
                                        (((2 * j + (lane >> 4)) ^ (lane & 7)) << 4));
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++) {
                u32 b[4];
                load_matrices(b, x_at + (n * 8 + (lane & 7)) * 256 + (((4 * j + (lane >> 3)) ^ (lane & 7)) << 4));
#pragma unroll
                for (int i = 0; i < ROW_TILES; i++) {
                    const u32 word = j < 2 ? places[i].x : places[i].y;
                    if (j & 1) multiply<1>(sums[i][n], a[i], b, word);
                    else multiply<0>(sums[i][n], a[i], b, word);
                }
            }
        }
    }
    asm volatile("cp.async.wait_all;\n");
    __syncthreads();

    // The sums of this block, (token, row), where its stages were.
    float* mine = (float*)memory;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                mine[(n * 8 + (lane & 3) * 2 + (r & 1)) * SUM_ROWS + (warp * ROW_TILES + i) * 16 + (lane >> 2) +
                     (r >> 1) * 8] = sums[i][n][r];
    constexpr int QUADS = ROWS / 4;
    const int row0 = blockIdx.x * ROWS;
#if CLUSTERS && SPLITS > 1
    cluster_barrier();
    for (int item = threadIdx.x + THREADS * split; item < QUADS * tokens; item += THREADS * SPLITS) {
        const int token = item / QUADS, row = item % QUADS * 4;
        if (row0 + row >= N) continue;
        const u32 address = shared_address(mine + token * SUM_ROWS + row);
        float4 parts[SPLITS];
#pragma unroll
        for (int s = 0; s < SPLITS; s++) parts[s] = load_of_split(address, s);
        float4 sum = parts[0];
#pragma unroll
        for (int s = 1; s < SPLITS; s++)
            sum.x += parts[s].x, sum.y += parts[s].y, sum.z += parts[s].z, sum.w += parts[s].w;
        write_rows(sum, has_bias ? bias : nullptr, y + (long long)token * N + row0 + row, row0 + row);
    }
    cluster_barrier();  // nobody leaves while its memory is read
#else
    __syncthreads();
    for (int item = threadIdx.x; item < QUADS * tokens; item += THREADS) {
        const int token = item / QUADS, row = item % QUADS * 4;
        if (row0 + row >= N) continue;
        const float4 sum = *(const float4*)(mine + token * SUM_ROWS + row);
        const long long at = (long long)token * N + row0 + row;
        if (SPLITS == 1) write_rows(sum, has_bias ? bias : nullptr, y + at, row0 + row);
        else *(float4*)(partials + (long long)split * tokens * N + at) = sum;
    }
#endif
}

// Without clusters: y out of the splits' partial sums, four rows a thread.
extern "C" __global__ void add_splits(const float* __restrict__ partials, const u16* __restrict__ bias,
                                      u16* __restrict__ y, int N, int tokens, int has_bias) {
    const long long size = (long long)tokens * N, at = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    if (at >= size) return;
    float4 sum = *(const float4*)(partials + at);
    for (int s = 1; s < SPLITS; s++) {
        const float4 part = *(const float4*)(partials + s * size + at);
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    write_rows(sum, has_bias ? bias : nullptr, y + at, at % N);
}
