// Of each four of a row: which two stay, or what is left of them above a threshold; in one pass over the memory.
//
// It stands behind wide.cu. Set by whoever compiles it: SOFT (else a mask), SIGNED (by x, else by its size), BITS: the
// mask has 16 bits a 4 × 4 tile (make24.cu), which a thread then takes all rows of; else it has a byte each.

constexpr int ROWS = BITS ? 4 : 1;

// x: rows of so many fours. found: what each of so many threads finds, in their order.
extern "C" __global__ void fours(const Four* __restrict__ x, void* __restrict__ found, int across, int threads) {
    const u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const u32 first = thread / across * ROWS * across + thread % across;
#if SOFT
    float four[4];
    widen(x[first], four);
    soften(four);
    ((Four*)found)[thread] = narrowed(four);
#else
    u32 kept = 0;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float keys[4];
        widen(x[first + i * across], keys);
#pragma unroll
        for (int j = 0; j < 4; j++) keys[j] = key_of(keys[j], SIGNED);
        kept |= two_largest(keys) << 4 * i;
    }
#if BITS
    ((u16*)found)[thread] = (u16)kept;
#else
    ((u32*)found)[thread] = kept * 0x204081 & 0x1010101;  // a byte each
#endif
#endif
}
