// S-STE's weights in one pass over the memory: each of four less the second smallest size, times a scale; dense, packed as
// cuSPARSELt has them, and as a mask, of which is counted what has changed.
//
// A block takes 64 × 64 numbers, a thread one 4 × 4 tile of them, as in make24.cu. It stands behind wide.cu and pairs24.cu,
// whose numbers are of what it makes; FP32 is set where what it reads is of float32. Nothing is added up in one place: that is left
// to who asks how much has changed.

constexpr int WARPS = THREADS / 32;

// w: (R, C), dense. values: (R, C). rows: the packing. mask: (R/4, C/4), 16 bits a tile, of before; becomes the new one.
// flips: how many bits of it have changed, by block and warp.
extern "C" __global__ void __launch_bounds__(THREADS)
soft24(const Four* __restrict__ w, const double* __restrict__ scale, uint2* __restrict__ values, u32* __restrict__ rows,
       u16* __restrict__ mask, u16* __restrict__ flips, int R, int C) {
    __shared__ __align__(4) Places places;
    const u32 t = threadIdx.x / GROUPS, u = threadIdx.x % GROUPS, groups = C / 4;
    const u32 first = (blockIdx.y * SIDE + 4 * t) * groups + blockIdx.x * GROUPS + u;
    const u32 tile = (blockIdx.y * GROUPS + t) * groups + blockIdx.x * GROUPS + u;
    const u32 block = blockIdx.y * (C / SIDE) + blockIdx.x;
    Four fours[4];  // all that is read is under way before the first of it is needed
#pragma unroll
    for (int i = 0; i < 4; i++) fours[i] = w[first + i * groups];
    const u32 before = mask[tile];
    const float by = (float)*scale;
    uint2 soft[4];
    u32 kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float keys[4];
        widen(fours[i], keys);
#pragma unroll
        for (int j = 0; j < 4; j++) keys[j] = key_of(keys[j], false);
        kept |= two_largest(keys) << 4 * i;
        soft[i] = softened(fours[i], by);
    }
    const Picks picks(kept);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[first + i * groups] = soft[i];
        rows[first + i * groups] = picks.values(i, soft[i]);
        places[4 * t + i][place_of(u)] = (u8)picks.place(i);
    }
    mask[tile] = (u16)kept;
    const u32 changed = __reduce_add_sync(~0u, __popc(before ^ kept));
    if (threadIdx.x % 32 == 0) flips[block * WARPS + threadIdx.x / 32] = (u16)changed;
    __syncthreads();
    if (threadIdx.x < 128) rows[groups * R + block * 128 + threadIdx.x] = word_of(places, threadIdx.x);
}
