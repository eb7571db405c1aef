// Two 16-bit numbers in a word, taken at once: which two of four stay, of two groups; what stays of four groups; relu.
//
// It stands behind wide.cu. A row of a 4 × 4 tile is two words, and so is a column: a group of four in one direction lies
// across four words of the other, two groups beside each other in their halves.

typedef unsigned char u8;

constexpr int SIDE = 64, GROUPS = 16, THREADS = 256;
constexpr u32 SIGNS = 0x80008000;

__device__ __forceinline__ float low(u32 x) { return number(x & 0xffff); }
__device__ __forceinline__ float high(u32 x) { return number(x >> 16); }
__device__ __forceinline__ u32 both(float low, float high) { return rounded(low) | (u32)rounded(high) << 16; }

__device__ __forceinline__ u32 fused(u32 a, u32 b, u32 c) {  // a · b + c, rounded once
    u32 found;
#if BF16
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(found) : "r"(a), "r"(b), "r"(c));
#else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(found) : "r"(a), "r"(b), "r"(c));
#endif
    return found;
}
__device__ __forceinline__ u32 above_zero(u32 x) {  // or 0; NaN stays
    u32 found;
#if BF16
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(found) : "r"(x), "r"(0));
#else
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(found) : "r"(x), "r"(0));
#endif
    return found;
}
constexpr u32 ONES = BF16 ? 0x3f803f80 : 0x3c003c00;

__device__ __forceinline__ u32 spread(u32 x) {  // all ones in a half whose uppermost bit is set, else zeros
    u32 found;
    asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(found) : "r"(x));
    return found;
}

__device__ __forceinline__ u32 times(u32 a, u32 b) { return fused(a, b, SIGNS); }  // plus −0: zeros keep their sign
// Where an x that is not below zero is above it.
__device__ __forceinline__ u32 where_above(u32 x) { return spread(x + 0x7fff7fff); }

// By which numbers are compared, as whole ones without a sign: sizes, or numbers themselves, of which −0 is 0. NaN is the
// most.
__device__ __forceinline__ u32 sortable(u32 x, bool is_signed) {
    if (!is_signed) return x & ~SIGNS;
    const u32 same = fused(x, ONES, 0);
    return same ^ (spread(same) | SIGNS);
}

// Whether a ≥ b, in the uppermost bit of each half; the others are of no meaning.
__device__ __forceinline__ u32 at_least(u32 a, u32 b, bool is_signed) {
    const u32 less = (a | SIGNS) - (b & ~SIGNS);
    return is_signed ? (a & ~b) | (~(a ^ b) & less) : less;
}
__device__ __forceinline__ u32 most(u32 a, u32 b, u32 c) { return (a & b) | (a & c) | (b & c); }
// Of each bit of the halves the first word's where it is one of these, else the second's.
__device__ __forceinline__ u32 either(u32 these, u32 first, u32 second) { return (these & first) | (~these & second); }

// Of two groups the two largest, the first ones among equals: four bits at the upper end of each half.
__device__ __forceinline__ u32 two_of_each(const u32 (&four)[4], bool is_signed) {
    const u32 s01 = at_least(four[0], four[1], is_signed), s02 = at_least(four[0], four[2], is_signed);
    const u32 s03 = at_least(four[0], four[3], is_signed), s12 = at_least(four[1], four[2], is_signed);
    const u32 s13 = at_least(four[1], four[3], is_signed), s23 = at_least(four[2], four[3], is_signed);
    const u32 first = most(s01, s02, s03), second = most(~s01, s12, s13);
    const u32 third = most(~s02, ~s12, s23), last = most(~s03, ~s13, ~s23);
    return either(0xC000C000, either(SIGNS, last, third >> 1), either(SIGNS, second, first >> 1) >> 2);
}

// The same of the four groups that lie across four rows of a tile, its columns, or across its columns, as 16 bits.
__device__ __forceinline__ u32 two_across(const uint2 (&fours)[4], bool is_signed) {
    u32 upper[4], lower[4];
#pragma unroll
    for (int i = 0; i < 4; i++) upper[i] = sortable(fours[i].x, is_signed), lower[i] = sortable(fours[i].y, is_signed);
    const u32 one = two_of_each(upper, is_signed), other = two_of_each(lower, is_signed);
    const u32 bytes = (one >> 12 & 0x000F000F) | (other >> 4 & 0x0F000F00);
    return (bytes | bytes >> 12) & 0xffff;
}

// What a mask of 16 bits keeps of four groups, a byte each: the places of both that stay, and the bytes of a group in
// which the one and the other lie, as __byte_perm takes them. Three of a group's bits say what the fourth is.
struct Picks {
    u32 places, one, other;

    __device__ __forceinline__ Picks(u32 mask) {
        places = __byte_perm(0x040D0C00, 0x0009080E, mask & 0x7777);
        one = __byte_perm(0x10321000, 0x00321054, mask & 0x7777);
        other = __byte_perm(0x32767600, 0x00545476, mask & 0x7777);
    }
    __device__ __forceinline__ u32 place(int group) const { return places >> 8 * group & 255; }
    __device__ __forceinline__ u32 values(int group, uint2 four) const {
        return __byte_perm(four.x, four.y, __byte_perm(one, other, (group + 4) << 4 | group));
    }
};

// What is left of the rows of a tile: zeros where a mask drops a number.
__device__ __forceinline__ void drop(uint2 (&rows)[4], u32 mask) {
    const u32 first = __byte_perm(0xFF00FF00, 0x0000FF00, mask & 0x7777);
    const u32 second = __byte_perm(0xFFFF0000, 0x00FF0000, mask & 0x7777);
    const u32 third = __byte_perm(0, 0x00FFFFFF, mask & 0x7777), last = __byte_perm(0x00FFFF00, 0xFF, mask & 0x7777);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 halves = (i + 4) * 0x1100 | i * 0x11;
        rows[i].x &= __byte_perm(first, second, halves), rows[i].y &= __byte_perm(third, last, halves);
    }
}

// The columns of a tile, from its rows.
__device__ __forceinline__ void turn(const uint2 (&rows)[4], uint2 (&columns)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const u32 halves = j % 2 ? 0x7632 : 0x5410;
        columns[j].x = j < 2 ? __byte_perm(rows[0].x, rows[1].x, halves) : __byte_perm(rows[0].y, rows[1].y, halves);
        columns[j].y = j < 2 ? __byte_perm(rows[2].x, rows[3].x, halves) : __byte_perm(rows[2].y, rows[3].y, halves);
    }
}

// S-STE: sizes less the third largest, times a scale.
__device__ __forceinline__ uint2 softened(const Four& four, float scale) {
    float x[4];
    widen(four, x);
    soften(x);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = (FP32 ? x[i] : number(rounded(x[i]))) * scale;
    return make_uint2(both(x[0], x[1]), both(x[2], x[3]));
}

// Places of a block, a byte for each group of each row. Of eight groups of a row those that lie in one word of the memory,
// g, g + 4, g + 1 and g + 5, are side by side here; beside them there lie those of the eighth row further on.
typedef u8 Places[SIDE][GROUPS + 4];

__device__ __forceinline__ u32 place_of(u32 group) {
    return (group & 8) | (group & 2) << 1 | (group & 1) << 1 | (group >> 2 & 1);
}
__device__ __forceinline__ u32 word_of(const Places& places, int index) {  // that is so many words from the block's first
    const int word = index >> 1, row = (word & 7) | (word >> 3 & 3) << 4, column = (index & 1) << 2 | (word >> 5) << 3;
    return *(const u32*)&places[row][column] | *(const u32*)&places[row + 8][column] << 4;
}
