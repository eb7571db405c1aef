// Numbers of fp16 or bf16 as float32 and back, four at once of float32 too; and which two of four are the largest.
//
// Set by whoever compiles it: BF16 (else fp16); FP32, where fours are of float32.

typedef unsigned int u32;
typedef unsigned short u16;

__device__ __forceinline__ float number(u32 bits) {  // of which the upper half is 0
#if BF16
    return __uint_as_float(bits << 16);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
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

#if FP32
typedef float4 Four;

__device__ __forceinline__ void widen(const Four& four, float (&x)[4]) {
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}
__device__ __forceinline__ Four narrowed(const float (&x)[4]) { return make_float4(x[0], x[1], x[2], x[3]); }
#else
typedef uint2 Four;

__device__ __forceinline__ void widen(const Four& four, float (&x)[4]) {
    x[0] = number(four.x & 0xffff), x[1] = number(four.x >> 16);
    x[2] = number(four.y & 0xffff), x[3] = number(four.y >> 16);
}
__device__ __forceinline__ Four narrowed(const float (&x)[4]) {
    return make_uint2(rounded(x[0]) | (u32)rounded(x[1]) << 16, rounded(x[2]) | (u32)rounded(x[3]) << 16);
}
#endif

__device__ __forceinline__ float infinite() { return __int_as_float(0x7f800000); }

// By which x is compared: itself, or its size; NaN is the most.
__device__ __forceinline__ float key_of(float x, bool is_signed) {
    const float size = is_signed ? x : fabsf(x);
    return x != x ? infinite() : size;
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
