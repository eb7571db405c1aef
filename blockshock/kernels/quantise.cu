// A matrix in eight bits with a scale a row, in one launch: a block finds the largest size of its row, and stores the
// row's numbers over the scale that this gives.
//
// It stands behind wide.cu. Set by whoever compiles it: FP32, BF16 (neither: fp16) for x; FP8 (e4m3, else int8); ORDER, in
// which numbers are stored, as formats/orders.py says.

#define ROWS 0
#define CROSSED 1
#define TILES 2

constexpr int THREADS = 512;
constexpr float TINY = 1.17549435e-38f;  // the least scale

// Four numbers, the first one lowest.
__device__ __forceinline__ u32 stored(const float (&x)[4], float scale) {
    float q[4];
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = __fdiv_rn(x[i], scale);
#if FP8
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(q[1]), "f"(q[0]));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(q[3]), "f"(q[2]));
    return low | (u32)high << 16;
#else
    u32 found = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) found |= (u32)(__float2int_rn(q[i]) & 255) << 8 * i;
    return found;
#endif
}

// x: (R, K), K a multiple of four, CROSSED of eight, rows that lie densely, so many fours apart. One block a row. reciprocal: bits of one
// over the largest number that is stored.
extern "C" __global__ void __launch_bounds__(THREADS)
quantise(const Four* __restrict__ x, u32* __restrict__ q, float* __restrict__ scales, int K, int row_fours,
         int reciprocal) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");  // a product begins with W, and waits until this has ended
#endif
    __shared__ u32 of_warps[THREADS / 32];
    const Four* row = x + (long long)blockIdx.x * row_fours;
    const int fours = K / 4;
    u32 most = 0;  // as bits: of sizes these are in order, and NaN is above all
#pragma unroll 4
    for (int i = threadIdx.x; i < fours; i += THREADS) {
        float four[4];
        widen(row[i], four);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 size = __float_as_uint(four[j]) & 0x7fffffff;
            most = size > most ? size : most;
        }
    }
    most = __reduce_max_sync(0xffffffff, most);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = most;
    __syncthreads();
    most = __reduce_max_sync(0xffffffff, of_warps[threadIdx.x % (THREADS / 32)]);
    float scale = __uint_as_float(most) * __int_as_float(reciprocal);
    scale = scale < TINY ? TINY : scale;  // NaN stays
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
#if ORDER == TILES
    const int all = (K + 255) / 256 * 64, row_of_tile = blockIdx.x % 256;  // what is beyond K is zero
    u32* tiles = q + (long long)(blockIdx.x / 256) * 256 * all + row_of_tile * 32;
#pragma unroll 4
    for (int i = threadIdx.x; i < all; i += THREADS) {
        u32 numbers = 0;
        if (i < fours) {
            float four[4];
            widen(row[i], four);
            numbers = stored(four, scale);
        }
        tiles[(long long)(i / 32) * (256 * 32) + (i % 32 ^ row_of_tile % 8 * 4)] = numbers;
    }
#elif ORDER == CROSSED
    u32* to = q + (long long)blockIdx.x * fours;
#pragma unroll 2
    for (int i = 2 * threadIdx.x; i < fours; i += 2 * THREADS) {
        float four[4], next[4];
        widen(row[i], four), widen(row[i + 1], next);
        const u32 one = stored(four, scale), two = stored(next, scale);
        *(uint2*)(to + i) = make_uint2(__byte_perm(one, two, 0x5410), __byte_perm(one, two, 0x7632));
    }
#else
    u32* to = q + (long long)blockIdx.x * fours;
#pragma unroll 4
    for (int i = threadIdx.x; i < fours; i += THREADS) {
        float four[4];
        widen(row[i], four);
        to[i] = stored(four, scale);
    }
#endif
}
