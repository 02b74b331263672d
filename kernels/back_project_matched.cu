// The matched adjoint of forward_project: the same weights transposed. Overwrites the volume.
//
//   volume[x][y][z] = sum over views and pixels of projections * length_mm * (1 - |p - voxel_p|) * (1 - |q - voxel_q|), both factors above 0
//
//   back_project_matched  any views
//   back_project_level    views that are all level (matched_level.cuh), as on every untilted orbit: the same, column by column
//
// Shapes: projections [views][rows][columns], volume [x][y][z]. Launch: back_project_matched blocks of 8 y x 4 x x 4 threads, HEIGHTS voxels
// along z a thread; back_project_level blocks of 8 warps for EDGE x EDGE x LAYER voxels; grids (y, x, z).
// No two threads write one voxel at a time, and there are no atomics: the neighbourhood in which rays touch voxels is projected onto the detector,
// and pixels in that window are asked for their rays, which joseph.cuh works out to the same bits as for the projector. A window is as
// large as a pixel's worth of slack makes it safe; a ray's position decides, never the window.
// Floor at 256^3 and 50 views: 8.4e8 voxels and views.
//   back_project_matched: 200 instructions for a thread's window and 90 a pixel of it. From views of 256^2 (voxels as large as pixels) it has
//   3 x 6 pixels for four voxels: 420 instructions a voxel, 11 ms at 33e12 a second; from views of 512^2 31 ms.
//   back_project_level: a column that crosses a plane takes 55 instructions a height from views of 256^2, 70 from 512^2, and there are 1.1 and 2.3
//   columns a voxel, each of which serves two; with the staging 85 and 190 instructions a voxel, 2.1 and 4.8 ms. Shared memory: 5 loads a height and
//   column, two of a bank: 0.8 of that. From memory 0.08 GB.
// Order: a voxel sums views, axes, rows and columns in their order; of level views, views, columns and rows.
#include "matched_level.cuh"

namespace matched {

constexpr int HEIGHTS = 4;

// Weight of a voxel at a distance from a sample, along one axis.
__device__ __forceinline__ float weight(float distance) { return 1.0f - fabsf(distance); }

// Adds what the view's rays with AXIS as dominant one bring to the voxels (ix, iy, iz ..).
template <int AXIS>
__device__ __forceinline__ void gather(const Scan& scan, const View& view, const float* __restrict__ image, int ix, int iy,
                                       int iz, float (&sum)[HEIGHTS]) {
    using namespace joseph;
    float x = float(ix) - middle(scan.voxels_x), y = float(iy) - middle(scan.voxels_y);
    float z = float(iz) - middle(scan.voxels_z);
    constexpr float ACROSS_X = AXIS == 0 ? 0.0f : 1.0f, ACROSS_Y = AXIS == 1 ? 0.0f : 1.0f;
    constexpr float ACROSS_Z = AXIS == 2 ? 0.0f : 1.0f;
    Window window = shadow(scan, view, make_float3(x - ACROSS_X, y - ACROSS_Y, z - ACROSS_Z),
                           make_float3(x + ACROSS_X, y + ACROSS_Y, z + ACROSS_Z + float(HEIGHTS - 1)));
    for (int row = window.first_row; row <= window.last_row; row++) {
        float v = float(row) - middle(scan.rows);
        for (int column = window.first_column; column <= window.last_column; column++) {
            float u = float(column) - middle(scan.columns);
            float3 d = direction(view, u, v);
            if (dominant_axis(d) != AXIS) continue;
            Ray ray = ray_across<AXIS>(scan, view, d, u, v);
            if (AXIS != 2) {
                // One plane for all heights: p is the other horizontal axis, q is z.
                float plane = AXIS == 0 ? x : y;
                float across = weight(ray.p_at(plane) - float(AXIS == 0 ? iy : ix));
                if (!(across > 0.0f) || !ray.in_front(plane)) continue;
                float value = across * (__ldg(image + static_cast<long long>(row) * scan.columns + column) * ray.length_mm);
#pragma unroll
                for (int i = 0; i < HEIGHTS; i++) {
                    float share = weight(ray.q_from(float(iz + i), plane));
                    if (share > 0.0f) sum[i] = fmaf(share, value, sum[i]);
                }
            } else {
                float value = __ldg(image + static_cast<long long>(row) * scan.columns + column) * ray.length_mm;
#pragma unroll
                for (int i = 0; i < HEIGHTS; i++) {
                    float plane = z + float(i);
                    float share_x = weight(ray.p_at(plane) - float(ix)), share_y = weight(ray.q_from(float(iy), plane));
                    if (share_x > 0.0f && share_y > 0.0f && ray.in_front(plane)) {
                        sum[i] = fmaf(share_x * share_y, value, sum[i]);
                    }
                }
            }
        }
    }
}

}  // namespace matched

