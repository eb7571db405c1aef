// Sums of products of what is stored in eight bits, times both scales, plus the bias: in float32, rounded once.
//
// It stands behind wide.cu, whose numbers y and the bias are of. Set by whoever compiles it: FROM (INT32, FLOAT32,
// BFLOAT16: of the sums), CHANNELS (each column has a scale), BIASED, ROWS (of a thread).

#define INT32 0
#define FLOAT32 1
#define BFLOAT16 2
#if FROM == BFLOAT16
typedef uint2 Sums;
#else
typedef uint4 Sums;
#endif

__device__ __forceinline__ void summed(const Sums& sums, float (&x)[4]) {
#if FROM == BFLOAT16
    x[0] = __uint_as_float(sums.x << 16), x[1] = __uint_as_float(sums.x & 0xffff0000);
    x[2] = __uint_as_float(sums.y << 16), x[3] = __uint_as_float(sums.y & 0xffff0000);
#elif FROM == FLOAT32
    x[0] = __uint_as_float(sums.x), x[1] = __uint_as_float(sums.y);
    x[2] = __uint_as_float(sums.z), x[3] = __uint_as_float(sums.w);
#else
    x[0] = __int2float_rn((int)sums.x), x[1] = __int2float_rn((int)sums.y);
    x[2] = __int2float_rn((int)sums.z), x[3] = __int2float_rn((int)sums.w);
#endif
}

// sums: (B, N), N a multiple of four, rows so many fours apart. A thread takes four columns of ROWS rows, all of which are
// on their way at once; a block has blockDim.x threads along a row, blockDim.y down the columns.
extern "C" __global__ void descale(const Sums* __restrict__ sums, const float* __restrict__ of_rows,
                                   const float4* __restrict__ of_columns, const Four* __restrict__ bias,
                                   Four* __restrict__ y, int B, int N, int row_fours) {
    const int fours = N / 4, column = blockIdx.y * blockDim.x + threadIdx.x;
    const int first = (blockIdx.x * blockDim.y + threadIdx.y) * ROWS;
    if (column >= fours || first >= B) return;
    Sums taken[ROWS];
    float scales[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int row = min(first + r, B - 1);
        taken[r] = sums[(long long)row * row_fours + column], scales[r] = of_rows[row];
    }
#if CHANNELS
    const float4 of_column = of_columns[column];
#endif
#if BIASED
    float added[4];
    widen(bias[column], added);
#endif
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float x[4];
        summed(taken[r], x);
#if CHANNELS
        x[0] *= of_column.x, x[1] *= of_column.y, x[2] *= of_column.z, x[3] *= of_column.w;
#endif
#pragma unroll
        for (int i = 0; i < 4; i++)
#if BIASED
            x[i] = fmaf(x[i], scales[r], added[i]);
#else
            x[i] *= scales[r];
#endif
        if (first + r < B) y[(long long)(first + r) * fours + column] = narrowed(x);
    }
}
