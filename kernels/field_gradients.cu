// What both adjoints of a neural field begin and end with.
//
//   absolute_sum          sum |values|, in partial sums
//   field_scales          scales[input]: units of the fixed-point sums of each feature of each level in 1
//   add_table_gradients   gradient[entry] += sums[entry] / scale of its feature
//   add_network_gradient  gradient[weight] += sum over blocks of partials[block][weight]
//
// Shapes: values [count]; total [1] (float64); scales, spoilt [levels * features]; sums, gradient as the tables; partials [blocks][network].
// Launch: absolute_sum in blocks of 256 threads for 4096 values; field_scales one block of 128; add_table_gradients 256 threads for 1024
// entries, blocks (entries, features of levels); add_network_gradient 256 threads for 32 weights.
// Floor: values once (67 MB at 256^3, 0.016 ms); tables 16 bytes an entry (3 levels of 2 features about 256^3: 615 MB, 0.14 ms); partials
// at most 35 MB.
//
// The range of fixed point. A point with gradient `by` (by its value) brings an entry at most |by| * unit * bound * |level's weight|: softplus and the
// units' slopes are at most 1, the weights of a point's nodes add up to 1, and `bound` is the product of the absolute weight matrices that lie
// between the feature and the last unit. So no entry's sum is above sum |by| times that. The unit is the power of two that makes this 2^60 to
// 2^61: no sum can overflow, whatever its order. Precision: a contribution is rounded to 2^-61 of that bound; where 2^24 points bring as much each, and
// weights add up to a tenth of their bound, that is 2^-34 of one, float32's own 2^-25 of the contribution for all that are above a
// five-hundredth of the mean. Smaller ones lose bits, never the sum.
// A gradient or parameter that is not a number makes all entries of the features that it spoils not a number.
#include "field_gradients.cuh"

namespace field_gradients {

constexpr int THREADS = 256;
constexpr int FOURS = 4;
constexpr int ENTRIES = 4;
constexpr int WEIGHTS = 32;
constexpr int SLICES = THREADS / WEIGHTS;
// Exponents of units: floats without denormals.
constexpr int MOST_EXPONENT = 120;
constexpr int BITS = 61;

}  // namespace field_gradients

extern "C" __global__ void __launch_bounds__(field_gradients::THREADS)
    absolute_sum(const float* __restrict__ values, long long count, double* __restrict__ partials) {
    using namespace field_gradients;
    float4 four[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        four[i] = load4(values, static_cast<long long>(FOURS * THREADS * 4) * blockIdx.x + 4 * (i * THREADS + int(threadIdx.x)), count);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) sum += fabsf(four[i].x) + fabsf(four[i].y) + fabsf(four[i].z) + fabsf(four[i].w);
    double total = block_sum(double(sum));
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}
REGISTER_KERNEL(absolute_sum)

extern "C" __global__ void __launch_bounds__(field::THREADS)
    field_scales(field::Field field, double reach, const double* __restrict__ total, const float* __restrict__ network,
                 float* __restrict__ scales) {
    using namespace field_gradients;
    __shared__ float bounds[2][field::THREADS];
    int unit = int(threadIdx.x), from = 0;
    if (unit < field.width) bounds[from][unit] = fabsf(network[field.layer(field.hidden) + unit]);
    for (int index = field.hidden - 1; index >= 0; index--) {
        __syncthreads();
        int count = index == 0 ? field.inputs() : field.width;
        if (unit < count) {
            const float* row = network + field.layer(index) + unit * field.width;
            float sum = 0.0f;
            for (int o = 0; o < field.width; o++) sum = fmaf(fabsf(row[o]), bounds[from][o], sum);
            bounds[1 - from][unit] = sum;
        }
        from = 1 - from;
    }
    __syncthreads();
    if (unit >= field.inputs()) return;
    double most = total[0] * reach * double(field.unit) * double(bounds[from][unit]) *
                  double(fabsf(field.weights[unit / field.features]));
    if (!(most < INFINITY)) {
        scales[unit] = NAN;
        return;
    }
    int exponent = 0;
    frexp(most, &exponent);
    scales[unit] = ldexpf(1.0f, max(-MOST_EXPONENT, min(MOST_EXPONENT, BITS - exponent)));
}
REGISTER_KERNEL(field_scales)

extern "C" __global__ void __launch_bounds__(field_gradients::THREADS)
    add_table_gradients(field::Field field, const field::LevelRecord* __restrict__ levels, const float* __restrict__ scales,
                        const unsigned* __restrict__ spoilt, const long long* __restrict__ sums, float* __restrict__ gradient) {
    using namespace field_gradients;
    int input = int(blockIdx.y), index = input / field.features;
    if (field.weights[index] == 0.0f) return;
    int entries = int(levels[index].entries);
    int first = int(blockIdx.x) * ENTRIES * THREADS + int(threadIdx.x);
    if (first >= entries) return;
    long long plane = levels[index].first + static_cast<long long>(input % field.features) * entries;
    double unit = spoilt[input] ? double(NAN) : 1.0 / double(scales[input]);
    long long sum[ENTRIES];
    float before[ENTRIES];
#pragma unroll
    for (int i = 0; i < ENTRIES; i++) {
        int entry = min(first + i * THREADS, entries - 1);
        sum[i] = sums[plane + entry];
        before[i] = gradient[plane + entry];
    }
#pragma unroll
    for (int i = 0; i < ENTRIES; i++) {
        int entry = first + i * THREADS;
        if (entry < entries) gradient[plane + entry] = before[i] + float(double(sum[i]) * unit);
    }
}
REGISTER_KERNEL(add_table_gradients)

extern "C" __global__ void __launch_bounds__(field_gradients::THREADS)
    add_network_gradient(const float* __restrict__ partials, int blocks, int count, float* __restrict__ gradient) {
    using namespace field_gradients;
    __shared__ double sums[SLICES][WEIGHTS];
    int lane = int(threadIdx.x) % WEIGHTS, slice = int(threadIdx.x) / WEIGHTS;
    int weight = int(blockIdx.x) * WEIGHTS + lane;
    double sum = 0.0;
    if (weight < count) {
#pragma unroll 4
        for (int block = slice; block < blocks; block += SLICES) sum += partials[static_cast<long long>(block) * count + weight];
    }
    sums[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || weight >= count) return;
    for (int other = 1; other < SLICES; other++) sum += sums[other][lane];
    gradient[weight] += float(sum);
}
REGISTER_KERNEL(add_network_gradient)
