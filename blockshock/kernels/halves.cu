// What the kernel streamed multiplies: numbers of 16 bits, as they come. 32 columns are one product.
//
// It stands behind ptx.cu.

typedef uint2 Places;  // of a lane, of 128 columns
typedef u32 Fragment[4];

__device__ __forceinline__ void copy_places(u32 to, const Places* from) { copy8(to, from); }

__device__ __forceinline__ void load_fragment(Fragment& to, u32 from) { load_matrices(to, from); }

// Of a step's four quarters the one of that number.
__device__ __forceinline__ void multiply_quarter(float (&sums)[4], const Fragment& a, const Fragment& b,
                                                 const Places& places, int quarter) {
    const u32 word = quarter < 2 ? places.x : places.y;
    if (quarter & 1) multiply<1>(sums, a, b, word);
    else multiply<0>(sums, a, b, word);
}

#define SCALES
#define FINISHED(sum, token, row) with_bias(sum, added, row)
