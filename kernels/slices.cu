// Slices of a volume as a model sees them, in window units, and the mean over planes of what it makes of them (src/compute/slices.rs).
//
//   gather_slices           out[slice][channel][row][column] = scale * volume + offset of slice first + slice + beside - neighbours, clamped to the
//                           volume, as rows and columns are; for slices across x or y. channel = volume * (2 neighbours + 1) + beside
//   gather_slices_across_z  the same for slices across z
//   add_slices              mean, squares += what slices[slice][row][column] add as plane `planes` (from 0), by Welford; for slices across x or y
//   add_slices_across_z     the same for slices across z
//   find_farthest           most[0] = largest magnitude of scale * value + offset, as the bits of a float, which are ordered as it is; most is 0 before
//   find_first_beyond       least[0] = place of the first value that is no number or beyond `limit`; least is UINT_MAX before
//   leave_window            value = (value - offset) / scale
//   deviations              value = factor * sqrt(value / planes)
//
// Shapes: volume, mean, squares [x][y][z] (the last where they are asked for), out [batch][channels][row][column], slices [batch][row][column], rows and
// columns padded. Roundings are written out: every result has the bits of the CPU's.
// Launch: columns never run along z, the volume's fast axis, so that tiles are turned over in shared memory, loads along z and stores along columns or the
// other way about. Slices across x or y, whose rows run along z: tiles of 32 rows x 32 columns in blocks of 32 x 8, grid (column tiles, row tiles, source
// slices). Across z: 8 slices (32 bytes, a sector) x 32 columns of ROWS rows in blocks of 256, grid (column tiles, bands of rows, groups of slices). The
// others: the tiles of tile.cuh.
// Floor: bytes at 4.3 TB/s. Of 256^3 voxels, batches of 4, a neighbour on either side, a plane is read 1.5 times (across z a sector of 8 for 6) and written
// three times: 18 to 22 bytes a voxel, 0.07 to 0.09 ms; added with mean and squares 20, 0.08 ms, half sectors across z up to 0.13. A batch is 3 MB in and 1
// MB out, some microseconds: the launch itself and the wait before the model runs are what it takes. find_farthest and find_first_beyond 4 bytes a value
// (0.016 ms at 256^3), leave_window and deviations 8 (0.031 ms); their float64 operations, of which a division has about 10, hide behind them.
// Order: atomics are of whole numbers, a largest and a least, which no order changes.
#include "tile.cuh"

namespace slices {

constexpr int SIDE = 32, LINES = 8;
constexpr int GROUP = 8, ROWS = 4;

// `Layout` of src/compute/cuda/slices.rs is the same.
struct Layout {
    // Slices, rows and columns of the volume, and how far apart they are in it.
    int slices, rows, columns;
    int padded_rows, padded_columns;
    // First slice of the batch.
    int first;
    long long slice_stride, row_stride, column_stride;
};

// `Images` of src/compute/cuda/slices.rs is the same.
struct Images {
    // Slices of the batch; images of each; the first of the volume's own.
    int batch, neighbours, channels, channel;
};

__device__ __forceinline__ double unit(double scale, double offset, float value) {
    return __dadd_rn(__dmul_rn(scale, double(value)), offset);
}

// Where the volume has this source slice of a batch (the first is `neighbours` before it), row and column, clamped.
__device__ __forceinline__ long long inside(const Layout& of, int slice, int row, int column) {
    slice = min(max(slice, 0), of.slices - 1);
    return slice * of.slice_stride + min(row, of.rows - 1) * of.row_stride + min(column, of.columns - 1) * of.column_stride;
}

// Stores a pixel of source slice `source` to every image that it stands in.
__device__ __forceinline__ void store(const Layout& of, const Images& images, int source, int row, int column, float value,
                                      float* out) {
    long long pixels = static_cast<long long>(of.padded_rows) * of.padded_columns;
    long long pixel = static_cast<long long>(row) * of.padded_columns + column;
    for (int beside = 0; beside <= 2 * images.neighbours; beside++) {
        int slice = source - beside;
        if (slice < 0 || slice >= images.batch) continue;
        out[(static_cast<long long>(slice) * images.channels + images.channel + beside) * pixels + pixel] = value;
    }
}

// One more plane's value of a voxel.
__device__ __forceinline__ void take(float value, int planes, long long at, float* mean, float* squares) {
    if (planes == 0) {
        mean[at] = value;
        if (squares) squares[at] = 0.0f;
        return;
    }
    float old = mean[at];
    float away = __fadd_rn(value, -old);
    float now = __fadd_rn(old, __fdiv_rn(away, float(planes + 1)));
    mean[at] = now;
    if (squares) squares[at] = __fadd_rn(squares[at], __fmul_rn(away, __fadd_rn(value, -now)));
}

}  // namespace slices

