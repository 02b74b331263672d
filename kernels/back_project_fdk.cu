// Voxel-driven, distance-weighted back-projection of filtered views, added to the volume.
//
//   volume[x][y][z] += sum over views of bilinear(view, u, v) / w^2, with w (u, v, 1) = matrix (x, y, z, 1); 0 outside the detector
//
// Shapes: filtered [views][rows][columns], volume [x][y][z]. Launch: blocks of 8 y x 4 x x 4 threads, HEIGHTS voxels along z a thread;
// grid (y, x, z). Lanes lie across x and y, where neighbours see neighbouring columns of one detector row, and each thread's eight
// voxels are one sector of 32 bytes of the volume.
// Work, a voxel and view where u and w do not hang on z (every untilted orbit): 26 instructions, 4 of them loads, where a thread's voxels are
// seen by the detector's inside, which one test settles for all of them; some 50 at its border and elsewhere. Floor at 512^3 and 496 views of
// 512^2: 6.7e10 of them, 1.7e12 instructions, 52 ms (1280 voxels and views a nanosecond) at 33e12 a second; a load of a warp is two lines and takes 1.7
// clocks, 55 ms; from memory the volume twice and the views once, 1.6 GB, 0.4 ms.
// Order: a voxel begins with what it holds and adds its views one after the other, so that views that come one by one give the bits of views in
// groups.
#include "common.cuh"

namespace fdk {

constexpr int HEIGHTS = 8;
// Nearer to the source than this (share of its distance to the detector) nothing is taken.
constexpr float NEAREST = 1e-6f;

// 1 / w to float32's own precision, w being at least NEAREST.
__device__ __forceinline__ float precise_inverse(float w) {
    float guess = inverse(w);
    return fmaf(guess, fmaf(-w, guess, 1.0f), guess);
}

// Two columns of a view, their weights, and whether they lie on the detector.
struct Columns {
    int left;
    float left_weight, right_weight;
    bool has_left, has_right;
};

// Where column position `u` falls; `gain` goes into the weights.
__device__ __forceinline__ bool find_columns(const Scan& scan, float u, float gain, Columns& found) {
    if (!(u > -1.0f && u < float(scan.columns))) return false;
    int left = __float2int_rd(u);
    float part = (u - float(left)) * gain;
    found.left = left;
    found.left_weight = gain - part;
    found.right_weight = part;
    found.has_left = left >= 0;
    found.has_right = left + 1 < scan.columns;
    return true;
}

// The two columns' blend at row position `v`. `INSIDE`: both columns and both rows lie on the detector.
template <bool INSIDE>
__device__ __forceinline__ float sample(const Scan& scan, const Columns& columns, const float* __restrict__ image,
                                        const float* __restrict__ next_row, float v) {
    if (!INSIDE && !(v > -1.0f && v < float(scan.rows))) return 0.0f;
    int low = __float2int_rd(v);
    float part = v - float(low);
    bool has_low = INSIDE || low >= 0, has_high = INSIDE || low + 1 < scan.rows;
    bool has_left = INSIDE || columns.has_left, has_right = INSIDE || columns.has_right;
    int pixel = low * scan.columns + columns.left;
    float a = has_low && has_left ? __ldg(image + pixel) : 0.0f;
    float b = has_low && has_right ? __ldg(image + pixel + 1) : 0.0f;
    float c = has_high && has_left ? __ldg(next_row + pixel) : 0.0f;
    float d = has_high && has_right ? __ldg(next_row + pixel + 1) : 0.0f;
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
    float middle_u = middle(scan.columns), middle_v = middle(scan.rows);
    const float* image = filtered;
    for (int view = 0; view < scan.views; view++, image += static_cast<long long>(scan.rows) * scan.columns) {
        float4 to_u = __ldg(&views[view].project_u), to_v = __ldg(&views[view].project_v);
        float4 to_w = __ldg(&views[view].project_w);
        bool upright = __ldg(&views[view].moment).w != 0.0f;
        const float* next_row = image + scan.columns;
        float u = at(to_u, x, y, z), v = at(to_v, x, y, z), w = at(to_w, x, y, z);
        Columns columns;
        if (upright) {
            if (!(w >= NEAREST)) continue;
            float near = precise_inverse(w);
            if (!find_columns(scan, fmaf(u, near, middle_u), near * near, columns)) continue;
            float height = fmaf(v, near, middle_v), step = to_v.z * near, top = fmaf(float(HEIGHTS - 1), step, height);
            bool inside = columns.has_left && columns.has_right && fminf(height, top) >= 0.0f;
            if (inside && fmaxf(height, top) < float(scan.rows - 1)) {
#pragma unroll
                for (int i = 0; i < HEIGHTS; i++) {
                    sum[i] += sample<true>(scan, columns, image, next_row, fmaf(float(i), step, height));
                }
            } else {
#pragma unroll
                for (int i = 0; i < HEIGHTS; i++) {
                    sum[i] += sample<false>(scan, columns, image, next_row, fmaf(float(i), step, height));
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < HEIGHTS; i++) {
                float depth = fmaf(float(i), to_w.z, w);
                if (!(depth >= NEAREST)) continue;
                float near = precise_inverse(depth);
                if (!find_columns(scan, fmaf(fmaf(float(i), to_u.z, u), near, middle_u), near * near, columns)) continue;
                float row = fmaf(fmaf(float(i), to_v.z, v), near, middle_v);
                sum[i] += sample<false>(scan, columns, image, next_row, row);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < HEIGHTS; i += 4) {
        store4(row, iz + i, scan.voxels_z, make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]));
    }
}
REGISTER_KERNEL(back_project_fdk)
