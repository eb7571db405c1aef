// What the kernel streamed multiplies: numbers of eight bits, in pairs, each where one of 16 bits would be; and how its
// sums are scaled.
//
// In int8 64 columns are one product, added up in whole numbers. In e4m3 they are two of fp16, which holds each number
// exactly: from registers Hopper multiplies e4m3 in no other way. Of the eight groups of four columns of such a product
// the even ones come first: a lane's word holds an even group of W and the odd one behind it, and becomes two words. So
// does one of x, of whose columns the third and the fourth of each eight have changed places with the fifth and sixth.
//
// It stands behind ptx.cu. Set by whoever compiles it: FP8 (e4m3, else int8).

typedef uint4 Places;  // of a lane, of 256 columns

__device__ __forceinline__ void copy_places(u32 to, const Places* from) { copy16(to, from, true); }

__device__ __forceinline__ u32 word_of(const Places& places, int quarter) {
    return quarter == 0 ? places.x : quarter == 1 ? places.y : quarter == 2 ? places.z : places.w;
}

#if FP8
typedef u32 Fragment[8];  // of two products

// The numbers of a word's lower half and of its upper one, in fp16.
__device__ __forceinline__ void widen(u32 word, u32& lower, u32& upper) {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, low;\ncvt.rn.f16x2.e4m3x2 %1, high;\n}" : "=r"(lower), "=r"(upper) : "r"(word));
}
__device__ __forceinline__ void load_fragment(Fragment& to, u32 from) {
    u32 words[4];
    load_matrices(words, from);
#pragma unroll
    for (int i = 0; i < 4; i++) widen(words[i], to[i / 2 * 4 + i % 2], to[i / 2 * 4 + 2 + i % 2]);
}
__device__ __forceinline__ void multiply_quarter(float (&sums)[4], const Fragment& a, const Fragment& b,
                                                 const Places& places, int quarter) {
    multiply<0>(sums, a, b, word_of(places, quarter));
    multiply<1>(sums, a + 4, b + 4, word_of(places, quarter));
}
#else
typedef u32 Fragment[4];

__device__ __forceinline__ void load_fragment(Fragment& to, u32 from) { load_matrices(to, from); }

// All four threads of a quad hold metadata.
__device__ __forceinline__ void multiply_quarter(int (&sums)[4], const Fragment& a, const Fragment& b,
                                                 const Places& places, int quarter) {
    asm volatile(MMA ".sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;\n"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
                   "r"(word_of(places, quarter)));
}
#endif

// The scale of a row of W comes first: no sum times it overflows.
__device__ __forceinline__ float4 scaled(const Sums& sum, float of_token, const float4& of_rows, const u16* bias,
                                         int row) {
    const float4 added = with_bias(make_float4(0, 0, 0, 0), bias, row);
    return make_float4(fmaf((float)sum.x * of_rows.x, of_token, added.x),
                       fmaf((float)sum.y * of_rows.y, of_token, added.y),
                       fmaf((float)sum.z * of_rows.z, of_token, added.z),
                       fmaf((float)sum.w * of_rows.w, of_token, added.w));
}

// Of tokens they come while this runs: not __restrict__, by which they might be read early.
#define SCALES , const float* of_tokens, const float* __restrict__ of_rows
#define FINISHED(sum, token, row) scaled(sum, of_tokens[token], *(const float4*)(of_rows + (row)), added, row)
