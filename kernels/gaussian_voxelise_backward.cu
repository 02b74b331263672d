// The gradient of gaussian_voxelise: each Gaussian gathers from the voxels under it.
//
//   gaussian_voxelise_backward  with G = by_volume, w = G (2^-q + EDGE 2^q) within the cut-off, e = y - my x, f = z - zx x - zy y, the sums
//                               of G (2^-q - EDGE 2^q), w (x, e, f) and w (xx, xe, xf, ee, ef, ff); a Gaussian's ten take the place
//                               of its record
//   add_voxel_gradients         gradients[channel][i] += what these mean for density, position, log scales and quaternion
//
// Shapes: records [capacity] of 64 bytes (place_gaussians of gaussian_voxelise.cu); by_volume [x][y][z]; gradients [12][capacity], of
// which the last channel (the views' norms) is left alone.
// Launch: gaussian_voxelise_backward a warp a Gaussian, 8 in a block. A warp goes plane by plane across x; 8, 16 or 32 lanes lie along z,
// as the longest row within the cut-off asks, so that 4, 2 or 1 rows are walked at once, each between the roots of the cut-off. A
// Gaussian of more than LARGE steps is shared by the block's warps, every eighth plane each. add_voxel_gradients a thread a Gaussian, in
// blocks of 128.
// Floor, 256^3, 2.3e6 Gaussians of sigma 1 voxel: 8 planes of 2 steps; a step takes 45 instructions for the row and 31 for the voxel, a
// plane 24, the sums' 50 shuffles 100: 1600 a warp and Gaussian, 1.2e11 in all, 3.5 ms at 33e12 a second. A step loads some six sectors:
// 2.2e8 of 32 bytes, 7 GB out of the caches of both levels; from memory the volume as often as Gaussians that are neighbours in it are not
// neighbours in the arrays. add_voxel_gradients: 108 bytes in, 88 in and out (0.1 ms) and 700 float64 operations a Gaussian (0.1 ms at
// 17e12 a second).
// Order: lanes and planes have their voxels by the Gaussian alone; lanes, then warps are summed in their order.
#include "gaussian_voxel.cuh"

namespace gaussians {

constexpr int SUMS = 10, GATHERERS = 8;
// Steps of a warp from which on the block's warps share them.
constexpr float LARGE = 2048.0f;

// Where a Gaussian's voxels are: planes first .. last across x, and lanes along z.
struct Walk {
    int first, last, lanes;
    bool large;
};

__device__ __forceinline__ Walk walk_of(const Grid& grid, const VoxelFootprint& f) {
    gaussian_lists::Span planes = gaussian_lists::whole_within(f.voxel_x, f.fraction_x, f.reach_x);
    Walk walk;
    walk.first = max(planes.first, 0), walk.last = min(planes.last, grid.voxels_x - 1);
    float longest = floorf(fminf(2.0f * root(Y_CUTOFF * inverse(f.kz)), float(grid.voxels_z))) + 1.0f;
    // Rather few lanes that go on twice than lanes that stand idle: a row's own work is then shared by more rows.
    walk.lanes = longest <= 16.0f ? 8 : longest <= 32.0f ? 16 : 32;
    float rows = fminf(2.0f * root(Y_CUTOFF * inverse(f.ky)), float(grid.voxels_y)) + 1.0f, at_once = float(32 / walk.lanes);
    walk.large = float(walk.last - walk.first + 1) * ceilf(rows / at_once) * ceilf(longest / float(walk.lanes)) > LARGE;
    return walk;
}

// Adds up this lane's share of the planes first + part, first + part + parts, ...
__device__ __forceinline__ void gather(const Grid& grid, const VoxelFootprint& g, const Walk& walk, int part, int parts,
                                       const float* __restrict__ by_volume, float (&sums)[SUMS]) {
    int lane = int(threadIdx.x) % 32, along_z = lane % walk.lanes, row = lane / walk.lanes, rows = 32 / walk.lanes;
    float per_ky = inverse(g.ky), per_kz = inverse(g.kz);
    // Rows and heights are counted from the voxel at the centre, in floats: the grid's first and last, and how the lanes share them.
    float low_y = float(-g.voxel_y), high_y = float(grid.voxels_y - 1 - g.voxel_y);
    float low_z = float(-g.voxel_z), high_z = float(grid.voxels_z - 1 - g.voxel_z);
    float own_row = float(row), own_z = float(along_z), by_rows = float(rows), by_lanes = float(walk.lanes);
    for (int ix = walk.first + part; ix <= walk.last; ix += parts) {
        float x = float(ix - g.voxel_x) - g.fraction_x;
        float of_x = g.kx * x * x, square = (Y_CUTOFF - of_x) * per_ky;
        if (!(square >= 0.0f)) continue;
        float half = root(square), sheared = g.my * x, middle_y = g.fraction_y + sheared, last_y = fminf(middle_y + half, high_y);
        const float* plane = by_volume + static_cast<long long>(ix) * grid.voxels_y * grid.voxels_z;
        for (float at_y = fmaxf(ceilf(middle_y - half), low_y) + own_row; at_y <= last_y; at_y += by_rows) {
            float y = at_y - g.fraction_y, e = y - sheared;
            float apart = fmaf(g.ky * e, e, of_x), square_z = (Y_CUTOFF - apart) * per_kz;
            if (!(square_z >= 0.0f)) continue;
            float half_z = root(square_z), middle_z = g.fraction_z + fmaf(g.zx, x, g.zy * y);
            float at_z = fmaxf(ceilf(middle_z - half_z), low_z) + own_z, last_z = fminf(middle_z + half_z, high_z);
            if (!(at_z <= last_z)) continue;
            const float* values = plane + ((g.voxel_y + int(at_y)) * grid.voxels_z + g.voxel_z + int(at_z));
            for (; at_z <= last_z; at_z += by_lanes, values += walk.lanes) {
                float f = at_z - middle_z, q = fmaf(g.kz * f, f, apart);
                float given = q < Y_CUTOFF ? __ldg(values) : 0.0f;
                float power = power_of_two(-fminf(q, 20.0f)), small = EDGE * inverse(power);
                sums[0] = fmaf(given, power - small, sums[0]);
                float w = given * (power + small), wx = w * x, we = w * e, wf = w * f;
                sums[1] += wx, sums[2] += we, sums[3] += wf;
                sums[4] = fmaf(wx, x, sums[4]), sums[5] = fmaf(wx, e, sums[5]), sums[6] = fmaf(wx, f, sums[6]);
                sums[7] = fmaf(we, e, sums[7]), sums[8] = fmaf(we, f, sums[8]), sums[9] = fmaf(wf, f, sums[9]);
            }
        }
    }
    // Lane 0 gets the warp's.
#pragma unroll
    for (int k = 0; k < SUMS; k++) {
#pragma unroll
        for (int by = 16; by > 0; by /= 2) sums[k] += __shfl_down_sync(0xffffffffu, sums[k], unsigned(by));
    }
}

}  // namespace gaussians

