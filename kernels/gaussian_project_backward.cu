// The gradient of gaussian_project, a view at a time: each Gaussian gathers from the pixels under it.
//
//   weigh_pixels               weighted[v][u] = length by_image[v][u]
//   gaussian_project_backward  with G = weighted, r = 1 / sqrt(den), g2 and its slope at y (gaussian_view.cuh), the sums of G r g2; of
//                              G r^3 g2' (d, di, d^2, d di, di^2); of G r^3 (g2 / 2 + y g2') (1, d, di, d^2, d di, di^2); a
//                              Gaussian's twelve take the place of its record
//   add_pixel_gradients        gradients[channel][i] += what these mean for density, position, log scales and quaternion;
//                              gradients[11][i] += the norm of the part by position
//
// Shapes: by_image, weighted [row v][column u]; records [capacity] of 80 bytes (see_gaussians of gaussian_project.cu); gradients
// [12][capacity].
// Launch: weigh_pixels a thread a pixel, 256 in a block. gaussian_project_backward a warp a Gaussian, 8 in a block: 8, 16 or 32 lanes along
// a row, as the longest row within the cut-off asks, so that 4, 2 or 1 rows are walked at once. A Gaussian of more than LARGE_ON_PIXELS
// steps is shared by the block's warps, every eighth group of rows each. add_pixel_gradients a thread a Gaussian, in blocks of 64.
// Floor, a view of 512^2 pixels and 50,000 Gaussians of sigma 3 pixels (23 rows of up to 23 pixels): 12 steps of two times 53 instructions
// and 39 for a row, the sums' 60 shuffles 120: 1900 a warp and Gaussian, 3.0e9 in all, 0.09 ms at 33e12 a second. add_pixel_gradients: 1500 float64
// operations (5 us at 17e12 a second) and 190 bytes a Gaussian (2 us).
// Order: lanes and rows have their pixels by the Gaussian alone; lanes, then warps are summed in their order; views are added one by one.
#include "gaussian_view.cuh"

namespace gaussians {

constexpr int PIXEL_SUMS = 12, PIXEL_GATHERERS = 8;
// Steps of a warp from which on the block's warps share them.
constexpr float LARGE_ON_PIXELS = 1024.0f;

// Where a Gaussian's pixels are: rows first .. last, and lanes along a row.
struct RowWalk {
    int first, last, lanes;
    bool large;
};

__device__ __forceinline__ RowWalk walk_of(const Detector& detector, const PixelFootprint& f) {
    gaussian_lists::Span rows = rows_of(f);
    RowWalk walk;
    walk.first = max(rows.first, 0), walk.last = min(rows.last, detector.rows - 1);
    float longest = floorf(fminf(2.0f * root(f.half0), float(detector.columns))) + 1.0f;
    // Rather few lanes that go on twice than lanes that stand idle: a row's own work is then shared by more rows.
    walk.lanes = longest <= 16.0f ? 8 : longest <= 32.0f ? 16 : 32;
    float at_once = float(32 / walk.lanes), groups = ceilf(float(walk.last - walk.first + 1) / at_once);
    walk.large = groups * ceilf(longest / float(walk.lanes)) > LARGE_ON_PIXELS;
    return walk;
}

// Adds up this lane's share of every `parts`th group of rows, from group `part` on.
__device__ __forceinline__ void gather(const Detector& detector, const PixelFootprint& g, const RowWalk& walk, int part,
                                       int parts, const float* __restrict__ weighted, float (&sums)[PIXEL_SUMS]) {
    int lane = int(threadIdx.x) % 32, rows = 32 / walk.lanes;
    // Columns are counted from the pixel at the centre, in floats: the detector's first and last, and how the lanes share them.
    float low_u = float(-g.column), high_u = float(detector.columns - 1 - g.column);
    float own_u = float(lane % walk.lanes), by_lanes = float(walk.lanes);
    for (int row = walk.first + part * rows + lane / walk.lanes; row <= walk.last; row += parts * rows) {
        float di = float(row - g.row) - g.fraction_v, off = di - g.centre;
        float square = g.half0 - g.half1 * off * off;
        if (!(square >= 0.0f)) continue;
        float half = root(square);
        // Where the projected column stands if d is 0, and the row's middle.
        float zero = g.fraction_u - g.shear * di, middle_u = zero + fmaf(g.slope, off, g.mid);
        float at_u = fmaxf(ceilf(middle_u - half), low_u) + own_u, last_u = fminf(middle_u + half, high_u);
        if (!(at_u <= last_u)) continue;
        float den0 = fmaf(fmaf(g.b2, di, g.b1), di, 1.0f), den1 = fmaf(g.c, di, g.a1), y0 = g.ki * di * di;
        const float* pixel = weighted + (static_cast<long long>(row) * detector.columns + g.column + int(at_u));
        for (; at_u <= last_u; at_u += by_lanes, pixel += walk.lanes) {
            float d = at_u - zero;
            float r = inverse_root(fmaxf(fmaf(fmaf(g.a2, d, den1), d, den0), 1e-12f)), r2 = r * r;
            float y = fmaf(g.kd * d, d, y0) * r2;
            float given = y < Y_CUTOFF ? __ldg(pixel) * r : 0.0f;
            y = fminf(y, Y_CUTOFF);
            float inside = Y_CUTOFF - y, power = power_of_two(-y), value = power - tail(inside);
            sums[0] = fmaf(given, value, sums[0]);
            float weight = given * r2;
            float a = weight * fmaf(power, -0.69314718f, tail_slope(inside)), b = fmaf(a, y, weight * (0.5f * value));
            float ad = a * d, ai = a * di, bd = b * d, bi = b * di;
            sums[1] += ad, sums[2] += ai;
            sums[3] = fmaf(ad, d, sums[3]), sums[4] = fmaf(ad, di, sums[4]), sums[5] = fmaf(ai, di, sums[5]);
            sums[6] += b, sums[7] += bd, sums[8] += bi;
            sums[9] = fmaf(bd, d, sums[9]), sums[10] = fmaf(bd, di, sums[10]), sums[11] = fmaf(bi, di, sums[11]);
        }
    }
    // Lane 0 gets the warp's.
#pragma unroll
    for (int k = 0; k < PIXEL_SUMS; k++) {
#pragma unroll
        for (int by = 16; by > 0; by /= 2) sums[k] += __shfl_down_sync(0xffffffffu, sums[k], unsigned(by));
    }
}

}  // namespace gaussians

