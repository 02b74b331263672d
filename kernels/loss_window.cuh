// Structural similarity of two planes and its gradient in one sweep over the rows (definition: src/compute/losses.rs).
//
// With s = a + b and d = a - b in data ranges, m and v their means and variances under the window F (11 x 11, sigma 1.5):
//   A = (ms^2 + md^2)/2 + C1,  p = md^2 / A,  B = (vs + vd)/2 + C2,  q = vd / B,  1 - SSIM = p + q - pq
//   gradient by a = F(g) + d F(gd) + s F(gs),  gs = -q (1-p)/B,  gd = 2 (1-p)/B + gs,
//   g = (1-q)((2-p) md - p ms)/A - md gd - ms gs
// as on the CPU (src/compute/cpu/loss_window.rs): 0 with a gradient of 0 where the planes are equal, and no cancellation near it.
//
// A block takes WIDTH columns of LANES planes and goes down a band of rows, a thread for each column. Across rows the window is a filter in
// transposed form: ten running sums a map in registers, to each of which a new row adds its share, so that no ring of rows is kept. Along a row the
// maps pass through shared memory. What comes out at row r needs rows up to r + 5 there and r + 10 for the gradient: a band reads ten rows beside
// its own at either end, a block ten columns, but for the plane's edges, beyond which are zeros.
//
// Order: a pixel's sums along its column, then its row, whatever the block; values row by row in float32 a thread, then block_sum.
#pragma once

#include "common.cuh"

