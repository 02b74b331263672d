// Smoothed isotropic total variation, and its gradient (definition: src/compute/total_variation.rs).
//
//   total_variation               sum over voxels of m = sqrt(sum_k (s_k (f[i + e_k] - f[i]))^2 + epsilon^2)
//   add_total_variation_gradient  the same, and gradient += weight * d sum / d f
//
// Shapes: volume, gradient [x][y][z]; `partials` [blocks], one sum a block (float64), which sum_partials adds up.
// Launch: blocks of 32 z x 8 y threads, DEPTH planes of x; grid (z, y, x). A warp reads 32 heights of one row, one line a load.
// A block goes along x and keeps the plane before it in registers; inverse roots of neighbours along y and z come through shared
// memory, those on the block's rim are worked out again (41 for 256 voxels).
// Floor: the volume from memory once and the gradient in and out, 12 bytes a voxel: 256^3 in 0.047 ms at 4.3 TB/s (the value alone: 4 bytes,
// 0.016 ms). About 55 operations and 1.2 inverse roots a voxel: 9.2e8 at 256^3, 0.03 ms at 33e12 instructions a second.
// Order: a thread sums its planes in float32, the block its threads in float64.
#include "common.cuh"

namespace variation {

constexpr int HEIGHTS = 32, ROWS = 8, DEPTH = 8;

struct Definition {
    int voxels_x, voxels_y, voxels_z;
    float scale_x, scale_y, scale_z, epsilon;
};

// The volume with its last planes repeated: differences across the far faces are zero.
struct Field {
    const float* values;
    const Definition& d;

    __device__ __forceinline__ float at(int x, int y, int z) const {
        x = min(max(x, 0), d.voxels_x - 1), y = min(max(y, 0), d.voxels_y - 1), z = min(max(z, 0), d.voxels_z - 1);
        return __ldg(values + (static_cast<long long>(x) * d.voxels_y + y) * d.voxels_z + z);
    }

    // m^2 at a voxel.
    __device__ __forceinline__ float squared(int x, int y, int z) const {
        float here = at(x, y, z);
        float dx = d.scale_x * (at(x + 1, y, z) - here), dy = d.scale_y * (at(x, y + 1, z) - here);
        float dz = d.scale_z * (at(x, y, z + 1) - here);
        return dx * dx + dy * dy + dz * dz + d.epsilon * d.epsilon;
    }
};

template <bool GRADIENT>
__device__ __forceinline__ void total(const Definition& d, float weight, const float* __restrict__ volume,
                                      float* __restrict__ gradient, double* __restrict__ partials) {
    // 1 / m of the block's voxels, and of those one before them along y (row 0) and z (height 0).
    __shared__ float inverse[ROWS + 1][HEIGHTS + 1];
    Field field{volume, d};
    int z = int(blockIdx.x) * HEIGHTS + int(threadIdx.x), y = int(blockIdx.y) * ROWS + int(threadIdx.y);
    int first = int(blockIdx.z) * DEPTH, end = min(first + DEPTH, d.voxels_x);
    bool inside = y < d.voxels_y && z < d.voxels_z;
    // The rim: threads 0 to 31 take the row before, 32 to 39 the heights before; nobody needs the corner.
    int thread = int(threadIdx.y) * HEIGHTS + int(threadIdx.x);
    bool has_rim = GRADIENT && thread < HEIGHTS + ROWS;
    int rim_row = thread < HEIGHTS ? 0 : thread - HEIGHTS + 1, rim_height = thread < HEIGHTS ? thread + 1 : 0;
    int rim_y = int(blockIdx.y) * ROWS + rim_row - 1, rim_z = int(blockIdx.x) * HEIGHTS + rim_height - 1;
    has_rim = has_rim && rim_y >= 0 && rim_z >= 0 && rim_y < d.voxels_y && rim_z < d.voxels_z;

    float before_x = 0.0f;
    if (GRADIENT && inside && first > 0) before_x = rsqrtf(field.squared(first - 1, y, z));
    float sum = 0.0f;
    for (int x = first; x < end; x++) {
        float own = 0.0f;
        if (inside) {
            float squared = field.squared(x, y, z);
            own = rsqrtf(squared);
            sum += squared * own;
        }
        if (!GRADIENT) continue;
        inverse[threadIdx.y + 1][threadIdx.x + 1] = own;
        if (has_rim) inverse[rim_row][rim_height] = rsqrtf(field.squared(x, rim_y, rim_z));
        __syncthreads();
        if (inside) {
            float xx = d.scale_x * d.scale_x, yy = d.scale_y * d.scale_y, zz = d.scale_z * d.scale_z;
            float here = field.at(x, y, z);
            float ahead = xx * (field.at(x + 1, y, z) - here) + yy * (field.at(x, y + 1, z) - here) +
                          zz * (field.at(x, y, z + 1) - here);
            float behind = 0.0f;
            if (x > 0) behind += xx * (here - field.at(x - 1, y, z)) * before_x;
            if (y > 0) behind += yy * (here - field.at(x, y - 1, z)) * inverse[threadIdx.y][threadIdx.x + 1];
            if (z > 0) behind += zz * (here - field.at(x, y, z - 1)) * inverse[threadIdx.y + 1][threadIdx.x];
            gradient[(static_cast<long long>(x) * d.voxels_y + y) * d.voxels_z + z] += weight * (behind - ahead * own);
        }
        before_x = own;
        __syncthreads();
    }
    double of_block = block_sum(double(sum));
    if (thread == 0) partials[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = of_block;
}

}  // namespace variation

extern "C" __global__ void __launch_bounds__(256)
    total_variation(variation::Definition definition, const float* __restrict__ volume, double* __restrict__ partials) {
    variation::total<false>(definition, 0.0f, volume, nullptr, partials);
}
REGISTER_KERNEL(total_variation)

extern "C" __global__ void __launch_bounds__(256)
    add_total_variation_gradient(variation::Definition definition, float weight, const float* __restrict__ volume,
                                 float* __restrict__ gradient, double* __restrict__ partials) {
    variation::total<true>(definition, weight, volume, gradient, partials);
}
REGISTER_KERNEL(add_total_variation_gradient)
