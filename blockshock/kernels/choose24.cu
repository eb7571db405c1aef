// Which two of four numbers stay, and as what: by size, by a mask, less a threshold, or by chance; and the best of all
// masks of a 4 × 4 tile.
//
// Set by whoever compiles it: BF16 (else fp16); ALONG (ROWS, COLUMNS, or TILES: both, of one mask); CHOICE (LARGEST,
// LARGEST_SIZE, GIVEN: a mask of tiles, SOFT: the largest sizes less the third, MVUE); EXACT (sums of tiles in float64);
// ACTIVATION (NONE, RELU, RELU2, GELU) and whether it comes FIRST, before the choice.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

enum { ROWS, COLUMNS, TILES };
enum { LARGEST, LARGEST_SIZE, GIVEN, SOFT, MVUE };
enum { NONE, RELU, RELU2, GELU };

constexpr float MOST = BF16 ? 3.3895313892515355e38f : 65504.f;  // of the dtype
constexpr int SIDE = 64, GROUPS = 16, THREADS = 256;
constexpr bool TO_ROWS = ALONG != COLUMNS, TO_COLUMNS = ALONG != ROWS;

__device__ __forceinline__ float number(u16 bits) {
#if BF16
    return __uint_as_float((u32)bits << 16);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#endif
}
__device__ __forceinline__ u16 rounded(float value) {
    u16 bits;
#if BF16
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    return bits;
}

__device__ __forceinline__ u16 activated(u16 bits) {
    const float x = number(bits);
    switch (ACTIVATION) {
        case RELU: return x <= 0 ? 0 : bits;  // NaN stays
        case RELU2: return rounded(x <= 0 ? 0 : x * x);
        case GELU: return rounded(x * 0.5f * (1 + erff(x * 0.70710678118654752f)));
        default: return bits;
    }
}

// By which numbers are compared.
__device__ __forceinline__ float key(u16 bits) {
    const float x = number(bits), size = CHOICE == LARGEST ? x : fabsf(x);
    return x != x ? __int_as_float(0x7f800000) : size;
}

// Four bits: the places of the two that stay, the first one's in the lower two.
__device__ __forceinline__ u32 places_of(u32 kept) {
    const u32 first = kept & 1 ? 0 : kept & 2 ? 1 : 2, second = kept & 8 ? 3 : kept & 4 ? 2 : 1;
    return first | second << 2;
}

// The two largest, the first ones among equals, as four bits.
__device__ __forceinline__ u32 two_largest(const float (&keys)[4]) {
    u32 kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int before = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (j != i) before += j < i ? keys[j] >= keys[i] : keys[j] > keys[i];
        kept |= (before < 2) << i;
    }
    return kept;
}

// The two that stay of a row or a column, and their places.
struct Pair {
    u32 values, places;
};

__device__ __forceinline__ Pair pair_of(const u16 (&four)[4], u32 kept) {
    const u32 places = places_of(kept), bytes = 0x1010 + (places & 3) * 0x22 + (places >> 2) * 0x2200;
    return {__byte_perm(four[0] | (u32)four[1] << 16, four[2] | (u32)four[3] << 16, bytes), places};
}

__device__ __forceinline__ u16 with_sign(float size, u16 of) { return size == 0 ? 0 : rounded(size) | (of & 0x8000); }
constexpr u32 TWO_NANS = 0x7fff7fff;

// S-STE: sizes less the third largest, times a scale.
__device__ __forceinline__ Pair soft(const u16 (&four)[4], float scale) {
    float keys[4];
#pragma unroll
    for (int i = 0; i < 4; i++) keys[i] = key(four[i]);
    const float low = fminf(keys[0], keys[1]), high = fmaxf(keys[0], keys[1]);
    const float other_low = fminf(keys[2], keys[3]), other_high = fmaxf(keys[2], keys[3]);
    const float third = fminf(fmaxf(low, other_low), fminf(high, other_high));
    u16 less[4];
#pragma unroll
    for (int i = 0; i < 4; i++) less[i] = with_sign(number(rounded(keys[i] - fminf(third, keys[i]))) * scale, four[i]);
    Pair pair = pair_of(less, two_largest(keys));
    float all = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) all += fabsf(number(four[i]));
    if (all != all) pair.values = TWO_NANS;
    return pair;
}

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
__device__ __forceinline__ Pair estimate(const u16 (&four)[4], float random) {
    float sizes[4];
#pragma unroll
    for (int i = 0; i < 4; i++) sizes[i] = fabsf(number(four[i]));
    const float high = fmaxf(sizes[0], sizes[1]), other_high = fmaxf(sizes[2], sizes[3]);
    const float largest = fmaxf(high, other_high);
    const float rest = (fminf(sizes[0], sizes[1]) + fminf(sizes[2], sizes[3])) + fminf(high, other_high);
    const bool dominated = largest > rest;
    const float value = dominated ? rest : 0.5f * rest + 0.5f * largest;
    u32 sure = 0;
    float ends[4], end = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const bool is_sure = dominated && sizes[i] == largest;
        sure |= (u32)is_sure << i;
        ends[i] = end += is_sure ? 0 : sizes[i];
    }
    const float at = random * value, further = at + value;
    const u32 one = 1u << ((at >= ends[0]) + (at >= ends[1]) + (at >= ends[2]));
    const u32 other = 1u << ((further >= ends[0]) + (further >= ends[1]) + (further >= ends[2]));
    const u32 drawn = dominated ? one : one | other, size = rounded(value);
    u16 estimates[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const bool counts = drawn >> i & 1 && four[i] & 0x7fff;
        estimates[i] = sure >> i & 1 ? four[i] : counts ? size | (four[i] & 0x8000) : 0;
    }
    u32 kept = drawn | sure;
    kept |= (kept & (kept - 1)) == 0 ? ~kept & (kept + 1) : 0;  // a zero, where one number is all that there is
    Pair pair = pair_of(estimates, kept);
    const float all = (sizes[0] + sizes[1]) + (sizes[2] + sizes[3]);
    if (all != all) pair.values = TWO_NANS;
    return pair;
}

