// What the optimisation does with views: the pixels' aperture, and the sharpening of a loss by its frequencies.
//
//   take_aperture      out = views - share_v * sum over rows beside (beside - here) - share_u * sum over columns beside (beside - here)
//   whiten             out = gradient / sqrt(weights), 0 where a weight is 0
//   mix_sharpened      gradient = (1 - share) * gradient + share * gain * sqrt(weights) * filtered
//   times_root         out = sqrt(weights) * values
//   held_back_squares  sum of (projections - measured)^2 where a weight is 0   (squares in float64)
//
// Shapes: all [view][row v][column u]; weights >= 0, 0 a ray held back; `partials` [blocks], one sum a block (float64), for sum_partials.
// Launch: take_aperture in blocks of 32 x 8 threads, four columns a thread, grid (columns, rows, views); the others in the tiles of tile.cuh.
// Floor: bytes at 4.3 TB/s. A pixel takes 8 bytes of take_aperture, 12 of whiten, times_root and held_back_squares, 16 of mix_sharpened: of
// 50 views of 512^2 0.024, 0.037 and 0.049 ms. take_aperture reads 10 rows for 8 and its neighbours along a row a second time, out of
// the first-level cache; 15 operations a pixel at the most, roots and divisions correctly rounded 10 more each, of 75 that the bytes leave time for.
// Order: as in sart.cu.
#include "tile.cuh"

namespace views {

constexpr int LANES = 32, ROWS = 8;

// Detector and the shares of the neighbours that are taken away; `Aperture` of src/compute/cuda/views.rs is the same.
struct Aperture {
    int columns, rows;
    float share_u, share_v;
};

__device__ __forceinline__ float4 less(float share, float4 values, float4 here, float4 beside) {
    return make_float4(values.x - share * (beside.x - here.x), values.y - share * (beside.y - here.y),
                       values.z - share * (beside.z - here.z), values.w - share * (beside.w - here.w));
}

}  // namespace views

extern "C" __global__ void __launch_bounds__(views::LANES* views::ROWS)
    take_aperture(views::Aperture aperture, const float* __restrict__ values, float* __restrict__ out) {
    using namespace views;
    int u = 4 * (int(blockIdx.x) * LANES + int(threadIdx.x)), v = int(blockIdx.y) * ROWS + int(threadIdx.y);
    int columns = aperture.columns, rows = aperture.rows;
    if (u >= columns || v >= rows) return;
    long long first = (static_cast<long long>(blockIdx.z) * rows + v) * columns;
    const float* row = values + first;
    float4 here = load4(row, u, columns);
    // Beyond the border stands the pixel itself: no difference, nothing to take.
    float4 above = v > 0 ? load4(row - columns, u, columns) : here;
    float4 below = v + 1 < rows ? load4(row + columns, u, columns) : here;
    float4 left = make_float4(u > 0 ? __ldg(row + u - 1) : here.x, here.x, here.y, here.z);
    float4 right = make_float4(here.y, here.z, here.w, u + 4 < columns ? __ldg(row + u + 4) : here.w);
    if (u + 1 == columns) right.x = here.x;
    if (u + 2 == columns) right.y = here.y;
    if (u + 3 == columns) right.z = here.z;
    float4 result = less(aperture.share_v, here, here, above);
    result = less(aperture.share_v, result, here, below);
    result = less(aperture.share_u, result, here, left);
    store4(out + first, u, columns, less(aperture.share_u, result, here, right));
}
REGISTER_KERNEL(take_aperture)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    whiten(const float* __restrict__ weights, const float* __restrict__ gradient, float* __restrict__ out,
           long long count) {
    using namespace tile;
    float4 w[FOURS], g[FOURS];
    for (int i = 0; i < FOURS; i++) {
        w[i] = load4(weights, place(i), count);
        g[i] = load4(gradient, place(i), count);
    }
    for (int i = 0; i < FOURS; i++) {
        store4(out, place(i), count, each(w[i], g[i], [](float weight, float slope) {
                   return weight > 0.0f ? slope / sqrtf(weight) : 0.0f;
               }));
    }
}
REGISTER_KERNEL(whiten)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    mix_sharpened(float share, float gain, const float* __restrict__ weights, const float* __restrict__ filtered,
                  float* __restrict__ gradient, long long count) {
    using namespace tile;
    float4 w[FOURS], f[FOURS], g[FOURS];
    for (int i = 0; i < FOURS; i++) {
        w[i] = load4(weights, place(i), count);
        f[i] = load4(filtered, place(i), count);
        g[i] = load4(gradient, place(i), count);
    }
    float kept = 1.0f - share, mixed = share * gain;
    for (int i = 0; i < FOURS; i++) {
        float4 sharp = each(w[i], f[i], [=](float weight, float value) { return mixed * sqrtf(weight) * value; });
        store4(gradient, place(i), count,
               each(g[i], sharp, [=](float slope, float sharp) { return kept * slope + sharp; }));
    }
}
REGISTER_KERNEL(mix_sharpened)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    times_root(const float* __restrict__ weights, const float* __restrict__ values, float* __restrict__ out,
               long long count) {
    using namespace tile;
    float4 w[FOURS], v[FOURS];
    for (int i = 0; i < FOURS; i++) {
        w[i] = load4(weights, place(i), count);
        v[i] = load4(values, place(i), count);
    }
    for (int i = 0; i < FOURS; i++) {
        store4(out, place(i), count, each(w[i], v[i], [](float weight, float value) { return sqrtf(weight) * value; }));
    }
}
REGISTER_KERNEL(times_root)

extern "C" __global__ void __launch_bounds__(tile::THREADS)
    held_back_squares(const float* __restrict__ projections, const float* __restrict__ measured,
                      const float* __restrict__ weights, long long count, double* __restrict__ partials) {
    using namespace tile;
    float4 d[FOURS], w[FOURS];
    for (int i = 0; i < FOURS; i++) {
        d[i] = minus(load4(projections, place(i), count), load4(measured, place(i), count));
        w[i] = load4(weights, place(i), count);
    }
    double sum = 0.0;
    for (int i = 0; i < FOURS; i++) {
        float4 held = each(d[i], w[i], [](float difference, float weight) { return weight == 0.0f ? difference : 0.0f; });
        sum += double(held.x) * double(held.x);
        sum += double(held.y) * double(held.y);
        sum += double(held.z) * double(held.z);
        sum += double(held.w) * double(held.w);
    }
    leave(sum, partials);
}
REGISTER_KERNEL(held_back_squares)
