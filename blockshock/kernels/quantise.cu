// A matrix in eight bits with a scale a row, in one launch: some threads find the largest size of their row, and store
// the row's numbers over the scale that this gives.
//
// It stands behind wide.cu. Set by whoever compiles it: FP32, BF16 (neither: fp16) for x; FP8 (e4m3, else int8); ORDER, in
// which numbers are stored, as formats/orders.py says; ROW_THREADS, of a row: 32, 64, … 512.

#define ROWS 0
#define CROSSED 1
#define TILES 2

constexpr int BLOCK_ROWS = ROW_THREADS == 32 ? 8 : 1, THREADS = BLOCK_ROWS * ROW_THREADS;
constexpr int BLOCKS = FP32 ? 1 : 1536 / THREADS;  // of an SM at least: threads of few registers hide each other's waits
constexpr int HELD = 8, CHUNK = HELD * ROW_THREADS;  // fours of a row that a thread has in registers, and all its threads
constexpr int TOGETHER = ORDER == CROSSED ? 2 : 1;   // fours beside each other that a thread takes
constexpr float TINY = 1.17549435e-38f;              // the least scale

// What numbers of a row are divided by. The row shares one reciprocal, whose products are corrected; and no quotient takes a
// way of its own, as that of a zero does in __fdiv_rn. Of what is stored the bits are those of a division: only quotients
// so small that they are stored as zeros may differ from one.
struct Divisor {
    float power, scale, reciprocal;  // power, of two: by it, what corrects is computed from no subnormals

    __device__ __forceinline__ explicit Divisor(float of) : power(of < 1 ? 0x1p64f : 1), scale(of * power) {
        reciprocal = __frcp_rn(scale);
        if (reciprocal == 0) scale = 0;  // of infinity: finite numbers over it are 0, and itself is NaN
    }
    __device__ __forceinline__ float under(float x) const {
        x *= power;
        const float near = __fmul_rn(x, reciprocal);
        const float quotient = __fmaf_rn(__fmaf_rn(-near, scale, x), reciprocal, near);
        return __uint_as_float(__float_as_uint(quotient) | __float_as_uint(x) & 0x80000000);  // -0 too
    }
};

// Four numbers, the first one lowest.
__device__ __forceinline__ u32 stored(const Four& four, const Divisor& divisor) {
    float x[4], q[4];
    widen(four, x);
#pragma unroll
    for (int i = 0; i < 4; i++) q[i] = divisor.under(x[i]);
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

// Where a thread's fours are in a chunk.
__device__ __forceinline__ int place(int thread, int h) {
    return (h / TOGETHER * ROW_THREADS + thread) * TOGETHER + h % TOGETHER;
}

// Those of a chunk that has so many fours, or more than all, or none.
__device__ __forceinline__ void read(const Four* __restrict__ chunk, int fours, int thread, Four (&held)[HELD]) {
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (place(thread, h) >= fours) break;
        held[h] = chunk[place(thread, h)];
    }
}

// x: (R, K), K a multiple of four, CROSSED of eight, rows that lie densely, so many fours apart. A block has BLOCK_ROWS
// rows. reciprocal: bits of one over the largest number that is stored.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
quantise(const Four* __restrict__ x, u32* __restrict__ q, float* __restrict__ scales, int R, int K, int row_fours,
         int reciprocal) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");  // a product begins with W, and waits until this has ended
#endif
    const int thread = threadIdx.x % ROW_THREADS, fours = K / 4;
    const u32 r = blockIdx.x * BLOCK_ROWS + threadIdx.x / ROW_THREADS;
    if (r >= R) return;  // a whole warp, of a block whose warps wait for none
    const Four* row = x + (long long)r * row_fours;
#if ORDER == TILES
    const int all = (K + 255) / 256 * 64, row_of_tile = r % 256;  // what is beyond K is zero
    u32* to = q + (long long)(r / 256) * 256 * all + row_of_tile * 32;
#else
    const int all = fours;
    u32* to = q + (long long)r * fours;
#endif
    Four held[HELD];
    u32 most = 0;  // as bits: of sizes these are in order, and NaN is above all
    int first = 0;
    for (;; first += CHUNK) {
        read(row + first, fours - first, thread, held);
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            if (first + place(thread, h) >= fours) break;
            float four[4];
            widen(held[h], four);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 size = __float_as_uint(four[j]) & 0x7fffffff;
                most = size > most ? size : most;
            }
        }
        if (first + CHUNK >= all) break;
    }
    most = __reduce_max_sync(0xffffffff, most);
#if ROW_THREADS > 32
    __shared__ u32 of_warps[ROW_THREADS / 32];
    if (thread % 32 == 0) of_warps[thread / 32] = most;
    __syncthreads();
    most = __reduce_max_sync(0xffffffff, of_warps[thread % (ROW_THREADS / 32)]);
#endif
    float scale = __uint_as_float(most) * __int_as_float(reciprocal);
    scale = scale < TINY ? TINY : scale;  // NaN stays
    if (thread == 0) scales[r] = scale;
    const Divisor divisor(scale);
    for (;; first -= CHUNK) {  // back from the last chunk, which is still held
#pragma unroll
        for (int h = 0; h < HELD; h += TOGETHER) {
            const int i = first + place(thread, h);
            if (i >= all) break;
#if ORDER == TILES
            const u32 numbers = i < fours ? stored(held[h], divisor) : 0;
            to[(long long)(i / 32) * (256 * 32) + (i % 32 ^ row_of_tile % 8 * 4)] = numbers;
#elif ORDER == CROSSED
            const u32 one = stored(held[h], divisor), two = stored(held[h + 1], divisor);
            *(uint2*)(to + i) = make_uint2(__byte_perm(one, two, 0x5410), __byte_perm(one, two, 0x7632));
#else
            to[i] = stored(held[h], divisor);
#endif
        }
        if (first == 0) break;
        read(row + first - CHUNK, fours, thread, held);
    }
}
