// Voxel-driven, distance-weighted back-projection of filtered views, added to the volume.
//
//   volume[x][y][z] += sum over views of bilinear(view, u, v) / w^2, with w (u, v, 1) = matrix (x, y, z, 1); 0 outside the detector
//
// Shapes: filtered [views][rows][columns], volume [x][y][z]. Launch: blocks of 8 y x 4 x x 4 threads, HEIGHTS voxels along z a thread;
// grid (y, x, z). Lanes lie across x and y, where neighbours see neighbouring columns of one detector row, and each thread's eight
// voxels are one sector of 32 bytes of the volume.
// Work, a voxel and view: 18 operations and 4 loads where u and w do not hang on z (every untilted orbit), 40 elsewhere. Floor at 256^3
// and 50 views: 8.4e8 of them, 1.5e10 operations (0.5 ms at 33e12 instructions a second), 13 GB out of the first-level caches (0.4 ms
// at 128 bytes a clock and multiprocessor); from memory the volume twice and the views once, 0.15 GB, 0.04 ms.
// Order: a voxel begins with what it holds and adds its views one after the other, so that views that come one by one give the bits of views in
// groups.
#include "common.cuh"

namespace fdk {

constexpr int HEIGHTS = 8;
// Nearer to the source than this (share of its distance to the detector) nothing is taken.
constexpr float NEAREST = 1e-6f;

// Two columns of a view, their weights, and whether they lie on the detector.
struct Columns {
    const float* left;
    float left_weight, right_weight;
    bool has_left, has_right;
};

// Where column position `u` (from the middle) falls; `gain` goes into the weights.
__device__ __forceinline__ bool find_columns(const Scan& scan, const float* image, float u, float gain, Columns& found) {
    u += middle(scan.columns);
    if (!(u > -1.0f && u < float(scan.columns))) return false;
    int left = __float2int_rd(u);
    float part = u - float(left);
    found.left = image + left;
    found.left_weight = (1.0f - part) * gain;
    found.right_weight = part * gain;
    found.has_left = left >= 0;
    found.has_right = left + 1 < scan.columns;
    return true;
}

// The two columns' blend at row position `v` (from the middle).
__device__ __forceinline__ float sample(const Scan& scan, const Columns& columns, float v) {
    v += middle(scan.rows);
    if (!(v > -1.0f && v < float(scan.rows))) return 0.0f;
    int low = __float2int_rd(v);
    float part = v - float(low);
    const float* first = columns.left + static_cast<long long>(low) * scan.columns;
    bool has_low = low >= 0, has_high = low + 1 < scan.rows;
    float a = has_low && columns.has_left ? __ldg(first) : 0.0f;
    float b = has_low && columns.has_right ? __ldg(first + 1) : 0.0f;
    float c = has_high && columns.has_left ? __ldg(first + scan.columns) : 0.0f;
    float d = has_high && columns.has_right ? __ldg(first + scan.columns + 1) : 0.0f;
    float lower = fmaf(columns.right_weight, b, columns.left_weight * a);
    float upper = fmaf(columns.right_weight, d, columns.left_weight * c);
    return fmaf(part, upper - lower, lower);
}

}  // namespace fdk

extern "C" __global__ void __launch_bounds__(128, 8)
    back_project_fdk(Scan scan, const View* __restrict__ views, const float* __restrict__ filtered,
                     float* __restrict__ volume) {
    using namespace fdk;
    int iy = int(blockIdx.x * 8 + threadIdx.x), ix = int(blockIdx.y * 4 + threadIdx.y);
    int iz = int(blockIdx.z * 4 + threadIdx.z) * HEIGHTS;
    if (ix >= scan.voxels_x || iy >= scan.voxels_y || iz >= scan.voxels_z) return;
    float x = float(ix) - middle(scan.voxels_x), y = float(iy) - middle(scan.voxels_y);
    float z = float(iz) - middle(scan.voxels_z);
    float* row = volume + (static_cast<long long>(ix) * scan.voxels_y + iy) * scan.voxels_z;
    float sum[HEIGHTS];
#pragma unroll
    for (int i = 0; i < HEIGHTS; i += 4) {
        float4 old = load4(row, iz + i, scan.voxels_z);
        sum[i] = old.x, sum[i + 1] = old.y, sum[i + 2] = old.z, sum[i + 3] = old.w;
    }
    for (int view = 0; view < scan.views; view++) {
        const float* image = filtered + static_cast<long long>(view) * scan.rows * scan.columns;
        float4 to_u = __ldg(&views[view].project_u), to_v = __ldg(&views[view].project_v);
        float4 to_w = __ldg(&views[view].project_w);
        bool upright = __ldg(&views[view].moment).w != 0.0f;
        float u = at(to_u, x, y, z), v = at(to_v, x, y, z), w = at(to_w, x, y, z);
        Columns columns;
        if (upright) {
            if (!(w >= NEAREST)) continue;
            float near = 1.0f / w;
            if (!find_columns(scan, image, u * near, near * near, columns)) continue;
            float height = v * near, step = to_v.z * near;
#pragma unroll
            for (int i = 0; i < HEIGHTS; i++) sum[i] += sample(scan, columns, fmaf(float(i), step, height));
        } else {
            for (int i = 0; i < HEIGHTS; i++) {
                float depth = fmaf(float(i), to_w.z, w);
                if (!(depth >= NEAREST)) continue;
                float near = 1.0f / depth;
                if (!find_columns(scan, image, fmaf(float(i), to_u.z, u) * near, near * near, columns)) continue;
                sum[i] += sample(scan, columns, fmaf(float(i), to_v.z, v) * near);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < HEIGHTS; i += 4) {
        store4(row, iz + i, scan.voxels_z, make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]));
    }
}
REGISTER_KERNEL(back_project_fdk)
