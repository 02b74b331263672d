// The adjoint of field_project: from a gradient by line integrals to sums of one by tables and network, which field_gradients.cu adds up.
//
//   sums[entry] += scale * sum over rays and samples of by_integrals * step * d value / d entry      (fixed point: field_gradients.cu)
//   partials[block][weight] = sum over the block's rays and samples of by_integrals * step * d value / d weight
//
// Shapes: by_integrals [ray]; the others as in field_project and field_voxelise_backward. A pixel that the detector does not have adds
// nothing.
// Launch: as field_project; how many blocks hangs on the sizes alone, and each sums its rays in their order.
// Floor: as field_project, and 48 integer additions a sample of 8 bytes each in the second-level cache, up to a sector each: 4096 rays of 384 samples are
// 75e6 of them, 2.4 GB, 0.5 ms at 5 TB/s. Instructions: 1300 of the values, 1700 for gradients by weights and units, 270 a level for additions:
// 3800 a sample, 0.2 ms at 33e12 a second.
// Order: as field_voxelise_backward.
#include "field_gradients.cuh"
#include "field_rays.cuh"

extern "C" __global__ void __launch_bounds__(field::THREADS, 4)
    field_project_backward(field::Field field, field::Rays rays, const field::LevelRecord* __restrict__ levels,
                           const float* __restrict__ tables, const float* __restrict__ network,
                           const field::RayView* __restrict__ views, const unsigned* __restrict__ pixels,
                           const float* __restrict__ by_integrals, const float* __restrict__ scales,
                           unsigned long long* __restrict__ sums, unsigned* __restrict__ spoilt, float* __restrict__ partials) {
    __shared__ field::RayShared shared;
    // Read four at a time.
    __shared__ __align__(16) float top[field::THREADS];
    DYNAMIC_SHARED(float, room);
    field::stage_levels(field, levels, 0.0, 0.0, shared.levels);
    field::stage_network(field, network, room);
    room += field::staged_floats(field);
    float* by_network = field::begin_sums(field, room, partials);
    field::Network layers(field, field.hidden, network, room + field::sums_floats(field));
    int of_batch = field.points / 32, lane = int(threadIdx.x) % 32;
    int count = field::batches(field, rays);
    for (int batch = int(blockIdx.x); batch < count; batch += int(gridDim.x)) {
        int ray = batch * of_batch + layers.point / 32;
        field::Chord chord = field::chord_of(rays, views, pixels, ray);
        float by_value = chord.hits ? __ldg(by_integrals + ray) * chord.step_mm : 0.0f;
        // Nothing comes of no gradient. `!=` lets NaN through.
        if (!__syncthreads_or(by_value != 0.0f)) continue;
        for (int first = 0; first < rays.samples; first += 32) {
            float by = first + lane < rays.samples ? by_value * field.unit : 0.0f;
            float3 at = field::sample_of(rays, chord, ray, first, shared.words[threadIdx.x / 32]);
            field::encode_point(field, layers, shared.levels, tables, at);
            float logit = layers.forward<true>();
            layers.backward(by * field::softplus_slope(logit), top, by_network);
            for (int index = layers.part; index < field.levels; index += layers.parts) {
                const field::Level& level = shared.levels[index];
                if (level.weight == 0.0f) continue;
                field::Corners corners(level, at);
                const float* rows = layers.units(0) + index * field.features * layers.stride + layers.point;
                for (int f = 0; f < field.features; f++) {
                    field::FixedSums of_feature(scales, sums, spoilt, field, level, index, f);
                    float by_feature = rows[f * layers.stride];
#pragma unroll
                    for (int corner = 0; corner < 8; corner++) {
                        of_feature.add(corners.entry(level, corner), corners.weight(corner) * by_feature);
                    }
                }
            }
        }
    }
    field::finish_sums(field, by_network, partials);
}
REGISTER_KERNEL(field_project_backward)