#if EXACT
typedef double Sum;
#else
typedef float Sum;
#endif

// The pairs of columns that a row of a tile may keep: 01 02 03 12 13 23. That of the others is number 5 − pair.
__device__ constexpr int pair_number(int one, int two) {
    return one * two == 0 ? one + two - 1 : one + two;
}

// The best so far, and the pairs of its first three rows as a number of base six: by that equals are told apart.
struct Best {
    Sum sum;
    int pairs;

    __device__ __forceinline__ void meet(Sum other, int others) {  // that come later in this order
        pairs = other > sum ? others : pairs;
        sum = other > sum ? other : sum;
    }
};

// Of all 90 masks with two in each row and column the one whose sum is largest, the first among equals, as 16 bits.
// Rows 0 and 1 keep the same columns (6 masks), or none in common (36), or share one, a, and leave one out, d (48).
__device__ __forceinline__ u32 best_tile(const u16 (&tile)[4][4]) {
    Sum sums[4][6];
#pragma unroll
    for (int row = 0; row < 4; row++) {
        Sum keys[4];
#pragma unroll
        for (int column = 0; column < 4; column++) keys[column] = fmaxf(-MOST, fminf(key(tile[row][column]), MOST));
#pragma unroll
        for (int one = 0; one < 4; one++)
#pragma unroll
            for (int two = one + 1; two < 4; two++) sums[row][pair_number(one, two)] = keys[one] + keys[two];
    }
    Best upper = {sums[0][0] + sums[1][5], 30}, lower = {sums[2][0] + sums[3][5], 0};
#pragma unroll
    for (int pair = 1; pair < 6; pair++) {
        upper.meet(sums[0][pair] + sums[1][5 - pair], pair * 36 + (5 - pair) * 6);
        lower.meet(sums[2][pair] + sums[3][5 - pair], pair);
    }
    Best best = {upper.sum + lower.sum, upper.pairs + lower.pairs};
    auto meet = [&](Sum sum, int pairs) {
        const bool better = (sum > best.sum) | ((sum == best.sum) & (pairs < best.pairs));
        best.sum = better ? sum : best.sum;
        best.pairs = better ? pairs : best.pairs;
    };
#pragma unroll
    for (int pair = 0; pair < 6; pair++)
        meet((sums[0][pair] + sums[1][pair]) + (sums[2][5 - pair] + sums[3][5 - pair]), pair * 42 + 5 - pair);
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int d = 0; d < 4; d++) {
            if (a == d) continue;
            const int b = a != 0 && d != 0 ? 0 : a != 1 && d != 1 ? 1 : 2, c = 6 - a - d - b;
            const int ab = pair_number(a, b), ac = pair_number(a, c), db = pair_number(d, b), dc = pair_number(d, c);
            const int first = ab < ac ? ab : ac, second = ab + ac - first;
            const int third = db < dc ? db : dc, last = db + dc - third;
            Best above = {sums[0][first] + sums[1][second], first * 36 + second * 6};
            above.meet(sums[0][second] + sums[1][first], second * 36 + first * 6);
            Best below = {sums[2][third] + sums[3][last], third};
            below.meet(sums[2][last] + sums[3][third], last);
            meet(above.sum + below.sum, above.pairs + below.pairs);
        }
    const u32 bits = 0xCA6953, upper_pairs = best.pairs / 6;  // bits of the six pairs
    const u32 one = bits >> 4 * (upper_pairs / 6) & 15, two = bits >> 4 * (upper_pairs % 6) & 15;
    const u32 three = bits >> 4 * (best.pairs % 6) & 15;
    const u32 twice = (one & two) | (one & three) | (two & three);
    return one | two << 4 | three << 8 | (~twice & 15) << 12;
}
