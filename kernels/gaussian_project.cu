// Line integrals of 3D Gaussians along the pixels' rays, a view at a time (definition: src/compute/gaussians.rs).
//
//   image[v][u] = length sum_i amplitude_i / sqrt(den) g2(y), y = (kd d^2 + ki di^2) / den (gaussian_view.cuh)
//
//   see_gaussians      records[i]: Gaussian i in the view. One that is not sound is left out; the lowest index of such: unsound[0]
//   count_pixel_entries, count_pixel_tiles, fill_pixel_tiles  as for voxels (gaussian_voxelise.cu, gaussian_lists.cu)
//   gaussian_project   the image's tiles: overwritten by pass 0, added to by the others; the last multiplies by the pixels' lengths
//
// Shapes: parameters [11][capacity], densities [capacity] (gaussian_shape.cuh); records [capacity] of 80 bytes; image [row v][column u].
// Launch: see_gaussians blocks of 128 threads, a Gaussian each; counting and filling blocks of 256, a chunk of 32 Gaussians each;
// gaussian_project a block of 128 threads for a tile of 16 x 16 pixels, of which a warp has 8 x 8 and a thread two of a row, in registers.
// A batch of 128 Gaussians goes through shared memory; who stages one also tests which of the 4 warps it touches.
// Floor, a view of 512^2 pixels and 50,000 Gaussians of sigma 3 pixels (396 pixels within the cut-off, 4 tiles, some 10 warps of 64
// pixels): a visit takes 68 instructions, 22 for each of a thread's two pixels: 5e5 visits of 32 threads: 1.1e9, 0.03 ms at 33e12 a
// second; two operations of the special units a pixel take 16 clocks a warp, as long as the others. see_gaussians: 124 bytes (1.5 us) and
// 600 float64 operations a Gaussian (2 us at 17e12 a second). A view takes 21 launches in a row, some 0.05 ms: with few Gaussians they
// are the floor.
// Order: a pixel adds its Gaussians in ascending order, whatever tiles, passes and room.
#include "gaussian_view.cuh"

namespace gaussians {

constexpr int PIXEL_WARPS = 4, PIXEL_BATCH = 32 * PIXEL_WARPS, WARP_EDGE = 8;

// 1 / sqrt(den) g2(y) at (d, di), where y0 = ki di^2 and den = den0 + d (den1 + a2 d).
__device__ __forceinline__ float pixel_value(float kd, float a2, float den0, float den1, float y0, float d) {
    float r = inverse_root(fmaxf(fmaf(fmaf(a2, d, den1), d, den0), 1e-12f));
    float y = fmaf(kd * d, d, y0) * (r * r);
    float within = fminf(y, Y_CUTOFF);
    return y < Y_CUTOFF ? (power_of_two(-within) - tail(Y_CUTOFF - within)) * r : 0.0f;
}

}  // namespace gaussians

extern "C" __global__ void __launch_bounds__(128)
    see_gaussians(gaussians::Set set, gaussians::Detector detector, const gaussians::PixelView* __restrict__ view,
                  const float* __restrict__ parameters, const float* __restrict__ densities, float4* __restrict__ records,
                  unsigned* __restrict__ unsound) {
    using namespace gaussians;
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= set.count) return;
    PixelFootprint footprint = {};
    footprint.reach_v = -1.0f;
    if (is_sound(set, parameters, densities, i)) {
        Axes axes = axes_of(set, parameters, i);
        Seen seen;
        if (see(*view, shape_of(set, axes, parameters, densities, i), seen)) footprint = footprint_of(detector, *view, seen);
    } else {
        atomicMin(unsound, unsigned(i));
    }
    store_seen(records, i, footprint);
}
REGISTER_KERNEL(see_gaussians)

extern "C" __global__ void __launch_bounds__(gaussian_lists::THREADS)
    count_pixel_entries(gaussians::Detector detector, int count, const float4* __restrict__ records,
                        unsigned* __restrict__ entries) {
    using namespace gaussians;
    int i = int(blockIdx.x) * gaussian_lists::CHUNK + int(threadIdx.x) / gaussian_lists::LANES;
    unsigned touched = 0;
    if (i < count) for_touched(detector, load_seen(records, i), [&](int) { touched++; });
    gaussian_lists::leave_entries(touched, entries);
}
REGISTER_KERNEL(count_pixel_entries)

extern "C" __global__ void __launch_bounds__(gaussian_lists::THREADS)
    count_pixel_tiles(gaussians::Detector detector, int count, const float4* __restrict__ records,
                      const unsigned* __restrict__ bounds, unsigned* __restrict__ ends) {
    using namespace gaussians;
    unsigned end = bounds[1];
    for (unsigned chunk = bounds[0] + blockIdx.x; chunk < end; chunk += gridDim.x) {
        int i = int(chunk) * gaussian_lists::CHUNK + int(threadIdx.x) / gaussian_lists::LANES;
        if (i < count) for_touched(detector, load_seen(records, i), [&](int tile) { atomicAdd(ends + tile, 1u); });
    }
}
REGISTER_KERNEL(count_pixel_tiles)

