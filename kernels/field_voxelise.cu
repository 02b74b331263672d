// A neural field onto a voxel grid (definition: src/compute/field.rs). Overwrites the volume.
//
//   volume[x][y][z] = unit * softplus(network(features(point))), 0 where the voxel's point lies outside the field's box; the point is the
//   voxel's centre, or a random one in the voxel
//
// Shapes: volume [x][y][z] in 1/mm; tables [level][feature][entry]; network as in field.cuh; levels [level].
// Launch: blocks of 128 threads, each going on to the batch that lies a whole grid of blocks further. Batches are of 32 to 128 voxels,
// neighbours along z.
// Floor at 256^3 with 3 levels of 2 features, finest cell a voxel, and 16 units: tables (154 MB) and volume (67 MB) once, 0.05 ms at
// 4.3 TB/s. A voxel and level reads 1.2 to 4.3 numbers of each feature from the caches, 16 in all (64 bytes): 1.1 GB, 0.03 ms from
// the first level's. Instructions, counted on the way through what nvcc makes for sm_90: 220 a level (270 where a line has 34 nodes instead of 32), 350 of the
// network (112 products and sums, 30 reads of four weights from shared memory), 270 for the place and the value: 1300 a voxel, 2.2e10, 0.66 ms at
// 33e12 a second, which is the floor.
// Jitter adds 400 a warp, 0.2 ms. The place is worked out in float64 (some 25 operations): cheap here, but the dearest part on GeForce, which has a
// 64th of float32's rate.
// Order: a voxel hangs on nothing but its own point.
#include "field_rows.cuh"

extern "C" __global__ void __launch_bounds__(field::THREADS, 5)
    field_voxelise(field::Field field, field::Grid grid, const field::LevelRecord* __restrict__ levels,
                   const chacha::Key* __restrict__ key, const float* __restrict__ tables,
                   const float* __restrict__ network, float* __restrict__ volume) {
    __shared__ field::RowShared shared;
    DYNAMIC_SHARED(float, room);
    field::stage_levels(field, levels, grid.voxel_mm[2], grid.low_mm[2], shared.levels);
    field::stage_network(field, network, room);
    field::Network layers(field, min(field.hidden, 2), network, room + field::staged_floats(field));
    int of_batch = field.points / 32;
    int count = field::batches(field, grid);
    for (int batch = int(blockIdx.x); batch < count; batch += int(gridDim.x)) {
        field::Place place =
            field::locate(grid, key, batch * of_batch + layers.point / 32, shared.words[threadIdx.x / 32]);
        float value = 0.0f;
        if (__syncthreads_or(place.inside)) {
            field::encode_all(field, layers, tables, place, shared);
            value = field.unit * field::softplus(layers.forward<false>());
        }
        if (layers.part == 0 && place.voxel >= 0) volume[place.voxel] = place.inside ? value : 0.0f;
    }
}
REGISTER_KERNEL(field_voxelise)
