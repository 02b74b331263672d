// 3D Gaussians onto the voxel grid: values at the voxels' centres (definition: src/compute/gaussians.rs).
//
//   volume[x][y][z] = sum_i amplitude_i max(0, 2^-q - EDGE 2^q), q = kx x^2 + ky (y - my x)^2 + kz (z - zx x - zy y)^2 (gaussian_voxel.cuh)
//
//   place_gaussians      records[i]: Gaussian i on the grid. One that is not sound is left out; the lowest index of such: unsound[0]
//   count_voxel_entries  entries[chunk]: tiles that the chunk's Gaussians touch
//   count_voxel_tiles    ends[tile] += Gaussians of the pass that touch it (ends is 0 before)
//   fill_voxel_tiles     list[ends[tile]++] = i
//   gaussian_voxelise    the volume's tiles: overwritten by pass 0, added to by the others
// in this order, with plan_passes before the first pass, and scan_tiles, fill_voxel_tiles and sort_tiles in each (gaussian_lists.cu). The
// host waits for nothing: passes that have nothing left return at once.
//
// Shapes: parameters [11][capacity], densities [capacity] (gaussian_shape.cuh); records [capacity] of 64 bytes; volume [x][y][z].
// Launch: place_gaussians blocks of 128 threads, a Gaussian each; counting and filling blocks of 256, a chunk of 32 Gaussians each;
// gaussian_voxelise a block of 256 threads for a tile of 8 x 8 x 16 voxels, of which a warp has 4 x 4 x 8 and a thread 4 along z, in
// registers. A batch of 256 Gaussians goes through shared memory; who stages one also tests which of the 8 warps it touches, and a warp
// visits only those.
// Floor, 256^3, 2.3e6 Gaussians of sigma 1 voxel (219 voxels each within the cut-off, 4 to 5 tiles, some 10 warps of 128 voxels): a visit
// takes 22 instructions and 11 a voxel of each thread's four: 66, 2.3e7 visits of 32 threads: 4.9e10, 1.5 ms at 33e12 a second. One
// exponential a voxel (8 clocks a warp of the special units, fewer than the 11 of the others); the inverse of it is had by Newton's
// method, or those units would be the floor. Beside that place_gaussians: 108 bytes (0.06 ms) and 300 float64 operations a Gaussian
// (0.04 ms at 17e12 a second); lists: 5 times 64 bytes a Gaussian, 16 an entry (0.25 ms). The volume is written once, in whole sectors
// of 32 bytes: 0.016 ms.
// Order: a voxel adds its Gaussians in ascending order, whatever tiles, passes and room.
#include "gaussian_voxel.cuh"

namespace gaussians {

constexpr int WARPS = 8, BATCH = 32 * WARPS;
// Voxels of a warp along x, y, z; two warps along each axis.
constexpr int WARP_X = 4, WARP_Y = 4, WARP_Z = 8;

// 2^-q - EDGE 2^q, 0 beyond the cut-off.
__device__ __forceinline__ float voxel_value(float q) {
    // Beyond the cut-off the small term is the larger, at last infinite or, of 0 times infinity, not a number: fmaxf makes 0 of all these.
    float power = power_of_two(-q);
    // The small term needs four digits: two steps from a guess by the exponent.
    float guess = __int_as_float(0x7ef311c3 - __float_as_int(power));
    guess = guess * (2.0f - power * guess);
    guess = guess * (2.0f - power * guess);
    return fmaxf(power - EDGE * guess, 0.0f);
}

}  // namespace gaussians

