// The parts of the lists of gaussian_lists.cuh that voxeliser and projector share.
//
//   plan_passes  bounds[0 .. PASSES + 1]: pass p takes chunks bounds[p] .. bounds[p + 1], which have no more than `room` entries together
//   scan_tiles   ends[tile]: of counts their sums over the tiles before, which filling then moves on to where a tile's entries end
//   sort_tiles   puts each tile's entries list[ends[tile - 1] .. ends[tile]] in ascending order
//
// Shapes: entries [chunks], bounds [PASSES + 1], ends [tiles], list [room], words of 32 bits.
// Launch: plan_passes and scan_tiles one block of 1024 threads, each with a stretch of its own; sort_tiles a block of 128 threads a tile.
// Floor: plan_passes and scan_tiles read 4 bytes a chunk or tile (72,000 chunks at 2.3 million Gaussians, 16,384 tiles at 256^3) on one
// multiprocessor: latency, some 10 us each. sort_tiles moves 8 bytes an entry (1e7 entries: 0.02 ms) and takes log2(n) (log2(n) + 1) / 4
// comparisons an entry in shared memory, 27 at 1000 entries a tile: 12 operations each, 3e9 in all, 0.1 ms at 33e12 a second.
// Order: sums of integers; a tile's entries differ, so that their order is one only.
#include "gaussian_lists.cuh"

extern "C" __global__ void __launch_bounds__(1024)
    plan_passes(int chunks, unsigned room, const unsigned* __restrict__ entries, unsigned* __restrict__ bounds) {
    using namespace gaussian_lists;
    __shared__ unsigned long long base;
    __shared__ int bound;
    Span stretch = own_stretch(chunks);
    unsigned long long own = 0, all;
    for (int chunk = stretch.first; chunk <= stretch.last; chunk++) own += entries[chunk];
    unsigned long long before = sum_before(own, all);
    if (threadIdx.x == 0) base = 0, bounds[0] = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        __syncthreads();
        unsigned long long most = base + room;
        __syncthreads();
        if (threadIdx.x == 0 && all <= most) bound = chunks, base = all;
        // The stretch in which the room ends is one thread's.
        if (before <= most && most < before + own) {
            unsigned long long sum = before;
            int chunk = stretch.first;
            while (sum + entries[chunk] <= most) sum += entries[chunk++];
            bound = chunk, base = sum;
        }
        __syncthreads();
        if (threadIdx.x == 0) bounds[pass + 1] = unsigned(bound);
    }
}
REGISTER_KERNEL(plan_passes)

extern "C" __global__ void __launch_bounds__(1024) scan_tiles(int tiles, unsigned* __restrict__ ends) {
    using namespace gaussian_lists;
    Span stretch = own_stretch(tiles);
    unsigned long long own = 0, all;
    for (int tile = stretch.first; tile <= stretch.last; tile++) own += ends[tile];
    unsigned long long sum = sum_before(own, all);
    for (int tile = stretch.first; tile <= stretch.last; tile++) {
        unsigned count = ends[tile];
        ends[tile] = unsigned(sum);
        sum += count;
    }
}
REGISTER_KERNEL(scan_tiles)

extern "C" __global__ void __launch_bounds__(128) sort_tiles(const unsigned* __restrict__ ends, unsigned* __restrict__ list) {
    using namespace gaussian_lists;
    __shared__ unsigned near[SORTED];
    unsigned first = blockIdx.x > 0 ? ends[blockIdx.x - 1] : 0;
    int count = int(ends[blockIdx.x] - first);
    if (count < 2) return;
    list += first;
    if (count > SORTED) {
        sort(list, count);
        return;
    }
    for (int k = int(threadIdx.x); k < count; k += int(blockDim.x)) near[k] = list[k];
    __syncthreads();
    sort(near, count);
    for (int k = int(threadIdx.x); k < count; k += int(blockDim.x)) list[k] = near[k];
}
REGISTER_KERNEL(sort_tiles)
