// Which two of four numbers stay, and as what: by size, by a mask, less a threshold, or by chance. Tiles: tile24.cu.
//
// It stands behind wide.cu and pairs24.cu. Set by whoever compiles it: ALONG (ROWS, COLUMNS, TILES: both, of one mask, or
// ROWS_FIRST: both, columns of what stays of rows); CHOICE (LARGEST, LARGEST_SIZE, GIVEN: a mask, SOFT: the largest sizes less the third,
// MVUE); EXACT (sums of tiles in float64); ACTIVATION (NONE, RELU, RELU2, GELU) and whether it comes FIRST, before the
// choice, or BACK: of gradients. Of columns: SUMS, COUNTS of what is not zero, and which OTHERS are wanted dense.

typedef unsigned long long u64;

enum { ROWS, COLUMNS, TILES, ROWS_FIRST };
enum { LARGEST, LARGEST_SIZE, GIVEN, SOFT, MVUE };
enum { NONE, RELU, RELU2, GELU };

constexpr float MOST = BF16 ? 3.3895313892515355e38f : 65504.f;  // of the dtype
constexpr bool TO_ROWS = ALONG != COLUMNS, TO_COLUMNS = ALONG != ROWS, MASKED = ALONG == TILES || ALONG == ROWS_FIRST;

__device__ __forceinline__ float two_to_the(float power) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(power));
    return value;
}
__device__ __forceinline__ float one_over(float x) {
    float value;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

// Of a standard normal number: how often it is beyond |x|, and its density at x times √(2π). To 1e-7 (Abramowitz and
// Stegun, Handbook of Mathematical Functions, 7.1.26); unlike 1 + erf(x), nothing cancels far below zero.
__device__ __forceinline__ float beyond(float x, float& density) {
    const float t = one_over(1 + 0.23164189f * fabsf(x));
    density = two_to_the(x * (x * -0.72134752f));
    return density * (t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f)))));
}

__device__ __forceinline__ float gelu(float x) {
    float density;
    return fmaxf(x, 0) - fabsf(x) * beyond(x, density);
}
__device__ __forceinline__ float gelu_slope(float x) {
    float density;
    const float tail = beyond(x, density), below = x < 0 ? tail : 1 - tail;
    return below + x * density * 0.39894228f;
}

// The activation function of two numbers.
__device__ __forceinline__ u32 activated(u32 x) {
    switch (ACTIVATION) {
        case RELU: return above_zero(x);
        case RELU2: return times(above_zero(x), above_zero(x));
        case GELU: return both(gelu(low(x)), gelu(high(x)));
        default: return x;
    }
}

// The gradient of z from that of the function of z.
__device__ __forceinline__ u32 through(u32 gradient, u32 z) {
    const u32 above = above_zero(z);
    switch (ACTIVATION) {
        case RELU: return gradient & where_above(above);
        case RELU2: return times(fused(above, ONES, above), gradient) & where_above(above);
        case GELU: return both(low(gradient) * gelu_slope(low(z)), high(gradient) * gelu_slope(high(z)));
        default: return gradient;
    }
}

// The two that stay of a row or a column, and their places, four bits: the first one's in the lower two.
struct Pair {
    u32 values, places;
};

// Two numbers beside each other, of four.
__device__ __forceinline__ Pair picked(uint2 four, u32 places) {
    const u32 bytes = 0x1010 + (places & 3) * 0x22 + (places >> 2) * 0x2200;
    return {__byte_perm(four.x, four.y, bytes), places};
}

constexpr u32 TWO_NANS = 0x7fff7fff;

// Four uniform numbers from 0 to 1, without 1, for the groups of a tile: Philox of ten rounds (Salmon et al., SC 2011).
__device__ __forceinline__ void uniform(float (&random)[4], u64 tile, u32 seed, u32 offset) {
    u32 words[4] = {(u32)tile, (u32)(tile >> 32), offset, 0}, key = seed, other_key = 0x5eed24u;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 high = __umulhi(0xD2511F53u, words[0]), low = 0xD2511F53u * words[0];
        const u32 other_high = __umulhi(0xCD9E8D57u, words[2]), other_low = 0xCD9E8D57u * words[2];
        words[0] = other_high ^ words[1] ^ key, words[1] = other_low;
        words[2] = high ^ words[3] ^ other_key, words[3] = low;
        key += 0x9E3779B9u, other_key += 0xBB67AE85u;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) random[i] = (words[i] >> 8) * 0x1p-24f;
}

// The unbiased estimator of the least variance (Chmiel et al., arXiv 2203.10991). Where no size is above the sum of the
// others, two stay as half the sum each: where a random number falls in the sum, and half the sum further on.
// Otherwise the largest stays as it is, and one of the others as the sum of these.
__device__ __forceinline__ Pair estimate(uint2 four, float random) {
    const float sizes[4] = {fabsf(low(four.x)), fabsf(high(four.x)), fabsf(low(four.y)), fabsf(high(four.y))};
    const float one_high = fmaxf(sizes[0], sizes[1]), other_high = fmaxf(sizes[2], sizes[3]);
    const float largest = fmaxf(one_high, other_high);
    const float rest = (fminf(sizes[0], sizes[1]) + fminf(sizes[2], sizes[3])) + fminf(one_high, other_high);
    const bool dominated = largest > rest;
    const float value = dominated ? rest : 0.5f * rest + 0.5f * largest, above = dominated ? rest : infinite();
    float ends[4], end = 0;  // of what is drawn by chance: the largest is not, where it is above the others' sum
    u32 one = 0, other = 0, sure = 4;
    const float at = random * value, further = at + value;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sure = sizes[i] > above ? i : sure;
        ends[i] = end += sizes[i] > above ? 0 : sizes[i];
    }
#pragma unroll
    for (int i = 0; i < 3; i++) one += at >= ends[i], other += further >= ends[i];
    other = dominated ? sure : other;
    // Twice the same, by rounding or of zeros: one stays, and a zero beside it.
    const bool same = one == other;
    const u32 first = same ? min(one, 2u) : min(one, other), second = same ? first + 1 : max(one, other);
    Pair pair = picked(four, first | second << 2);
    const u32 size = rounded(value);
    u32 bottom = pair.values & 0xffff, top = pair.values >> 16;
    bottom = first == sure ? bottom : (bottom & 0x7fff) == 0 || (same && first != one) ? 0 : size | (bottom & 0x8000);
    top = second == sure ? top : (top & 0x7fff) == 0 || (same && second != one) ? 0 : size | (top & 0x8000);
    pair.values = bottom | top << 16;
    if (!(ends[3] < infinite())) pair.values = TWO_NANS;
    return pair;
}
