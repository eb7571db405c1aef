// grad += decay · w where a mask drops w, or grad = 0 there, in one pass over the memory.
//
// It stands behind wide.cu, whose numbers both are of. Set by whoever compiles it: ZERO, where w is not read. BITS, where
// the mask has 16 bits a 4 × 4 tile (make24.cu), which a thread then takes all rows of; else it has a byte each. FOURS,
// which a thread takes beside each other.

constexpr int ROWS = BITS ? 4 : 1;

struct __align__(FOURS * sizeof(Four)) Numbers {
    Four fours[FOURS];
};
#if BITS
typedef u16 Word;
#else
typedef u32 Word;
#endif
struct __align__(FOURS * sizeof(Word)) Kept {
    Word words[FOURS];
};

// grad, w: rows of so many Numbers. mask: what each of so many threads takes of it, in their order.
extern "C" __global__ void decay(Numbers* __restrict__ grad, const Numbers* __restrict__ w,
                                 const Kept* __restrict__ mask, int across, int threads, int decay_bits) {
    const u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const u32 first = thread / across * ROWS * across + thread % across;
    const Kept kept = mask[thread];
    Numbers sums[ROWS], weights[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) sums[i] = grad[first + i * across], weights[i] = w[first + i * across];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            float sum[4], weight[4];
            widen(sums[i].fours[k], sum);
            widen(weights[i].fours[k], weight);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const bool stays = BITS ? kept.words[k] >> (4 * i + j) & 1 : kept.words[k] >> 8 * j & 255;
                const float more = __fadd_rn(sum[j], __fmul_rn(weight[j], __int_as_float(decay_bits)));
                sum[j] = stays ? sum[j] : ZERO ? 0 : more;
            }
            sums[i].fours[k] = narrowed(sum);
        }
        grad[first + i * across] = sums[i];
    }
}
