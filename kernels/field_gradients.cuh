// Sums of a field's gradients that are the same for any order of threads: fixed point for the tables, a partial sum a block for the network.
//
// Tables: an entry's gradient is the sum of what all points about it bring, in any order: 64-bit integers, whose sums do not hang on
// it, in units of a power of two for each feature of each level (field_gradients.cu says how it is chosen).
#pragma once
#include "field.cuh"

namespace field {

// Beyond this a contribution does not fit; what fits by its bound is below 2^61.
constexpr float MOST_FIXED = 0x1p62f;

// One feature of one level: units in 1, the sums of its entries, and whether a contribution was not a number.
struct FixedSums {
    float scale;
    unsigned long long* sums;
    unsigned* spoilt;

    __device__ __forceinline__ FixedSums(const float* scales, unsigned long long* all, unsigned* flags, const Field& field,
                                         const Level& level, int index, int feature)
        : scale(scales[index * field.features + feature]),
          sums(all + level.first + static_cast<long long>(feature) * level.entries),
          spoilt(flags + index * field.features + feature) {}

    __device__ __forceinline__ void add(unsigned entry, float value) const {
        float scaled = value * scale;
        if (!(fabsf(scaled) <= MOST_FIXED)) {
            atomicMax(spoilt, 1u);
            return;
        }
        long long fixed = llrintf(scaled);
        if (fixed != 0) atomicAdd(sums + entry, static_cast<unsigned long long>(fixed));
    }
};

// Floats of a block's gradient by the network in shared memory, a copy a warp; rounded so that what follows is aligned.
__device__ __forceinline__ int sums_floats(const Field& field) {
    return field.sums_staged ? (WARPS * field.network() + 3) / 4 * 4 : 0;
}

// A block's gradient by the network: in shared memory where it is small, else in the block's own partial sums. The caller waits.
__device__ __forceinline__ float* begin_sums(const Field& field, float* room, float* partials) {
    float* sums = field.sums_staged ? room : partials + static_cast<long long>(blockIdx.x) * field.network();
    int count = field.sums_staged ? WARPS * field.network() : field.network();
    for (int i = int(threadIdx.x); i < count; i += THREADS) sums[i] = 0.0f;
    return sums;
}

// Puts the copies together. After `Network::backward`, which ends with a barrier, and the caller's own for batches that were left out.
__device__ __forceinline__ void finish_sums(const Field& field, const float* sums, float* partials) {
    if (!field.sums_staged) return;
    int count = field.network();
    float* to = partials + static_cast<long long>(blockIdx.x) * count;
    for (int i = int(threadIdx.x); i < count; i += THREADS) {
        to[i] = sums[i] + sums[count + i] + sums[2 * count + i] + sums[3 * count + i];
    }
}

}  // namespace field
