// What a mask keeps of a W, in one pass over the memory: dense, and packed as cuSPARSELt has it, along rows or both ways.
//
// A block takes 64 × 64 numbers, a thread one 4 × 4 tile of them, as in make24.cu. It stands behind wide.cu and pairs24.cu,
// whose numbers are of what it makes. Set by whoever compiles it: FP32, where what it reads is of float32; TURNS, where
// columns are packed too.

// w: (R, C), dense. mask: (R/4, C/4), 16 bits a tile, of at most two of four. values: (R, C). rows, columns: packings of
// these and of their transpose. A group of which less than two stay has zeros beside them.
extern "C" __global__ void __launch_bounds__(THREADS)
masked24(const Four* __restrict__ w, const u16* __restrict__ mask, uint2* __restrict__ values, u32* __restrict__ rows,
         u32* __restrict__ columns, int R, int C) {
    __shared__ u32 turned[TURNS ? SIDE : 1][GROUPS + 1];
    __shared__ __align__(4) Places row_places, column_places;
    const u32 t = threadIdx.x / GROUPS, u = threadIdx.x % GROUPS, groups = C / 4, turned_groups = R / 4;
    const u32 first = (blockIdx.y * SIDE + 4 * t) * groups + blockIdx.x * GROUPS + u;
    const u32 kept = mask[(blockIdx.y * GROUPS + t) * groups + blockIdx.x * GROUPS + u];
    uint2 tile[4], columns_of[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x[4];
        widen(w[first + i * groups], x);
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] = kept >> (4 * i + j) & 1 ? x[j] : 0;
        tile[i] = make_uint2(both(x[0], x[1]), both(x[2], x[3]));
        values[first + i * groups] = tile[i];
    }
    turn(tile, columns_of);
    const Picks picks(two_across(columns_of, false));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        rows[first + i * groups] = picks.values(i, tile[i]);
        row_places[4 * t + i][place_of(u)] = (u8)picks.place(i);
    }
    if (TURNS) {
        const Picks turned_picks(two_across(tile, false));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            turned[4 * u + j][t] = turned_picks.values(j, columns_of[j]);
            column_places[4 * u + j][place_of(t)] = (u8)turned_picks.place(j);
        }
    }
    __syncthreads();
    const u32 half = threadIdx.x & 127, held = groups * R;  // values of each packing, in words
    if (threadIdx.x < 128)
        rows[held + (blockIdx.y * (C / SIDE) + blockIdx.x) * 128 + half] = word_of(row_places, half);
    if (TURNS && threadIdx.x >= 128)
        columns[held + (blockIdx.x * (R / SIDE) + blockIdx.y) * 128 + half] = word_of(column_places, half);
    if (TURNS) {
#pragma unroll
        for (int i = 0; i < SIDE * GROUPS / THREADS; i++) {
            const u32 index = i * THREADS + threadIdx.x, column = index / GROUPS, group = index % GROUPS;
            columns[(blockIdx.x * SIDE + column) * turned_groups + blockIdx.y * GROUPS + group] = turned[column][group];
        }
    }
}
