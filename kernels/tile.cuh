// Element-wise kernels: blocks of 256 threads, 4096 values a block; a thread has four loads of 16 bytes an array, all in flight at once.
#pragma once

#include "common.cuh"

namespace tile {

constexpr int THREADS = 256;
constexpr int FOURS = 4;
constexpr int TILE = THREADS * FOURS * 4;

// First of the four values that this thread handles in its turn `four`.
__device__ __forceinline__ long long place(int four) {
    return static_cast<long long>(TILE) * blockIdx.x + 4 * (four * THREADS + int(threadIdx.x));
}

__device__ __forceinline__ float square(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

__device__ __forceinline__ float4 minus(float4 a, float4 b) {
    return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}

// `f` of each of the four, one array and two.
template <class F>
__device__ __forceinline__ float4 each(float4 a, F f) {
    return make_float4(f(a.x), f(a.y), f(a.z), f(a.w));
}
template <class F>
__device__ __forceinline__ float4 each(float4 a, float4 b, F f) {
    return make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));
}

// The block's partial sum.
__device__ __forceinline__ void leave(double sum, double* partials) {
    double total = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

}  // namespace tile
