// Two of each four numbers of a matrix, chosen and packed as cuSPARSELt has them, in one pass over the memory.
//
// A block takes 64 × 64 numbers of x (R, C), a thread one 4 × 4 tile of them. It applies the activation function,
// chooses, and has the kept values of its four rows and of its four columns, two each, and of each the places of both in
// four bits. Rows go straight to memory; columns, and all places, through shared memory, so that what lies side by side
// is written side by side.
//
// Of a packing of (R, C): kept values (R, C/2), then 512 bytes of places for each 64 × 64 numbers, row of blocks by row.
// In these the four bits of row r and group g are number (r3 g2 g0 g1 r0 r1 r2 r4 r5 g3, lowest bit first).
//
// Set by whoever compiles it: BF16 (else fp16); ALONG (ROWS, COLUMNS, or TILES: both, of one mask); CHOICE (LARGEST,
// LARGEST_SIZE, GIVEN: a mask of tiles, SOFT: the largest sizes less the third, MVUE); ACTIVATION (NONE, RELU, RELU2,
// GELU) and whether it comes FIRST, before the choice.

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
    const u32 places = places_of(kept), first = 2 * (places & 3), second = 2 * (places >> 2);
    const u32 bytes = first | (first + 1) << 4 | second << 8 | (second + 1) << 12;
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
    const float all = (fabsf(number(four[0])) + fabsf(number(four[1]))) + (fabsf(number(four[2])) + fabsf(number(four[3])));
    if (all != all) pair.values = TWO_NANS;
    return pair;
}

// A uniform number from 0 to 1, without 1, of a group: Philox of ten rounds (Salmon et al., SC 2011).
__device__ __forceinline__ float uniform(u64 group, u32 seed, u32 offset) {
    u32 a = (u32)group, b = (u32)(group >> 32), c = offset, d = 0, k = seed, l = 0x5eed24u;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 x = __umulhi(0xD2511F53u, a), y = 0xD2511F53u * a, z = __umulhi(0xCD9E8D57u, c), w = 0xCD9E8D57u * c;
        a = z ^ b ^ k, b = w, c = x ^ d ^ l, d = y;
        k += 0x9E3779B9u, l += 0xBB67AE85u;
    }
    return (a >> 8) * 0x1p-24f;
}

// The unbiased estimator of the least variance (Chmiel et al., arXiv 2203.10991). Where no size is above the sum of the
// others, two stay as half the sum each: where a random number falls in the sum, and half the sum further on.
// Otherwise the largest stays as it is, and one of the others as the sum of these.
__device__ __forceinline__ Pair estimate(const u16 (&four)[4], float random) {
    float sizes[4];
    int largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sizes[i] = fabsf(number(four[i]));
        if (sizes[i] > sizes[largest]) largest = i;
    }
    float rest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) rest += i == largest ? 0 : sizes[i];
    const bool dominated = sizes[largest] > rest;
    const float value = dominated ? rest : 0.5f * rest + 0.5f * sizes[largest], at = random * value;
    u32 kept = dominated ? 1u << largest : 0;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (dominated && i == largest) continue;
        const float next = sum + sizes[i];
        const bool one = at >= sum && at < next, other = !dominated && at + value >= sum && at + value < next;
        kept |= (one | other) << i;
        sum = next;
    }
    // Where the sum ends a rounding too early the last stay; of fewer than two that are not zero, zeros with them.
#pragma unroll
    for (int i = 7; i >= 0; i--)
        if (__popc(kept) < 2 && (i < 4 || sizes[i & 3] > 0)) kept |= 1u << (i & 3);
    u16 estimates[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        estimates[i] = dominated && i == largest ? four[i] : sizes[i] > 0 ? with_sign(value, four[i]) : 0;
    Pair pair = pair_of(estimates, kept);
    if (value != value) pair.values = TWO_NANS;
    return pair;
}

// The columns that a row of a tile keeps, of six.
__device__ constexpr u32 pair_bits(int pair) {
    return pair == 0 ? 3 : pair == 1 ? 5 : pair == 2 ? 9 : pair == 3 ? 6 : pair == 4 ? 10 : 12;
}
__device__ constexpr int first_of(int pair) { return pair < 3 ? 0 : pair < 5 ? 1 : 2; }
__device__ constexpr int second_of(int pair) { return pair < 3 ? pair + 1 : pair < 5 ? pair - 1 : 3; }
// The columns that the last row must keep where three rows keep these; none where a column is kept three times or never.
__device__ constexpr u32 last_bits(int one, int two, int three) {
    const u32 a = pair_bits(one), b = pair_bits(two), c = pair_bits(three);
    const u32 never = ~(a | b | c) & 15, thrice = a & b & c, twice = (a & b) | (a & c) | (b & c);
    return never | thrice ? 0 : ~twice & 15;
}
__device__ constexpr int pair_with(u32 bits) {
    return bits == 3 ? 0 : bits == 5 ? 1 : bits == 9 ? 2 : bits == 6 ? 3 : bits == 10 ? 4 : 5;
}

