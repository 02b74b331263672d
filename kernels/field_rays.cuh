// Samples along rays through a neural field, and the features of single points.
//
// A warp takes 32 samples of one ray after the other. Points of a ray share nothing: each reads eight entries of each feature of each level.
#pragma once
#include "chacha.cuh"
#include "field.cuh"

namespace field {

// One view: source, and steps from it to pixel (0, 0), to the next column and row, in mm; the source from the box's lower corner. Float64, so that
// where a ray enters the box does not hang on how far the source stands. `RayView` of src/compute/cuda/field_project.rs is the same.
struct RayView {
    double source[3], origin[3], column_step[3], row_step[3];
};

// `RaysArgument` of src/compute/cuda/field_project.rs is the same.
struct Rays {
    double size_mm[3];
    int count, samples, views, rows, columns;
    int jitter;
    chacha::Key key;
};

// Shared memory of a block for rays.
struct RayShared {
    Level levels[MOST_LEVELS];
    unsigned words[WARPS][2 * chacha::WORDS];
};

// The way of a ray through the box: where it enters, and its step, from the box's lower corner.
struct Chord {
    double enter[3], step[3];
    float step_mm;
    // Whether the ray meets the box, and whether its pixel is one of the detector's.
    bool hits, exists;
};

__device__ __forceinline__ Chord chord_of(const Rays& rays, const RayView* __restrict__ views, const unsigned* __restrict__ pixels,
                                          int ray) {
    Chord chord = {};
    if (ray >= rays.count) return chord;
    unsigned view = __ldg(pixels + 3ll * ray), row = __ldg(pixels + 3ll * ray + 1), column = __ldg(pixels + 3ll * ray + 2);
    if (view >= unsigned(rays.views) || row >= unsigned(rays.rows) || column >= unsigned(rays.columns)) return chord;
    chord.exists = true;
    const RayView& pose = views[view];
    double direction[3], square = 0.0;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        direction[axis] = pose.origin[axis] + double(column) * pose.column_step[axis] + double(row) * pose.row_step[axis];
        square += direction[axis] * direction[axis];
    }
    double inverse = 1.0 / sqrt(square), enter = 0.0, leave = INFINITY;
    bool beside = false;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        double s = pose.source[axis], size = rays.size_mm[axis];
        double d = direction[axis] *= inverse;
        if (d == 0.0) {
            beside |= !(s >= 0.0 && s <= size);
            continue;
        }
        double low = -s / d, high = (size - s) / d;
        enter = fmax(enter, fmin(low, high));
        leave = fmin(leave, fmax(low, high));
    }
    chord.hits = !beside && leave - enter > 0.0 && leave - enter < INFINITY;
    double step_mm = (leave - enter) / double(rays.samples);
    chord.step_mm = float(step_mm);
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        chord.enter[axis] = pose.source[axis] + enter * direction[axis];
        chord.step[axis] = step_mm * direction[axis];
    }
    return chord;
}

// Place of this lane's sample among the 32 from `first` (a multiple of 32) on, in mm from the box's lower corner. All lanes must call it.
__device__ __forceinline__ float3 sample_of(const Rays& rays, const Chord& chord, int ray, int first, unsigned* words) {
    int lane = int(threadIdx.x) % 32;
    float offset = 0.5f;
    if (rays.jitter) {
        __syncwarp();
        if (lane < 2) {
            chacha::block(rays.key, unsigned(first / chacha::WORDS + lane), static_cast<unsigned long long>(ray),
                          words + lane * chacha::WORDS);
        }
        __syncwarp();
        offset = chacha::uniform(words[lane]);
    }
    // Lanes behind the last sample repeat its place.
    double steps = double(min(first + lane, rays.samples - 1)) + double(offset);
    float at[3];
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        at[axis] = float(fmin(fmax(chord.enter[axis] + steps * chord.step[axis], 0.0), rays.size_mm[axis]));
    }
    return make_float3(at[0], at[1], at[2]);
}

// The eight nodes about a point in one level.
struct Corners {
    Columns columns;
    unsigned z;
    float share;

    __device__ __forceinline__ Corners(const Level& level, float3 at) : columns(level, at.x, at.y) {
        z = unsigned(cell_of(at.z * level.per_mm, level.nodes[2], share));
    }
    // Corner 0 to 7: two of each column.
    __device__ __forceinline__ unsigned entry(const Level& level, int corner) const {
        return level.entry(columns.at[corner / 2], z + unsigned(corner % 2));
    }
    __device__ __forceinline__ float weight(int corner) const {
        return columns.weights[corner / 2] * (corner % 2 ? share : 1.0f - share);
    }
};

// Features of this thread's point in the levels that are its part's, into their rows.
__device__ __forceinline__ void encode_point(const Field& field, const Network& network, const Level* levels,
                                             const float* __restrict__ tables, float3 at) {
    for (int index = network.part; index < field.levels; index += network.parts) {
        const Level& level = levels[index];
        float* to = network.units(0) + index * field.features * network.stride + network.point;
        if (level.weight == 0.0f) {
            for (int f = 0; f < field.features; f++) to[f * network.stride] = 0.0f;
            continue;
        }
        Corners corners(level, at);
        for (int f = 0; f < field.features; f += 2) {
            const float* table = tables + level.first + static_cast<long long>(f) * level.entries;
            float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
            for (int corner = 0; corner < 8; corner++) {
                unsigned entry = corners.entry(level, corner);
                sum.x = fmaf(corners.weight(corner), __ldg(table + entry), sum.x);
                sum.y = fmaf(corners.weight(corner), __ldg(table + level.entries + entry), sum.y);
            }
            to[f * network.stride] = sum.x, to[(f + 1) * network.stride] = sum.y;
        }
    }
}

// Batches of rays.
__device__ __forceinline__ int batches(const Field& field, const Rays& rays) {
    int of_batch = field.points / 32;
    return (rays.count + of_batch - 1) / of_batch;
}

}  // namespace field
