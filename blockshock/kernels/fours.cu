// Of each four of a row: which two stay, or what is left of them above a threshold; in one pass over the memory.
//
// It stands behind wide.cu. Set by whoever compiles it: SOFT (else a mask), SIGNED (by x, else by its size).

// Each less the second smallest size, toward zero, which has no sign; NaN where one of the four is.
__device__ __forceinline__ void soften(float (&x)[4]) {
    float sizes[4];
#pragma unroll
    for (int i = 0; i < 4; i++) sizes[i] = fabsf(x[i]);
    const float low = fminf(sizes[0], sizes[1]), high = fmaxf(sizes[0], sizes[1]);
    const float other_low = fminf(sizes[2], sizes[3]), other_high = fmaxf(sizes[2], sizes[3]);
    const float second = fminf(fmaxf(low, other_low), fminf(high, other_high));
    const bool is_nan = (x[0] != x[0]) | (x[1] != x[1]) | (x[2] != x[2]) | (x[3] != x[3]);
#pragma unroll
    for (int i = 0; i < 4; i++)
        x[i] = is_nan ? __int_as_float(0x7fffffff) : x[i] - copysignf(fminf(sizes[i], second), x[i]) + 0.0f;
}

extern "C" __global__ void fours(const Four* __restrict__ x, void* __restrict__ found, int groups) {
    const int group = blockIdx.x * blockDim.x + threadIdx.x;
    if (group >= groups) return;
    float four[4];
    widen(x[group], four);
#if SOFT
    soften(four);
    ((Four*)found)[group] = narrowed(four);
#else
    float keys[4];
#pragma unroll
    for (int i = 0; i < 4; i++) keys[i] = key_of(four[i], SIGNED);
    ((u32*)found)[group] = two_largest(keys) * 0x204081 & 0x1010101;  // a byte each
#endif
}
