// Forward projection by Joseph's method (joseph.cuh), one thread a ray. Overwrites the projections.
//
//   projections[view][v][u] = length_mm * sum over planes of bilinear(volume, plane, p, q)
//
// Shapes: volume [x][y][z] (1/mm), projections [views][rows][columns]. Launch: blocks of 32 rows x 8 columns; grid (rows, columns,
// views). Lanes lie along the detector's rows: on an untilted orbit a warp's rays stay in one vertical plane and read neighbouring
// heights, two lines a load. Results go through shared memory, so that eight columns (a sector of 32 bytes) are written together.
// Work, a sample: about 20 operations and 4 loads, four samples in flight. Floor at 256^3, 256^2 and 50 views: 8.4e8 samples, 1.7e10
// operations (0.5 ms at 33e12 instructions a second), 13 GB out of the first-level caches (0.4 ms at 128 bytes a clock and
// multiprocessor); from memory the volume and the projections once, 0.08 GB, 0.02 ms.
// Order: a thread sums its ray in the order of planes.
#include "joseph.cuh"

namespace forward {

// Planes from `first` on, before `end`, in which a ray may have a neighbour within the grid; one too many at each end does no harm.
__device__ __forceinline__ void narrow(float position, float step, int count, float& low, float& high) {
    // A step of zero gives infinities of the right signs, and NaN (which fminf and fmaxf drop) only on the grid's very border.
    float a = (-1.0f - position) / step, b = (float(count) - position) / step;
    low = fmaxf(low, fminf(a, b));
    high = fminf(high, fmaxf(a, b));
}

template <int AXIS>
__device__ __forceinline__ float integrate(const Scan& scan, const View& view, const float* __restrict__ volume,
                                           float3 d, float u, float v) {
    using namespace joseph;
    constexpr int P = Across<AXIS>::P, Q = Across<AXIS>::Q;
    Ray ray = ray_across<AXIS>(scan, view, d, u, v);
    int planes = count<AXIS>(scan), p_count = count<P>(scan), q_count = count<Q>(scan);
    long long of_x = static_cast<long long>(scan.voxels_y) * scan.voxels_z;
    long long plane_stride = AXIS == 0 ? of_x : AXIS == 1 ? scan.voxels_z : 1;
    long long p_stride = P == 0 ? of_x : scan.voxels_z;
    long long q_stride = Q == 1 ? scan.voxels_z : 1;
    float centre = middle(planes);
    float low = -centre, high = centre;
    narrow(ray.p, ray.p_step, p_count, low, high);
    narrow(ray.q, ray.q_step, q_count, low, high);
    if (!(low <= high + 1.0f)) return 0.0f;
    int first = max(0, __float2int_rd(low + centre) - 1);
    int end = min(planes, __float2int_rd(high + centre) + 3);
    while (first < end && !ray.in_front(float(first) - centre)) first++;
    while (first < end && !ray.in_front(float(end - 1) - centre)) end--;
    float sum = 0.0f;
#pragma unroll 4
    for (int plane = first; plane < end; plane++) {
        float k = float(plane) - centre;
        float p = ray.p_at(k), q = ray.q_at(k);
        int ip = __float2int_rd(p), iq = __float2int_rd(q);
        float p_part = p - float(ip), q_part = q - float(iq);
        bool p_low = unsigned(ip) < unsigned(p_count), p_high = unsigned(ip + 1) < unsigned(p_count);
        bool q_low = unsigned(iq) < unsigned(q_count), q_high = unsigned(iq + 1) < unsigned(q_count);
        const float* near = volume + (plane * plane_stride + ip * p_stride + iq * q_stride);
        float a = p_low && q_low ? __ldg(near) : 0.0f;
        float b = p_low && q_high ? __ldg(near + q_stride) : 0.0f;
        float c = p_high && q_low ? __ldg(near + p_stride) : 0.0f;
        float e = p_high && q_high ? __ldg(near + p_stride + q_stride) : 0.0f;
        float lower = fmaf(q_part, b - a, a), upper = fmaf(q_part, e - c, c);
        sum += fmaf(p_part, upper - lower, lower);
    }
    return sum * ray.length_mm;
}

}  // namespace forward

extern "C" __global__ void __launch_bounds__(256)
    forward_project(Scan scan, const View* __restrict__ views, const float* __restrict__ volume,
                    float* __restrict__ projections) {
    __shared__ float turned[8][33];
    int row = int(blockIdx.x * 32 + threadIdx.x), column = int(blockIdx.y * 8 + threadIdx.y);
    const View& view = views[blockIdx.z];
    if (row < scan.rows && column < scan.columns) {
        float u = float(column) - middle(scan.columns), v = float(row) - middle(scan.rows);
        float3 d = joseph::direction(view, u, v);
        float value;
        switch (joseph::dominant_axis(d)) {
            case 0: value = forward::integrate<0>(scan, view, volume, d, u, v); break;
            case 1: value = forward::integrate<1>(scan, view, volume, d, u, v); break;
            default: value = forward::integrate<2>(scan, view, volume, d, u, v); break;
        }
        turned[threadIdx.y][threadIdx.x] = value;
    }
    __syncthreads();
    int thread = int(threadIdx.y * 32 + threadIdx.x);
    row = int(blockIdx.x) * 32 + thread / 8;
    column = int(blockIdx.y) * 8 + thread % 8;
    if (row < scan.rows && column < scan.columns) {
        long long pixels = static_cast<long long>(scan.rows) * scan.columns;
        projections[blockIdx.z * pixels + static_cast<long long>(row) * scan.columns + column] =
            turned[thread % 8][thread / 8];
    }
}
REGISTER_KERNEL(forward_project)
