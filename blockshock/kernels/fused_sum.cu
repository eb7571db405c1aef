// The sum over ranks inside a product: what stands before a kernel's own source that RANKS GPUs run together.
//
// Each block writes its partial sums to the memory of all ranks, says so by a flag, waits for the flags of the peers'
// blocks of its number, and adds up what all wrote, in rank order: the bits are the same on every rank.
//
// No block waits for one that cannot run. A block sends before it waits, so of two blocks of a number, one on each GPU,
// neither needs the other to come to its flag. Blocks start in the order of their numbers, and those that wait keep
// their places: the lowest number that is not done on all GPUs has started on each, or starts next in a place that a
// lower one left; it sends, and so all of that number end. What else holds places, another stream's kernel, ends by
// itself, or waits for a peer's kernel that gets places as blocks here end. The wait is bounded all the same: a rank that
// died ends in an error, not in a GPU that hangs.
//
// What one launch sent is read before the next but one sends: sums lie in two slots, by turns. A rank in its launch
// t + 2 has seen flags of the peers' launch t + 1, which began when their launch t had ended.
//
// It stands behind ptx.cu. Set by whoever compiles it: RANKS, MOST_BLOCKS, WAIT_SECONDS.

extern "C" __device__ int printf(const char*, ...);

// memory of each rank, of those that are not there this one's again; flags_at: bytes before the flags; turns: launches
// so far, blocks of this one that are done.
#define PEERS , char* peer0, char* peer1, char* peer2, char* peer3, int rank, int flags_at, int* turns

struct Peers {
    char* memory[4];
    char* own;
    int rank, flags_at, block, blocks, turn;
    int* turns;

    __device__ __forceinline__ Peers(char* a, char* b, char* c, char* d, int rank, int flags_at, int* turns)
        : memory{a, b, c, d}, own(of(rank)), rank(rank), flags_at(flags_at), block(blockIdx.x * gridDim.y + blockIdx.y),
          blocks(gridDim.x * gridDim.y), turn(*(volatile int*)turns + 1), turns(turns) {}

    __device__ __forceinline__ char* of(int r) const {
        return r == 0 ? memory[0] : r == 1 ? memory[1] : r == 2 ? memory[2] : memory[3];  // an index would cost memory
    }
    // Where a rank's sums of a launch lie in a memory, (tokens, N) of float32.
    __device__ __forceinline__ float* slot(char* in, int from, long long size) const {
        return (float*)in + ((turn & 1) * RANKS + from) * size;
    }
    __device__ __forceinline__ void send(float4 sum, long long at, long long size) const {
#pragma unroll
        for (int r = 0; r < RANKS; r++) *(float4*)(slot(memory[r], rank, size) + at) = sum;
    }
    __device__ __forceinline__ float4 total(long long at, long long size) const {
        float4 sum = __ldcg((const float4*)(slot(own, 0, size) + at));
#pragma unroll
        for (int r = 1; r < RANKS; r++) add(sum, __ldcg((const float4*)(slot(own, r, size) + at)));
        return sum;
    }
    __device__ __forceinline__ int* flag(char* in, int from) const {
        return (int*)(in + flags_at) + from * MOST_BLOCKS + block;
    }
    // All that this block's threads sent is there, and all that those of the peers sent to it.
    __device__ __forceinline__ void meet() const {
        __threadfence_system();
        __syncthreads();
        const int other = threadIdx.x;
        if (other < RANKS && other != rank) {
            asm volatile("st.release.sys.global.s32 [%0], %1;" ::"l"(flag(of(other), rank)), "r"(turn) : "memory");
            wait_for(other);
        }
        __syncthreads();
    }
    __device__ __forceinline__ void wait_for(int other) const {
        long long began = 0;
        for (int tries = 1;; tries++) {
            int seen;
            asm volatile("ld.acquire.sys.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag(own, other)) : "memory");
            if (seen - turn >= 0) return;
            if (tries % 1024) continue;  // the clock is slow to read
            const long long now = nanoseconds();
            began = began ? began : now;
            if (now - began > WAIT_SECONDS * 1000000000ll) {
                printf("blockshock: rank %d waited %d s for rank %d to multiply too\n", rank, WAIT_SECONDS, other);
                __trap();
            }
        }
    }
    static __device__ __forceinline__ long long nanoseconds() {
        long long now;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        return now;
    }
    // The last block of a launch lets the next be another turn.
    __device__ __forceinline__ void leave() const {
        if (threadIdx.x == 0 && atomicAdd(turns + 1, 1) == blocks - 1) {
            turns[1] = 0;
            *(volatile int*)turns = turn;
        }
    }
};
