// Which pixels' rays may touch a box of voxels: shared by both ways of the adjoint of forward_project.
#pragma once

#include "joseph.cuh"

namespace matched {

// Positions are good to 1e-3 pixel at the worst.
constexpr float PIXEL_SLACK = 0.01f;

// Detector rows and columns whose rays may touch a box, ends included.
struct Window {
    int first_column, last_column, first_row, last_row;
};

// The shadow of the box between `low` and `high` (voxels from the middle).
__device__ __forceinline__ Window shadow(const Scan& scan, const View& view, float3 low, float3 high) {
    float u_low = INFINITY, u_high = -INFINITY, v_low = INFINITY, v_high = -INFINITY;
    float nearest = INFINITY, farthest = -INFINITY;
#pragma unroll
    for (int corner = 0; corner < 8; corner++) {
        float x = corner & 1 ? high.x : low.x, y = corner & 2 ? high.y : low.y, z = corner & 4 ? high.z : low.z;
        float w = at(view.project_w, x, y, z);
        float per_w = inverse(w), u = at(view.project_u, x, y, z) * per_w, v = at(view.project_v, x, y, z) * per_w;
        u_low = fminf(u_low, u), u_high = fmaxf(u_high, u);
        v_low = fminf(v_low, v), v_high = fmaxf(v_high, v);
        nearest = fminf(nearest, w), farthest = fmaxf(farthest, w);
    }
    if (farthest <= 0.0f) return {0, -1, 0, -1};
    // A box around the source casts its shadow everywhere.
    if (nearest < 1e-3f) return {0, scan.columns - 1, 0, scan.rows - 1};
    float column = middle(scan.columns), row = middle(scan.rows);
    // Clamped as floats: far beside the detector they would not fit an integer.
    return {int(fmaxf(0.0f, ceilf(u_low + column - PIXEL_SLACK))),
            int(fminf(float(scan.columns - 1), fmaxf(-1.0f, floorf(u_high + column + PIXEL_SLACK)))),
            int(fmaxf(0.0f, ceilf(v_low + row - PIXEL_SLACK))),
            int(fminf(float(scan.rows - 1), fmaxf(-1.0f, floorf(v_high + row + PIXEL_SLACK))))};
}

}  // namespace matched
