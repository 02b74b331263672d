// What the operations of a neural field share (definition: src/compute/field.rs): its levels, and its network on a batch of points.
//
// A block of 128 threads works on batches of `points` (32, 64 or 128): thread t has point t % points, and is one of 128 / points *parts*
// that share a point's units. Activations lie in shared memory, [row][point] with rows of points + 4 floats: threads of neighbouring
// points read neighbouring banks, and so do reads of four points of eight neighbouring rows. First come the features (`inputs` rows), then
// the hidden layers (`width` rows each; where only values are wanted, two layers take turns).
// Weights are read four at a time, the same ones by all lanes; from shared memory, where the network is small enough to be staged, else
// from the caches.
//
// Fast: features and hidden units of up to 62 in all (128 points a batch), such as 6 features and one to three layers of 16; 64 points up to 120.
// Anything that `FieldShape::check` allows works; wider networks have 32 points a batch, those of more than 8192 weights read them from the caches,
// and the widest have two blocks a multiprocessor.
//
// Tensor cores are not used. At the sizes that this field is driven with (6 inputs, 16 units: 129 weights) the tables take more operations than
// the network; for 128 units, mma in three TF32 parts (for float32's precision) would be some five times as fast as this.
#pragma once
#include "common.cuh"

namespace field {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int MOST_LEVELS = 32;
// Outputs of a layer that a thread works out at once.
constexpr int TILE = 16;
// Weights of a layer from which on a thread sums gradients by tiles of 4 x 4 of them, not 2 x 2.
constexpr int MANY_WEIGHTS = 2048;
constexpr unsigned ALL = 0xffffffffu;

// `FieldArgument` of src/compute/cuda/field_table.rs is the same.
struct Field {
    int levels, features, width, hidden;
    // Of a batch; whether the network is staged in shared memory, and whether its gradient is.
    int points, staged, sums_staged;
    float leak, unit;
    // Of the levels; 0: the level takes no part.
    float weights[MOST_LEVELS];

    __device__ __forceinline__ int inputs() const { return levels * features; }
    __device__ __forceinline__ int network() const {
        return (inputs() + 1) * width + (hidden - 1) * (width + 1) * width + width + 1;
    }
    // Where layer `index`'s weights start.
    __device__ __forceinline__ int layer(int index) const {
        return index == 0 ? 0 : (inputs() + 1) * width + (index - 1) * (width + 1) * width;
    }
};

// `LevelRecord` of src/compute/cuda/field_table.rs is the same.
struct LevelRecord {
    double cell_mm;
    long long first;
    int nodes[3];
    unsigned entries;
    int hashed, unused;
};

// One level as threads read it.
struct Level {
    long long first;
    // Position along z in cells: z * z_step + z_start, with z in voxels from the grid's lower face.
    float per_mm, z_step, z_start, weight;
    int nodes[3];
    unsigned entries;
    int hashed;

    // Entry of node (x, y, 0), to be joined with z by `entry`.
    __device__ __forceinline__ unsigned column(unsigned x, unsigned y) const {
        return hashed ? x * 2654435761u ^ y * 805459861u : (x * unsigned(nodes[1]) + y) * unsigned(nodes[2]);
    }
    __device__ __forceinline__ unsigned entry(unsigned column, unsigned z) const {
        return hashed ? (column ^ z) & (entries - 1) : column + z;
    }
};

// Cell of a position in cells, and the share of the node behind it.
__device__ __forceinline__ int cell_of(float at, int nodes, float& share) {
    at = fminf(fmaxf(at, 0.0f), float(nodes - 1));
    int cell = min(int(at), nodes - 2);
    share = at - float(cell);
    return cell;
}

// The four columns of nodes about a point, and their weights (the level's own included).
struct Columns {
    unsigned at[4];
    float weights[4];

