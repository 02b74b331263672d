// Line integrals through a neural field, ray by ray (definition: src/compute/field.rs). Overwrites the integrals.
//
//   integrals[ray] = step * sum over samples of unit * softplus(network(features(sample))); the ray's way through the field's box is cut into `samples`
//   equal steps, with a sample in the middle of each, or at a random place in it; 0 where the ray misses the box
//
// Shapes: pixels [ray][view, row v, column u]; views [view] (float64); integrals [ray]; tables, network, levels as in field_voxelise. A
// pixel that the detector does not have gives NaN.
// Launch: blocks of 128 threads, a warp a ray (several where a point is shared by parts, see field.cuh), 32 samples at once, each
// block going on a whole grid of blocks further.
// Floor for 3 levels of 2 features and 16 units: a sample reads 48 numbers at random places of its ray, up to 48 sectors of 32 bytes; neighbouring samples
// share most of them where cells are larger than steps. 4096 rays of 384 samples: 1.6e6 samples, 75e6 numbers, 2.4 GB of sectors
// out of the second-level cache at the worst (0.5 ms at 5 TB/s), 0.1 ms where half a cell lies between samples. Instructions, counted as for
// field_voxelise: 350 of the network, 225 a level, 170 for the place and the value: 1200 a sample, 0.06 ms at 33e12 a second.
// Order: a lane sums its samples, then the warp its lanes; the number of samples settles it.
#include "field_rays.cuh"

extern "C" __global__ void __launch_bounds__(field::THREADS, 5)
    field_project(field::Field field, field::Rays rays, const field::LevelRecord* __restrict__ levels,
                  const float* __restrict__ tables, const float* __restrict__ network, const field::RayView* __restrict__ views,
                  const unsigned* __restrict__ pixels, float* __restrict__ integrals) {
    __shared__ field::RayShared shared;
    DYNAMIC_SHARED(float, room);
    field::stage_levels(field, levels, 0.0, 0.0, shared.levels);
    field::stage_network(field, network, room);
    field::Network layers(field, min(field.hidden, 2), network, room + field::staged_floats(field));
    int of_batch = field.points / 32, lane = int(threadIdx.x) % 32;
    int count = field::batches(field, rays);
    for (int batch = int(blockIdx.x); batch < count; batch += int(gridDim.x)) {
        int ray = batch * of_batch + layers.point / 32;
        field::Chord chord = field::chord_of(rays, views, pixels, ray);
        float sum = 0.0f;
        if (__syncthreads_or(chord.hits)) {
            for (int first = 0; first < rays.samples; first += 32) {
                float3 at = field::sample_of(rays, chord, ray, first, shared.words[threadIdx.x / 32]);
                field::encode_point(field, layers, shared.levels, tables, at);
                float value = field::softplus(layers.forward<false>());
                if (first + lane < rays.samples) sum += value;
            }
        }
        for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(field::ALL, sum, by);
        if (layers.part > 0 || lane > 0 || ray >= rays.count) continue;
        float integral = chord.hits ? sum * field.unit * chord.step_mm : 0.0f;
        integrals[ray] = chord.exists ? integral : NAN;
    }
}
REGISTER_KERNEL(field_project)
