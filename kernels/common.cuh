// What all kernels share: building for the device or for the executor of host/, the blocks of arguments, loads of four floats, sums.
//
// Orders of memory: volumes [x][y][z], z fastest; projections [view][row v][column u], u fastest; float32.
// Coordinates: voxels and pixels counted from the *middle* of grid and detector (index - (count - 1) / 2), so that float32 carries
// positions to 3e-5 of a voxel at 512 voxels, however far the source stands.
#pragma once

#ifdef __CUDACC__
#define REGISTER_KERNEL(name)
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type* name = reinterpret_cast<type*>(name##_bytes)
#else
#include "host/device.hpp"
#endif

// Grid and detector; `ScanArgument` of src/compute/cuda/scan_table.rs is the same.
struct Scan {
    int voxels_x, voxels_y, voxels_z;
    int columns, rows, views;
    float voxel_mm_x, voxel_mm_y, voxel_mm_z;
};

// One view in voxels and pixels from the middles; `ViewRecord` of src/compute/cuda/scan_table.rs is the same.
struct View {
    // From the source to pixel (u, v): direction + u * column_step + v * row_step, in voxels. The fourth floats hold the source.
    float4 direction, column_step, row_step;
    // source x (source to pixel), which is linear in u and v as well. The first fourth float is 1 where u and depth do not hang on z.
    float4 moment, moment_column, moment_row;
    // Rows of the matrix that takes (x, y, z, 1) to w (u, v, 1); w is 0 at the source and 1 on the detector.
    float4 project_u, project_v, project_w;
};

// Half of the last index: the middle of `count` voxels or pixels.
__device__ __forceinline__ float middle(int count) { return 0.5f * float(count - 1); }

__device__ __forceinline__ float at(float4 row, float x, float y, float z) {
    return fmaf(row.x, x, fmaf(row.y, y, fmaf(row.z, z, row.w)));
}

// 1 / x for what is neither tiny nor huge, to two roundings of float32: a division asks for much more.
__device__ __forceinline__ float inverse(float x) {
#ifdef __CUDACC__
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return 1.0f / x;
#endif
}

// The root of x to two roundings.
__device__ __forceinline__ float root(float x) {
#ifdef __CUDACC__
    float result;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    return sqrtf(x);
#endif
}

// Whether four floats from here on can be moved at once.
__device__ __forceinline__ bool is_aligned(const float* pointer) {
    return (reinterpret_cast<unsigned long long>(pointer) & 15) == 0;
}

// Values first .. first + 4 of `values`, zero beyond `count`.
__device__ __forceinline__ float4 load4(const float* values, long long first, long long count) {
    const float* from = values + first;
    if (first + 4 <= count && is_aligned(from)) return *reinterpret_cast<const float4*>(from);
    float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (first < count) four.x = from[0];
    if (first + 1 < count) four.y = from[1];
    if (first + 2 < count) four.z = from[2];
    if (first + 3 < count) four.w = from[3];
    return four;
}

__device__ __forceinline__ void store4(float* values, long long first, long long count, float4 four) {
    float* to = values + first;
    if (first + 4 <= count && is_aligned(to)) {
        *reinterpret_cast<float4*>(to) = four;
        return;
    }
    if (first < count) to[0] = four.x;
    if (first + 1 < count) to[1] = four.y;
    if (first + 2 < count) to[2] = four.z;
    if (first + 3 < count) to[3] = four.w;
}

// Sum over the block in an order that the block's size alone settles; thread 0 gets it. All threads must call it, once a kernel.
__device__ __forceinline__ double block_sum(double value) {
    __shared__ double of_warps[32];
    int thread = int((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
    int warps = int(blockDim.x * blockDim.y * blockDim.z) / 32;
    for (int by = 16; by > 0; by /= 2) value += __shfl_down_sync(0xffffffffu, value, by);
    if (thread % 32 == 0) of_warps[thread / 32] = value;
    __syncthreads();
    if (thread >= 32) return 0.0;
    value = thread < warps ? of_warps[thread] : 0.0;
    for (int by = 16; by > 0; by /= 2) value += __shfl_down_sync(0xffffffffu, value, by);
    return value;
}
