// Two columns of each four of a matrix of 16-bit numbers, side by side, in one pass at the rate of memory.
//
// Set by whoever compiles it: SELECTOR (which two bytes twice, as __byte_perm takes them), ROWS (of a thread).

__device__ __forceinline__ uint4 picked(const uint4& first, const uint4& second) {
    return make_uint4(__byte_perm(first.x, first.y, SELECTOR), __byte_perm(first.z, first.w, SELECTOR),
                      __byte_perm(second.x, second.y, SELECTOR), __byte_perm(second.z, second.w, SELECTOR));
}

// x: (B, 16·across), rows so many words of 16 bytes apart; taken: (B, 8·across). A thread takes 16 columns of ROWS rows,
// all of which are on their way at once; a block has blockDim.x threads along a row, blockDim.y down the columns. Nothing
// is __restrict__: no load is to be moved before the wait, or behind a store.
extern "C" __global__ void pick(const uint4* x, uint4* taken, int B, int across, int apart) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    const int first = (blockIdx.x * blockDim.y + threadIdx.y) * ROWS;
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");  // launched early: what makes x may still be at work
#endif
    if (column >= across || first >= B) return;
    uint4 low[ROWS], high[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const uint4* from = x + (long long)min(first + r, B - 1) * apart + 2 * column;
        low[r] = from[0], high[r] = from[1];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (first + r < B) taken[(long long)(first + r) * across + column] = picked(low[r], high[r]);
}
