// Loss of views against measured ones, with its gradient (definition: src/compute/losses.rs).
//
//   compare_images        by = w (l1 slope(p - m) + squares (p - m)), slope the sign, or Huber's between -1 and 1; sums of w |p - m| (or
//                         Huber's) and w (p - m)^2
//   add_image_similarity  by += weight * d sum (1 - SSIM) / d p; sum of 1 - SSIM
//
// Shapes: projections (p), measured (m), by_projections (by) [view][row v][column u]; weights (w) the same; where `weighted` is 0 they are not read
// and count as 1. `moduli`, `squares`, `partials` [blocks], one sum a block (float64).
// Launch: compare_images in blocks of 256 threads, 4096 pixels a block; add_image_similarity as loss_window.cuh: grid (views, column tiles, bands of
// rows), 160 threads.
// Floor: 12 bytes a pixel (16 with weights), and 16 more for the similarity: at 512 x 512 pixels a view 1.7 us at 4.3 TB/s, less than the launches
// themselves. Operations: 12 a pixel, and 370 a thread and row of the similarity (1.3 threads a pixel): 4 us a view at 33e12 a second.
// Order: a thread sums its 16 pixels in float32, the block its threads in float64: the sizes alone settle it.
#include "loss_window.cuh"

namespace image_loss {

constexpr int THREADS = 256;
constexpr int FOURS = 4;
constexpr int TILE = THREADS * FOURS * 4;
constexpr int WIDTH = 160;

// `Points` of src/compute/cuda/loss_image.rs is the same. `sharpness` is 1 / huber; l1 and squares are the gradient's factors.
struct Points {
    float huber, sharpness, l1, squares;
    int weighted;
};

struct Sums {
    float modulus, square;
};

__device__ __forceinline__ float point(const Points& of, float p, float m, float weight, Sums& sums) {
    float r = p - m;
    float slope = fmaxf(fminf(r * of.sharpness, 1.0f), -1.0f);
    sums.modulus = fmaf(weight, slope * (r - slope * (0.5f * of.huber)), sums.modulus);
    sums.square = fmaf(weight, r * r, sums.square);
    return weight * fmaf(r, of.squares, slope * of.l1);
}

}  // namespace image_loss

extern "C" __global__ void __launch_bounds__(image_loss::THREADS)
    compare_images(image_loss::Points of, const float* __restrict__ projections, const float* __restrict__ measured,
                   const float* __restrict__ weights, float* __restrict__ by_projections, long long count,
                   double* __restrict__ moduli, double* __restrict__ squares) {
    using namespace image_loss;
    Sums sums = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        long long place = static_cast<long long>(TILE) * blockIdx.x + 4 * (i * THREADS + int(threadIdx.x));
        // Beyond the last pixel both are 0 and count for nothing.
        float4 p = load4(projections, place, count), m = load4(measured, place, count);
        float4 w = of.weighted ? load4(weights, place, count) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        float4 by = make_float4(point(of, p.x, m.x, w.x, sums), point(of, p.y, m.y, w.y, sums),
                                point(of, p.z, m.z, w.z, sums), point(of, p.w, m.w, w.w, sums));
        store4(by_projections, place, count, by);
    }
    double modulus = block_sum(double(sums.modulus));
    // The block's sums of warps are read by now.
    __syncthreads();
    double square = block_sum(double(sums.square));
    if (threadIdx.x == 0) moduli[blockIdx.x] = modulus, squares[blockIdx.x] = square;
}
REGISTER_KERNEL(compare_images)

extern "C" __global__ void __launch_bounds__(image_loss::WIDTH)
    add_image_similarity(ssim::Planes planes, const float* __restrict__ projections,
                         const float* __restrict__ measured, float* __restrict__ by_projections,
                         double* __restrict__ partials) {
    ssim::similarity<1, image_loss::WIDTH>(planes, nullptr, nullptr, projections, measured, by_projections, partials);
}
REGISTER_KERNEL(add_image_similarity)
