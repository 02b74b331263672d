// A Gaussian's parameters, its covariance and precision after the low pass, and gradients back; what its falling off is made of
// (definition, cut-off and low pass: src/compute/gaussians.rs; the same formulas: src/compute/cpu/gaussian_shape.rs).
//
// Shapes: parameters [11][capacity]: channel 0, the density's raw value, is not read here; then position x y z in mm, log scales 0 1 2,
// quaternion w x y z. densities [capacity] in 1/mm. gradients [12][capacity]: density, position, log scales, quaternion, the sum of the
// views' norms.
// Float64, a Gaussian a thread: neither covariance nor precision is to be had from the other without loss for needles. What voxels and
// pixels are worked out from is rounded to float32 once, with positions from the nearest voxel or pixel.
#pragma once

#include "common.cuh"

namespace gaussians {

constexpr double CUTOFF = 14.0;
// y = q log2(e) / 2, so that exp(-q / 2) = 2^-y.
constexpr double Y_OF_Q = 0.72134752044448170368;
constexpr float Y_CUTOFF = float(CUTOFF * Y_OF_Q);
// exp(-CUTOFF)
constexpr float EDGE = 8.315287e-7f;

// `SetArgument` of src/compute/cuda/gaussian_set.rs is the same.
struct Set {
    int count, capacity;
    float low_pass_mm;
};

__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDACC__
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return exp2f(x);
#endif
}

using ::inverse;
using ::root;

// To some float32 roundings.
__device__ __forceinline__ float inverse_root(float x) {
#ifdef __CUDACC__
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return 1.0f / sqrtf(x);
#endif
}

// Root, inverse root and inverse in float64: the device's guess and two steps of Newton's, without the calls that the library's division and root are. For
// what is above 0 and neither tiny nor huge.
__device__ __forceinline__ double inverse(double x) {
#ifdef __CUDACC__
    double result;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(result) : "d"(x));
    result = fma(result, fma(-x, result, 1.0), result);
    return fma(result, fma(-x, result, 1.0), result);
#else
    return 1.0 / x;
#endif
}

__device__ __forceinline__ double inverse_root(double x) {
#ifdef __CUDACC__
    double result;
    asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(result) : "d"(x));
    result = fma(0.5 * result, fma(-x * result, result, 1.0), result);
    return fma(0.5 * result, fma(-x * result, result, 1.0), result);
#else
    return 1.0 / sqrt(x);
#endif
}

__device__ __forceinline__ double root(double x) { return x * inverse_root(x); }

struct Vector {
    double x, y, z;
};

