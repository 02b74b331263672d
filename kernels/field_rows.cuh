// Rows of voxels along z in a neural field: where a row's points lie, their features, and the adjoint of those.
//
// A warp takes 32 neighbours along z, which share x and y. In each level they lie between the same four columns of nodes, whose sum, weighted by
// the distances in x and y, is one *line* of nodes for each feature, in which the points interpolate. Nodes along z are neighbours in the
// tables, hashed or not, so lines are read whole sectors at a time, and each node once a warp instead of once a voxel. Lines of more than
// two nodes a point (cells smaller than half a voxel) hold only each point's own two.
#pragma once
#include "chacha.cuh"
#include "field.cuh"

namespace field {

constexpr int MOST_LINE = 64;

// A grid of voxels as the field sees it, lengths from the grid's lower corner; `GridArgument` of src/compute/cuda/field_voxelise.rs is the
// same. In float64, so that which voxels the box's faces touch does not hang on rounding.
struct Grid {
    double voxel_mm[3], low_mm[3], size_mm[3];
    int voxels[3];
    int jitter;
};

// Shared memory of a block for rows.
struct RowShared {
    Level levels[MOST_LEVELS];
    float2 lines[WARPS][MOST_LINE];
    unsigned words[WARPS][4 * chacha::WORDS];
};

// A voxel's point: from the box's lower corner in x and y, in voxels from the grid's lower face in z.
struct Place {
    float x_mm, y_mm, z;
    bool inside;
    // -1 where there is no such voxel.
    long long voxel;
};

// Segments of 32 voxels along z in a row, and batches of a grid; the host sees to it that segments are counted in 31 bits (64-bit divisions are dear).
__device__ __forceinline__ int segments_of_row(const Grid& grid) { return (grid.voxels[2] + 31) / 32; }
__device__ __forceinline__ int batches(const Field& field, const Grid& grid) {
    int of_batch = field.points / 32;
    return (grid.voxels[0] * grid.voxels[1] * segments_of_row(grid) - 1) / of_batch + 1;
}

// Whether a coordinate from the box's lower face lies in the box. The faces belong to it, rounding included.
__device__ __forceinline__ bool holds(const Grid& grid, int axis, double at_mm) {
    double hair = 1e-9 * (grid.size_mm[axis] + fabs(grid.low_mm[axis]));
    return at_mm >= -hair && at_mm <= grid.size_mm[axis] + hair;
}

// This lane's point among the 32 of segment `segment` (segments follow each other along z, then y, then x). `key` is read where there is
// jitter; it lies on the device, since it changes from one iteration to the next (see parameters.cu).
__device__ __forceinline__ Place locate(const Grid& grid, const chacha::Key* __restrict__ key, int segment, unsigned* words) {
    int lane = int(threadIdx.x) % 32, of_row = segments_of_row(grid), rows = grid.voxels[0] * grid.voxels[1];
    int row = segment / of_row, k = (segment - row * of_row) * 32 + lane;
    Place place;
    place.voxel = row < rows && k < grid.voxels[2] ? static_cast<long long>(row) * grid.voxels[2] + k : -1;
    row = min(row, rows - 1);
    int ix = row / grid.voxels[1], iy = row - ix * grid.voxels[1];
    float offset_x = 0.5f, offset_y = 0.5f, offset_z = 0.5f;
    if (grid.jitter) {
        // A row's stream: x, y, then a number a voxel. Those of 32 voxels lie in three blocks.
        __syncwarp();
        if (lane < 4) {
            unsigned number = lane == 0 ? 0u : unsigned((k - lane) / chacha::WORDS + lane - 1);
            chacha::block(*key, number, static_cast<unsigned long long>(row), words + lane * chacha::WORDS);
        }
        __syncwarp();
        offset_x = chacha::uniform(words[0]), offset_y = chacha::uniform(words[1]);
        offset_z = chacha::uniform(words[chacha::WORDS + 2 + lane]);
    }
    double x = (double(ix) + double(offset_x)) * grid.voxel_mm[0] - grid.low_mm[0];
    double y = (double(iy) + double(offset_y)) * grid.voxel_mm[1] - grid.low_mm[1];
    place.z = float(k) + offset_z;
    double z = double(place.z) * grid.voxel_mm[2] - grid.low_mm[2];
    place.inside = place.voxel >= 0 && holds(grid, 0, x) && holds(grid, 1, y) && holds(grid, 2, z);
    place.x_mm = float(fmin(fmax(x, 0.0), grid.size_mm[0])), place.y_mm = float(fmin(fmax(y, 0.0), grid.size_mm[1]));
    return place;
}

// A warp's line of nodes in one level. All lanes must make it.
struct Line {
    // This lane's cell and share; the line's entry of the cell's node.
    int cell, entry;
    float share;
    // Nodes of this lane's entries, lane and lane + 32, and the number of entries in the line.
    unsigned nodes[2];
    int first, count;
    bool whole;

    __device__ __forceinline__ Line(const Level& level, float z) {
        int lane = int(threadIdx.x) % 32;
        cell = cell_of(fmaf(z, level.z_step, level.z_start), level.nodes[2], share);
        first = __shfl_sync(ALL, cell, 0);
        count = __shfl_sync(ALL, cell, 31) + 2 - first;
        whole = count <= MOST_LINE;
        if (!whole) count = MOST_LINE;
        int low = __shfl_sync(ALL, cell, lane / 2), high = __shfl_sync(ALL, cell, 16 + lane / 2);
        nodes[0] = unsigned(whole ? first + lane : low + lane % 2);
        nodes[1] = unsigned(whole ? first + lane + 32 : high + lane % 2);
        entry = whole ? cell - first : 2 * lane;
    }
};

// Features of this lane's point in one level, into rows [feature] of `stride` floats, at `to`. All lanes must call it.
__device__ __forceinline__ void encode(const Field& field, const Level& level, const float* __restrict__ tables,
                                       const Place& place, float2* line_sums, float* to, int stride) {
    if (level.weight == 0.0f) {
        for (int f = 0; f < field.features; f++) to[f * stride] = 0.0f;
        return;
    }
    Columns columns(level, place.x_mm, place.y_mm);
    Line line(level, place.z);
    int lane = int(threadIdx.x) % 32;
    for (int f = 0; f < field.features; f += 2) {
        const float* table = tables + level.first + static_cast<long long>(f) * level.entries;
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (lane + 32 * half >= line.count) continue;
            float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                unsigned entry = level.entry(columns.at[c], line.nodes[half]);
                sum.x = fmaf(__ldg(table + entry), columns.weights[c], sum.x);
                sum.y = fmaf(__ldg(table + level.entries + entry), columns.weights[c], sum.y);
            }
            line_sums[lane + 32 * half] = sum;
        }
        __syncwarp();
        float2 low = line_sums[line.entry], high = line_sums[line.entry + 1];
        to[f * stride] = fmaf(high.x - low.x, line.share, low.x);
        to[(f + 1) * stride] = fmaf(high.y - low.y, line.share, low.y);
    }
}

// Features of the batch's points in all levels; the parts of a point share the levels.
__device__ __forceinline__ void encode_all(const Field& field, const Network& network, const float* __restrict__ tables,
                                           const Place& place, RowShared& shared) {
    for (int index = network.part; index < field.levels; index += network.parts) {
        float* to = network.units(0) + index * field.features * network.stride + network.point;
        encode(field, shared.levels[index], tables, place, shared.lines[threadIdx.x / 32], to, network.stride);
    }
}

}  // namespace field
