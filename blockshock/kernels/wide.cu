// Four numbers of float32, fp16 or bf16 at once, as float32 and back.
//
// Set by whoever compiles it: FP32, BF16 (neither: fp16).

typedef unsigned int u32;
typedef unsigned short u16;

#if FP32
typedef float4 Four;

__device__ __forceinline__ void widen(const Four& four, float (&x)[4]) {
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}
__device__ __forceinline__ Four narrowed(const float (&x)[4]) { return make_float4(x[0], x[1], x[2], x[3]); }
#else
typedef uint2 Four;

__device__ __forceinline__ float number(u32 bits) {
#if BF16
    return __uint_as_float(bits << 16);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
    return value;
#endif
}
__device__ __forceinline__ u32 rounded(float value) {
    u16 bits;
#if BF16
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    return bits;
}
__device__ __forceinline__ void widen(const Four& four, float (&x)[4]) {
    x[0] = number(four.x & 0xffff), x[1] = number(four.x >> 16);
    x[2] = number(four.y & 0xffff), x[3] = number(four.y >> 16);
}
__device__ __forceinline__ Four narrowed(const float (&x)[4]) {
    return make_uint2(rounded(x[0]) | rounded(x[1]) << 16, rounded(x[2]) | rounded(x[3]) << 16);
}
#endif
