// grad += decay · w where a mask drops w, in one pass over the memory.
//
// It stands behind wide.cu, whose numbers both are of.

extern "C" __global__ void decay(Four* __restrict__ grad, const Four* __restrict__ w, const u32* __restrict__ mask,
                                 int groups, int decay_bits) {
    const int group = blockIdx.x * blockDim.x + threadIdx.x;
    if (group >= groups) return;
    const u32 kept = mask[group];  // a byte each
    float sums[4], weights[4];
    widen(grad[group], sums);
    widen(w[group], weights);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float more = __fadd_rn(sums[i], __fmul_rn(weights[i], __int_as_float(decay_bits)));
        sums[i] = kept >> 8 * i & 255 ? sums[i] : more;
    }
    grad[group] = narrowed(sums);
}
