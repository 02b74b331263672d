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

// Positions of a ray in the planes across an axis, as indices along p and q: p_at(k) = p + k * p_step, and q_at(k) = A(k) + v * B(k), where A
// and B are the same for all rows of a column whose rays have one and the same p; k and v from the middles.
struct Ray {
    float p, p_step, q, q_step, q_row, q_row_step;
    float v;
    // The first plane in front of the source, and whether planes count upwards from there.
    float nearest;
    bool upwards;
    // Between two planes.
    float length_mm;

    __device__ __forceinline__ float p_at(float plane) const { return fmaf(plane, p_step, p); }
    __device__ __forceinline__ float q_middle(float plane) const { return fmaf(plane, q_step, q); }
    __device__ __forceinline__ float q_by_row(float plane) const { return fmaf(plane, q_row_step, q_row); }
    __device__ __forceinline__ float q_at(float plane) const { return fmaf(v, q_by_row(plane), q_middle(plane)); }
    // From a voxel to the position, closer than by the difference of both.
    __device__ __forceinline__ float q_from(float voxel, float plane) const {
        return fmaf(v, q_by_row(plane), __fadd_rn(q_middle(plane), -voxel));
    }
    __device__ __forceinline__ bool in_front(float plane) const { return upwards ? plane >= nearest : plane <= nearest; }
};

// S_p D_axis - D_p S_axis of a moment, and the same of q.
template <int AXIS>
__device__ __forceinline__ float p_moment(float4 m) {
    return AXIS == 0 ? -m.z : AXIS == 1 ? m.z : -m.y;
}
template <int AXIS>
__device__ __forceinline__ float q_moment(float4 m) {
    return AXIS == 0 ? m.y : AXIS == 1 ? -m.x : m.x;
}

// The ray to pixel (u, v), whose direction `d` has AXIS as its dominant one.
template <int AXIS>
__device__ __forceinline__ Ray ray_across(const Scan& scan, const View& view, float3 d, float u, float v) {
    constexpr int P = Across<AXIS>::P, Q = Across<AXIS>::Q;
    float inverse = __frcp_rn(along<AXIS>(d));
    float3 of_column = direction(view, u, 0.0f), of_row = make_float3(view.row_step.x, view.row_step.y, view.row_step.z);
    float p_of_column = fmaf(u, p_moment<AXIS>(view.moment_column), p_moment<AXIS>(view.moment));
    float q_of_column = fmaf(u, q_moment<AXIS>(view.moment_column), q_moment<AXIS>(view.moment));
    Ray ray;
    ray.p = fmaf(fmaf(v, p_moment<AXIS>(view.moment_row), p_of_column), inverse, middle(count<P>(scan)));
    ray.p_step = __fmul_rn(along<P>(d), inverse);
    ray.q = fmaf(q_of_column, inverse, middle(count<Q>(scan)));
    ray.q_step = __fmul_rn(along<Q>(of_column), inverse);
    ray.q_row = __fmul_rn(q_moment<AXIS>(view.moment_row), inverse);
    ray.q_row_step = __fmul_rn(along<Q>(of_row), inverse);
    ray.v = v;
    float source = AXIS == 0 ? view.direction.w : AXIS == 1 ? view.column_step.w : view.row_step.w;
    ray.nearest = fmaf(NEAREST, along<AXIS>(d), source);
    ray.upwards = inverse > 0.0f;
    float x_mm = __fmul_rn(d.x, scan.voxel_mm_x), y_mm = __fmul_rn(d.y, scan.voxel_mm_y);
    float z_mm = __fmul_rn(d.z, scan.voxel_mm_z);
    float squared_mm2 = fmaf(x_mm, x_mm, fmaf(y_mm, y_mm, __fmul_rn(z_mm, z_mm)));
    ray.length_mm = __fmul_rn(root(squared_mm2), fabsf(inverse));
    return ray;
}

}  // namespace joseph
