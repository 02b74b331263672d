// One Gaussian on the voxel grid: shared by the voxeliser and its gradient.
//
// Offsets (x, y, z) from the centre are counted in voxels. The precision is taken apart from z to x, so that the squared distance is a
// sum of squares, q = kx x^2 + ky (y - my x)^2 + kz (z - zx x - zy y)^2, times Y_OF_Q: no cancellation for needles.
#pragma once

#include "gaussian_lists.cuh"
#include "gaussian_shape.cuh"

namespace gaussians {

// Voxels of a tile along x, y, z.
constexpr int TILE_X = 8, TILE_Y = 8, TILE_Z = 16;

// `GridArgument` of src/compute/cuda/gaussian_voxelise.rs is the same. `origin` is the centre of voxel (0, 0, 0), `per_mm` one over `voxel`.
struct Grid {
    int voxels_x, voxels_y, voxels_z, padding;
    Vector origin_mm, voxel_mm, per_mm;

    __device__ __forceinline__ int tiles_y() const { return (voxels_y + TILE_Y - 1) / TILE_Y; }
    __device__ __forceinline__ int tiles_z() const { return (voxels_z + TILE_Z - 1) / TILE_Z; }
    __device__ __forceinline__ int tile(int x, int y, int z) const { return (x * tiles_y() + y) * tiles_z() + z; }
};

// What the inner loops need of a Gaussian on a grid; 64 bytes. The centre lies `fraction` behind a voxel; no voxel farther off than
// `reach` along an axis is within the cut-off. A reach_z below 0: no voxel of the grid is.
struct alignas(16) VoxelFootprint {
    float kx, ky, kz, amplitude;
    float my, zx, zy, reach_x;
    int voxel_x, voxel_y, voxel_z;
    float reach_y;
    float fraction_x, fraction_y, fraction_z, reach_z;
};

__device__ __forceinline__ VoxelFootprint load_footprint(const float4* records, long long i) {
    float4 a = records[4 * i], b = records[4 * i + 1], c = records[4 * i + 2], d = records[4 * i + 3];
    VoxelFootprint f;
    f.kx = a.x, f.ky = a.y, f.kz = a.z, f.amplitude = a.w;
    f.my = b.x, f.zx = b.y, f.zy = b.z, f.reach_x = b.w;
    f.voxel_x = __float_as_int(c.x), f.voxel_y = __float_as_int(c.y), f.voxel_z = __float_as_int(c.z), f.reach_y = c.w;
    f.fraction_x = d.x, f.fraction_y = d.y, f.fraction_z = d.z, f.reach_z = d.w;
    return f;
}

__device__ __forceinline__ void store_footprint(float4* records, long long i, const VoxelFootprint& f) {
    records[4 * i] = make_float4(f.kx, f.ky, f.kz, f.amplitude);
    records[4 * i + 1] = make_float4(f.my, f.zx, f.zy, f.reach_x);
    float x = __int_as_float(f.voxel_x), y = __int_as_float(f.voxel_y), z = __int_as_float(f.voxel_z);
    records[4 * i + 2] = make_float4(x, y, z, f.reach_y);
    records[4 * i + 3] = make_float4(f.fraction_x, f.fraction_y, f.fraction_z, f.reach_z);
}

// The float64 side of a footprint.
struct Placed {
    double my, zx, zy;
};

__device__ __forceinline__ Placed placed(const Grid& grid, const Shape& shape, double per_xx, double per_zz) {
    const Vector &step = grid.voxel_mm, &per = grid.per_mm;
    const Symmetric& p = shape.precision;
    return {shape.covariance.xy * per_xx * step.x * per.y, -p.xz * step.x * per.z * per_zz, -p.yz * step.y * per.z * per_zz};
}

// How a grid holds a Gaussian.
__device__ __forceinline__ VoxelFootprint place(const Grid& grid, const Shape& shape) {
    VoxelFootprint f = {};
    f.reach_z = -1.0f;
    const Vector &step = grid.voxel_mm, &per = grid.per_mm;
    Vector from = shape.centre - grid.origin_mm;
    Vector centre = {from.x * per.x, from.y * per.y, from.z * per.z};
    const Symmetric& s = shape.covariance;
    // Where lists and walks look, a little more: float32 will do.
    constexpr float CUT = float(CUTOFF);
    float reach_x = root(CUT * float(s.xx)) * float(per.x), reach_y = root(CUT * float(s.yy)) * float(per.y);
    float reach_z = root(CUT * float(s.zz)) * float(per.z);
    // Beyond 1e6 voxels float32 would have no digits left.
    bool held = fabs(centre.x) <= 1e6 && fabs(centre.y) <= 1e6 && fabs(centre.z) <= 1e6;
    held = held && centre.x + reach_x >= 0.0 && centre.x - reach_x <= double(grid.voxels_x - 1);
    held = held && centre.y + reach_y >= 0.0 && centre.y - reach_y <= double(grid.voxels_y - 1);
    held = held && centre.z + reach_z >= 0.0 && centre.z - reach_z <= double(grid.voxels_z - 1);
    if (!held) return f;
    // The product of the three pivots is the determinant. All factors are positive: nothing is lost. One inverse for all.
    double edges = per.x * per.y * per.z, square = shape.det * edges * edges, zz = shape.precision.zz;
    double per_all = inverse(s.xx * zz * square), per_xx = zz * square * per_all;
    Placed shear = placed(grid, shape, per_xx, s.xx * square * per_all);
    f.amplitude = float(shape.amplitude);
    f.kx = float(Y_OF_Q * step.x * step.x * per_xx), f.kz = float(Y_OF_Q * zz * step.z * step.z);
    f.ky = float(Y_OF_Q * s.xx * per.x * per.x * per.z * per.z * s.xx * per_all);
    f.my = float(shear.my), f.zx = float(shear.zx), f.zy = float(shear.zy);
    Vector voxel = {rint(centre.x), rint(centre.y), rint(centre.z)};
    f.voxel_x = int(voxel.x), f.voxel_y = int(voxel.y), f.voxel_z = int(voxel.z);
    f.fraction_x = float(centre.x - voxel.x), f.fraction_y = float(centre.y - voxel.y);
    f.fraction_z = float(centre.z - voxel.z);
    f.reach_x = reach_x, f.reach_y = reach_y, f.reach_z = reach_z;
    return f;
}

// Whether a box of voxels may hold one within the cut-off: (x, y, z) from the centre to the box's middle, and half its edges. Each of
// the three squares is taken at its least, so that a box that is touched is never left out. Roundings are written out: the kernels that count
// and that fill in must agree.
__device__ __forceinline__ bool touches(const VoxelFootprint& f, float x, float y, float z, float half_x, float half_y,
                                        float half_z) {
    float along_x = fmaxf(fabsf(x) - half_x, 0.0f);
    float along_e = fmaxf(fabsf(fmaf(-f.my, x, y)) - fmaf(fabsf(f.my), half_x, half_y), 0.0f);
    float half_f = fmaf(fabsf(f.zy), half_y, fmaf(fabsf(f.zx), half_x, half_z));
    float along_f = fmaxf(fabsf(fmaf(-f.zy, y, fmaf(-f.zx, x, z))) - half_f, 0.0f);
    float least = fmaf(f.kz * along_f, along_f, fmaf(f.ky * along_e, along_e, __fmul_rn(f.kx * along_x, along_x)));
    bool near = fabsf(x) - half_x <= f.reach_x + 1e-3f && fabsf(y) - half_y <= f.reach_y + 1e-3f;
    return near && fabsf(z) - half_z <= f.reach_z + 1e-3f && least <= 1.001f * Y_CUTOFF;
}

// Tiles that a Gaussian's reach meets; none where it has no voxel, or no density.
__device__ __forceinline__ gaussian_lists::Box box_of(const Grid& grid, const VoxelFootprint& f) {
    using namespace gaussian_lists;
    Box box = {};
    if (!(f.reach_z >= 0.0f) || f.amplitude == 0.0f) return box;
    tiles_along(whole_within(f.voxel_x, f.fraction_x, f.reach_x), grid.voxels_x, TILE_X, box.x, box.count_x);
    tiles_along(whole_within(f.voxel_y, f.fraction_y, f.reach_y), grid.voxels_y, TILE_Y, box.y, box.count_y);
    tiles_along(whole_within(f.voxel_z, f.fraction_z, f.reach_z), grid.voxels_z, TILE_Z, box.z, box.count_z);
    return box;
}

// Calls f(tile) for those tiles that the Gaussian may touch and that fall to this one of the threads that share it.
template <class F>
__device__ __forceinline__ void for_touched(const Grid& grid, const VoxelFootprint& footprint, F&& f) {
    const VoxelFootprint& g = footprint;
    gaussian_lists::for_tiles(box_of(grid, g), [&](int x, int y, int z) {
        float dx = float(x * TILE_X - g.voxel_x) - g.fraction_x + middle(TILE_X);
        float dy = float(y * TILE_Y - g.voxel_y) - g.fraction_y + middle(TILE_Y);
        float dz = float(z * TILE_Z - g.voxel_z) - g.fraction_z + middle(TILE_Z);
        if (touches(g, dx, dy, dz, middle(TILE_X), middle(TILE_Y), middle(TILE_Z))) f(grid.tile(x, y, z));
    });
}

}  // namespace gaussians
