// Joseph's method: where rays cross the planes of voxels. The projector and its adjoint take every position from here, in operations
// whose rounding is written out (fmaf, *_rn: nvcc joins other products and sums as it likes), so that they are one matrix and its transpose.
//
// A ray is sampled once in each plane of voxel centres across its dominant axis, bilinearly within the plane, voxels outside the grid
// being zero; the sum times the ray's length between two planes is the line integral.
//
// **Precision.** With D the direction and M = S x D the moment of a ray from source S, the ray crosses the plane x = k at
// y = (k D_y - M_z) / D_x. Source and pixel stand some thousand voxels away and would cancel; D and M are linear in the pixel's indices
// and small for rays through the grid's middle.
#pragma once

#include "common.cuh"

namespace joseph {

// Samples nearer to the source than this share of the source-to-pixel distance are not taken (planes behind the source).
constexpr float NEAREST = 1e-6f;

// From the source to pixel (u, v), both from the middle, in voxels.
__device__ __forceinline__ float3 direction(const View& view, float u, float v) {
    return make_float3(fmaf(v, view.row_step.x, fmaf(u, view.column_step.x, view.direction.x)),
                       fmaf(v, view.row_step.y, fmaf(u, view.column_step.y, view.direction.y)),
                       fmaf(v, view.row_step.z, fmaf(u, view.column_step.z, view.direction.z)));
}

// 0: x, 1: y, 2: z.
__device__ __forceinline__ int dominant_axis(float3 d) {
    float x = fabsf(d.x), y = fabsf(d.y), z = fabsf(d.z);
    return z >= fmaxf(x, y) ? 2 : y > x ? 1 : 0;
}

// The axes across AXIS, in the order of memory: p and q.
template <int AXIS>
struct Across {
    static constexpr int P = AXIS == 0 ? 1 : 0;
    static constexpr int Q = AXIS == 2 ? 1 : 2;
};

template <int AXIS>
__device__ __forceinline__ float along(float3 v) {
    return AXIS == 0 ? v.x : AXIS == 1 ? v.y : v.z;
}

template <int AXIS>
__device__ __forceinline__ int count(const Scan& scan) {
    return AXIS == 0 ? scan.voxels_x : AXIS == 1 ? scan.voxels_y : scan.voxels_z;
}

// Positions of a ray in the planes across an axis, as indices along p and q: at(k) = middle + k * step, k from the grid's middle.
struct Ray {
    float p, p_step, q, q_step;
    // The first plane in front of the source, and whether planes count upwards from there.
    float nearest;
    bool upwards;
    // Between two planes.
    float length_mm;

    __device__ __forceinline__ float p_at(float plane) const { return fmaf(plane, p_step, p); }
    __device__ __forceinline__ float q_at(float plane) const { return fmaf(plane, q_step, q); }
    __device__ __forceinline__ bool in_front(float plane) const { return upwards ? plane >= nearest : plane <= nearest; }
};

// The ray to pixel (u, v), whose direction `d` has AXIS as its dominant one.
template <int AXIS>
__device__ __forceinline__ Ray ray_across(const Scan& scan, const View& view, float3 d, float u, float v) {
    constexpr int P = Across<AXIS>::P, Q = Across<AXIS>::Q;
    float mx = fmaf(v, view.moment_row.x, fmaf(u, view.moment_column.x, view.moment.x));
    float my = fmaf(v, view.moment_row.y, fmaf(u, view.moment_column.y, view.moment.y));
    float mz = fmaf(v, view.moment_row.z, fmaf(u, view.moment_column.z, view.moment.z));
    // S_p D_axis - D_p S_axis, and the same of q.
    float p_moment = AXIS == 0 ? -mz : AXIS == 1 ? mz : -my;
    float q_moment = AXIS == 0 ? my : AXIS == 1 ? -mx : mx;
    float inverse = __frcp_rn(along<AXIS>(d));
    Ray ray;
    ray.p = fmaf(p_moment, inverse, middle(count<P>(scan)));
    ray.q = fmaf(q_moment, inverse, middle(count<Q>(scan)));
    ray.p_step = __fmul_rn(along<P>(d), inverse);
    ray.q_step = __fmul_rn(along<Q>(d), inverse);
    float source = AXIS == 0 ? view.direction.w : AXIS == 1 ? view.column_step.w : view.row_step.w;
    ray.nearest = fmaf(NEAREST, along<AXIS>(d), source);
    ray.upwards = inverse > 0.0f;
    float x_mm = __fmul_rn(d.x, scan.voxel_mm_x), y_mm = __fmul_rn(d.y, scan.voxel_mm_y);
    float z_mm = __fmul_rn(d.z, scan.voxel_mm_z);
    float squared_mm2 = fmaf(x_mm, x_mm, fmaf(y_mm, y_mm, __fmul_rn(z_mm, z_mm)));
    ray.length_mm = __fmul_rn(__fsqrt_rn(squared_mm2), fabsf(inverse));
    return ray;
}

}  // namespace joseph