extern "C" __global__ void __launch_bounds__(128, 4)
    place_gaussians(gaussians::Set set, gaussians::Grid grid, const float* __restrict__ parameters,
                    const float* __restrict__ densities, float4* __restrict__ records, unsigned* __restrict__ unsound) {
    using namespace gaussians;
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= set.count) return;
    VoxelFootprint footprint = {};
    footprint.reach_z = -1.0f;
    if (is_sound(set, parameters, densities, i)) {
        Axes axes = axes_of(set, parameters, i);
        footprint = place(grid, shape_of(set, axes, parameters, densities, i));
    } else {
        atomicMin(unsound, unsigned(i));
    }
    store_footprint(records, i, footprint);
}
REGISTER_KERNEL(place_gaussians)

extern "C" __global__ void __launch_bounds__(gaussian_lists::THREADS)
    count_voxel_entries(gaussians::Grid grid, int count, const float4* __restrict__ records, unsigned* __restrict__ entries) {
    using namespace gaussians;
    int i = int(blockIdx.x) * gaussian_lists::CHUNK + int(threadIdx.x) / gaussian_lists::LANES;
    unsigned touched = 0;
    if (i < count) for_touched(grid, load_footprint(records, i), [&](int) { touched++; });
    gaussian_lists::leave_entries(touched, entries);
}
REGISTER_KERNEL(count_voxel_entries)

extern "C" __global__ void __launch_bounds__(gaussian_lists::THREADS)
    count_voxel_tiles(gaussians::Grid grid, int count, const float4* __restrict__ records, const unsigned* __restrict__ bounds,
                      unsigned* __restrict__ ends) {
    using namespace gaussians;
    unsigned end = bounds[1];
    for (unsigned chunk = bounds[0] + blockIdx.x; chunk < end; chunk += gridDim.x) {
        int i = int(chunk) * gaussian_lists::CHUNK + int(threadIdx.x) / gaussian_lists::LANES;
        if (i < count) for_touched(grid, load_footprint(records, i), [&](int tile) { atomicAdd(ends + tile, 1u); });
    }
}
REGISTER_KERNEL(count_voxel_tiles)

extern "C" __global__ void __launch_bounds__(gaussian_lists::THREADS)
    fill_voxel_tiles(gaussians::Grid grid, int count, const float4* __restrict__ records, const unsigned* __restrict__ bounds,
                     unsigned* __restrict__ ends, unsigned* __restrict__ list) {
    using namespace gaussians;
    unsigned end = bounds[1];
    for (unsigned chunk = bounds[0] + blockIdx.x; chunk < end; chunk += gridDim.x) {
        int i = int(chunk) * gaussian_lists::CHUNK + int(threadIdx.x) / gaussian_lists::LANES;
        if (i < count) {
            for_touched(grid, load_footprint(records, i), [&](int tile) { list[atomicAdd(ends + tile, 1u)] = unsigned(i); });
        }
    }
}
REGISTER_KERNEL(fill_voxel_tiles)

