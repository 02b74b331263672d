// What a step of 3D Gaussians needs beside Adam, a Gaussian at a time (definition: src/represent/gaussians.rs).
//
//   weigh_density_gradient  gradients[0] *= unit / (1 + exp(-raw)): from the density to its raw value, of which it is unit * softplus
//   add_position_norms      gradients[11] += |gradients[1 .. 4]|
//   settle_gaussians        log scales held between low and high; quaternions to unit length, one that has vanished to (1, 0, 0, 0);
//                           densities = unit * softplus(raw)
//
// Shapes: parameters [11][capacity], gradients [12][capacity], densities [capacity]; the first `count` of each channel
// (gaussian_shape.cuh).
// Launch: blocks of 256 threads, four Gaussians a thread: loads of 16 bytes where the capacity is a multiple of four, all in flight at
// once.
// Floor: bytes at 4.3 TB/s: 12, 20 and 64 a Gaussian, for 2.3 million of them 0.006, 0.011 and 0.034 ms. Exponential, logarithm and root
// take some 60 operations a Gaussian, 2e8 in all: less.
// Order: none; what is not a number stays.
#include "common.cuh"

namespace gaussian_step {

// `Step` of src/compute/cuda/gaussian_step.rs is the same.
struct Step {
    int count, capacity;
    float unit, low, high;
};

constexpr int THREADS = 256;

// First of this thread's four Gaussians.
__device__ __forceinline__ long long place() { return 4 * (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x); }

__device__ __forceinline__ float4 load(const Step& step, const float* channels, int channel) {
    return load4(channels + static_cast<long long>(channel) * step.capacity, place(), step.count);
}

__device__ __forceinline__ void store(const Step& step, float* channels, int channel, float4 four) {
    store4(channels + static_cast<long long>(channel) * step.capacity, place(), step.count, four);
}

__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

__device__ __forceinline__ float norm(float x, float y, float z) { return sqrtf(x * x + y * y + z * z); }

__device__ __forceinline__ float held(const Step& step, float scale) {
    return scale < step.low ? step.low : scale > step.high ? step.high : scale;
}

__device__ __forceinline__ void to_unit_length(float& w, float& x, float& y, float& z) {
    float square = w * w + x * x + y * y + z * z;
    bool any = square > 1e-12f;
    float factor = any ? 1.0f / sqrtf(square) : 0.0f;
    w = any ? w * factor : w * factor + 1.0f;
    x *= factor, y *= factor, z *= factor;
}

}  // namespace gaussian_step

extern "C" __global__ void __launch_bounds__(gaussian_step::THREADS)
    weigh_density_gradient(gaussian_step::Step step, const float* __restrict__ parameters, float* __restrict__ gradients) {
    using namespace gaussian_step;
    float4 raw = load(step, parameters, 0), g = load(step, gradients, 0);
    g.x *= step.unit * logistic(raw.x), g.y *= step.unit * logistic(raw.y);
    g.z *= step.unit * logistic(raw.z), g.w *= step.unit * logistic(raw.w);
    store(step, gradients, 0, g);
}
REGISTER_KERNEL(weigh_density_gradient)

extern "C" __global__ void __launch_bounds__(gaussian_step::THREADS)
    add_position_norms(gaussian_step::Step step, float* __restrict__ gradients) {
    using namespace gaussian_step;
    float4 x = load(step, gradients, 1), y = load(step, gradients, 2), z = load(step, gradients, 3);
    float4 norms = load(step, gradients, 11);
    norms.x += norm(x.x, y.x, z.x), norms.y += norm(x.y, y.y, z.y);
    norms.z += norm(x.z, y.z, z.z), norms.w += norm(x.w, y.w, z.w);
    store(step, gradients, 11, norms);
}
REGISTER_KERNEL(add_position_norms)

extern "C" __global__ void __launch_bounds__(gaussian_step::THREADS)
    settle_gaussians(gaussian_step::Step step, float* __restrict__ parameters, float* __restrict__ densities) {
    using namespace gaussian_step;
    float4 raw = load(step, parameters, 0), scales[3];
#pragma unroll
    for (int k = 0; k < 3; k++) scales[k] = load(step, parameters, 4 + k);
    float4 w = load(step, parameters, 7), x = load(step, parameters, 8);
    float4 y = load(step, parameters, 9), z = load(step, parameters, 10);
#pragma unroll
    for (int k = 0; k < 3; k++) {
        float4 s = scales[k];
        store(step, parameters, 4 + k, make_float4(held(step, s.x), held(step, s.y), held(step, s.z), held(step, s.w)));
    }
    to_unit_length(w.x, x.x, y.x, z.x), to_unit_length(w.y, x.y, y.y, z.y);
    to_unit_length(w.z, x.z, y.z, z.z), to_unit_length(w.w, x.w, y.w, z.w);
    store(step, parameters, 7, w), store(step, parameters, 8, x);
    store(step, parameters, 9, y), store(step, parameters, 10, z);
    float4 density = make_float4(softplus(raw.x), softplus(raw.y), softplus(raw.z), softplus(raw.w));
    density.x *= step.unit, density.y *= step.unit, density.z *= step.unit, density.w *= step.unit;
    store(step, densities, 0, density);
}
REGISTER_KERNEL(settle_gaussians)
