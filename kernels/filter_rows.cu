// Ramp-filtering of the rows, each zero-padded to the transform's length, in place.
//
//   row = first `columns` of inverse(response * forward(row, 0 ...))
//
// Shapes: projections [rows of all views][columns], response [length / 2 + 1] (it contains 1 / length). `length` is 2^a or 3 * 2^a, at
// least 2 columns. Launch: a block for two rows, `length / 16` threads rounded up to whole warps, 8 bytes of shared memory a point
// (above 48 kB, rows longer than 3072, a launcher on a device must raise the kernel's limit first).
// Two rows are the real and the imaginary part of one complex transform: the response is real and even, so they stay apart.
// The transform is Stockham's (radix 3 first where it divides, then 4, then 2): reads and writes in order, nothing is bit-reversed, and as
// all butterflies of a stage are held in registers between two barriers, one copy of the points is enough.
// Floor: 8 bytes a pixel at 4.3 TB/s (50 views of 256^2: 6 us); 2 * 5 n log2 n / 2 operations a row: n = 512, 23 thousand, 12,800 rows
// 2.9e8 (0.01 ms); the shared memory moves 16 n bytes a stage, 10 stages a pair of rows: 0.5 GB (0.02 ms at 128 bytes a clock and
// multiprocessor), which is the floor.
#include "common.cuh"

namespace ramp {

// A thread holds the points of so many butterflies of radix 4; with 512 threads 8192 points.
constexpr int BUTTERFLIES = 4;
constexpr int MOST_THREADS = 512;

__device__ __forceinline__ float2 times(float2 a, float2 b) {
    return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}
__device__ __forceinline__ float2 plus(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 minus(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
// a times -i.
__device__ __forceinline__ float2 turned(float2 a) { return make_float2(a.y, -a.x); }

__device__ __forceinline__ void butterfly(float2 (&p)[2]) {
    float2 a = p[0], b = p[1];
    p[0] = plus(a, b), p[1] = minus(a, b);
}
__device__ __forceinline__ void butterfly(float2 (&p)[3]) {
    constexpr float SINE_60 = 0.866025403784438647f;
    float2 sum = plus(p[1], p[2]), difference = minus(p[1], p[2]);
    float2 middle = make_float2(p[0].x - 0.5f * sum.x, p[0].y - 0.5f * sum.y);
    float2 side = turned(make_float2(SINE_60 * difference.x, SINE_60 * difference.y));
    p[0] = plus(p[0], sum), p[1] = plus(middle, side), p[2] = minus(middle, side);
}
__device__ __forceinline__ void butterfly(float2 (&p)[4]) {
    float2 a = plus(p[0], p[2]), b = minus(p[0], p[2]), c = plus(p[1], p[3]), d = turned(minus(p[1], p[3]));
    p[0] = plus(a, c), p[1] = plus(b, d), p[2] = minus(a, c), p[3] = minus(b, d);
}

// One stage: transforms of `done` points become transforms of RADIX * done.
template <int RADIX>
__device__ __forceinline__ void stage(float2* points, int length, int done) {
    constexpr int HELD = RADIX == 2 ? 2 * BUTTERFLIES : RADIX == 3 ? (4 * BUTTERFLIES + 2) / 3 : BUTTERFLIES;
    float2 p[HELD][RADIX];
    int count = length / RADIX;
#pragma unroll
    for (int held = 0; held < HELD; held++) {
        int i = held * int(blockDim.x) + int(threadIdx.x);
        if (i >= count) break;
        float2 twiddle;
        sincospif(-2.0f * float(i % done) / float(done * RADIX), &twiddle.y, &twiddle.x);
        p[held][0] = points[i];
        float2 power = twiddle;
#pragma unroll
        for (int r = 1; r < RADIX; r++) {
            p[held][r] = times(points[i + r * count], power);
            power = times(power, twiddle);
        }
        butterfly(p[held]);
    }
    __syncthreads();
#pragma unroll
    for (int held = 0; held < HELD; held++) {
        int i = held * int(blockDim.x) + int(threadIdx.x);
        if (i >= count) break;
        int to = (i - i % done) * RADIX + i % done;
#pragma unroll
        for (int r = 0; r < RADIX; r++) points[to + r * done] = p[held][r];
    }
    __syncthreads();
}

__device__ __forceinline__ void transform(float2* points, int length) {
    int done = 1;
    if (length % 3 == 0) stage<3>(points, length, done), done = 3;
    for (; done * 4 <= length; done *= 4) stage<4>(points, length, done);
    if (done < length) stage<2>(points, length, done);
}

}  // namespace ramp

extern "C" __global__ void __launch_bounds__(ramp::MOST_THREADS)
    filter_rows(const float* __restrict__ response, int columns, int length, long long rows, float* __restrict__ projections) {
    using namespace ramp;
    DYNAMIC_SHARED(float2, points);
    long long row = 2LL * blockIdx.x;
    float* first = projections + row * columns;
    bool has_second = row + 1 < rows;
    for (int i = int(threadIdx.x); i < length; i += int(blockDim.x)) {
        points[i] = make_float2(i < columns ? first[i] : 0.0f, i < columns && has_second ? first[columns + i] : 0.0f);
    }
    __syncthreads();
    transform(points, length);
    // The inverse is the transform with real and imaginary parts exchanged, before and after.
    for (int i = int(threadIdx.x); i < length; i += int(blockDim.x)) {
        float factor = response[min(i, length - i)];
        points[i] = make_float2(factor * points[i].y, factor * points[i].x);
    }
    __syncthreads();
    transform(points, length);
    for (int i = int(threadIdx.x); i < columns; i += int(blockDim.x)) {
        first[i] = points[i].y;
        if (has_second) first[columns + i] = points[i].x;
    }
}
REGISTER_KERNEL(filter_rows)
