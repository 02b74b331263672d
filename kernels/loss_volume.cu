// 1 - SSIM of two volumes, slice by slice across the three axes, with its gradient (definition: src/compute/losses.rs).
//
//   find_slices             used[x | y | z] = 1 for each slice whose reference has a value above `empty_at` (the buffer is 0 before)
//   share_slices            counts[3] slices that take part; shares[3] what a pixel of an axis's slices weighs in the whole
//   add_similarity_across   gradient += weight * shares[axis] * d sum (1 - SSIM) / d volume, over slices across x or y; sums of 1 - SSIM
//   add_similarity_across_z the same for slices across z
//
// Shapes: volume, reference, gradient [x][y][z]; used [x + y + z] as 0 or 1; counts, shares [3]; `partials` [blocks], one sum a block (float64).
// Launch: find_slices in blocks of 32 z x 8 y threads, DEPTH planes of x; share_slices one block of 256. The others: grid (slices, column tiles,
// bands of rows) of loss_window.cuh; columns lie along z in blocks of 160 threads for one slice across x or y; across z eight slices side by side (32
// bytes, a sector) and 64 columns along y, 512 threads. So all loads go along z.
// Floor: 16 bytes a voxel and axis (both volumes, the gradient in and out) and 4 for find_slices: 52, at 256^3 0.2 ms at 4.3 TB/s. Instructions: 370 a
// thread and row, of which 154 products and sums of the window (14 passes of 11) and 45 of the formula. Halos: at 256^3 1.4 threads a voxel
// across x and y, 1.7 across z, so 2.8e10 instructions, 0.8 ms at 33e12 a second. Shared memory: 84 floats a thread and row, 2.5e10 bytes at 33e12 a
// second: 0.75 ms at the same time. Two barriers a row and 15 to 16 warps a multiprocessor: twice that is to be expected.
// Order: bands hang on the sizes alone. Axis after axis adds to the gradient.
#include "loss_window.cuh"

namespace volume_loss {

constexpr int HEIGHTS = 32, ROWS = 8, DEPTH = 8;
constexpr int WIDTH = 160;
constexpr int Z_LANES = 8, Z_WIDTH = 64;

// `Shares` of src/compute/cuda/loss_volume.rs is the same.
struct Shares {
    int voxels[3];
    float axes[3];
};

}  // namespace volume_loss

extern "C" __global__ void __launch_bounds__(volume_loss::HEIGHTS* volume_loss::ROWS)
    find_slices(int voxels_x, int voxels_y, int voxels_z, float empty_at, const float* __restrict__ reference,
                unsigned* __restrict__ used) {
    using namespace volume_loss;
    // Slices across x, y, z that the block meets. Several threads may write, all of them 1.
    __shared__ unsigned seen[DEPTH + ROWS + HEIGHTS];
    int thread = int(threadIdx.y) * HEIGHTS + int(threadIdx.x);
    if (thread < DEPTH + ROWS + HEIGHTS) seen[thread] = 0;
    __syncthreads();
    int x = int(blockIdx.z) * DEPTH, y = int(blockIdx.y) * ROWS, z = int(blockIdx.x) * HEIGHTS;
    int own_y = y + int(threadIdx.y), own_z = z + int(threadIdx.x);
    if (own_y < voxels_y && own_z < voxels_z) {
        bool any = false;
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (x + i >= voxels_x) continue;
            if (!(__ldg(reference + (static_cast<long long>(x + i) * voxels_y + own_y) * voxels_z + own_z) > empty_at))
                continue;
            seen[i] = 1;
            any = true;
        }
        if (any) seen[DEPTH + threadIdx.y] = seen[DEPTH + ROWS + threadIdx.x] = 1;
    }
    __syncthreads();
    if (thread >= DEPTH + ROWS + HEIGHTS || seen[thread] == 0) return;
    int slice = thread < DEPTH          ? x + thread
                : thread < DEPTH + ROWS ? voxels_x + y + thread - DEPTH
                                        : voxels_x + voxels_y + z + thread - DEPTH - ROWS;
    atomicMax(used + slice, 1u);
}
REGISTER_KERNEL(find_slices)

extern "C" __global__ void __launch_bounds__(256)
    share_slices(volume_loss::Shares of, const unsigned* __restrict__ used, unsigned* __restrict__ counts,
                 float* __restrict__ shares) {
    unsigned taken[3];
    double all = 0.0;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        taken[axis] = 0;
        for (int first = 0; first < of.voxels[axis]; first += 256) {
            int slice = first + int(threadIdx.x);
            taken[axis] += unsigned(__syncthreads_count(slice < of.voxels[axis] && used[slice] != 0));
        }
        used += of.voxels[axis];
        if (!(of.axes[axis] > 0.0f)) taken[axis] = 0;
        if (taken[axis] > 0) all += double(of.axes[axis]);
    }
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        double pixels = double(of.voxels[axis == 0 ? 1 : 0]) * double(of.voxels[axis == 2 ? 1 : 2]);
        counts[axis] = taken[axis];
        shares[axis] = taken[axis] > 0 ? float(double(of.axes[axis]) / all / (double(taken[axis]) * pixels)) : 0.0f;
    }
}
REGISTER_KERNEL(share_slices)

extern "C" __global__ void __launch_bounds__(volume_loss::WIDTH)
    add_similarity_across(ssim::Planes planes, const unsigned* __restrict__ used, const float* __restrict__ share,
                          const float* __restrict__ volume, const float* __restrict__ reference,
                          float* __restrict__ gradient, double* __restrict__ partials) {
    ssim::similarity<1, volume_loss::WIDTH>(planes, used, share, volume, reference, gradient, partials);
}
REGISTER_KERNEL(add_similarity_across)

extern "C" __global__ void __launch_bounds__(volume_loss::Z_LANES* volume_loss::Z_WIDTH)
    add_similarity_across_z(ssim::Planes planes, const unsigned* __restrict__ used, const float* __restrict__ share,
                            const float* __restrict__ volume, const float* __restrict__ reference,
                            float* __restrict__ gradient, double* __restrict__ partials) {
    using namespace volume_loss;
    ssim::similarity<Z_LANES, Z_WIDTH>(planes, used, share, volume, reference, gradient, partials);
}
REGISTER_KERNEL(add_similarity_across_z)