extern "C" __global__ void __launch_bounds__(256)
    weigh_pixels(gaussians::Detector detector, const gaussians::PixelView* __restrict__ view,
                 const float* __restrict__ by_image, float* __restrict__ weighted) {
    int u = int(blockIdx.x * blockDim.x + threadIdx.x), v = int(blockIdx.y);
    if (u >= detector.columns) return;
    long long at = static_cast<long long>(v) * detector.columns + u;
    weighted[at] = by_image[at] * view->length(u, v);
}
REGISTER_KERNEL(weigh_pixels)

extern "C" __global__ void __launch_bounds__(32 * gaussians::PIXEL_GATHERERS, 3)
    gaussian_project_backward(gaussians::Detector detector, int count, float4* __restrict__ records,
                              const float* __restrict__ weighted) {
    using namespace gaussians;
    __shared__ float of_warps[PIXEL_GATHERERS][PIXEL_SUMS];
    int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    long long block_first = static_cast<long long>(blockIdx.x) * PIXEL_GATHERERS, own = block_first + warp;
    bool any = false, large = false;
    PixelFootprint footprint;
    RowWalk walk;
    if (own < count) {
        footprint = load_seen(records, own);
        any = footprint.reach_v >= 0.0f;
        if (any) walk = walk_of(detector, footprint), large = walk.large;
    }
    int some_large = __syncthreads_or(int(large));
    if (any && !large) {
        float sums[PIXEL_SUMS] = {};
        gather(detector, footprint, walk, 0, 1, weighted, sums);
        if (lane == 0) {
            records[5 * own] = make_float4(sums[0], sums[1], sums[2], sums[3]);
            records[5 * own + 1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
            records[5 * own + 2] = make_float4(sums[8], sums[9], sums[10], sums[11]);
        }
    }
    if (!some_large) return;
    for (int k = 0; k < PIXEL_GATHERERS; k++) {
        // What took a record's place is no footprint: whether it still is one its own warp knows.
        if (__syncthreads_or(int(large && k == warp)) == 0) continue;
        footprint = load_seen(records, block_first + k);
        float sums[PIXEL_SUMS] = {};
        gather(detector, footprint, walk_of(detector, footprint), warp, PIXEL_GATHERERS, weighted, sums);
        if (lane == 0) {
#pragma unroll
            for (int sum = 0; sum < PIXEL_SUMS; sum++) of_warps[warp][sum] = sums[sum];
        }
        __syncthreads();
        if (threadIdx.x < PIXEL_SUMS) {
            float sum = 0.0f;
            for (int of = 0; of < PIXEL_GATHERERS; of++) sum += of_warps[of][threadIdx.x];
            reinterpret_cast<float*>(records + 5 * (block_first + k))[threadIdx.x] = sum;
        }
    }
}
REGISTER_KERNEL(gaussian_project_backward)

extern "C" __global__ void __launch_bounds__(64)
    add_pixel_gradients(gaussians::Set set, const gaussians::PixelView* __restrict__ seen_from,
                        const float* __restrict__ parameters, const float* __restrict__ densities,
                        const float4* __restrict__ records, float* __restrict__ gradients) {
    using namespace gaussians;
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= set.count || !(records[5 * static_cast<long long>(i) + 4].w >= 0.0f)) return;
    const PixelView view = *seen_from;
    Axes axes = axes_of(set, parameters, i);
    Shape shape = shape_of(set, axes, parameters, densities, i);
    Seen s;
    if (!see(view, shape, s)) return;
    float4 first = records[5 * static_cast<long long>(i)], second = records[5 * static_cast<long long>(i) + 1];
    float4 third = records[5 * static_cast<long long>(i) + 2];
    double scale = s.amplitude, value = scale * first.x;
    double alpha_d = scale * first.y, alpha_i = scale * first.z;
    double k11 = scale * first.w, k12 = 2.0 * scale * second.x, k22 = scale * second.y;
    double beta = scale * second.z, beta_d = scale * second.w, beta_i = scale * third.x;
    double by_a1 = -2.0 * beta_d, by_b1 = -2.0 * beta_i;
    double by_a2 = -scale * third.y, by_c = -2.0 * scale * third.z, by_b2 = -scale * third.w;
    // By a shift of all d and all di.
    double by_d = 2.0 * (s.kd * alpha_d - s.a1 * beta - s.a2 * beta_d - s.c * beta_i);
    double by_di = 2.0 * (s.ki * alpha_i - s.b1 * beta - s.c * beta_d - s.b2 * beta_i);
    // By h times h, and by |D|_P^2 = 1 / h.
    double forms = k11 * s.kd + k22 * s.ki;
    double by_h_h = by_a1 * s.a1 + by_b1 * s.b1 + by_a2 * s.a2 + by_c * s.c + by_b2 * s.b2 + forms + 0.5 * value;
    double by_square = -by_h_h * s.h;
    double by_e1 = by_a1 * s.h, by_e2 = by_b1 * s.h, by_f11 = by_a2 * s.h, by_f12 = by_c * s.h, by_f22 = by_b2 * s.h;
    double tau = s.kd * inverse(s.g11), by_g11 = k11 * tau, by_g12 = k12 * tau, by_g22 = k22 * tau;
    Vector z2 = shape.covariance.times(s.n2);
    Vector by_n1 = 2.0 * by_g11 * s.z1 + by_g12 * z2, by_n2 = 2.0 * by_g22 * z2 + by_g12 * s.z1;
    Vector by_point = cross(view.column, by_n1) + cross(s.sheared, by_n2) + 2.0 * by_square * s.y0 + by_e1 * s.y_column +
                      by_e2 * s.y_row - by_d * (view.dual_column + s.shear * view.dual_row) - by_di * view.dual_row;
    double per_depth = inverse(s.depth);
    ShapeGradient by = {};
    by.centre = per_depth * (by_point - dot(s.d, by_point) * view.normal) + 2.0 * forms * per_depth * view.normal;
    by.amplitude = double(first.x) * ROOT_TAU * root(s.h);
    by.log_volume = -2.0 * forms;
    by.covariance.add_square(by_g11, s.n1);
    by.covariance.add_product(by_g12, s.n1, s.n2);
    by.covariance.add_square(by_g22, s.n2);
    by.precision.add_product(1.0, s.d, by_square * s.d + by_e1 * view.column + by_e2 * s.sheared);
    by.precision.add_square(by_f11, view.column);
    by.precision.add_product(by_f12, view.column, s.sheared);
    by.precision.add_square(by_f22, s.sheared);
    add_by_parameters(set, axes, by, densities[i], i, gradients);
    gradients[11 * static_cast<long long>(set.capacity) + i] += float(sqrt(dot(by.centre, by.centre)));
}
REGISTER_KERNEL(add_pixel_gradients)
