// Which Gaussians touch which tile of voxels or pixels: counted, summed up, filled in and put in ascending order. Shared by the
// voxeliser and the projector.
//
// The list's room is fixed. Gaussians go in chunks of CHUNK through up to PASSES passes of as many chunks as fit, which a kernel settles
// on the device; a pass that has nothing left returns at once. What is left after the last pass the tiles try one by one, in order as
// well. A tile takes its Gaussians in ascending order on every way, and those that do not touch it add nothing: neither room nor passes
// change a bit of the result. (Trying one by one is slow: a room of 24 tiles a Gaussian is to be enough.)
// Atomics: counts and cursors only. Where an entry lands depends on the threads' order, and is put right by sorting each tile's entries.
#pragma once

#include "common.cuh"

namespace gaussian_lists {

// `PASSES`, `CHUNK` of src/compute/cuda/gaussian_room.rs are the same.
constexpr int PASSES = 3, CHUNK = 32;
// Threads that share a Gaussian's tiles, and of a block: a chunk.
constexpr int LANES = 8, THREADS = CHUNK * LANES;
// Entries of a tile that are sorted in shared memory.
constexpr int SORTED = 4096;

// Tiles along x, y, z that a Gaussian may touch, from (x, y, z) on.
struct Box {
    int x, y, z, count_x, count_y, count_z;
};

struct Span {
    int first, last;
};

// Calls f(x, y, z) for those tiles of the box that fall to this one of the LANES.
template <class F>
__device__ __forceinline__ void for_tiles(const Box& box, F&& f) {
    int all = box.count_x * box.count_y * box.count_z;
    for (int k = int(threadIdx.x) % LANES; k < all; k += LANES) {
        int rest = k / box.count_z;
        f(box.x + rest / box.count_y, box.y + rest % box.count_y, box.z + k % box.count_z);
    }
}

// The first tile and the number of tiles of `edge` voxels that hold voxels first .. last of `count`.
__device__ __forceinline__ void tiles_along(Span of, int count, int edge, int& tile, int& tiles) {
    int first = max(of.first, 0), last = min(of.last, count - 1);
    tile = first / edge;
    tiles = first <= last ? last / edge - tile + 1 : 0;
}

// anchor + first .. anchor + last, as far as integers go: no grid is as wide.
__device__ __forceinline__ Span between(float first, float last, int anchor) {
    constexpr float FARTHEST = 1e9f;
    return {anchor + int(fminf(fmaxf(first, -FARTHEST), FARTHEST)), anchor + int(fminf(fmaxf(last, -FARTHEST), FARTHEST))};
}

// First and last whole number within `reach` of `anchor + fraction`, with a little more on each side.
__device__ __forceinline__ Span whole_within(int anchor, float fraction, float reach) {
    reach = fmaf(reach, 1.00001f, 1e-3f);
    return between(ceilf(fraction - reach), floorf(fraction + reach), anchor);
}

// Writes how many tiles this chunk's Gaussians touch; `touched` is what this thread has counted.
__device__ __forceinline__ void leave_entries(unsigned touched, unsigned* __restrict__ entries) {
    __shared__ unsigned total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    if (touched > 0) atomicAdd(&total, touched);
    __syncthreads();
    if (threadIdx.x == 0) entries[blockIdx.x] = total;
}

// The stretch first .. last of `count` that is this thread's, in blocks of 1024.
__device__ __forceinline__ Span own_stretch(int count) {
    int each = (count + 1023) / 1024, first = min(int(threadIdx.x) * each, count);
    return {first, min(first + each, count) - 1};
}

// Sum of `own` over the threads before this one, and over all. For blocks of 1024 threads, all of which must call it.
__device__ __forceinline__ unsigned long long sum_before(unsigned long long own, unsigned long long& all) {
    __shared__ unsigned long long of_warps[32];
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    unsigned long long sum = own;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        unsigned long long before = __shfl_up_sync(0xffffffffu, sum, unsigned(by));
        if (lane >= by) sum += before;
    }
    if (lane == 31) of_warps[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        unsigned long long of_warp = of_warps[lane];
#pragma unroll
        for (int by = 1; by < 32; by *= 2) {
            unsigned long long before = __shfl_up_sync(0xffffffffu, of_warp, unsigned(by));
            if (lane >= by) of_warp += before;
        }
        of_warps[lane] = of_warp;
    }
    __syncthreads();
    all = of_warps[31];
    return sum - own + (warp > 0 ? of_warps[warp - 1] : 0);
}

// Sorts values[0 .. count] (shared or global memory) by the whole block: bitonic, every comparison puts the smaller one first, so that what
// would stand beyond the end can be left out. The values differ.
__device__ __forceinline__ void sort(unsigned* values, int count) {
    int half = 1;
    while (2 * half < count) half *= 2;
    for (int run = 2; run / 2 < count; run *= 2) {
        for (int by = run / 2; by > 0; by /= 2) {
            // First each value of a run with its mirror image, then with the one `by` farther on.
            int mirrored = by == run / 2 ? run - 1 : by;
            for (int pair = int(threadIdx.x); pair < half; pair += int(blockDim.x)) {
                int low = pair / by * 2 * by + pair % by, high = low ^ mirrored;
                if (high < count) {
                    unsigned a = values[low], b = values[high];
                    if (a > b) values[low] = b, values[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

}  // namespace gaussian_lists