    __device__ __forceinline__ Columns(const Level& level, float x_mm, float y_mm) {
        float share_x, share_y;
        unsigned x = unsigned(cell_of(x_mm * level.per_mm, level.nodes[0], share_x));
        unsigned y = unsigned(cell_of(y_mm * level.per_mm, level.nodes[1], share_y));
        float low = level.weight * (1.0f - share_x), high = level.weight * share_x;
        at[0] = level.column(x, y), at[1] = level.column(x, y + 1);
        at[2] = level.column(x + 1, y), at[3] = level.column(x + 1, y + 1);
        weights[0] = low * (1.0f - share_y), weights[1] = low * share_y;
        weights[2] = high * (1.0f - share_y), weights[3] = high * share_y;
    }
};

// Copies the levels for a grid that begins `low_mm` below the box and has voxels of `voxel_mm` along z. The caller waits.
__device__ __forceinline__ void stage_levels(const Field& field, const LevelRecord* __restrict__ records, double voxel_mm,
                                             double low_mm, Level* levels) {
    int index = int(threadIdx.x);
    if (index >= field.levels) return;
    LevelRecord from = records[index];
    Level& to = levels[index];
    to.first = from.first;
    to.per_mm = float(1.0 / from.cell_mm);
    to.z_step = float(voxel_mm / from.cell_mm), to.z_start = float(-low_mm / from.cell_mm);
    to.weight = field.weights[index];
    for (int axis = 0; axis < 3; axis++) to.nodes[axis] = from.nodes[axis];
    to.entries = from.entries, to.hashed = from.hashed;
}

// Four weights; in shared memory they are aligned.
template <bool STAGED>
__device__ __forceinline__ float4 four(const float* weights) {
    return STAGED ? *reinterpret_cast<const float4*>(weights) : load4(weights, 0, 4);
}

// The network on a block's points.
struct Network {
    const Field& field;
    // In global memory.
    const float* network;
    // Rows of activations, and the floats from one to the next.
    float* rows;
    int stride;
    // This thread's point and part, and the number of parts.
    int point, part, parts;
    // Hidden layers that are kept: all, or two by turns.
    int kept;

    __device__ __forceinline__ Network(const Field& field, int kept, const float* network, float* rows)
        : field(field), network(network), rows(rows), stride(field.points + 4), point(int(threadIdx.x) % field.points),
          part(int(threadIdx.x) / field.points), parts(THREADS / field.points), kept(kept) {}

    // The network; where it is staged it comes first in the shared memory, and loads are known to be from there.
    template <bool STAGED>
    __device__ __forceinline__ const float* weights() const {
        if (!STAGED) return network;
        DYNAMIC_SHARED(float, room);
        return room;
    }

    // Rows that hidden layer `index` (from 1 on) leaves; of 0 the features.
    __device__ __forceinline__ float* units(int index) const {
        return rows + (index == 0 ? 0 : field.inputs() + (index - 1) % kept * field.width) * stride;
    }
    __device__ __forceinline__ int inputs(int index) const { return index == 0 ? field.inputs() : field.width; }

    // Waits for the other parts of the points; a part that is alone reads only what it has written.
    __device__ __forceinline__ void wait() const {
        if (parts > 1) __syncthreads();
    }

    // Units first .. first + TILE of a hidden layer, from those of the layer before.
    template <bool STAGED>
    __device__ __forceinline__ void tile(int index, int first, float (&sums)[TILE]) const {
        int width = field.width, count = inputs(index);
        const float* from = units(index) + point;
        const float* row = weights<STAGED>() + field.layer(index) + first;
#pragma unroll
        for (int j = 0; j < TILE; j += 4) {
            float4 w = four<STAGED>(row + count * width + j);
            sums[j] = w.x, sums[j + 1] = w.y, sums[j + 2] = w.z, sums[j + 3] = w.w;
        }
#pragma unroll 2
        for (int i = 0; i < count; i++, row += width) {
            float x = from[i * stride];
#pragma unroll
            for (int j = 0; j < TILE; j += 4) {
                float4 w = four<STAGED>(row + j);
                sums[j] = fmaf(x, w.x, sums[j]), sums[j + 1] = fmaf(x, w.y, sums[j + 1]);
                sums[j + 2] = fmaf(x, w.z, sums[j + 2]), sums[j + 3] = fmaf(x, w.w, sums[j + 3]);
            }
        }
#pragma unroll
        for (int j = 0; j < TILE; j++) sums[j] = sums[j] > 0.0f ? sums[j] : field.leak * sums[j];
    }