extern "C" __global__ void __launch_bounds__(slices::SIDE* slices::LINES)
    gather_slices(slices::Layout of, slices::Images images, double scale, double offset, const float* __restrict__ volume,
                  float* __restrict__ out) {
    using namespace slices;
    __shared__ float turned[SIDE][SIDE + 1];
    int row = int(blockIdx.y) * SIDE, column = int(blockIdx.x) * SIDE, source = int(blockIdx.z);
    int x = int(threadIdx.x), y = int(threadIdx.y);
#pragma unroll
    for (int i = 0; i < SIDE; i += LINES) {
        long long at = inside(of, of.first + source - images.neighbours, row + x, column + y + i);
        turned[y + i][x] = float(unit(scale, offset, __ldg(volume + at)));
    }
    __syncthreads();
    if (column + x >= of.padded_columns) return;
#pragma unroll
    for (int i = 0; i < SIDE; i += LINES) {
        if (row + y + i < of.padded_rows) store(of, images, source, row + y + i, column + x, turned[x][y + i], out);
    }
}
REGISTER_KERNEL(gather_slices)

extern "C" __global__ void __launch_bounds__(slices::GROUP* slices::SIDE)
    gather_slices_across_z(slices::Layout of, slices::Images images, double scale, double offset,
                           const float* __restrict__ volume, float* __restrict__ out) {
    using namespace slices;
    __shared__ float turned[ROWS][GROUP][SIDE + 1];
    int row = int(blockIdx.y) * ROWS, column = int(blockIdx.x) * SIDE, source = int(blockIdx.z) * GROUP;
    int thread = int(threadIdx.x);
    {
        int slice = thread % GROUP, across = thread / GROUP;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            long long at = inside(of, of.first + source + slice - images.neighbours, row + i, column + across);
            turned[i][slice][across] = float(unit(scale, offset, __ldg(volume + at)));
        }
    }
    __syncthreads();
    int slice = thread / SIDE, across = thread % SIDE;
    if (column + across >= of.padded_columns) return;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (row + i < of.padded_rows)
            store(of, images, source + slice, row + i, column + across, turned[i][slice][across], out);
    }
}
REGISTER_KERNEL(gather_slices_across_z)

extern "C" __global__ void __launch_bounds__(slices::SIDE* slices::LINES)
    add_slices(slices::Layout of, int planes, const float* __restrict__ from, float* __restrict__ mean, int with_squares,
               float* __restrict__ squares) {
    using namespace slices;
    if (!with_squares) squares = nullptr;
    __shared__ float turned[SIDE][SIDE + 1];
    int row = int(blockIdx.y) * SIDE, column = int(blockIdx.x) * SIDE, slice = int(blockIdx.z);
    int x = int(threadIdx.x), y = int(threadIdx.y);
#pragma unroll
    for (int i = 0; i < SIDE; i += LINES) {
        int down = min(row + y + i, of.rows - 1), across = min(column + x, of.columns - 1);
        long long line = static_cast<long long>(slice) * of.padded_rows + down;
        turned[x][y + i] = __ldg(from + line * of.padded_columns + across);
    }
    __syncthreads();
    if (row + x >= of.rows) return;
#pragma unroll
    for (int i = 0; i < SIDE; i += LINES) {
        if (column + y + i >= of.columns) continue;
        take(turned[y + i][x], planes, inside(of, of.first + slice, row + x, column + y + i), mean, squares);
    }
}
REGISTER_KERNEL(add_slices)