extern "C" __global__ void __launch_bounds__(gaussians::BATCH)
    gaussian_voxelise(gaussians::Grid grid, int count, int pass, const float4* __restrict__ records,
                      const unsigned* __restrict__ bounds, const unsigned* __restrict__ ends, const unsigned* __restrict__ list,
                      float* __restrict__ volume) {
    using namespace gaussians;
    // Of each Gaussian of a batch: centre from the tile's first voxel, amplitude; kx, ky, my, root of kz; zx, zy.
    __shared__ float4 centres[BATCH], factors[BATCH];
    __shared__ float2 shears[BATCH];
    // Which Gaussians of the batch touch a warp's voxels, a bit each.
    __shared__ unsigned touched[WARPS][WARPS];
    int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;

    unsigned first = blockIdx.x > 0 ? ends[blockIdx.x - 1] : 0;
    int listed = int(ends[blockIdx.x] - first);
    // After the last pass, what no pass has taken.
    int rest = count;
    if (pass + 1 == gaussian_lists::PASSES) {
        rest = int(min(bounds[gaussian_lists::PASSES] * gaussian_lists::CHUNK, unsigned(count)));
    }
    int candidates = listed + count - rest;
    if (candidates == 0 && pass > 0) return;

    int tile = int(blockIdx.x);
    int corner_z = tile % grid.tiles_z() * TILE_Z;
    tile /= grid.tiles_z();
    int corner_y = tile % grid.tiles_y() * TILE_Y, corner_x = tile / grid.tiles_y() * TILE_X;
    // This thread's first voxel in the tile.
    int in_x = (warp / 4) * WARP_X + lane / 8, in_y = (warp / 2 % 2) * WARP_Y + lane / 2 % 4;
    int in_z = (warp % 2) * WARP_Z + lane % 2 * 4;
    float x = float(in_x), y = float(in_y), z = float(in_z);
    int ix = corner_x + in_x, iy = corner_y + in_y, iz = corner_z + in_z;
    bool inside = ix < grid.voxels_x && iy < grid.voxels_y;
    float* row = volume + (static_cast<long long>(ix) * grid.voxels_y + iy) * grid.voxels_z;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (inside && pass > 0) sum = load4(row, iz, grid.voxels_z);

    for (int begin = 0; begin < candidates; begin += BATCH) {
        int k = begin + thread;
        unsigned of_warps = 0;
        if (k < candidates) {
            VoxelFootprint f = load_footprint(records, k < listed ? int(list[first + k]) : rest + (k - listed));
            float cx = float(f.voxel_x - corner_x) + f.fraction_x, cy = float(f.voxel_y - corner_y) + f.fraction_y;
            float cz = float(f.voxel_z - corner_z) + f.fraction_z;
            centres[thread] = make_float4(cx, cy, cz, f.amplitude);
            factors[thread] = make_float4(f.kx, f.ky, f.my, sqrtf(f.kz));
            shears[thread] = make_float2(f.zx, f.zy);
            if (f.reach_z >= 0.0f && f.amplitude != 0.0f) {
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    constexpr float HALF_X = 0.5f * (WARP_X - 1), HALF_Y = 0.5f * (WARP_Y - 1), HALF_Z = 0.5f * (WARP_Z - 1);
                    float from_x = float(w / 4 * WARP_X) + HALF_X - cx, from_y = float(w / 2 % 2 * WARP_Y) + HALF_Y - cy;
                    float from_z = float(w % 2 * WARP_Z) + HALF_Z - cz;
                    if (touches(f, from_x, from_y, from_z, HALF_X, HALF_Y, HALF_Z)) of_warps |= 1u << w;
                }
            }
        }
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            unsigned word = __ballot_sync(0xffffffffu, int(of_warps >> w & 1u));
            if (lane == w) touched[w][warp] = word;
        }
        __syncthreads();
        for (int part = 0; part < WARPS; part++) {
            for (unsigned word = touched[warp][part]; word != 0; word &= word - 1) {
                int g = part * 32 + __ffs(int(word)) - 1;
                float4 centre = centres[g], factor = factors[g];
                float2 shear = shears[g];
                float dx = x - centre.x, dy = y - centre.y;
                float e = fmaf(-factor.z, dx, dy);
                float apart = fmaf(factor.y * e, e, factor.x * dx * dx);
                float step = factor.w, f = step * (z - centre.z - shear.x * dx - shear.y * dy);
                float f1 = f + step, f2 = fmaf(2.0f, step, f), f3 = fmaf(3.0f, step, f);
                sum.x = fmaf(centre.w, voxel_value(fmaf(f, f, apart)), sum.x);
                sum.y = fmaf(centre.w, voxel_value(fmaf(f1, f1, apart)), sum.y);
                sum.z = fmaf(centre.w, voxel_value(fmaf(f2, f2, apart)), sum.z);
                sum.w = fmaf(centre.w, voxel_value(fmaf(f3, f3, apart)), sum.w);
            }
        }
        __syncthreads();
    }
    if (inside) store4(row, iz, grid.voxels_z, sum);
}
REGISTER_KERNEL(gaussian_voxelise)
