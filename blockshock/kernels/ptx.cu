// What CUDA C++ has no words for: copies that run beside, products of the sparse tensor cores, and bf16 without a header.
//
// Set by whoever compiles it: BF16 (else fp16), ORDERED (whether the compiler knows ordered metadata, which Hopper needs
// to be fast), CLUSTERS, EIGHT_BITS (of numbers) and then FP8 (else int8), EARLY: it begins while x is still quantised.

#if BF16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif
#if FP8
#define FACTOR "f16"
#else
#define FACTOR TYPE
#endif
#if ORDERED
#define MMA "mma.sp::ordered_metadata"
#else
#define MMA "mma.sp"
#endif

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
#if EIGHT_BITS && !FP8
#define SUM_TYPE "s32"
#define SUM_REGISTER "r"
typedef int Sum;
typedef int4 Sums;
#else
#define SUM_TYPE "f32"
#define SUM_REGISTER "f"
typedef float Sum;
typedef float4 Sums;
#endif

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes, or as many zeros. OF_256: the cache takes the 256 bytes that they lie in.
template <bool OF_256 = false>
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
    if (OF_256)
        asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                     "r"(there ? 16 : 0));
    else asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ __forceinline__ void copy8(u32 to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n"); }
__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(from));
}
// Of a quad's four threads, those of the pair SELECTOR hold the metadata of this product.
template <int SELECTOR>
__device__ __forceinline__ void multiply(float (&sums)[4], const u32* a, const u32* b, u32 metadata) {
    asm volatile(MMA ".sync.aligned.m16n8k32.row.col.f32." FACTOR "." FACTOR ".f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;\n"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
                   "r"(metadata), "n"(SELECTOR));
}
__device__ __forceinline__ float widened(u16 value) {
#if BF16
    return __uint_as_float((u32)value << 16);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
#endif
}
__device__ __forceinline__ u32 rounded(float low, float high) {
    u32 both;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ void add(Sums& sum, const Sums& part) {
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
}
// Four neighbouring rows of one token: with their bias, and to y.
__device__ __forceinline__ float4 with_bias(float4 sum, const u16* bias, int row) {
    if (bias) {
        sum.x += widened(bias[row]), sum.y += widened(bias[row + 1]);
        sum.z += widened(bias[row + 2]), sum.w += widened(bias[row + 3]);
    }
    return sum;
}
__device__ __forceinline__ void write_rows(float4 sum, u16* to) {
    *(uint2*)to = make_uint2(rounded(sum.x, sum.y), rounded(sum.z, sum.w));
}

#if EARLY
// Until the kernel before this one on its stream has ended, and what it wrote is there.
__device__ __forceinline__ void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#endif
#if CLUSTERS
// All of a cluster's threads arrive, and who waits sees what they wrote before; or, of those that only read, no fence
// keeps any until what they wrote elsewhere is there.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_have_read() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ Sums load_of_split(u32 address, int split) {
    u32 there;
    Sums value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(split));
    asm volatile("ld.shared::cluster.v4." SUM_TYPE " {%0, %1, %2, %3}, [%4];"
                 : "=" SUM_REGISTER(value.x), "=" SUM_REGISTER(value.y), "=" SUM_REGISTER(value.z),
                   "=" SUM_REGISTER(value.w) : "r"(there));
    return value;
}
#endif