extern "C" __global__ void __launch_bounds__(slices::GROUP* slices::SIDE)
    add_slices_across_z(slices::Layout of, int count, int planes, const float* __restrict__ from, float* __restrict__ mean,
                        int with_squares, float* __restrict__ squares) {
    using namespace slices;
    if (!with_squares) squares = nullptr;
    __shared__ float turned[ROWS][GROUP][SIDE + 1];
    int row = int(blockIdx.y) * ROWS, column = int(blockIdx.x) * SIDE, first = int(blockIdx.z) * GROUP;
    int thread = int(threadIdx.x);
    {
        int slice = min(first + thread / SIDE, count - 1), across = min(column + thread % SIDE, of.columns - 1);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            long long line = static_cast<long long>(slice) * of.padded_rows + min(row + i, of.rows - 1);
            turned[i][thread / SIDE][thread % SIDE] = __ldg(from + line * of.padded_columns + across);
        }
    }
    __syncthreads();
    int slice = thread % GROUP, across = thread / GROUP;
    if (first + slice >= count || column + across >= of.columns) return;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (row + i >= of.rows) continue;
        take(turned[i][slice][across], planes, inside(of, of.first + first + slice, row + i, column + across), mean,
             squares);
    }
}
REGISTER_KERNEL(add_slices_across_z)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    find_farthest(double scale, double offset, const float* __restrict__ values, long long count,
                  unsigned* __restrict__ most) {
    using namespace tile;
    float4 v[FOURS];
    for (int i = 0; i < FOURS; i++) v[i] = load4(values, place(i), count);
    unsigned largest = 0;
    for (int i = 0; i < FOURS; i++) {
        float of_four[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
        for (int j = 0; j < 4; j++) {
            float far = fabsf(float(slices::unit(scale, offset, of_four[j])));
            if (place(i) + j < count) largest = max(largest, unsigned(__float_as_int(far)));
        }
    }
    for (int by = 16; by > 0; by /= 2) largest = max(largest, __shfl_down_sync(0xffffffffu, largest, by));
    if (threadIdx.x % 32 == 0) atomicMax(most, largest);
}
REGISTER_KERNEL(find_farthest)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    find_first_beyond(float limit, const float* __restrict__ values, long long count, unsigned* __restrict__ least) {
    using namespace tile;
    float4 v[FOURS];
    // Zeros beyond the end lie within any limit.
    for (int i = 0; i < FOURS; i++) v[i] = load4(values, place(i), count);
    for (int i = 0; i < FOURS; i++) {
        float of_four[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
        for (int j = 0; j < 4; j++) {
            // The comparison is false of what is no number as well. Few are found, or the first of very many soon.
            if (!(fabsf(of_four[j]) <= limit)) atomicMin(least, unsigned(place(i) + j));
        }
    }
}
REGISTER_KERNEL(find_first_beyond)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    leave_window(double scale, double offset, float* __restrict__ values, long long count) {
    using namespace tile;
    float4 v[FOURS];
    for (int i = 0; i < FOURS; i++) v[i] = load4(values, place(i), count);
    for (int i = 0; i < FOURS; i++) {
        store4(values, place(i), count,
               each(v[i], [=](float value) { return float(__ddiv_rn(__dadd_rn(double(value), -offset), scale)); }));
    }
}
REGISTER_KERNEL(leave_window)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    deviations(double factor, double planes, float* __restrict__ squares, long long count) {
    using namespace tile;
    float4 v[FOURS];
    for (int i = 0; i < FOURS; i++) v[i] = load4(squares, place(i), count);
    for (int i = 0; i < FOURS; i++) {
        store4(squares, place(i), count, each(v[i], [=](float value) {
                   return float(__dmul_rn(factor, __dsqrt_rn(__ddiv_rn(double(value), planes))));
               }));
    }
}
REGISTER_KERNEL(deviations)
