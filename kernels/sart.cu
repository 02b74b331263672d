// The element-wise operations of algebraic reconstruction.
//
//   weigh_residual    projections = weights * (measured - projections), 0 where a weight is 0; sum of the squared differences
//   apply_correction  volume += relaxation * correction / column_sums where that is above least_sum, not below least; sum of squared changes
//   descend           volume -= step * gradient, not below least
//   squared_norm      sum values^2
//   squared_distance  sum (first - second)^2
//
// Shapes: all [count]; `partials` [blocks], one sum a block (float64), which sum_partials adds up.
// Launch: blocks of 256 threads, 4096 values a block: four loads of 16 bytes a thread and array, all in flight at once.
// Floor: bytes at 4.3 TB/s. 256^3 voxels: 16 bytes each for the first two (0.062 ms), 12 for descend (0.047 ms), 4 or 8 for the norms
// (0.016, 0.031 ms). A handful of operations a value, and one float64 sum a thread.
// Order: a thread sums its 16 values in float32, the block its threads in float64: the count alone settles it.
#include "tile.cuh"

namespace sart {

using namespace tile;

// As `max`, but NaN stays: a volume spoilt by its data shows it.
__device__ __forceinline__ float at_least(float value, float least) { return value < least ? least : value; }

__device__ __forceinline__ float residual(float measured, float weight, float projection) {
    return weight == 0.0f ? 0.0f : measured - projection;
}

struct Step {
    float relaxation, least_sum, least;
};

__device__ __forceinline__ float corrected(const Step& step, float value, float correction, float sum) {
    return at_least(value + (sum > step.least_sum ? step.relaxation * correction / sum : 0.0f), step.least);
}

}  // namespace sart

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    weigh_residual(const float* __restrict__ measured, const float* __restrict__ weights,
                   float* __restrict__ projections, long long count, double* __restrict__ partials) {
    using namespace sart;
    float4 m[FOURS], w[FOURS], p[FOURS];
    for (int i = 0; i < FOURS; i++) {
        m[i] = load4(measured, place(i), count);
        w[i] = load4(weights, place(i), count);
        p[i] = load4(projections, place(i), count);
    }
    float sum = 0.0f;
    for (int i = 0; i < FOURS; i++) {
        float4 r = make_float4(residual(m[i].x, w[i].x, p[i].x), residual(m[i].y, w[i].y, p[i].y),
                               residual(m[i].z, w[i].z, p[i].z), residual(m[i].w, w[i].w, p[i].w));
        sum += square(r);
        store4(projections, place(i), count, make_float4(w[i].x * r.x, w[i].y * r.y, w[i].z * r.z, w[i].w * r.w));
    }
    leave(double(sum), partials);
}
REGISTER_KERNEL(weigh_residual)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    apply_correction(sart::Step step, const float* __restrict__ correction, const float* __restrict__ column_sums,
                     float* __restrict__ volume, long long count, double* __restrict__ partials) {
    using namespace sart;
    float4 c[FOURS], s[FOURS], v[FOURS];
    for (int i = 0; i < FOURS; i++) {
        c[i] = load4(correction, place(i), count);
        s[i] = load4(column_sums, place(i), count);
        v[i] = load4(volume, place(i), count);
    }
    float sum = 0.0f;
    for (int i = 0; i < FOURS; i++) {
        float4 next = make_float4(corrected(step, v[i].x, c[i].x, s[i].x), corrected(step, v[i].y, c[i].y, s[i].y),
                                  corrected(step, v[i].z, c[i].z, s[i].z), corrected(step, v[i].w, c[i].w, s[i].w));
        // Beyond the last value `least` stands in a register and counts for nothing.
        float4 change = minus(next, v[i]);
        if (place(i) >= count) change.x = 0.0f;
        if (place(i) + 1 >= count) change.y = 0.0f;
        if (place(i) + 2 >= count) change.z = 0.0f;
        if (place(i) + 3 >= count) change.w = 0.0f;
        sum += square(change);
        store4(volume, place(i), count, next);
    }
    leave(double(sum), partials);
}
REGISTER_KERNEL(apply_correction)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    descend(float step, const float* __restrict__ gradient, float least, float* __restrict__ volume, long long count) {
    using namespace sart;
    float4 g[FOURS], v[FOURS];
    for (int i = 0; i < FOURS; i++) {
        g[i] = load4(gradient, place(i), count);
        v[i] = load4(volume, place(i), count);
    }
    for (int i = 0; i < FOURS; i++) {
        float4 next = make_float4(at_least(v[i].x - step * g[i].x, least), at_least(v[i].y - step * g[i].y, least),
                                  at_least(v[i].z - step * g[i].z, least), at_least(v[i].w - step * g[i].w, least));
        store4(volume, place(i), count, next);
    }
}
REGISTER_KERNEL(descend)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    squared_norm(const float* __restrict__ values, long long count, double* __restrict__ partials) {
    using namespace sart;
    float4 v[FOURS];
    for (int i = 0; i < FOURS; i++) v[i] = load4(values, place(i), count);
    float sum = 0.0f;
    for (int i = 0; i < FOURS; i++) sum += square(v[i]);
    leave(double(sum), partials);
}
REGISTER_KERNEL(squared_norm)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    squared_distance(const float* __restrict__ first, const float* __restrict__ second, long long count,
                     double* __restrict__ partials) {
    using namespace sart;
    float4 a[FOURS], b[FOURS];
    for (int i = 0; i < FOURS; i++) {
        a[i] = load4(first, place(i), count);
        b[i] = load4(second, place(i), count);
    }
    float sum = 0.0f;
    for (int i = 0; i < FOURS; i++) sum += square(minus(a[i], b[i]));
    leave(double(sum), partials);
}
REGISTER_KERNEL(squared_distance)