extern "C" __global__ void __launch_bounds__(gaussian_lists::THREADS)
    fill_pixel_tiles(gaussians::Detector detector, int count, const float4* __restrict__ records,
                     const unsigned* __restrict__ bounds, unsigned* __restrict__ ends, unsigned* __restrict__ list) {
    using namespace gaussians;
    unsigned end = bounds[1];
    for (unsigned chunk = bounds[0] + blockIdx.x; chunk < end; chunk += gridDim.x) {
        int i = int(chunk) * gaussian_lists::CHUNK + int(threadIdx.x) / gaussian_lists::LANES;
        if (i < count) {
            for_touched(detector, load_seen(records, i), [&](int tile) { list[atomicAdd(ends + tile, 1u)] = unsigned(i); });
        }
    }
}
REGISTER_KERNEL(fill_pixel_tiles)

extern "C" __global__ void __launch_bounds__(gaussians::PIXEL_BATCH)
    gaussian_project(gaussians::Detector detector, int count, int pass, const gaussians::PixelView* __restrict__ view,
                     const float4* __restrict__ records, const unsigned* __restrict__ bounds, const unsigned* __restrict__ ends,
                     const unsigned* __restrict__ list, float* __restrict__ image) {
    using namespace gaussians;
    // Of each Gaussian of a batch: centre from the tile's first pixel, amplitude, kd; ki, shear, a1, a2; b1, b2, c.
    __shared__ float4 centres[PIXEL_BATCH], forms[PIXEL_BATCH], rests[PIXEL_BATCH];
    // Which Gaussians of the batch touch a warp's pixels, a bit each.
    __shared__ unsigned touched[PIXEL_WARPS][PIXEL_WARPS];
    int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;

    unsigned first = blockIdx.x > 0 ? ends[blockIdx.x - 1] : 0;
    int listed = int(ends[blockIdx.x] - first);
    // After the last pass, what no pass has taken.
    bool is_last = pass + 1 == gaussian_lists::PASSES;
    int rest = count;
    if (is_last) rest = int(min(bounds[gaussian_lists::PASSES] * gaussian_lists::CHUNK, unsigned(count)));
    int candidates = listed + count - rest;
    if (candidates == 0 && pass > 0 && !is_last) return;

    int corner_u = int(blockIdx.x) % detector.tiles_u() * TILE, corner_v = int(blockIdx.x) / detector.tiles_u() * TILE;
    int in_u = warp % 2 * WARP_EDGE + lane % 4 * 2, in_v = warp / 2 * WARP_EDGE + lane / 4;
    int column = corner_u + in_u, row = corner_v + in_v;
    bool has_first = row < detector.rows && column < detector.columns;
    bool has_second = has_first && column + 1 < detector.columns;
    float* pixel = image + static_cast<long long>(row) * detector.columns + column;
    float sum = has_first && pass > 0 ? pixel[0] : 0.0f, next = has_second && pass > 0 ? pixel[1] : 0.0f;

    for (int begin = 0; begin < candidates; begin += PIXEL_BATCH) {
        int k = begin + thread;
        unsigned of_warps = 0;
        if (k < candidates) {
            PixelFootprint f = load_seen(records, k < listed ? int(list[first + k]) : rest + (k - listed));
            float cu = float(f.column - corner_u) + f.fraction_u, cv = float(f.row - corner_v) + f.fraction_v;
            centres[thread] = make_float4(cu, cv, f.amplitude, f.kd);
            forms[thread] = make_float4(f.ki, f.shear, f.a1, f.a2);
            rests[thread] = make_float4(f.b1, f.b2, f.c, 0.0f);
            if (f.reach_v >= 0.0f && f.amplitude != 0.0f) {
#pragma unroll
                for (int w = 0; w < PIXEL_WARPS; w++) {
                    float u = float(w % 2 * WARP_EDGE) + middle(WARP_EDGE), v = float(w / 2 * WARP_EDGE) + middle(WARP_EDGE);
                    if (touches(f, u - cu, v - cv, middle(WARP_EDGE), middle(WARP_EDGE))) of_warps |= 1u << w;
                }
            }
        }
#pragma unroll
        for (int w = 0; w < PIXEL_WARPS; w++) {
            unsigned word = __ballot_sync(0xffffffffu, int(of_warps >> w & 1u));
            if (lane == w) touched[w][warp] = word;
        }
        __syncthreads();
        for (int part = 0; part < PIXEL_WARPS; part++) {
            for (unsigned word = touched[warp][part]; word != 0; word &= word - 1) {
                int g = part * 32 + __ffs(int(word)) - 1;
                float4 centre = centres[g], form = forms[g], rest_of = rests[g];
                float di = float(in_v) - centre.y, d = fmaf(form.y, di, float(in_u) - centre.x);
                float den0 = fmaf(fmaf(rest_of.y, di, rest_of.x), di, 1.0f), den1 = fmaf(rest_of.z, di, form.z);
                float y0 = form.x * di * di;
                sum = fmaf(centre.z, pixel_value(centre.w, form.w, den0, den1, y0, d), sum);
                next = fmaf(centre.z, pixel_value(centre.w, form.w, den0, den1, y0, d + 1.0f), next);
            }
        }
        __syncthreads();
    }
    if (has_first) pixel[0] = is_last ? sum * view->length(column, row) : sum;
    if (has_second) pixel[1] = is_last ? next * view->length(column + 1, row) : next;
}
REGISTER_KERNEL(gaussian_project)