namespace ssim {

constexpr int REACH = 5, TAPS = 2 * REACH + 1;
// Columns beside those whose gradient a block gives out.
constexpr int RIM = 2 * REACH;
constexpr float C1 = 1e-4f, C2 = 9e-4f;

// `Planes` of src/compute/cuda/loss_window.rs is the same.
struct Planes {
    // Between neighbours, in floats.
    long long slice_step, row_step, column_step;
    int slices, rows, columns;
    // Rows of a block.
    int band;
    // 1 / data range, and the factor of the gradient.
    float scale, weight;
};

__device__ __forceinline__ constexpr int distance(int tap) { return tap < REACH ? REACH - tap : tap - REACH; }

// The window's weight at `tap`, 0 to 10; they sum to 1.
__device__ __forceinline__ float weight(int tap) {
    constexpr float from_middle[REACH + 1] = {0.266011725f,  0.213005538f,   0.10936069f,
                                              0.0360007721f, 0.00759875814f, 0.00102838008f};
    return from_middle[distance(tap)];
}

// What a window around `at` lacks of 1 where it begins at `at` - `there` only.
__device__ __forceinline__ double lacking(int there) {
    switch (there) {
        case 0: return 0.36699413756910276;
        case 1: return 0.15398859985784913;
        case 2: return 0.044627910348149114;
        case 3: return 0.0086271382197182934;
        case 4: return 0.001028380084479109;
        default: return 0.0;
    }
}

// What a window around `at` is multiplied by for the weights within `count` to sum to 1.
__device__ __forceinline__ float to_unit(int at, int count) {
    if (at >= REACH && at < count - REACH) return 1.0f;
    return float(1.0 / (1.0 - lacking(at) - lacking(count - 1 - at)));
}

// Takes the next value in and gives the filter's value REACH places before.
__device__ __forceinline__ float pass(float (&running)[TAPS - 1], float value) {
    float out = fmaf(weight(0), value, running[0]);
#pragma unroll
    for (int k = 0; k + 1 < TAPS - 1; k++) running[k] = fmaf(weight(k + 1), value, running[k + 1]);
    running[TAPS - 2] = weight(TAPS - 1) * value;
    return out;
}

// Maps whose filtered sum is the gradient.
struct Slopes {
    float g, by_difference, by_sum;
};

// 1 - SSIM from filtered s, d, s^2, d^2 (x, y, z, w), times `to_one` yet to be; `weight` is the gradient's.
__device__ __forceinline__ float formula(float4 m, float to_one, float weight, Slopes& slopes) {
    float ms = m.x * to_one, md = m.y * to_one;
    float ms2 = ms * ms, md2 = md * md;
    // Rounding may leave less than 0.
    float vs = fmaxf(fmaf(m.z, to_one, -ms2), 0.0f), vd = fmaxf(fmaf(m.w, to_one, -md2), 0.0f);
    float a = fmaf(ms2 + md2, 0.5f, C1), b = fmaf(vs + vd, 0.5f, C2);
    float per_ab = inverse(a * b);
    float by_a = per_ab * b, by_b = per_ab * a;
    float p = md2 * by_a, q = vd * by_b;
    float l = 1.0f - p, c = 1.0f - q;
    weight *= to_one;
    float slope = l * by_b * weight;
    slopes.by_sum = -q * slope;
    slopes.by_difference = fmaf(2.0f, slope, slopes.by_sum);
    float means = (2.0f - p) * md - p * ms;
    slopes.g = c * by_a * weight * means - fmaf(md, slopes.by_difference, ms * slopes.by_sum);
    return fmaf(q, l, p);
}

// One block: adds the gradient of its rows and columns to `target` and leaves their sum of 1 - SSIM in `partials`. Planes whose `used` is 0
// (null: none) are left out; `share` (null: 1) is a further factor of the gradient.
template <int LANES, int WIDTH>
__device__ __forceinline__ void similarity(const Planes& planes, const unsigned* used, const float* share,
                                           const float* __restrict__ first, const float* __restrict__ second,
                                           float* __restrict__ target, double* __restrict__ partials) {
    constexpr int PAD = REACH * LANES, PADDED = LANES * WIDTH + 2 * PAD;
    static_assert(LANES * WIDTH % 32 == 0 && PAD <= LANES * WIDTH, "");
    __shared__ float4 maps[PADDED];
    __shared__ float2 slopes_gd[PADDED];
    __shared__ float slopes_s[PADDED];
    int thread = int(threadIdx.x), lane = thread % LANES, place = thread / LANES;
    int slice = int(blockIdx.x) * LANES + lane;
    int first_column = int(blockIdx.y) * (WIDTH - 2 * RIM), column = first_column + place;
    bool last = first_column + WIDTH >= planes.columns;
    bool inside = slice < planes.slices && column < planes.columns && (used == nullptr || used[slice] != 0);
    bool own = inside && (first_column == 0 || place >= RIM) && (last || place < WIDTH - RIM);
    int block = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
    if (!__syncthreads_or(inside)) {
        if (thread == 0) partials[block] = 0.0;
        return;
    }
    if (thread < PAD) {
        int opposite = PADDED - 1 - thread;
        maps[thread] = maps[opposite] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        slopes_gd[thread] = slopes_gd[opposite] = make_float2(0.0f, 0.0f);
        slopes_s[thread] = slopes_s[opposite] = 0.0f;
    }

    int out = int(blockIdx.z) * planes.band, out_end = min(out + planes.band, planes.rows);
    float factor = share == nullptr ? planes.weight : planes.weight * share[0];
    float column_unit = inside ? to_unit(column, planes.columns) : 0.0f;
    long long start = slice * planes.slice_step + column * planes.column_step, behind = RIM * planes.row_step;
    float down[4][TAPS - 1] = {}, back[3][TAPS - 1] = {};
    float sum = 0.0f;

    int row = max(out - RIM, 0);
    // A row is asked for while the one before it is worked on.
    float next_a = 0.0f, next_b = 0.0f;
    long long next = start + row * planes.row_step;
    if (inside && row < planes.rows) next_a = first[next], next_b = second[next];
    for (; row < out_end + RIM; row++) {
        int centre = row - REACH, done = row - RIM;
        float s = planes.scale * next_a + planes.scale * next_b, d = planes.scale * next_a - planes.scale * next_b;
        next_a = next_b = 0.0f;
        long long place_done = next - behind;
        next += planes.row_step;
        if (inside && row + 1 < planes.rows) next_a = first[next], next_b = second[next];
        bool gives = own && done >= out;
        float done_a = 0.0f, done_b = 0.0f, gradient = 0.0f;
        if (gives) {
            done_a = planes.scale * first[place_done], done_b = planes.scale * second[place_done];
            gradient = target[place_done];
        }
        float4 m;
        m.x = pass(down[0], s), m.y = pass(down[1], d), m.z = pass(down[2], s * s), m.w = pass(down[3], d * d);
        if (centre < max(out - REACH, 0)) continue;
        Slopes along = {0.0f, 0.0f, 0.0f};
        if (centre < planes.rows) {
            maps[thread + PAD] = m;
            __syncthreads();
            m = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) {
                float4 v = maps[thread + tap * LANES];
                m.x = fmaf(weight(tap), v.x, m.x), m.y = fmaf(weight(tap), v.y, m.y);
                m.z = fmaf(weight(tap), v.z, m.z), m.w = fmaf(weight(tap), v.w, m.w);
            }
            Slopes slopes = {0.0f, 0.0f, 0.0f};
            if (inside) {
                float value = formula(m, column_unit * to_unit(centre, planes.rows), factor, slopes);
                if (own && centre >= out && centre < out_end) sum += value;
            }
            slopes_gd[thread + PAD] = make_float2(slopes.g, slopes.by_difference);
            slopes_s[thread + PAD] = slopes.by_sum;
            // Also before the next row's maps: all have read this row's.
            __syncthreads();
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) {
                int at = thread + tap * LANES;
                float2 gd = slopes_gd[at];
                along.g = fmaf(weight(tap), gd.x, along.g);
                along.by_difference = fmaf(weight(tap), gd.y, along.by_difference);
                along.by_sum = fmaf(weight(tap), slopes_s[at], along.by_sum);
            }
        }
        float g = pass(back[0], along.g), gd = pass(back[1], along.by_difference), gs = pass(back[2], along.by_sum);
        if (gives) {
            float by_first = fmaf(done_a + done_b, gs, fmaf(done_a - done_b, gd, g));
            target[place_done] = gradient + by_first;
        }
    }
    double of_block = block_sum(double(sum));
    if (thread == 0) partials[block] = of_block;
}

}  // namespace ssim
