// Of each four of a row: which two stay, or what is left of them above a threshold; in one pass over the memory.
//
// It stands behind wide.cu. Set by whoever compiles it: SOFT (else a mask), SIGNED (by x, else by its size).

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
