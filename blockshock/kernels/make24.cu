// Two of each four numbers of a matrix, chosen and packed as cuSPARSELt has them, in one pass over the memory.
//
// A block takes 64 × 64 numbers of x (R, C), a thread one 4 × 4 tile of them. It applies the activation function,
// chooses, and has the kept values of its four rows and of its four columns, two each, and of each the places of both in
// four bits. Rows go straight to memory; columns, and all places, through shared memory, so that what lies side by side
// is written side by side.
//
// Of a packing of (R, C): kept values (R, C/2), then 512 bytes of places for each 64 × 64 numbers, row of blocks by row.
// In these the four bits of row r and group g are number (r3 g2 g0 g1 r0 r1 r2 r4 r5 g3, lowest bit first).
//
// It stands behind choose24.cu and tile24.cu.

// Eight places of a block in the order in which they lie in memory.
__device__ __forceinline__ u32 word_of(const u8 (&places)[SIDE][GROUPS + 4], int index) {
    const int word = index >> 1, high = index & 1;
    u32 found = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = (word & 7) | (i & 1) << 3 | (word >> 3 & 3) << 4;
        const int group = (i >> 2 & 1) | high << 1 | (i >> 1 & 1) << 2 | (word >> 5) << 3;
        found |= (u32)places[row][group] << 4 * i;
    }
    return found;
}

// The same mask of the transposed tile.
__device__ __forceinline__ u32 transposed(u32 mask) {
    const u32 swapped = (mask & 0xA5A5) | (mask & 0x0A0A) << 3 | (mask >> 3 & 0x0A0A);
    return (swapped & 0xCC33) | (swapped & 0x00CC) << 6 | (swapped >> 6 & 0x00CC);
}

// x: (R, C), dense. rows, columns: packings of x and of xᵀ. mask: (R/4, C/4), 16 bits a tile, row by row; read if it is
// GIVEN, else written if it is of TILES. seed: two words. scale: bits of a float32. z: BACK, (R, C), dense: x are
// gradients of its function, and become its own. sums: SUMS, (R/64, C), of what stays in each column of a block. Groups
// are counted in 32 bits.
extern "C" __global__ void __launch_bounds__(THREADS)
make24(const uint2* __restrict__ x, u32* __restrict__ rows, u32* __restrict__ columns, u16* __restrict__ mask,
       const u32* __restrict__ seed, const uint2* __restrict__ z, float* __restrict__ sums, int R, int C,
       int scale_bits) {
    __shared__ u32 turned[SIDE][GROUPS + 1];
    __shared__ float column_sums[SUMS ? GROUPS : 1][SIDE];
    __shared__ u8 row_places[SIDE][GROUPS + 4], column_places[SIDE][GROUPS + 4];
    const u32 t = threadIdx.x / GROUPS, u = threadIdx.x % GROUPS, groups = C / 4, turned_groups = R / 4;
    const u32 block_row = blockIdx.y, block_column = blockIdx.x;
    const u32 first = (block_row * SIDE + 4 * t) * groups + block_column * GROUPS + u;  // group of this thread
    const u32 place = (block_row * GROUPS + t) * groups + block_column * GROUPS + u;    // tile of this thread

    u16 tile[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint2 four = x[first + i * groups];
        tile[i][0] = (u16)four.x, tile[i][1] = (u16)(four.x >> 16);
        tile[i][2] = (u16)four.y, tile[i][3] = (u16)(four.y >> 16);
    }
    if (BACK) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint2 four = z[first + i * groups];
            tile[i][0] = through(tile[i][0], (u16)four.x), tile[i][1] = through(tile[i][1], (u16)(four.x >> 16));
            tile[i][2] = through(tile[i][2], (u16)four.y), tile[i][3] = through(tile[i][3], (u16)(four.y >> 16));
        }
    }
    auto activate = [&] {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) tile[i][j] = activated(tile[i][j]);
    };
    if (FIRST) activate();
    u32 kept = 0;
    if (ALONG == TILES) {
        kept = CHOICE == GIVEN ? mask[place] : best_tile(tile);
        if (CHOICE != GIVEN) mask[place] = (u16)kept;
    }
    float keys[4][4], random[4];
    if (ALONG != TILES) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) keys[i][j] = key(tile[i][j]);
    }
    if (!FIRST && !BACK) activate();
    if (CHOICE == MVUE) uniform(random, place, seed[0], seed[1]);

    auto chosen = [&](const u16(&four)[4], const float(&by)[4], u32 bits, int number) -> Pair {
        if (CHOICE == SOFT) return soft(four, __int_as_float(scale_bits));
        if (CHOICE == MVUE) return estimate(four, random[number]);
        return pair_of(four, ALONG == TILES ? bits : two_largest(by));
    };
    if (TO_ROWS) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const Pair pair = chosen(tile[i], keys[i], kept >> 4 * i & 15, i);
            rows[first + i * groups] = pair.values;
            row_places[4 * t + i][u] = (u8)pair.places;
        }
    }
    if (TO_COLUMNS) {
        const u32 turned_kept = transposed(kept);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u16 four[4] = {tile[0][j], tile[1][j], tile[2][j], tile[3][j]};
            const float by[4] = {keys[0][j], keys[1][j], keys[2][j], keys[3][j]};
            const Pair pair = chosen(four, by, turned_kept >> 4 * j & 15, j);
            turned[4 * u + j][t] = pair.values;
            if (SUMS) column_sums[t][4 * u + j] = number((u16)pair.values) + number((u16)(pair.values >> 16));
            column_places[4 * u + j][t] = (u8)pair.places;
        }
    }
    __syncthreads();
    const u32 half = threadIdx.x & 127, values = groups * R;  // of each packing, in words
    if (TO_ROWS && threadIdx.x < 128)
        rows[values + (block_row * (C / SIDE) + block_column) * 128 + half] = word_of(row_places, half);
    if (TO_COLUMNS && threadIdx.x >= 128)
        columns[values + (block_column * (R / SIDE) + block_row) * 128 + half] = word_of(column_places, half);
    if (SUMS && threadIdx.x < SIDE) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) sum += column_sums[i][threadIdx.x];
        sums[block_row * C + block_column * SIDE + threadIdx.x] = sum;
    }
    if (TO_COLUMNS) {
#pragma unroll
        for (int i = 0; i < SIDE * GROUPS / THREADS; i++) {
            const u32 index = i * THREADS + threadIdx.x, column = index / GROUPS, group = index % GROUPS;
            columns[(block_column * SIDE + column) * turned_groups + block_row * GROUPS + group] = turned[column][group];
        }
    }
}
