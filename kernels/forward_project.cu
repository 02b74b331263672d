// Forward projection by Joseph's method (joseph.cuh), one thread a ray. Overwrites the projections.
//
//   projections[view][v][u] = length_mm * sum over planes of bilinear(volume, plane, p, q)
//
// Shapes: volume [x][y][z] (1/mm), projections [views][rows][columns]. Launch: blocks of 32 rows x 8 columns; grid (rows, columns,
// views). Lanes lie along the detector's rows: on an untilted orbit a warp's rays stay in one vertical plane and read neighbouring
// heights, two lines a load. Results go through shared memory, so that eight columns (a sector of 32 bytes) are written together.
// Work, a sample: 30 instructions (34 across y), 4 of them loads, four samples in flight, in the planes where the ray's four voxels lie in the grid:
// these follow each other, and are found before. Elsewhere 60. Floor at 256^3 and 50 views of 512^2: 150 samples a ray, 2.0e9, 6.4e10 instructions
// (1.9 ms at 33e12 a second); 32 GB out of the first-level caches (1.0 ms at 128 bytes a clock and multiprocessor); from memory the
// volume and the projections once, 0.12 GB, 0.03 ms.
// Order: a thread sums its ray in the order of planes.
#include "joseph.cuh"

namespace forward {

// Narrows the planes `low` to `high` (from the middle) to those in which a position lies between `from` and `to`.
__device__ __forceinline__ void narrow(float position, float step, float from, float to, float& low, float& high) {
    // A step of zero gives infinities of the right signs, and NaN (which fminf and fmaxf drop) only on the very border.
    float a = (from - position) / step, b = (to - position) / step;
    low = fmaxf(low, fminf(a, b));
    high = fminf(high, fmaxf(a, b));
}

// The grid as planes across an axis: counts and steps in memory along the planes, p and q.
template <int AXIS>
struct Planes {
    int planes, p_count, q_count;
    long long stride, p_stride, q_stride;

    __device__ __forceinline__ explicit Planes(const Scan& scan)
        : planes(joseph::count<AXIS>(scan)), p_count(joseph::count<joseph::Across<AXIS>::P>(scan)),
          q_count(joseph::count<joseph::Across<AXIS>::Q>(scan)) {
        long long of_x = static_cast<long long>(scan.voxels_y) * scan.voxels_z;
        stride = AXIS == 0 ? of_x : AXIS == 1 ? scan.voxels_z : 1;
        p_stride = AXIS == 0 ? scan.voxels_z : of_x;
        q_stride = AXIS == 2 ? scan.voxels_z : 1;
    }
    __device__ __forceinline__ float centre() const { return middle(planes); }

    // The ray's sample in a plane, voxels outside being zero.
    __device__ __forceinline__ float sample(const joseph::Ray& ray, const float* __restrict__ volume, int plane) const {
        float k = float(plane) - centre(), p = ray.p_at(k), q = ray.q_at(k);
        int ip = __float2int_rd(p), iq = __float2int_rd(q);
        bool p_low = unsigned(ip) < unsigned(p_count), p_high = unsigned(ip + 1) < unsigned(p_count);
        bool q_low = unsigned(iq) < unsigned(q_count), q_high = unsigned(iq + 1) < unsigned(q_count);
        const float* near = volume + (plane * stride + ip * p_stride + iq * q_stride);
        float a = p_low && q_low ? __ldg(near) : 0.0f;
        float b = p_low && q_high ? __ldg(near + q_stride) : 0.0f;
        float c = p_high && q_low ? __ldg(near + p_stride) : 0.0f;
        float e = p_high && q_high ? __ldg(near + p_stride + q_stride) : 0.0f;
        float q_part = ray.q_from(float(iq), k), lower = fmaf(q_part, b - a, a), upper = fmaf(q_part, e - c, c);
        return fmaf(p - float(ip), upper - lower, lower);
    }

