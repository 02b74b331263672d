// One Gaussian seen in one view: the exact line integral as a function of the pixel, shared by the projector and its gradient
// (derivation: src/compute/cpu/gaussian_view.rs).
//
// With (d, di) columns and rows from where the centre projects, columns counted along the sheared step d = dj + shear di:
//   y = (kd d^2 + ki di^2) / den, den = 1 + d (a1 + c di + a2 d) + di (b1 + b2 di), integral = length amplitude / sqrt(den) g2(y)
// and the pixels within the cut-off are, in row di, those with |d - mid - slope (di - centre)| <= sqrt(half0 - half1 (di - centre)^2).
#pragma once

#include "gaussian_lists.cuh"
#include "gaussian_shape.cuh"

namespace gaussians {

// Columns and rows of a tile.
constexpr int TILE = 16;

// `DetectorArgument` of src/compute/cuda/gaussian_views.rs is the same.
struct Detector {
    int columns, rows;

    __device__ __forceinline__ int tiles_u() const { return (columns + TILE - 1) / TILE; }
};

// `GaussianView` of src/compute/cuda/gaussian_views.rs is the same. In mm: the source, the steps to the next column and row; normal .
// (x - source) is 1 on the detector; dual . (D - origin) is a column, a row, with origin pixel (0, 0) from the source; (D . column x row)^2.
struct alignas(16) PixelView {
    Vector source, column, row, normal, dual_column, dual_row, origin;
    double triple_square;

    // From the source to a pixel.
    __device__ __forceinline__ float length(int u, int v) const {
        Vector ray = origin + double(u) * column + double(v) * row;
        return sqrtf(float(dot(ray, ray)));
    }
};

// What the inner loops need of a Gaussian in a view; 80 bytes. The centre projects `fraction` behind a pixel; no pixel farther from the
// ellipse's centre than `reach` is within the cut-off. A reach_v below 0: it is not seen.
struct alignas(16) PixelFootprint {
    float amplitude, kd, ki, shear;
    float a1, a2, b1, b2;
    float c, mid, slope, centre;
    float half0, half1;
    int column, row;
    float fraction_u, fraction_v, reach_u, reach_v;