    // What softplus takes, from the features, which all parts have written. `KEEP`: all units are left for `backward`. All threads must call it.
    template <bool STAGED, bool KEEP>
    __device__ __forceinline__ float forward_staged() const {
        int width = field.width;
        const float* last = weights<STAGED>() + field.layer(field.hidden);
        float logit = last[width], sums[TILE];
        // Units that nobody else reads need not be stored.
        int stored = KEEP || parts > 1 ? field.hidden : field.hidden - 1;
        for (int index = 0; index < stored; index++) {
            wait();
            float* to = units(index + 1) + point;
            for (int first = part * TILE; first < width; first += parts * TILE) {
                tile<STAGED>(index, first, sums);
#pragma unroll
                for (int j = 0; j < TILE; j++) to[(first + j) * stride] = sums[j];
            }
        }
        wait();
        const float* from = units(field.hidden) + point;
        for (int first = 0; first < width; first += TILE) {
            if (stored < field.hidden) {
                tile<STAGED>(stored, first, sums);
            } else {
#pragma unroll
                for (int j = 0; j < TILE; j++) sums[j] = from[(first + j) * stride];
            }
#pragma unroll
            for (int j = 0; j < TILE; j += 4) {
                float4 w = four<STAGED>(last + first + j);
                logit = fmaf(sums[j], w.x, fmaf(sums[j + 1], w.y, fmaf(sums[j + 2], w.z, fmaf(sums[j + 3], w.w, logit))));
            }
        }
        return logit;
    }
    template <bool KEEP>
    __device__ __forceinline__ float forward() const {
        return field.staged ? forward_staged<true, KEEP>() : forward_staged<false, KEEP>();
    }

    // Slope of the activation of a unit.
    __device__ __forceinline__ float slope(float unit) const { return unit > 0.0f ? 1.0f : field.leak; }

    // Puts gradients by a layer's inputs in their place, given those by its outputs in theirs.
    template <bool STAGED>
    __device__ __forceinline__ void backward_layer(int index) const {
        constexpr int AT_ONCE = 8;
        int width = field.width, count = inputs(index);
        float* to = units(index) + point;
        const float* by = units(index + 1) + point;
        for (int first = part * AT_ONCE; first < count; first += parts * AT_ONCE) {
            float sums[AT_ONCE] = {};
            for (int o = 0; o < width; o += 4) {
                float a = by[o * stride], b = by[(o + 1) * stride], c = by[(o + 2) * stride], d = by[(o + 3) * stride];
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) {
                    int i = min(first + j, count - 1);
                    float4 w = four<STAGED>(weights<STAGED>() + field.layer(index) + i * width + o);
                    sums[j] = fmaf(a, w.x, fmaf(b, w.y, fmaf(c, w.z, fmaf(d, w.w, sums[j]))));
                }
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                if (first + j >= count) continue;
                float& unit = to[(first + j) * stride];
                unit = index == 0 ? sums[j] : sums[j] * slope(unit);
            }
        }
    }

