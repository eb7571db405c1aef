// S-STE's weights in one pass over the memory: each of four less the second smallest size, times a scale; dense, packed as
// cuSPARSELt has them, and as a mask, of which is counted what has changed.
//
// A block takes 64 × 64 numbers, a thread one 4 × 4 tile of them, as in make24.cu. It stands behind wide.cu and pairs24.cu,
// whose numbers are of what it makes; FP32 is set where what it reads is of float32.

// w: (R, C), dense. values: (R, C). rows: the packing. mask: (R/4, C/4), 16 bits a tile, of before; becomes the new one.
// flips: how many bits of it have changed is added.
extern "C" __global__ void __launch_bounds__(THREADS)
soft24(const Four* __restrict__ w, const double* __restrict__ scale, uint2* __restrict__ values, u32* __restrict__ rows,
       u16* __restrict__ mask, int* __restrict__ flips, int R, int C) {
    __shared__ __align__(4) Places places;
    __shared__ int changed;
    const u32 t = threadIdx.x / GROUPS, u = threadIdx.x % GROUPS, groups = C / 4;
    const u32 first = (blockIdx.y * SIDE + 4 * t) * groups + blockIdx.x * GROUPS + u;
    const u32 tile = (blockIdx.y * GROUPS + t) * groups + blockIdx.x * GROUPS + u;
    if (threadIdx.x == 0) changed = 0;
    __syncthreads();
    const float by = (float)*scale;
    uint2 soft[4];
    u32 kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const Four four = w[first + i * groups];
        float keys[4];
        widen(four, keys);
#pragma unroll
        for (int j = 0; j < 4; j++) keys[j] = key_of(keys[j], false);
        kept |= two_largest(keys) << 4 * i;
        soft[i] = softened(four, by);
    }
    const Picks picks(kept);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[first + i * groups] = soft[i];
        rows[first + i * groups] = picks.values(i, soft[i]);
        places[4 * t + i][place_of(u)] = (u8)picks.place(i);
    }
    const int differ = __popc(mask[tile] ^ kept);
    mask[tile] = (u16)kept;
    if (differ) atomicAdd(&changed, differ);
    __syncthreads();
    if (threadIdx.x < 128)
        rows[groups * R + (blockIdx.y * (C / SIDE) + blockIdx.x) * 128 + threadIdx.x] = word_of(places, threadIdx.x);
    if (threadIdx.x == 0 && changed) atomicAdd(flips, changed);
}