    // From the projected centre to the ellipse's, in columns.
    __device__ __forceinline__ float middle_u() const { return fmaf(-shear, centre, mid); }
};

__device__ __forceinline__ PixelFootprint load_seen(const float4* records, long long i) {
    float4 a = records[5 * i], b = records[5 * i + 1], c = records[5 * i + 2], d = records[5 * i + 3], e = records[5 * i + 4];
    PixelFootprint f;
    f.amplitude = a.x, f.kd = a.y, f.ki = a.z, f.shear = a.w;
    f.a1 = b.x, f.a2 = b.y, f.b1 = b.z, f.b2 = b.w;
    f.c = c.x, f.mid = c.y, f.slope = c.z, f.centre = c.w;
    f.half0 = d.x, f.half1 = d.y, f.column = __float_as_int(d.z), f.row = __float_as_int(d.w);
    f.fraction_u = e.x, f.fraction_v = e.y, f.reach_u = e.z, f.reach_v = e.w;
    return f;
}

__device__ __forceinline__ void store_seen(float4* records, long long i, const PixelFootprint& f) {
    records[5 * i] = make_float4(f.amplitude, f.kd, f.ki, f.shear);
    records[5 * i + 1] = make_float4(f.a1, f.a2, f.b1, f.b2);
    records[5 * i + 2] = make_float4(f.c, f.mid, f.slope, f.centre);
    records[5 * i + 3] = make_float4(f.half0, f.half1, __int_as_float(f.column), __int_as_float(f.row));
    records[5 * i + 4] = make_float4(f.fraction_u, f.fraction_v, f.reach_u, f.reach_v);
}

// The float64 side of a footprint; names as in src/compute/cpu/gaussian_view.rs.
struct Seen {
    double depth, shear, g11, h, a1, a2, b1, b2, c, kd, ki, amplitude;
    Vector d, sheared, n1, n2, z1, y0, y_column, y_row;
};

constexpr double ROOT_TAU = 2.5066282746310007;

// How a view sees a Gaussian; false where it does not lie wholly before the source.
__device__ __forceinline__ bool see(const PixelView& view, const Shape& shape, Seen& s) {
    Vector x = shape.centre - view.source;
    s.depth = dot(view.normal, x);
    double square = s.depth * s.depth;
    if (!(s.depth > 0.0) || square <= CUTOFF * dot(view.normal, shape.covariance.times(view.normal))) return false;
    s.d = inverse(s.depth) * x;
    s.n1 = cross(s.d, view.column);
    s.z1 = shape.covariance.times(s.n1);
    s.g11 = dot(s.n1, s.z1);
    double per_g11 = inverse(s.g11);
    Vector plain = cross(s.d, view.row);
    s.shear = dot(plain, s.z1) * per_g11;
    s.sheared = view.row - s.shear * view.column;
    s.n2 = plain - s.shear * s.n1;
    s.y0 = shape.precision.times(s.d), s.y_column = shape.precision.times(view.column);
    s.y_row = shape.precision.times(s.sheared);
    s.h = inverse(dot(s.d, s.y0));
    s.a1 = dot(s.d, s.y_column) * s.h, s.a2 = dot(view.column, s.y_column) * s.h;
    s.b1 = dot(s.d, s.y_row) * s.h, s.b2 = dot(s.sheared, s.y_row) * s.h;
    s.c = dot(s.sheared, s.y_column) * s.h;
    s.kd = Y_OF_Q * square * inverse(shape.det) * s.h * s.g11;
    s.ki = Y_OF_Q * square * view.triple_square * per_g11;
    s.amplitude = shape.amplitude * ROOT_TAU * root(s.h);
    return true;
}

// The ellipse y <= Y_CUTOFF on the detector.
__device__ __forceinline__ PixelFootprint footprint_of(const Detector& detector, const PixelView& view, const Seen& s) {
    constexpr double CUT = CUTOFF * Y_OF_Q;
    PixelFootprint to = {};
    to.reach_v = -1.0f;
    double jc = dot(view.dual_column, s.d - view.origin), ic = dot(view.dual_row, s.d - view.origin);
    double e = s.kd - CUT * s.a2, f = -CUT * s.c, g = s.ki - CUT * s.b2, det = e * g - f * f;
    // Not an ellipse: the source is inside the Gaussian. (Also where anything is not a number.)
    if (!(e > 0.0 && det > 0.0)) return to;
    double ld = CUT * s.a1, li = CUT * s.b1, per_det = inverse(det), per_e = inverse(e);
    double centre = (e * li - f * ld) * per_det, mid = (g * ld - f * li) * per_det;
    double level = CUT + ld * mid + li * centre;
    double reach_v = root(level * e * per_det);
    // Columns of the whole ellipse: dj = d - shear di.
    double reach_u = root(level * (g + 2.0 * s.shear * f + s.shear * s.shear * e) * per_det);
    double middle_u = jc + mid - s.shear * centre, middle_v = ic + centre;
    bool on = ceil(middle_v - reach_v) <= double(detector.rows - 1) && floor(middle_v + reach_v) >= 0.0;
    on = on && ceil(middle_v - reach_v) <= floor(middle_v + reach_v);
    on = on && middle_u + reach_u >= 0.0 && middle_u - reach_u <= double(detector.columns - 1);
    // A centre that far off the detector leaves float32 no digits for its pixels.
    if (!(on && fabs(jc) < 1e6 && fabs(ic) < 1e6)) return to;
    double column = rint(jc), row = rint(ic);
    to.amplitude = float(s.amplitude), to.kd = float(s.kd), to.ki = float(s.ki), to.shear = float(s.shear);
    to.a1 = 2.0f * float(s.a1), to.a2 = float(s.a2), to.b1 = 2.0f * float(s.b1), to.b2 = float(s.b2), to.c = 2.0f * float(s.c);
    to.mid = float(mid), to.slope = float(-f * per_e), to.centre = float(centre);
    to.half0 = float(level * per_e), to.half1 = float(det * per_e * per_e);
    to.column = int(column), to.row = int(row), to.fraction_u = float(jc - column), to.fraction_v = float(ic - row);
    to.reach_u = float(reach_u), to.reach_v = float(reach_v);
    return to;
}

// Rows that a footprint may reach.
__device__ __forceinline__ gaussian_lists::Span rows_of(const PixelFootprint& f) {
    return gaussian_lists::whole_within(f.row, f.fraction_v + f.centre, f.reach_v);
}

// Whether a box of pixels may hold one within the cut-off: (u, v) from the projected centre to the box's middle, and half its edges.
// Roundings are written out: the kernels that count and that fill in must agree.
__device__ __forceinline__ bool touches(const PixelFootprint& f, float u, float v, float half_u, float half_v) {
    float off = v - f.centre, nearest = fmaxf(fabsf(off) - half_v, 0.0f), lean = f.slope - f.shear;
    float half = root(fmaxf(fmaf(-(f.half1 * nearest), nearest, f.half0), 0.0f));
    float from = fabsf(fmaf(-lean, off, u - f.middle_u())), reach_u = fmaf(fabsf(lean), half_v, half + half_u);
    return nearest <= fmaf(1.001f, f.reach_v, 0.01f) && from <= fmaf(1.001f, reach_u, 0.01f);
}

// Tiles that a Gaussian's reach meets; none where it is not seen, or has no density.
__device__ __forceinline__ gaussian_lists::Box box_of(const Detector& detector, const PixelFootprint& f) {
    using namespace gaussian_lists;
    Box box = {};
    box.count_z = 1;
    if (!(f.reach_v >= 0.0f) || f.amplitude == 0.0f) return box;
    tiles_along(rows_of(f), detector.rows, TILE, box.x, box.count_x);
    tiles_along(whole_within(f.column, f.fraction_u + f.middle_u(), f.reach_u), detector.columns, TILE, box.y, box.count_y);
    return box;
}

// Calls f(tile) for those tiles that the Gaussian may touch and that fall to this one of the threads that share it.
template <class F>
__device__ __forceinline__ void for_touched(const Detector& detector, const PixelFootprint& footprint, F&& f) {
    const PixelFootprint& g = footprint;
    gaussian_lists::for_tiles(box_of(detector, g), [&](int row, int column, int) {
        float u = float(column * TILE - g.column) - g.fraction_u + middle(TILE);
        float v = float(row * TILE - g.row) - g.fraction_v + middle(TILE);
        if (touches(g, u, v, middle(TILE), middle(TILE))) f(row * detector.tiles_u() + column);
    });
}

// What the pixel kernel lacks of the endless Gaussian's, by Y_CUTOFF - y, and its slope (fitted in src/compute/cpu/gaussian_kernel.rs).
__device__ __forceinline__ float tail(float inside) {
    float sum = fmaf(-7.721298e-7f, inside, 1.6629198e-5f);
    sum = fmaf(sum, inside, -1.1077672e-4f);
    sum = fmaf(sum, inside, 1.6288985e-4f);
    return fmaf(sum, inside, 9.11882e-4f);
}

__device__ __forceinline__ float tail_slope(float inside) {
    float sum = fmaf(4.0f * -7.721298e-7f, inside, 3.0f * 1.6629198e-5f);
    sum = fmaf(sum, inside, 2.0f * -1.1077672e-4f);
    return fmaf(sum, inside, 1.6288985e-4f);
}

}  // namespace gaussians
