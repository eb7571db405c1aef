// What Hopper alone has: barriers that count bytes, copies of whole tiles, to all blocks of a cluster at once too, and
// products of a warpgroup, whose factors lie in shared memory and whose sums are in its registers.
//
// It stands behind ptx.cu. Set by whoever compiles it: FP8 (e4m3, else int8), CLUSTER (blocks of one).

typedef unsigned long long u64;

// Of a product of 64 features and 256 tokens a thread has 128 sums.
#define TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define SUMS_TEXT                                                                                                      \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11)    \
    "%120,%121,%122,%123,%124,%125,%126,%127"
#define IN_PLACE(sum) "+" SUM_REGISTER(sum)
#define SUMS4(s, i) IN_PLACE(s[i]), IN_PLACE(s[i + 1]), IN_PLACE(s[i + 2]), IN_PLACE(s[i + 3])
#define SUMS16(s, i) SUMS4(s, i), SUMS4(s, i + 4), SUMS4(s, i + 8), SUMS4(s, i + 12)
#define SUMS64(s, i) SUMS16(s, i), SUMS16(s, i + 16), SUMS16(s, i + 32), SUMS16(s, i + 48)
#define SUMS128(s) SUMS64(s, 0), SUMS64(s, 64)

#if FP8
#define WARPGROUP_MMA "wgmma.mma_async.sp.sync.aligned.m64n256k64.f32.e4m3.e4m3 "
#define AS_THEY_ARE ", 1, 1"  // no sign is turned
#else
#define WARPGROUP_MMA "wgmma.mma_async.sp.sync.aligned.m64n256k64.s32.s8.s8 "
#define AS_THEY_ARE ""
#endif

// Where a factor lies, as products are told: rows of (1 << bits) chunks of 16 bytes, swizzled, so that a chunk's number is
// XORed with as many bits of its address from bit 7 on. What is told: how, and how far eight rows are from the next eight.
__device__ __forceinline__ u64 descriptor(u32 address, int bits) {
    const u64 swizzle = 4 - bits, eight_rows = (128 << bits) >> 4;
    return swizzle << 62 | eight_rows << 32 | 1ull << 16 | address >> 4;
}
// What a warpgroup sends to its tensor cores: 64 columns of 64 features, their metadata, and those columns of 256 tokens.
__device__ __forceinline__ void multiply_tiles(Sum (&sums)[128], u64 values, u64 x, u32 places, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %131, 0;\n" WARPGROUP_MMA "{" SUMS_TEXT
                 "}, %128, %129, %130, 0, adds" AS_THEY_ARE ";\n}"
                 : SUMS128(sums) : "l"(values), "l"(x), "r"(places), "r"((int)adds));
}
// Before products: what registers hold is theirs from here on.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int UNDER_WAY>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(UNDER_WAY) : "memory");
}
// Nothing that reads the sums comes before this.
__device__ __forceinline__ void end_products(Sum (&sums)[128]) {
    wait_for_products<0>();
    asm volatile("" : SUMS128(sums)::"memory");
}

__device__ __forceinline__ void init_barrier(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Until the phase of that parity is over.
__device__ __forceinline__ void wait_at(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred over;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@over bra OVER;\nbra AGAIN;\nOVER:\n}" ::"r"(barrier), "r"(parity) : "memory");
}
// One arrival, and so many bytes that copies are still to bring.
__device__ __forceinline__ void arrive_expecting(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// At the barrier that another block of the cluster has in the same place.
__device__ __forceinline__ void arrive_at_block(u32 barrier, u32 block) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(block) : "memory");
}
__device__ __forceinline__ u32 block_of_cluster() {
    u32 block;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
    return block;
}

// Bytes that lie together in both memories; or to the same place of every block of the cluster, whose barriers count them.
__device__ __forceinline__ void copy_tile(u32 to, const u8* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
__device__ __forceinline__ void copy_tile_to_all(u32 to, const u8* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1], %2, [%3], %4;"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"((u16)((1 << CLUSTER) - 1)) : "memory");
}
__device__ __forceinline__ void copy4(u32 to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ uint2 load8(u32 from) {
    uint2 found;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(found.x), "=r"(found.y) : "r"(from) : "memory");
    return found;
}
__device__ __forceinline__ uint4 load16(u32 from) {
    uint4 found;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "r"(from) : "memory");
    return found;
}
// Four matrices of 8 x 8 numbers of 16 bits, as products leave them, each turned: rows of tokens.
__device__ __forceinline__ void store_turned(u32 to, const u32 (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(to), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3]) : "memory");
}
