// Of all 90 masks of a 4 × 4 tile with two in each row and column the one whose sum is largest, as 16 bits.
//
// It stands between choose24.cu and make24.cu.

__device__ __forceinline__ float finite_key(uint2 four, int place) {  // NaN is the most
    const u32 word = place < 2 ? four.x : four.y;
    const float x = place % 2 ? high(word) : low(word);
    return CHOICE == LARGEST ? fmaxf(-MOST, fminf(x, MOST)) : fminf(fabsf(x), MOST);
}

// The pairs of columns that a row of a tile may keep: 01 02 03 12 13 23. That of the others is number 5 − pair.
__device__ constexpr int pair_number(int one, int two) {
    return one * two == 0 ? one + two - 1 : one + two;
}

#if EXACT

// The best so far, and the pairs of its first three rows as a number of base six: by that equals are told apart.
struct Best {
    double sum;
    int pairs;

    __device__ __forceinline__ void meet(double other, int others) {  // that come later in this order
        pairs = other > sum ? others : pairs;
        sum = other > sum ? other : sum;
    }
};

// The first among equals, of sums in float64. Rows 0 and 1 keep the same columns (6 masks), or none in common (36), or share one, a, and leave one out, d (48).
__device__ __forceinline__ u32 best_tile(const uint2 (&tile)[4]) {
    double sums[4][6];
#pragma unroll
    for (int row = 0; row < 4; row++) {
        double keys[4];
#pragma unroll
        for (int column = 0; column < 4; column++) keys[column] = finite_key(tile[row], column);
#pragma unroll
        for (int one = 0; one < 4; one++)
#pragma unroll
            for (int two = one + 1; two < 4; two++) sums[row][pair_number(one, two)] = keys[one] + keys[two];
    }
    Best upper = {sums[0][0] + sums[1][5], 30}, lower = {sums[2][0] + sums[3][5], 0};
#pragma unroll
    for (int pair = 1; pair < 6; pair++) {
        upper.meet(sums[0][pair] + sums[1][5 - pair], pair * 36 + (5 - pair) * 6);
        lower.meet(sums[2][pair] + sums[3][5 - pair], pair);
    }
    Best best = {upper.sum + lower.sum, upper.pairs + lower.pairs};
    auto meet = [&](double sum, int pairs) {
        const bool better = (sum > best.sum) | ((sum == best.sum) & (pairs < best.pairs));
        best.sum = better ? sum : best.sum;
        best.pairs = better ? pairs : best.pairs;
    };
#pragma unroll
    for (int pair = 0; pair < 6; pair++)
        meet((sums[0][pair] + sums[1][pair]) + (sums[2][5 - pair] + sums[3][5 - pair]), pair * 42 + 5 - pair);
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int d = 0; d < 4; d++) {
            if (a == d) continue;
            const int b = a != 0 && d != 0 ? 0 : a != 1 && d != 1 ? 1 : 2, c = 6 - a - d - b;
            const int ab = pair_number(a, b), ac = pair_number(a, c), db = pair_number(d, b), dc = pair_number(d, c);
            const int first = ab < ac ? ab : ac, second = ab + ac - first;
            const int third = db < dc ? db : dc, last = db + dc - third;
            Best above = {sums[0][first] + sums[1][second], first * 36 + second * 6};
            above.meet(sums[0][second] + sums[1][first], second * 36 + first * 6);
            Best below = {sums[2][third] + sums[3][last], third};
            below.meet(sums[2][last] + sums[3][third], last);
            meet(above.sum + below.sum, above.pairs + below.pairs);
        }
    const u32 bits = 0xCA6953, upper_pairs = best.pairs / 6;  // bits of the six pairs
    const u32 one = bits >> 4 * (upper_pairs / 6) & 15, two = bits >> 4 * (upper_pairs % 6) & 15;
    const u32 three = bits >> 4 * (best.pairs % 6) & 15;
    const u32 twice = (one & two) | (one & three) | (two & three);
    return one | two << 4 | three << 8 | (~twice & 15) << 12;
}

#else

// A sum and the mask that it is of.
struct Best {
    float sum;
    u32 mask;

    __device__ __forceinline__ void meet(float other, u32 others) {
        mask = other > sum ? others : mask;
        sum = other > sum ? other : sum;
    }
};

// Two rows of a tile, and what they can keep: of a column both numbers (twice), of two columns one each (apart: the
// better way), or all four columns once (all).
struct Half {
    float twice[4];
    Best apart[6], all;

    __device__ __forceinline__ Half(uint2 one, uint2 two, int shift) {
        float sums[4][4];  // of column i of the first row and column j of the second
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = finite_key(one, i) + finite_key(two, j);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            twice[i] = sums[i][i];
#pragma unroll
            for (int j = i + 1; j < 4; j++) {
                apart[pair_number(i, j)] = {sums[i][j], (1u << i | 16u << j) << shift};
                apart[pair_number(i, j)].meet(sums[j][i], (1u << j | 16u << i) << shift);
            }
        }
        all = {sums[0][2] + sums[1][3], 0xC3u << shift};
        all.meet(sums[0][1] + sums[2][3], 0xA5u << shift);
        all.meet(sums[0][1] + sums[3][2], 0x69u << shift);
        all.meet(sums[1][0] + sums[2][3], 0x96u << shift);
        all.meet(sums[1][0] + sums[3][2], 0x5Au << shift);
        all.meet(sums[2][0] + sums[3][1], 0x3Cu << shift);
    }
};

// In float32. In a column the upper two rows keep both and the lower two none, or the other way round, or one each.
__device__ __forceinline__ u32 best_tile(const uint2 (&tile)[4]) {
    const Half upper(tile[0], tile[1], 0), lower(tile[2], tile[3], 8);
    Best best = {upper.all.sum + lower.all.sum, upper.all.mask | lower.all.mask};
    float sums[4][4];  // of column i both of the upper half, of column j both of the lower
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = upper.twice[i] + lower.twice[j];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = i + 1; j < 4; j++) {
            const int pair = pair_number(i, j), rest = 5 - pair, k = i != 0 ? 0 : j != 1 ? 1 : 2, l = 6 - i - j - k;
            Best two = {sums[i][j], 0x11u << i | 0x1100u << j};
            two.meet(sums[j][i], 0x11u << j | 0x1100u << i);
            const Best &one = upper.apart[rest], &other = lower.apart[rest];
            best.meet(two.sum + (one.sum + other.sum), two.mask | one.mask | other.mask);
            best.meet(sums[i][k] + sums[j][l], 0x11u << i | 0x11u << j | 0x1100u << k | 0x1100u << l);
        }
    return best.mask;
}

#endif
