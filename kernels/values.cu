// What the optimisation of a volume does value by value.
//
//   subtract              out = first - second
//   add_scaled            to += factor * from
//   scale                 values *= factor
//   copy_scaled           to = factor * from
//   dot                   sum first * second                                   (products in float64)
//   hold_at_zero          gradient = 0 where volume <= 0 and gradient > 0: the volume could only fall
//   count_not_finite      values that are infinite or no number
//   add_modulus_gradient  gradient += weight * sign(volume - reference), sign(0) = 0; what is no number stays one
//
// Shapes: all [count]; `partials` [blocks], one sum a block (float64), which sum_partials adds up.
// Launch: the tiles of tile.cuh, 4096 values a block of 256 threads.
// Floor: bytes at 4.3 TB/s. A value takes 12 bytes of subtract, add_scaled and hold_at_zero (256^3: 0.047 ms), 8 of scale, copy_scaled and dot (0.031 ms), 4 of
// count_not_finite (0.016 ms), 16 of add_modulus_gradient (0.062 ms); a handful of operations each. The float64 products of dot are 3.4e7
// conversions and 1.7e7 multiply-adds, 3 us at the half rate of an H200.
// Order: a thread sums its 16 products in their order, the block its threads: the count alone settles it. Counts are whole numbers.
#include "tile.cuh"

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    subtract(const float* __restrict__ first, const float* __restrict__ second, float* __restrict__ out, long long count) {
    using namespace tile;
    float4 a[FOURS], b[FOURS];
    for (int i = 0; i < FOURS; i++) {
        a[i] = load4(first, place(i), count);
        b[i] = load4(second, place(i), count);
    }
    for (int i = 0; i < FOURS; i++) store4(out, place(i), count, minus(a[i], b[i]));
}
REGISTER_KERNEL(subtract)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    add_scaled(float factor, const float* __restrict__ from, float* __restrict__ to, long long count) {
    using namespace tile;
    float4 f[FOURS], t[FOURS];
    for (int i = 0; i < FOURS; i++) {
        f[i] = load4(from, place(i), count);
        t[i] = load4(to, place(i), count);
    }
    for (int i = 0; i < FOURS; i++) {
        store4(to, place(i), count, each(f[i], t[i], [=](float from, float to) { return to + factor * from; }));
    }
}
REGISTER_KERNEL(add_scaled)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    scale(float factor, float* __restrict__ values, long long count) {
    using namespace tile;
    float4 v[FOURS];
    for (int i = 0; i < FOURS; i++) v[i] = load4(values, place(i), count);
    for (int i = 0; i < FOURS; i++) {
        store4(values, place(i), count, each(v[i], [=](float value) { return factor * value; }));
    }
}
REGISTER_KERNEL(scale)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    copy_scaled(float factor, const float* __restrict__ from, float* __restrict__ to, long long count) {
    using namespace tile;
    float4 v[FOURS];
    for (int i = 0; i < FOURS; i++) v[i] = load4(from, place(i), count);
    for (int i = 0; i < FOURS; i++) {
        store4(to, place(i), count, each(v[i], [=](float value) { return factor * value; }));
    }
}
REGISTER_KERNEL(copy_scaled)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    dot(const float* __restrict__ first, const float* __restrict__ second, long long count, double* __restrict__ partials) {
    using namespace tile;
    float4 a[FOURS], b[FOURS];
    for (int i = 0; i < FOURS; i++) {
        a[i] = load4(first, place(i), count);
        b[i] = load4(second, place(i), count);
    }
    double sum = 0.0;
    for (int i = 0; i < FOURS; i++) {
        sum += double(a[i].x) * double(b[i].x);
        sum += double(a[i].y) * double(b[i].y);
        sum += double(a[i].z) * double(b[i].z);
        sum += double(a[i].w) * double(b[i].w);
    }
    leave(sum, partials);
}
REGISTER_KERNEL(dot)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    hold_at_zero(const float* __restrict__ volume, float* __restrict__ gradient, long long count) {
    using namespace tile;
    float4 v[FOURS], g[FOURS];
    for (int i = 0; i < FOURS; i++) {
        v[i] = load4(volume, place(i), count);
        g[i] = load4(gradient, place(i), count);
    }
    for (int i = 0; i < FOURS; i++) {
        store4(gradient, place(i), count,
               each(v[i], g[i], [](float value, float slope) { return value <= 0.0f && slope > 0.0f ? 0.0f : slope; }));
    }
}
REGISTER_KERNEL(hold_at_zero)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    count_not_finite(const float* __restrict__ values, long long count, double* __restrict__ partials) {
    using namespace tile;
    float4 v[FOURS];
    for (int i = 0; i < FOURS; i++) v[i] = load4(values, place(i), count);
    float found = 0.0f;
    for (int i = 0; i < FOURS; i++) {
        // The comparison is false of what is no number as well.
        float4 ones = each(v[i], [](float value) { return fabsf(value) < INFINITY ? 0.0f : 1.0f; });
        found += ones.x + ones.y + ones.z + ones.w;
    }
    leave(double(found), partials);
}
REGISTER_KERNEL(count_not_finite)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    add_modulus_gradient(float weight, const float* __restrict__ volume, const float* __restrict__ reference,
                         float* __restrict__ gradient, long long count) {
    using namespace tile;
    float4 d[FOURS], g[FOURS];
    for (int i = 0; i < FOURS; i++) {
        d[i] = minus(load4(volume, place(i), count), load4(reference, place(i), count));
        g[i] = load4(gradient, place(i), count);
    }
    for (int i = 0; i < FOURS; i++) {
        store4(gradient, place(i), count, each(d[i], g[i], [=](float difference, float slope) {
                   // 0 and what is no number are their own sign.
                   return slope + (difference > 0.0f ? weight : difference < 0.0f ? -weight : difference);
               }));
    }
}
REGISTER_KERNEL(add_modulus_gradient)
