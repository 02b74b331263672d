// Line integrals of a frame's raw counts, with the CPU's bits.
//
//   line_integrals      out = minus_ln(max((counts - dark) * gain * scale, least)), and how many pixels were below `least` is added to `clamped`
//   replace_bad_pixels  frame[bad] = mean of frame[neighbours], added up in their order
//
// Shapes: counts (16 bits, unsigned), dark, gain, out, frame [row v][column u], `count` in all; clamped [1], 0 before; list [bad pixels], each up to
// MOST neighbours, of which none is bad, so that no order of threads changes a result. What lies beyond the frame is not looked at.
// Launch: 256 threads a block, each with four pixels: one load of 8 bytes and two of 16, all in flight, one store of 16, each a whole stretch of a
// warp. A frame is small (512^2: 256 blocks, two a multiprocessor), so that a thread has no more than that. The second: 64 threads a block, each
// with a bad pixel, after the first; no launch where there is none.
// Floor: bytes at 4.3 TB/s, 14 a pixel (2, 4, 4 and 4): 512^2: 3.7 MB, 0.9 us, 2048^2: 0.014 ms; some 60 instructions a pixel, a division among them, are
// half of that. The launch itself takes longer for the usual detector. A bad pixel has 40 bytes of its own and a sector for each neighbour.
// Order: the atomic is of whole numbers, one a block that has any. Roundings are written out: every result has the bits of the CPU's.
#include "common.cuh"

namespace counts {

constexpr int THREADS = 256;
constexpr int MOST = 8;

// `BadPixel` of src/compute/counts.rs is the same.
struct BadPixel {
    unsigned index, count;
    unsigned neighbours[MOST];
};

// As `minus_ln` of src/compute/cpu/minus_ln.rs, which says how.
__device__ __forceinline__ float minus_ln(float x) {
    const int sqrt_half_bits = 0x3f3504f3;
    const float ln2_high = 0.6933594f, ln2_low = -2.1219444e-4f;
    int bits = __float_as_int(x);
    int exponent = (bits - sqrt_half_bits) >> 23;
    float m = __int_as_float(bits - exponent * (1 << 23));
    float e = float(exponent);
    float s = __fdiv_rn(__fadd_rn(m, -1.0f), __fadd_rn(m, 1.0f));
    float q = __fmul_rn(s, s);
    float series = __fadd_rn(2.0f / 7.0f, __fmul_rn(q, 2.0f / 9.0f));
    series = __fadd_rn(2.0f / 5.0f, __fmul_rn(q, series));
    series = __fadd_rn(2.0f / 3.0f, __fmul_rn(q, series));
    series = __fmul_rn(__fmul_rn(s, q), series);
    float low = __fadd_rn(__fmul_rn(2.0f, s), __fadd_rn(series, __fmul_rn(e, ln2_low)));
    return -__fadd_rn(__fmul_rn(e, ln2_high), low);
}

// Counts first .. first + 4, zero beyond `count`.
__device__ __forceinline__ void load_counts(const unsigned short* counts, long long first, long long count, float raw[4]) {
    const unsigned short* from = counts + first;
    if (first + 4 <= count && (reinterpret_cast<unsigned long long>(from) & 7) == 0) {
        unsigned long long four = *reinterpret_cast<const unsigned long long*>(from);
#pragma unroll
        for (int i = 0; i < 4; i++) raw[i] = float(unsigned(four >> 16 * i) & 0xffffu);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) raw[i] = first + i < count ? float(from[i]) : 0.0f;
}

}  // namespace counts

extern "C" __global__ void __launch_bounds__(counts::THREADS)
    line_integrals(float scale, float least, const unsigned short* __restrict__ raw, const float* __restrict__ dark,
                   const float* __restrict__ gain, long long count, float* __restrict__ out, unsigned* __restrict__ clamped) {
    using namespace counts;
    __shared__ unsigned of_warps[THREADS / 32];
    const int thread = int(threadIdx.x);
    const long long first = 4 * (static_cast<long long>(THREADS) * blockIdx.x + thread);
    float r[4];
    load_counts(raw, first, count, r);
    const float4 d = load4(dark, first, count), g = load4(gain, first, count);
    unsigned below = 0;
    auto correct = [&](int i, float dark, float gain) {
        float transmission = __fmul_rn(__fmul_rn(__fadd_rn(r[i], -dark), gain), scale);
        below += __popc(__ballot_sync(0xffffffffu, first + i < count && transmission < least));
        return minus_ln(fmaxf(transmission, least));
    };
    float4 p;
    p.x = correct(0, d.x, g.x);
    p.y = correct(1, d.y, g.y);
    p.z = correct(2, d.z, g.z);
    p.w = correct(3, d.w, g.w);
    store4(out, first, count, p);
    if (thread % 32 == 0) of_warps[thread / 32] = below;
    __syncthreads();
    if (thread > 0) return;
    for (int warp = 1; warp < THREADS / 32; warp++) below += of_warps[warp];
    if (below > 0) atomicAdd(clamped, below);
}
REGISTER_KERNEL(line_integrals)

extern "C" __global__ void __launch_bounds__(64)
    replace_bad_pixels(const counts::BadPixel* __restrict__ list, int bad_pixels, int count, float* frame) {
    using namespace counts;
    const int of_list = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (of_list >= bad_pixels) return;
    const BadPixel pixel = list[of_list];
    const unsigned pixels = unsigned(count);
    if (pixel.index >= pixels || pixel.count > MOST) return;
    // All in flight; what is no neighbour is read at the pixel itself, and left aside.
    float values[MOST];
    bool inside = true;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        const bool is_one = i < int(pixel.count), is_within = pixel.neighbours[i] < pixels;
        values[i] = frame[is_one && is_within ? pixel.neighbours[i] : pixel.index];
        inside = inside && (is_within || !is_one);
    }
    float sum = -0.0f;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        if (i < int(pixel.count)) sum = __fadd_rn(sum, values[i]);
    }
    if (inside) frame[pixel.index] = __fdiv_rn(sum, float(pixel.count));
}
REGISTER_KERNEL(replace_bad_pixels)
