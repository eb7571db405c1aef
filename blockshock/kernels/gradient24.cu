// The gradient of z, in the place of that of an a which was made 2:4 of it, S(f(z)) or f(S(z)): dense, in one pass over the
// memory.
//
// A block takes 64 × 64 numbers, a thread one 4 × 4 tile of them, as in make24.cu. It stands behind wide.cu, pairs24.cu and
// choose24.cu, which say what is set by whoever compiles it; of these FIRST is that of S(f(z)). And STRAIGHT: S passes all
// of a gradient, else what its mask keeps.

// gradient, z: (R, C), dense. mask: (R/4, C/4), 16 bits a tile, row by row. sums: SUMS, (R/64, C), of each column of a
// block. places, others: OTHERS, of each column the number it has among those whose a is wanted, or −1; and that, (·, R).
extern "C" __global__ void __launch_bounds__(THREADS)
gradient24(uint2* gradient, const uint2* __restrict__ z, const u16* __restrict__ mask, float* __restrict__ sums,
           const int* __restrict__ places, uint2* __restrict__ others, int R, int C) {
    __shared__ float column_sums[SUMS ? GROUPS : 1][SIDE];
    const u32 t = threadIdx.x / GROUPS, u = threadIdx.x % GROUPS, groups = C / 4, turned_groups = R / 4;
    const u32 block_row = blockIdx.y, block_column = blockIdx.x;
    const u32 first = (block_row * SIDE + 4 * t) * groups + block_column * GROUPS + u;  // group of this thread
    const u32 kept = mask[(block_row * GROUPS + t) * groups + block_column * GROUPS + u];

    uint2 tile[4], thinned[4];  // of the gradient; and what stays of z
#pragma unroll
    for (int i = 0; i < 4; i++) tile[i] = gradient[first + i * groups], thinned[i] = z[first + i * groups];
    // Straight through f(S(z)): what S drops meets the slope of f at zero.
    if (STRAIGHT && !FIRST) drop(thinned, kept);
#pragma unroll
    for (int i = 0; i < 4; i++)
        tile[i] = make_uint2(through(tile[i].x, thinned[i].x), through(tile[i].y, thinned[i].y));
    if (!STRAIGHT) drop(tile, kept);
#pragma unroll
    for (int i = 0; i < 4; i++) gradient[first + i * groups] = tile[i];
    if (OTHERS) {  // f of what stays is what stays of f, for f of zero is zero
        drop(thinned, kept);
#pragma unroll
        for (int i = 0; i < 4; i++) thinned[i] = make_uint2(activated(thinned[i].x), activated(thinned[i].y));
        uint2 columns[4];
        turn(thinned, columns);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = places[block_column * SIDE + 4 * u + j];
            if (at >= 0) others[(u64)at * turned_groups + block_row * GROUPS + t] = columns[j];
        }
    }
    if (!SUMS) return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 word = j < 2 ? tile[i].x : tile[i].y;
            sum += j % 2 ? high(word) : low(word);
        }
        column_sums[t][4 * u + j] = sum;
    }
    __syncthreads();
    if (threadIdx.x < SIDE) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) sum += column_sums[i][threadIdx.x];
        sums[block_row * C + block_column * SIDE + threadIdx.x] = sum;
    }
}