extern "C" __global__ void __launch_bounds__(128, 5)
    back_project_matched(Scan scan, const View* __restrict__ views, const float* __restrict__ projections,
                         float* __restrict__ volume) {
    using namespace matched;
    int iy = int(blockIdx.x * 8 + threadIdx.x), ix = int(blockIdx.y * 4 + threadIdx.y);
    int iz = int(blockIdx.z * 4 + threadIdx.z) * HEIGHTS;
    if (ix >= scan.voxels_x || iy >= scan.voxels_y || iz >= scan.voxels_z) return;
    // Rays that touch these voxels pass within one voxel of them: an axis that is shorter by more is none of theirs.
    constexpr float HALF = 0.5f * float(HEIGHTS - 1);
    constexpr float SLACK = HALF + 1.1f;
    float sum[HEIGHTS] = {};
    for (int index = 0; index < scan.views; index++) {
        const View view = views[index];
        const float* image = projections + static_cast<long long>(index) * scan.rows * scan.columns;
        float x = fabsf(float(ix) - middle(scan.voxels_x) - view.direction.w);
        float y = fabsf(float(iy) - middle(scan.voxels_y) - view.column_step.w);
        float z = fabsf(float(iz) - middle(scan.voxels_z) + HALF - view.row_step.w);
        if (x + SLACK >= fmaxf(y, z)) gather<0>(scan, view, image, ix, iy, iz, sum);
        if (y + SLACK >= fmaxf(x, z)) gather<1>(scan, view, image, ix, iy, iz, sum);
        if (z + SLACK >= fmaxf(x, y)) gather<2>(scan, view, image, ix, iy, iz, sum);
    }
    float* row = volume + (static_cast<long long>(ix) * scan.voxels_y + iy) * scan.voxels_z;
    store4(row, iz, scan.voxels_z, make_float4(sum[0], sum[1], sum[2], sum[3]));
}
REGISTER_KERNEL(back_project_matched)

extern "C" __global__ void __launch_bounds__(matched::THREADS, 4)
    back_project_level(Scan scan, const View* __restrict__ views, const float* __restrict__ projections,
                       float* __restrict__ volume) {
    using namespace matched;
    __shared__ LevelShared shared;
    int lane = int(threadIdx.x), warp = int(threadIdx.y), thread = warp * 32 + lane;
    Block block = {int(blockIdx.y) * EDGE, int(blockIdx.x) * EDGE, int(blockIdx.z) * LAYER};
#pragma unroll
    for (int i = 0; i < EDGE; i++) {
#pragma unroll
        for (int h = 0; h < LAYER; h += 32) shared.sums[warp][i][h + lane] = 0.0f;
    }
    for (int index = 0; index < scan.views; index++) {
        if (index % THREADS == 0) {
            // All have read those before: a view of which the block sees nothing has no barrier of its own.
            __syncthreads();
            if (index + thread < scan.views) shared.windows[thread] = block.window(scan, views[index + thread]);
            __syncthreads();
        }
        Window window = shared.windows[index % THREADS];
        const float* image = projections + static_cast<long long>(index) * scan.rows * scan.columns;
        add_view(scan, views[index], image, block, window, shared);
    }
    int ix = block.x + warp;
    for (int i = 0; i < EDGE; i++) {
        for (int h = lane; h < LAYER; h += 32) {
            int iy = block.y + i, iz = block.z + h;
            if (ix >= scan.voxels_x || iy >= scan.voxels_y || iz >= scan.voxels_z) continue;
            volume[(static_cast<long long>(ix) * scan.voxels_y + iy) * scan.voxels_z + iz] = shared.sums[warp][i][h];
        }
    }
}
REGISTER_KERNEL(back_project_level)
