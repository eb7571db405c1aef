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
// It stands behind pairs24.cu, choose24.cu and tile24.cu.

// The same mask of the transposed tile.
__device__ __forceinline__ u32 transposed(u32 mask) {
    const u32 swapped = (mask & 0xA5A5) | (mask & 0x0A0A) << 3 | (mask >> 3 & 0x0A0A);
    return (swapped & 0xCC33) | (swapped & 0x00CC) << 6 | (swapped >> 6 & 0x00CC);
}

// Of a column of a tile, what of it is left: the sum, or how much of it is not zero.
__device__ __forceinline__ float of_column(uint2 four) {
    const float x[4] = {low(four.x), high(four.x), low(four.y), high(four.y)};
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) sum += SUMS ? x[i] : x[i] != 0;
    return sum;
}

// x: (R, C), dense. rows, columns: packings of x and of xᵀ. mask: (R/4, C/4), 16 bits a tile, row by row; read if it is
// GIVEN, else written if it is of TILES or ROWS_FIRST. seed: two words. scale: bits of a float32. z: BACK, (R, C), dense: x
// are gradients of its function, and become its own. sums: SUMS or COUNTS, (R/64, C), of what stays in each column of a
// block. places, others: OTHERS, of each column the number it has among those that are wanted dense, or −1; and of these,
// many (2, many, R): what stays of x, and of the function of z. Groups are counted in 32 bits.
extern "C" __global__ void __launch_bounds__(THREADS)
make24(const uint2* __restrict__ x, u32* __restrict__ rows, u32* __restrict__ columns, u16* __restrict__ mask,
       const u32* __restrict__ seed, const uint2* __restrict__ z, float* __restrict__ sums,
       const int* __restrict__ places, uint2* __restrict__ others, int many, int R, int C, int scale_bits) {
    __shared__ u32 turned[SIDE][GROUPS + 1];
    __shared__ float column_sums[SUMS || COUNTS ? GROUPS : 1][SIDE];
    __shared__ __align__(4) Places row_places, column_places;
    const u32 t = threadIdx.x / GROUPS, u = threadIdx.x % GROUPS, groups = C / 4, turned_groups = R / 4;
    const u32 block_row = blockIdx.y, block_column = blockIdx.x;
    const u32 first = (block_row * SIDE + 4 * t) * groups + block_column * GROUPS + u;  // group of this thread
    const u32 place = (block_row * GROUPS + t) * groups + block_column * GROUPS + u;    // tile of this thread

    uint2 tile[4], columns_of[4];  // the rows of a tile, and its columns
#pragma unroll
    for (int i = 0; i < 4; i++) {
        tile[i] = x[first + i * groups];
        if (BACK) {
            const uint2 four = z[first + i * groups];
            tile[i] = make_uint2(through(tile[i].x, four.x), through(tile[i].y, four.y));
        }
    }
    auto activate = [&] {
#pragma unroll
        for (int i = 0; i < 4; i++) tile[i] = make_uint2(activated(tile[i].x), activated(tile[i].y));
    };
    if (FIRST) activate();
    u32 kept = 0, kept_of_columns = 0;  // what stays of rows, and of columns
    if (MASKED && CHOICE == GIVEN) kept = mask[place];
    else if (ALONG == TILES) kept = best_tile(tile);
    else if (TO_ROWS) {
        turn(tile, columns_of);
        kept = two_across(columns_of, CHOICE == LARGEST);
    } else kept_of_columns = two_across(tile, CHOICE == LARGEST);
    if (MASKED && CHOICE != GIVEN) mask[place] = (u16)kept;
    if (!FIRST && !BACK) activate();

    float random[4];
    if (CHOICE == MVUE) uniform(random, place, seed[0], seed[1]);
    auto chosen = [&](uint2 four, const Picks& picks, int group) -> Pair {
        if (CHOICE == MVUE) return estimate(four, random[group]);
        if (CHOICE == SOFT) four = softened(four, __int_as_float(scale_bits));
        return {picks.values(group, four), picks.place(group)};
    };
    if (TO_ROWS) {
        const Picks picks(kept);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const Pair pair = chosen(tile[i], picks, i);
            rows[first + i * groups] = pair.values;
            row_places[4 * t + i][place_of(u)] = (u8)pair.places;
        }
    }
    // Of a column that is wanted dense: what stays of a gradient, and of the function of z.
    auto write_other = [&](int j) {
        const int at = places[block_column * SIDE + 4 * u + j];
        if (at < 0) return;
        uint2* found = others + (u64)at * turned_groups + block_row * GROUPS + t;
        found[0] = columns_of[j];
        u32 values[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint2 four = z[first + i * groups];
            values[i] = kept >> (4 * i + j) & 1 ? activated(j < 2 ? four.x : four.y) : 0;
        }
        const u32 halves = j % 2 ? 0x7632 : 0x5410;
        found[(u64)many * turned_groups] =
            make_uint2(__byte_perm(values[0], values[1], halves), __byte_perm(values[2], values[3], halves));
    };
    if (TO_COLUMNS) {
        if (ALONG == TILES) kept_of_columns = transposed(kept);
        if (ALONG == ROWS_FIRST) {
            drop(tile, kept);
            kept_of_columns = two_across(tile, false);
        }
        turn(tile, columns_of);
        const Picks picks(kept_of_columns);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const Pair pair = chosen(columns_of[j], picks, j);
            turned[4 * u + j][t] = pair.values;
            column_places[4 * u + j][place_of(t)] = (u8)pair.places;
            if (SUMS || COUNTS)
                column_sums[t][4 * u + j] =
                    ALONG == ROWS_FIRST ? of_column(columns_of[j]) : low(pair.values) + high(pair.values);
            if (OTHERS) write_other(j);
        }
    }
    __syncthreads();
    const u32 half = threadIdx.x & 127, values = groups * R;  // of each packing, in words
    if (TO_ROWS && threadIdx.x < 128)
        rows[values + (block_row * (C / SIDE) + block_column) * 128 + half] = word_of(row_places, half);
    if (TO_COLUMNS && threadIdx.x >= 128)
        columns[values + (block_column * (R / SIDE) + block_row) * 128 + half] = word_of(column_places, half);
    if ((SUMS || COUNTS) && threadIdx.x < SIDE) {
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