// Of all 90 masks with two in each row and column the one whose sum is largest, the first among equals, as 16 bits.
__device__ __forceinline__ u32 best_tile(const u16 (&tile)[4][4]) {
    double sums[4][6];
#pragma unroll
    for (int row = 0; row < 4; row++) {
        double keys[4];
#pragma unroll
        for (int column = 0; column < 4; column++) keys[column] = fmaxf(-MOST, fminf(key(tile[row][column]), MOST));
#pragma unroll
        for (int pair = 0; pair < 6; pair++) sums[row][pair] = keys[first_of(pair)] + keys[second_of(pair)];
    }
    double best = -1e300;
    u32 kept = 0;
#pragma unroll
    for (int index = 0; index < 216; index++) {
        const int one = index / 36, two = index / 6 % 6, three = index % 6;
        const u32 last = last_bits(one, two, three);
        if (last == 0) continue;
        const double sum = (sums[0][one] + sums[1][two]) + (sums[2][three] + sums[3][pair_with(last)]);
        kept = sum > best ? pair_bits(one) | pair_bits(two) << 4 | pair_bits(three) << 8 | last << 12 : kept;
        best = sum > best ? sum : best;
    }
    return kept;
}

// Eight places of a block in the order in which they lie in memory.
__device__ __forceinline__ u32 word_of(const u8 (&places)[SIDE][GROUPS + 4], int index) {
    const int word = index >> 1, high = index & 1;
    u32 found = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = (word & 7) | (i & 1) << 3 | (word >> 3 & 3) << 4;
        const int group = (i >> 2 & 1) | high << 1 | (i >> 1 & 1) << 2 | (word >> 5) << 3;
        found |= (u32)places[row][group] << 4 * i;
    }
    return found;
}

// x: (R, C), rows x_row elements apart. rows, columns: packings of x and of xᵀ. mask: (R/4, C/4), 16 bits a tile, row by
// row; read if it is GIVEN, else written if it is of TILES. scale: bits of a float32. seed: two words, of MVUE.
extern "C" __global__ void __launch_bounds__(THREADS)
make24(const u16* __restrict__ x, u16* __restrict__ rows, u16* __restrict__ columns, u16* __restrict__ mask,
       const u32* __restrict__ seed, int R, int C, int x_row, int scale_bits) {
    __shared__ u32 turned[SIDE][GROUPS + 1];
    __shared__ u8 row_places[SIDE][GROUPS + 4], column_places[SIDE][GROUPS + 4];
    const int t = threadIdx.x / GROUPS, u = threadIdx.x % GROUPS;
    const int block_row = blockIdx.y, block_column = blockIdx.x;
    const long long row0 = (long long)block_row * SIDE + 4 * t, column0 = (long long)block_column * SIDE + 4 * u;
    const float scale = __int_as_float(scale_bits);

    u16 tile[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint2 four = *(const uint2*)(x + (row0 + i) * x_row + column0);
        tile[i][0] = (u16)four.x, tile[i][1] = (u16)(four.x >> 16), tile[i][2] = (u16)four.y, tile[i][3] = (u16)(four.y >> 16);
    }
    auto activate = [&] {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) tile[i][j] = activated(tile[i][j]);
    };
    if (FIRST) activate();
    u32 kept = 0;
    if (ALONG == TILES) {
        u16* const place = mask + (row0 / 4) * (C / 4) + column0 / 4;
        kept = CHOICE == GIVEN ? *place : best_tile(tile);
        if (CHOICE != GIVEN) *place = (u16)kept;
    }
    float keys[4][4];
    if (ALONG != TILES) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) keys[i][j] = key(tile[i][j]);
    }
    if (!FIRST) activate();

    auto chosen = [&](const u16(&four)[4], const float(&by)[4], u32 bits, u64 group) -> Pair {
        if (CHOICE == SOFT) return soft(four, scale);
        if (CHOICE == MVUE) return estimate(four, uniform(group, seed[0], seed[1]));
        return pair_of(four, ALONG == TILES ? bits : two_largest(by));
    };
    if (TO_ROWS) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const Pair pair = chosen(tile[i], keys[i], kept >> 4 * i & 15, (row0 + i) * (u64)(C / 4) + column0 / 4);
            ((u32*)rows)[(row0 + i) * (C / 4) + column0 / 4] = pair.values;
            row_places[4 * t + i][u] = (u8)pair.places;
        }
    }
    if (TO_COLUMNS) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u16 four[4] = {tile[0][j], tile[1][j], tile[2][j], tile[3][j]};
            const float by[4] = {keys[0][j], keys[1][j], keys[2][j], keys[3][j]};
            const u32 bits = (kept >> j & 1) | (kept >> (4 + j) & 1) << 1 | (kept >> (8 + j) & 1) << 2 | (kept >> (12 + j) & 1) << 3;
            const Pair pair = chosen(four, by, bits, (column0 + j) * (u64)(R / 4) + row0 / 4);
            turned[4 * u + j][t] = pair.values;
            column_places[4 * u + j][t] = (u8)pair.places;
        }
    }
    __syncthreads();
    const int half = threadIdx.x & 127;
    if (TO_ROWS && threadIdx.x < 128) {
        u32* const places = (u32*)(rows + (long long)R * (C / 2)) + ((long long)block_row * (C / SIDE) + block_column) * 128;
        places[half] = word_of(row_places, half);
    }
    if (TO_COLUMNS) {
        if (threadIdx.x >= 128) {
            u32* const places = (u32*)(columns + (long long)C * (R / 2)) + ((long long)block_column * (R / SIDE) + block_row) * 128;
            places[half] = word_of(column_places, half);
        }
#pragma unroll
        for (int i = 0; i < SIDE * GROUPS / THREADS; i++) {
            const int index = i * THREADS + threadIdx.x, column = index / GROUPS, group = index % GROUPS;
            ((u32*)columns)[((long long)block_column * SIDE + column) * (R / 4) + block_row * GROUPS + group] = turned[column][group];
        }
    }
}