extern "C" __global__ void __launch_bounds__(32 * gaussians::GATHERERS)
    gaussian_voxelise_backward(gaussians::Grid grid, int count, float4* __restrict__ records,
                               const float* __restrict__ by_volume) {
    using namespace gaussians;
    __shared__ float of_warps[GATHERERS][SUMS];
    int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    long long block_first = static_cast<long long>(blockIdx.x) * GATHERERS, own = block_first + warp;
    bool any = false, large = false;
    VoxelFootprint footprint;
    Walk walk;
    if (own < count) {
        footprint = load_footprint(records, own);
        any = footprint.reach_z >= 0.0f;
        if (any) walk = walk_of(grid, footprint), large = walk.large;
    }
    int some_large = __syncthreads_or(int(large));
    if (any && !large) {
        float sums[SUMS] = {};
        gather(grid, footprint, walk, 0, 1, by_volume, sums);
        if (lane == 0) {
            records[4 * own] = make_float4(sums[0], sums[1], sums[2], sums[3]);
            records[4 * own + 1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
            records[4 * own + 2] = make_float4(sums[8], sums[9], 0.0f, 0.0f);
        }
    }
    if (!some_large) return;
    for (int k = 0; k < GATHERERS; k++) {
        // What took a record's place is no footprint: whether it still is one its own warp knows.
        if (__syncthreads_or(int(large && k == warp)) == 0) continue;
        footprint = load_footprint(records, block_first + k);
        float sums[SUMS] = {};
        gather(grid, footprint, walk_of(grid, footprint), warp, GATHERERS, by_volume, sums);
        if (lane == 0) {
#pragma unroll
            for (int sum = 0; sum < SUMS; sum++) of_warps[warp][sum] = sums[sum];
        }
        __syncthreads();
        if (threadIdx.x < SUMS) {
            float sum = 0.0f;
            for (int of = 0; of < GATHERERS; of++) sum += of_warps[of][threadIdx.x];
            reinterpret_cast<float*>(records + 4 * (block_first + k))[threadIdx.x] = sum;
        }
    }
}
REGISTER_KERNEL(gaussian_voxelise_backward)

extern "C" __global__ void __launch_bounds__(128)
    add_voxel_gradients(gaussians::Set set, gaussians::Grid grid, const float* __restrict__ parameters,
                        const float* __restrict__ densities, const float4* __restrict__ records,
                        float* __restrict__ gradients) {
    using namespace gaussians;
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= set.count || !(records[4 * static_cast<long long>(i) + 3].w >= 0.0f)) return;
    float4 a = records[4 * static_cast<long long>(i)], b = records[4 * static_cast<long long>(i) + 1];
    float4 c = records[4 * static_cast<long long>(i) + 2];
    Axes axes = axes_of(set, parameters, i);
    Shape shape = shape_of(set, axes, parameters, densities, i);
    Vector step = grid.voxel_mm;
    Placed shear = placed(grid, shape, inverse(shape.covariance.xx), inverse(shape.precision.zz));
    // (x, y, z) = x of_x + e of_e + f of_f, in mm.
    Vector of_x = {step.x, step.y * shear.my, step.z * (shear.zx + shear.zy * shear.my)};
    Vector of_e = {0.0, step.y, step.z * shear.zy}, of_f = {0.0, 0.0, step.z};
    ShapeGradient by = {};
    by.amplitude = a.x;
    by.centre = shape.amplitude * shape.precision.times(double(a.y) * of_x + double(a.z) * of_e + double(a.w) * of_f);
    double half = -0.5 * shape.amplitude;
    by.precision.add_square(half * b.x, of_x);
    by.precision.add_product(half * 2.0 * b.y, of_x, of_e);
    by.precision.add_product(half * 2.0 * b.z, of_x, of_f);
    by.precision.add_square(half * b.w, of_e);
    by.precision.add_product(half * 2.0 * c.x, of_e, of_f);
    by.precision.add_square(half * c.y, of_f);
    add_by_parameters(set, axes, by, densities[i], i, gradients);
}
REGISTER_KERNEL(add_voxel_gradients)
