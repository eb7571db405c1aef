// The sum over ranks inside a product: what stands before a kernel's own source that RANKS GPUs run together.
//
// Each thread writes its partial sums to the memory of the peers, waits for the peers' of the same elements in its own,
// and adds up in rank order: the bits are the same on every rank.
//
// A sum is its own flag. Where none has come the bits are those of EMPTY, a NaN that no sum is sent as. So nothing is
// sent beside or behind the sums, and nothing waits until they are there but who needs them. Of a vector PTX promises
// that each 32 bits of it come whole, in any order (memory consistency model, vector data types); this asks for no more.
// A turn as a flag would double what is sent, for no more than 64 bits are promised to come whole.
//
// Who has read a sum makes its place empty, before a peer writes there again: slots change by turns, and a peer in its
// launch t + 2 has all sums of this rank's launch t + 1, which began when its launch t, reads and all, had ended. Slots
// do not overlap, whatever sizes the products have; each sum that is sent is read, so all are empty at first.
//
// No block waits for one that cannot run. A block sends before it waits, so of two blocks of a number, one on each GPU,
// neither needs the other to come to its sums. Blocks start in the order of their numbers, and those that wait keep
// their places: the lowest number that is not done on all GPUs has started on each, or starts next in a place that a
// lower one left; it sends, and so all of that number end. What else holds places, another stream's kernel, ends by
// itself, or waits for a peer's kernel that gets places as blocks here end. The wait is bounded all the same: a rank
// that died ends in an error, not in a GPU that hangs.
//
// It stands behind ptx.cu. Set by whoever compiles it: RANKS, WAIT_SECONDS.

extern "C" __device__ int printf(const char*, ...);

// memory of each rank, of those that are not there this one's again: two slots of so many sums. turns: launches so far,
// blocks of this one that are done.
#define PEERS , float* peer0, float* peer1, float* peer2, float* peer3, int rank, int slot, int* turns

constexpr u32 EMPTY = 0xffffffff, OTHER_NAN = 0x7fffffff;

__device__ __forceinline__ float4 look(const float4* place) {
    float4 seen;
    asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(seen.x), "=f"(seen.y), "=f"(seen.z), "=f"(seen.w) : "l"(place) : "memory");
    return seen;
}
__device__ __forceinline__ void put(float4* place, float4 sums) {
    asm volatile("st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};"
                 ::"l"(place), "f"(sums.x), "f"(sums.y), "f"(sums.z), "f"(sums.w) : "memory");
}
__device__ __forceinline__ bool is_empty(float sum) { return __float_as_uint(sum) == EMPTY; }
__device__ __forceinline__ bool lacks(float4 sums) {
    return is_empty(sums.x) | is_empty(sums.y) | is_empty(sums.z) | is_empty(sums.w);
}
__device__ __forceinline__ float sent(float sum) { return is_empty(sum) ? __uint_as_float(OTHER_NAN) : sum; }
__device__ __forceinline__ long long nanoseconds() {
    long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// The first that waited too long says so, and ends all.
__device__ __noinline__ void give_up(int rank, int from, int* turns) {
    if (atomicExch(turns + 1, -1) == -1) return;
    printf("blockshock: rank %d waited %d s for rank %d to multiply too\n", rank, WAIT_SECONDS, from);
    __trap();
}

// size: elements of a product, (tokens, N); at: the first of four.
struct Peers {
    float* memory[4];
    int rank;
    u32 turn;
    long long slot_at;
    int* turns;

    __device__ __forceinline__ Peers(float* a, float* b, float* c, float* d, int rank, int slot, int* turns)
        : memory{a, b, c, d}, rank(rank), turn(*(volatile u32*)turns + 1), slot_at((turn & 1) * (long long)slot),
          turns(turns) {}

    // Where a rank's sums come to in another's memory.
    __device__ __forceinline__ float4* place(float* in, int to, int from, long long at, long long size) const {
        return (float4*)(in + slot_at + (from - (from > to)) * size + at);
    }
    __device__ __forceinline__ float4* own_place(int from, long long at, long long size) const {
        float* own = rank == 0 ? memory[0] : rank == 1 ? memory[1] : rank == 2 ? memory[2] : memory[3];
        return place(own, rank, from, at, size);  // an index would cost memory
    }
    __device__ __forceinline__ void send(float4 sum, long long at, long long size) const {
        sum.x = sent(sum.x), sum.y = sent(sum.y), sum.z = sent(sum.z), sum.w = sent(sum.w);
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            if (r != rank) put(place(memory[r], r, rank, at, size), sum);
    }
    // This rank's sums become those of all, of several fours at a time, so that one's way is another's too; of none
    // where at is negative.
    template <int COUNT>
    __device__ __forceinline__ void add_up(float4 (&sums)[COUNT], const long long (&at)[COUNT], long long size) const {
        float4 seen[COUNT][RANKS];
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int r = 0; r < RANKS; r++)
                if (r != rank && at[i] >= 0) seen[i][r] = look(own_place(r, at[i], size));
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (at[i] < 0) continue;
            float4 total = rank == 0 ? sums[i] : taken(seen[i][0], 0, at[i], size);
#pragma unroll
            for (int r = 1; r < RANKS; r++) add(total, r == rank ? sums[i] : taken(seen[i][r], r, at[i], size));
            sums[i] = total;
        }
    }
    // What a rank sent, once it is there.
    __device__ __forceinline__ float4 taken(float4 seen, int from, long long at, long long size) const {
        float4* const there = own_place(from, at, size);
        long long began = 0;
        for (int tries = 1; lacks(seen); tries++) {
            if (tries % 1024 == 0) {  // the clock is slow to read
                const long long now = nanoseconds();
                began = began ? began : now;
                if (now - began > WAIT_SECONDS * 1000000000ll) give_up(rank, from, turns);
            }
            seen = look(there);
        }
        const float empty = __uint_as_float(EMPTY);
        put(there, make_float4(empty, empty, empty, empty));
        return seen;
    }
    // The last block of a launch lets the next be another turn.
    __device__ __forceinline__ void leave() const {
        if (threadIdx.x == 0 && atomicAdd(turns + 1, 1) == gridDim.x * gridDim.y - 1) {
            turns[1] = 0;
            *(volatile u32*)turns = turn;
        }
    }
};
