// The adjoint of forward_project for level views: detector rows along z, and no ray with z as its dominant axis, as on untilted orbits
// (`level` in src/compute/cuda/scan_table.rs). What a column's rays have in common is then worked out once for all of its rows.
//
// In a plane across their dominant axis the rays of a column cross at one p, between two rows of voxels, and at q = A + v B. So
//   filtered[z] = sum over rows v of pixel * length * (1 - |A + v B - z|), the last factor above 0
// is worked out once, and goes to both rows of voxels, weighted by how near they are to p.
//
// A block has EDGE x EDGE x LAYER voxels, in shared memory, and eight warps. The pixels of a view about the block's shadow are staged times their
// rays' lengths, up to COLUMNS x ROWS at a time, [column][row]. Then each warp takes a plane, with a column a lane, to see which of them cross its
// voxels; and those one after the other, with LANE_HEIGHTS heights a lane.
#pragma once

#include "matched_window.cuh"

namespace matched {

constexpr int EDGE = 8, LANE_HEIGHTS = 2, LAYER = 32 * LANE_HEIGHTS, THREADS = 32 * EDGE;
constexpr int COLUMNS = 32, ROWS = 144;
// Pixels from one staged column to the next: odd, so that neighbours lie in different banks. The last one is a zero behind the others.
constexpr int STRIDE = ROWS + 1;

// A block's first voxel.
struct Block {
    int x, y, z;

    __device__ __forceinline__ Window window(const Scan& scan, const View& view) const {
        float3 low = make_float3(float(x - 1) - middle(scan.voxels_x), float(y - 1) - middle(scan.voxels_y),
                                 float(z - 1) - middle(scan.voxels_z));
        return shadow(scan, view, low, make_float3(low.x + float(EDGE + 1), low.y + float(EDGE + 1), low.z + float(LAYER + 1)));
    }
};

struct LevelShared {
    float sums[EDGE][EDGE][LAYER];
    float pixels[COLUMNS * STRIDE];
    // Of the views that come next.
    Window windows[THREADS];
};

// Two neighbouring rows of voxels of a warp's plane, which a run of columns adds to.
struct Rows {
    // The first voxel of the plane's first row at this lane's first height, and the floats to the next row.
    float* sums;
    int step;
    // The first of the two, from -1 on; the second may lie beyond the last as well.
    int at;
    float low[LANE_HEIGHTS], high[LANE_HEIGHTS];

    __device__ __forceinline__ void move(int to) {
#pragma unroll
        for (int i = 0; i < LANE_HEIGHTS; i++) {
            if (at >= 0) sums[at * step + 32 * i] += low[i];
            if (at + 1 < EDGE) sums[(at + 1) * step + 32 * i] += high[i];
            low[i] = high[i] = 0.0f;
        }
        at = to;
    }
};

// The staged pixels of a column: so many rows, the first of which lies `middle_row` before the detector's middle.
struct Staged {
    const float* pixels;
    float last, middle_row;