    // Adds the gradients by a layer's weights and biases, the latter as those of an input that is 1 everywhere, of the points first .. end: rows
    // `from` (inputs) times rows `by` (outputs), in tiles of HIGH x WIDE weights that the threads share.
    template <int HIGH, int WIDE>
    __device__ __forceinline__ void add_products(const float* from, int count, const float* by, int outputs, float* sums,
                                                 int thread, int threads, int first, int end) const {
        int across = (outputs + WIDE - 1) / WIDE, tiles = (count + HIGH) / HIGH * across;
        for (int tile = thread; tile < tiles; tile += threads) {
            int row = tile / across * HIGH, column = tile % across * WIDE;
            float sum[HIGH][WIDE] = {};
            for (int p = first; p < end; p += 4) {
                float4 a[HIGH], b[WIDE];
#pragma unroll
                for (int i = 0; i < HIGH; i++) {
                    a[i] = row + i < count ? *reinterpret_cast<const float4*>(from + (row + i) * stride + p)
                                           : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
                }
#pragma unroll
                for (int o = 0; o < WIDE; o++) {
                    b[o] = *reinterpret_cast<const float4*>(by + min(column + o, outputs - 1) * stride + p);
                }
#pragma unroll
                for (int i = 0; i < HIGH; i++) {
#pragma unroll
                    for (int o = 0; o < WIDE; o++) {
                        sum[i][o] = fmaf(a[i].x, b[o].x, fmaf(a[i].y, b[o].y, sum[i][o]));
                        sum[i][o] = fmaf(a[i].z, b[o].z, fmaf(a[i].w, b[o].w, sum[i][o]));
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < HIGH; i++) {
#pragma unroll
                for (int o = 0; o < WIDE; o++) {
                    if (row + i <= count && column + o < outputs) sums[(row + i) * outputs + column + o] += sum[i][o];
                }
            }
        }
    }

    // The same of all points, into the sums of layer `index`. A sum is always the same thread's. Small networks have a copy a warp, which sums
    // its quarter of the points; of others all threads share the weights.
    __device__ __forceinline__ void add_layer(int index, const float* by, int outputs, float* sums) const {
        const float* from = units(index);
        int count = inputs(index), thread = int(threadIdx.x);
        sums += field.layer(index);
        if (field.sums_staged) {
            int warp = thread / 32, quarter = field.points / WARPS;
            add_products<2, 2>(from, count, by, outputs, sums + warp * field.network(), thread % 32, 32, warp * quarter,
                               (warp + 1) * quarter);
        } else if (count * outputs < MANY_WEIGHTS) {
            add_products<2, 2>(from, count, by, outputs, sums, thread, THREADS, 0, field.points);
        } else {
            add_products<4, 4>(from, count, by, outputs, sums, thread, THREADS, 0, field.points);
        }
    }

    // After `forward<true>`, with every layer kept: given the gradient by this thread's logit, the gradients by the features take the features'
    // place and those by the network are added to `sums`. `top` holds a float a point. All threads must call it.
    __device__ __forceinline__ void backward(float by_logit, float* top, float* sums) const {
        int hidden = field.hidden, width = field.width;
        if (part == 0) top[point] = by_logit;
        __syncthreads();
        add_layer(hidden, top, 1, sums);
        __syncthreads();
        const float* last = (field.staged ? weights<true>() : weights<false>()) + field.layer(hidden);
        float* top_units = units(hidden) + point;
        for (int o = part; o < width; o += parts) {
            float& unit = top_units[o * stride];
            unit = by_logit * last[o] * slope(unit);
        }
        for (int index = hidden - 1; index >= 0; index--) {
            __syncthreads();
            add_layer(index, units(index + 1), width, sums);
            __syncthreads();
            if (field.staged) backward_layer<true>(index);
            else backward_layer<false>(index);
        }
        __syncthreads();
    }
};

// `ln(1 + e^x)`, without loss where x is far below or above zero.
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// Its slope, the logistic function.
__device__ __forceinline__ float softplus_slope(float x) {
    float e = expf(-fabsf(x)), low = e / (1.0f + e);
    return x < 0.0f ? low : 1.0f - low;
}

// Copies the network to the beginning of the shared memory, `room`, where it is to be staged. The caller waits.
__device__ __forceinline__ void stage_network(const Field& field, const float* __restrict__ network, float* room) {
    if (!field.staged) return;
    for (int i = int(threadIdx.x); i < field.network(); i += THREADS) room[i] = __ldg(network + i);
}

// Floats of a staged network, so that what follows is aligned.
__device__ __forceinline__ int staged_floats(const Field& field) {
    return field.staged ? (field.network() + 3) / 4 * 4 : 0;
}

}  // namespace field
