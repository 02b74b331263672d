// The adjoint of field_voxelise: from a gradient by voxels to sums of one by tables and network, which field_gradients.cu adds up.
//
//   sums[entry] += scale * sum over points of by_volume * d value / d entry      (fixed point: field_gradients.cu)
//   partials[block][weight] = sum over the block's points of by_volume * d value / d weight
//
// Shapes: by_volume [x][y][z]; tables, network, levels as in field_voxelise; scales, spoilt [level * feature]; sums as the tables, 0 before;
// partials [blocks][network].
// Launch: blocks of 128 threads as in field_voxelise; how many hangs on the sizes alone, and each sums its batches in their order.
// The forward pass is worked out anew: its features would take 24 bytes a voxel. Gradients by a warp's 32 points become those by its lines
// (field_rows.cuh): each node of a line is one lane's, which looks up the points about it, so the sums over points are float32 in
// a fixed order. A line then goes to its four columns of nodes by integer additions in the second-level cache.
// Floor at 256^3 as in field_voxelise: tables and by_volume once, sums (308 MB) set to 0, added to and read: 1.1 GB, 0.26 ms at 4.3 TB/s. Additions: 472
// for 32 voxels (8 for each number that lines hold), in 144 sectors: 2.4 GB through the second-level cache, 0.5 ms at 5 TB/s.
// Instructions, counted as there: 1400 of the values, 1700 for gradients by weights and units, 410 a level for lines and additions (640 where a line has 34
// nodes): 4600 a voxel, 7.7e10 in all, 2.3 ms at 33e12 a second, which is the floor.
// Order: integer sums hang on none; a block's float32 sums go batch by batch, weight by weight one thread's.
#include "field_gradients.cuh"
#include "field_rows.cuh"

namespace field {

// Where the points of each warp lie in its line, ascending.
struct LineShared {
    int entries[WARPS][32];
    float shares[WARPS][32];
};

// Adds the gradients by the features of a warp's points in one level, rows [feature] at `by` (from the warp's first point on), to the tables'. All
// lanes must call it.
__device__ __forceinline__ void scatter(const Field& field, const Level& level, int index, const Place& place, const float* by,
                                        int stride, int* entries, float* shares, const float* scales,
                                        unsigned long long* sums, unsigned* spoilt) {
    if (level.weight == 0.0f) return;
    Columns columns(level, place.x_mm, place.y_mm);
    Line line(level, place.z);
    int lane = int(threadIdx.x) % 32;
    __syncwarp();
    entries[lane] = line.entry, shares[lane] = line.share;
    __syncwarp();
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
        int own = lane + 32 * half;
        if (own >= line.count) continue;
        unsigned node = half == 0 ? line.nodes[0] : line.nodes[1];
        // The first point whose cell ends or begins at this node.
        int first = 0;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            if (entries[first + step - 1] < own - 1) first += step;
        }
        if (entries[first] < own - 1) first++;
        for (int f = 0; f < field.features; f += 2) {
            float2 sum = make_float2(0.0f, 0.0f);
            for (int p = first; p < 32 && entries[p] <= own; p++) {
                float share = entries[p] == own ? 1.0f - shares[p] : shares[p];
                sum.x = fmaf(share, by[f * stride + p], sum.x);
                sum.y = fmaf(share, by[(f + 1) * stride + p], sum.y);
            }
            FixedSums low(scales, sums, spoilt, field, level, index, f), high(scales, sums, spoilt, field, level, index, f + 1);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                unsigned entry = level.entry(columns.at[c], node);
                low.add(entry, sum.x * columns.weights[c]);
                high.add(entry, sum.y * columns.weights[c]);
            }
        }
    }
}

}  // namespace field

extern "C" __global__ void __launch_bounds__(field::THREADS, 4)
    field_voxelise_backward(field::Field field, field::Grid grid, const field::LevelRecord* __restrict__ levels,
                            const chacha::Key* __restrict__ key,
                            const float* __restrict__ tables, const float* __restrict__ network,
                            const float* __restrict__ by_volume, const float* __restrict__ scales,
                            unsigned long long* __restrict__ sums, unsigned* __restrict__ spoilt, float* __restrict__ partials) {
    __shared__ field::RowShared shared;
    __shared__ field::LineShared lines;
    // Read four at a time.
    __shared__ __align__(16) float top[field::THREADS];
    DYNAMIC_SHARED(float, room);
    field::stage_levels(field, levels, grid.voxel_mm[2], grid.low_mm[2], shared.levels);
    field::stage_network(field, network, room);
    room += field::staged_floats(field);
    float* by_network = field::begin_sums(field, room, partials);
    field::Network layers(field, field.hidden, network, room + field::sums_floats(field));
    int of_batch = field.points / 32, warp = int(threadIdx.x) / 32;
    int count = field::batches(field, grid);
    for (int batch = int(blockIdx.x); batch < count; batch += int(gridDim.x)) {
        field::Place place = field::locate(grid, key, batch * of_batch + layers.point / 32, shared.words[warp]);
        float by = place.inside ? __ldg(by_volume + place.voxel) : 0.0f;
        // Nothing comes of no gradient. `!=` lets NaN through.
        if (!__syncthreads_or(by != 0.0f)) continue;
        field::encode_all(field, layers, tables, place, shared);
        float logit = layers.forward<true>();
        layers.backward(by * field.unit * field::softplus_slope(logit), top, by_network);
        for (int index = layers.part; index < field.levels; index += layers.parts) {
            const float* rows = layers.units(0) + index * field.features * layers.stride + layers.point / 32 * 32;
            field::scatter(field, shared.levels[index], index, place, rows, layers.stride, lines.entries[warp],
                           lines.shares[warp], scales, sums, spoilt);
        }
    }
    field::finish_sums(field, by_network, partials);
}
REGISTER_KERNEL(field_voxelise_backward)