__device__ __forceinline__ Vector operator+(Vector a, Vector b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
__device__ __forceinline__ Vector operator-(Vector a, Vector b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
__device__ __forceinline__ Vector operator*(double factor, Vector v) { return {factor * v.x, factor * v.y, factor * v.z}; }
__device__ __forceinline__ double dot(Vector a, Vector b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
__device__ __forceinline__ Vector cross(Vector a, Vector b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

struct Symmetric {
    double xx, xy, xz, yy, yz, zz;

    __device__ __forceinline__ Vector times(Vector v) const {
        return {xx * v.x + xy * v.y + xz * v.z, xy * v.x + yy * v.y + yz * v.z, xz * v.x + yz * v.y + zz * v.z};
    }
    // Adds factor v v'.
    __device__ __forceinline__ void add_square(double factor, Vector v) {
        Vector f = factor * v;
        xx += f.x * v.x, xy += f.x * v.y, xz += f.x * v.z, yy += f.y * v.y, yz += f.y * v.z, zz += f.z * v.z;
    }
    // Adds factor (a b' + b a') / 2.
    __device__ __forceinline__ void add_product(double factor, Vector a, Vector b) {
        Vector f = (0.5 * factor) * a;
        xx += 2.0 * f.x * b.x, yy += 2.0 * f.y * b.y, zz += 2.0 * f.z * b.z;
        xy += f.x * b.y + f.y * b.x, xz += f.x * b.z + f.z * b.x, yz += f.y * b.z + f.z * b.y;
    }
};

// What is between parameters and Shape: the Gaussian's own axes in the world, the unit quaternion and one over the stored one's length, s^2,
// s'^2, one over it and the product of s / s'.
struct Axes {
    Vector axes[3];
    double w, x, y, z, per_length;
    double square[3], low_passed[3], per_low_passed[3], kept;
};

// A Gaussian after the low pass; `det` is the product of the three s'^2.
struct Shape {
    Vector centre;
    double amplitude;
    Symmetric covariance, precision;
    double det;
};

// Gradients by what a Shape holds.
struct ShapeGradient {
    Vector centre;
    double amplitude;
    Symmetric covariance, precision;
    double log_volume;
};

__device__ __forceinline__ float parameter(const Set& set, const float* __restrict__ parameters, int channel, int i) {
    return parameters[static_cast<long long>(channel) * set.capacity + i];
}

// Whether Gaussian i can be worked with. What is not a number fails every comparison.
__device__ __forceinline__ bool is_sound(const Set& set, const float* __restrict__ parameters,
                                         const float* __restrict__ densities, int i) {
    bool sound = fabsf(densities[i]) <= 3.402823466e38f;
    float square = 0.0f;
#pragma unroll
    for (int k = 0; k < 3; k++) {
        sound = sound && fabsf(parameter(set, parameters, 1 + k, i)) <= 1e9f;
        sound = sound && fabsf(parameter(set, parameters, 4 + k, i)) <= 25.0f;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float q = parameter(set, parameters, 7 + k, i);
        square += q * q;
    }
    return sound && square >= 1e-12f && square < 1e12f;
}

__device__ __forceinline__ Axes axes_of(const Set& set, const float* __restrict__ parameters, int i) {
    Axes a;
    double w = parameter(set, parameters, 7, i), x = parameter(set, parameters, 8, i);
    double y = parameter(set, parameters, 9, i), z = parameter(set, parameters, 10, i);
    a.per_length = inverse_root(w * w + x * x + y * y + z * z);
    w *= a.per_length, x *= a.per_length, y *= a.per_length, z *= a.per_length;
    a.w = w, a.x = x, a.y = y, a.z = z;
    a.axes[0] = {1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)};
    a.axes[1] = {2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)};
    a.axes[2] = {2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)};
    double low_pass = double(set.low_pass_mm) * double(set.low_pass_mm);
#pragma unroll
    for (int k = 0; k < 3; k++) {
        a.square[k] = exp(2.0 * double(parameter(set, parameters, 4 + k, i)));
        a.low_passed[k] = a.square[k] + low_pass;
    }
    // One inverse for all three.
    double u = a.low_passed[0], v = a.low_passed[1], t = a.low_passed[2], per_all = inverse(u * v * t);
    a.per_low_passed[0] = v * t * per_all, a.per_low_passed[1] = u * t * per_all, a.per_low_passed[2] = u * v * per_all;
    a.kept = root(a.square[0] * a.square[1] * a.square[2] * per_all);
    return a;
}

__device__ __forceinline__ Shape shape_of(const Set& set, const Axes& a, const float* __restrict__ parameters,
                                          const float* __restrict__ densities, int i) {
    Shape shape = {};
#pragma unroll
    for (int k = 0; k < 3; k++) {
        shape.covariance.add_square(a.low_passed[k], a.axes[k]);
        shape.precision.add_square(a.per_low_passed[k], a.axes[k]);
    }
    shape.centre = {parameter(set, parameters, 1, i), parameter(set, parameters, 2, i), parameter(set, parameters, 3, i)};
    shape.amplitude = double(densities[i]) * a.kept;
    shape.det = a.low_passed[0] * a.low_passed[1] * a.low_passed[2];
    return shape;
}

// Adds a gradient by the shape to those by the parameters, through the low pass, the scales and the rotation.
__device__ __forceinline__ void add_by_parameters(const Set& set, const Axes& a, const ShapeGradient& by, double density,
                                                  int i, float* __restrict__ gradients) {
    float* to = gradients + i;
    auto add = [&](int channel, double value) { to[static_cast<long long>(channel) * set.capacity] += float(value); };
    double amplitude = density * a.kept;
    Vector by_axes[3];
#pragma unroll
    for (int k = 0; k < 3; k++) {
        Vector wide = a.low_passed[k] * by.covariance.times(a.axes[k]);
        Vector narrow = a.per_low_passed[k] * by.precision.times(a.axes[k]);
        by_axes[k] = 2.0 * (wide + narrow);
        double share = a.square[k] * a.per_low_passed[k];
        double by_low_passed = 2.0 * dot(a.axes[k], wide - narrow) + by.log_volume;
        add(4 + k, share * by_low_passed + (1.0 - share) * by.amplitude * amplitude);
    }
    add(0, by.amplitude * a.kept);
    add(1, by.centre.x), add(2, by.centre.y), add(3, by.centre.z);
    double w = a.w, x = a.x, y = a.y, z = a.z;
    Vector r0 = by_axes[0], r1 = by_axes[1], r2 = by_axes[2];
    double by_w = 2.0 * (z * r0.y - y * r0.z - z * r1.x + x * r1.z + y * r2.x - x * r2.y);
    double by_x = 2.0 * (y * r0.y + z * r0.z + y * r1.x - 2.0 * x * r1.y + w * r1.z + z * r2.x - w * r2.y - 2.0 * x * r2.z);
    double by_y = 2.0 * (-2.0 * y * r0.x + x * r0.y - w * r0.z + x * r1.x + z * r1.z + w * r2.x + z * r2.y - 2.0 * y * r2.z);
    double by_z = 2.0 * (-2.0 * z * r0.x + w * r0.y + x * r0.z - w * r1.x - 2.0 * z * r1.y + y * r1.z + x * r2.x + y * r2.y);
    // The quaternion's length has no effect.
    double along = by_w * w + by_x * x + by_y * y + by_z * z, per_length = a.per_length;
    add(7, (by_w - along * w) * per_length), add(8, (by_x - along * x) * per_length);
    add(9, (by_y - along * y) * per_length), add(10, (by_z - along * z) * per_length);
}

}  // namespace gaussians