    // Whether all four voxels about the ray lie in the grid, in a plane `k` from the middle and, where two planes are asked, in all between: p
    // rises or falls with k, and q does within the rounding of its parts.
    __device__ __forceinline__ bool holds(const joseph::Ray& ray, float k) const {
        float p = ray.p_at(k), q = ray.q_at(k);
        bool fine = fabsf(ray.q_middle(k)) < FARTHEST && fabsf(ray.v * ray.q_by_row(k)) < FARTHEST;
        return fine && p >= MARGIN && p <= float(p_count - 1) - MARGIN && q >= MARGIN && q <= float(q_count - 1) - MARGIN;
    }
    // The ray's sample in such a plane, whose voxels begin at `index`.
    __device__ __forceinline__ float sample_within(const joseph::Ray& ray, const float* __restrict__ volume,
                                                   const float* __restrict__ next_row, float k, int index) const {
        float p = ray.p_at(k), q = ray.q_at(k);
        int ip = __float2int_rd(p), iq = __float2int_rd(q), q_step = int(q_stride);
        int low = index + ip * int(p_stride) + iq * q_step;
        float a = __ldg(volume + low), b = __ldg(volume + low + q_step);
        float c = __ldg(next_row + low), e = __ldg(next_row + low + q_step);
        float q_part = ray.q_from(float(iq), k), lower = fmaf(q_part, b - a, a), upper = fmaf(q_part, e - c, c);
        return fmaf(p - float(ip), upper - lower, lower);
    }
    // Whether 32 bits are enough for the index of a voxel.
    __device__ __forceinline__ bool is_indexed() const { return stride * planes <= 0x7fffffff && p_stride * p_count <= 0x7fffffff; }
    // Parts of a position up to FARTHEST are good to a fifth of MARGIN.
    static constexpr float MARGIN = 0.01f, FARTHEST = 1e4f;
};

template <int AXIS>
__device__ __forceinline__ float integrate(const Scan& scan, const View& view, const float* __restrict__ volume,
                                           float3 d, float u, float v) {
    using namespace joseph;
    Ray ray = ray_across<AXIS>(scan, view, d, u, v);
    Planes<AXIS> grid(scan);
    float centre = grid.centre(), middle_q = fmaf(v, ray.q_row, ray.q), step_q = fmaf(v, ray.q_row_step, ray.q_step);
    float low = -centre, high = centre;
    narrow(ray.p, ray.p_step, -1.0f, float(grid.p_count), low, high);
    narrow(middle_q, step_q, -1.0f, float(grid.q_count), low, high);
    if (!(low <= high + 1.0f)) return 0.0f;
    // One plane too many at each end does no harm.
    int first = max(0, __float2int_rd(low + centre) - 1);
    int end = min(grid.planes, __float2int_rd(high + centre) + 3);
    while (first < end && !ray.in_front(float(first) - centre)) first++;
    while (first < end && !ray.in_front(float(end - 1) - centre)) end--;

    // Planes in which no edge need be asked for.
    constexpr float WITHIN = 2.0f * Planes<AXIS>::MARGIN;
    narrow(ray.p, ray.p_step, WITHIN, float(grid.p_count - 1) - WITHIN, low, high);
    narrow(middle_q, step_q, WITHIN, float(grid.q_count - 1) - WITHIN, low, high);
    int inner = end, inner_end = end;
    if (low <= high && grid.is_indexed()) {
        int from = max(first, __float2int_rd(low + centre) + 1), to = min(end, __float2int_rd(high + centre) + 1);
        if (from < to && grid.holds(ray, float(from) - centre) && grid.holds(ray, float(to - 1) - centre)) {
            inner = from, inner_end = to;
        }
    }
    float sum = 0.0f;
#pragma unroll 1
    for (int plane = first; plane < inner; plane++) sum += grid.sample(ray, volume, plane);
    const float* next_row = volume + grid.p_stride;
    int index = inner * int(grid.stride);
    float k = float(inner) - centre;
#pragma unroll 4
    for (int plane = inner; plane < inner_end; plane++, k += 1.0f, index += int(grid.stride)) {
        sum += grid.sample_within(ray, volume, next_row, k, index);
    }
#pragma unroll 1
    for (int plane = inner_end; plane < end; plane++) sum += grid.sample(ray, volume, plane);
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