    // Their sum, as they weigh at a height: they cross `from_height` + v b from there.
    __device__ __forceinline__ float filter(float from_height, float b, float per_b) const {
        // Rows within one voxel; which ones they are to the bit their positions decide.
        float centre = fmaf(-from_height, per_b, middle_row), reach = fabsf(per_b) + PIXEL_SLACK, sum = 0.0f;
        float row = fminf(fmaxf(ceilf(centre - reach), 0.0f), last), end = fminf(centre + reach, last);
        const float* at = pixels + int(row);
        // By twos, the zero behind the last included.
#pragma unroll 1
        for (; row <= end; row += 2.0f, at += 2) {
            float v = row - middle_row;
            float share = 1.0f - fabsf(fmaf(v, b, from_height)), next = 1.0f - fabsf(fmaf(v + 1.0f, b, from_height));
            sum = fmaf(__saturatef(next), at[1], fmaf(__saturatef(share), at[0], sum));
        }
        return sum;
    }
};

// Adds the staged pixels of those columns, one a lane, that are `taken`, to the warp's plane across AXIS.
template <int AXIS>
__device__ __forceinline__ void add_plane(const Scan& scan, const View& view, const Block& block, float3 d, float u, bool taken,
                                          Staged staged, LevelShared& shared) {
    using namespace joseph;
    int lane = int(threadIdx.x), warp = int(threadIdx.y);
    int plane = (AXIS == 0 ? block.x : block.y) + warp, first = AXIS == 0 ? block.y : block.x;
    if (plane >= count<AXIS>(scan)) return;
    float k = float(plane) - middle(count<AXIS>(scan)), z = float(block.z + lane);
    Ray ray = ray_across<AXIS>(scan, view, d, u, 0.0f);
    float p = ray.p_at(k), a = ray.q_middle(k), b = ray.q_by_row(k);
    bool crosses = taken && ray.in_front(k) && p >= float(first - 1) && p < float(first + EDGE);
    Rows rows = {};
    rows.sums = (AXIS == 0 ? shared.sums[warp][0] : shared.sums[0][warp]) + lane;
    rows.step = AXIS == 0 ? LAYER : EDGE * LAYER;
    rows.at = EDGE;
    for (unsigned left = __ballot_sync(0xffffffffu, int(crosses)); left != 0; left &= left - 1) {
        int column = __ffs(int(left)) - 1;
        float of_p = __shfl_sync(0xffffffffu, p, column), of_a = __shfl_sync(0xffffffffu, a, column);
        float of_b = __shfl_sync(0xffffffffu, b, column), per_b = inverse(of_b);
        int low = __float2int_rd(of_p);
        if (low - first != rows.at) rows.move(low - first);
        float high_share = of_p - float(low), low_share = 1.0f - high_share;
        staged.pixels = shared.pixels + column * STRIDE;
#pragma unroll
        for (int i = 0; i < LANE_HEIGHTS; i++) {
            float filtered = staged.filter(of_a - (z + float(32 * i)), of_b, per_b);
            rows.low[i] = fmaf(low_share, filtered, rows.low[i]), rows.high[i] = fmaf(high_share, filtered, rows.high[i]);
        }
    }
    rows.move(EDGE);
}

// Adds what a view brings to the block's voxels. All threads must call it.
__device__ __forceinline__ void add_view(const Scan& scan, const View& view, const float* __restrict__ image, const Block& block,
                                         const Window& window, LevelShared& shared) {
    int lane = int(threadIdx.x), warp = int(threadIdx.y);
    for (int first_column = window.first_column; first_column <= window.last_column; first_column += COLUMNS) {
        int column = first_column + lane;
        bool inside = column <= window.last_column;
        float u = float(column) - middle(scan.columns);
        float3 d = joseph::direction(view, u, 0.0f);
        bool along_x = inside && joseph::dominant_axis(make_float3(d.x, d.y, 0.0f)) == 0;
        // Of a ray between two planes.
        float planes = inverse(along_x ? d.x : d.y), x_mm = planes * d.x * scan.voxel_mm_x, y_mm = planes * d.y * scan.voxel_mm_y;
        float flat_mm2 = fmaf(x_mm, x_mm, y_mm * y_mm), z_mm_a_voxel = planes * scan.voxel_mm_z;
        for (int first_row = window.first_row; first_row <= window.last_row; first_row += ROWS) {
            int last_row = min(first_row + ROWS - 1, window.last_row);
            if (inside) {
                if (warp == 0) shared.pixels[lane * STRIDE + last_row + 1 - first_row] = 0.0f;
#pragma unroll 4
                for (int row = first_row + warp; row <= last_row; row += EDGE) {
                    float z_mm = fmaf(float(row) - middle(scan.rows), view.row_step.z, d.z) * z_mm_a_voxel;
                    float pixel = __ldg(image + row * scan.columns + column);
                    shared.pixels[lane * STRIDE + row - first_row] = pixel * root(fmaf(z_mm, z_mm, flat_mm2));
                }
            }
            __syncthreads();
            Staged staged = {shared.pixels, float(last_row - first_row), middle(scan.rows) - float(first_row)};
            // The same in all warps.
            bool any_x = __any_sync(0xffffffffu, int(along_x)), any_y = __any_sync(0xffffffffu, int(inside && !along_x));
            if (any_x) add_plane<0>(scan, view, block, d, u, along_x, staged, shared);
            // Planes across y take voxels of all planes across x.
            if (any_x && any_y) __syncthreads();
            if (any_y) add_plane<1>(scan, view, block, d, u, inside && !along_x, staged, shared);
            __syncthreads();
        }
    }
}

}  // namespace matched
