// Pixel-wise weights of the projections, and the zero columns that a half-fan needs before it is filtered.
//
//   weighted[view][v][pad_left + u] = image[v][u] * columns[view][u] * projections[view][v][u], 0 in the columns added
//
// Shapes: projections [views][rows][columns], weighted [views][rows][wide], image [rows][columns] or [views][rows][columns],
// column_weights [views][columns]. Launch: blocks of 128 columns x 2 threads, 4 rows a thread; grid (columns, rows, views).
// Floor: 4 bytes read and 4 written a pixel at 4.3 TB/s (50 views of 256^2: 6 us), the shared image once; 2 operations. Loads of 4 bytes
// (a pad moves the rows off their alignment), of whole lines by a warp, four in flight a thread.
#include "common.cuh"

namespace weigh {

constexpr int ROWS = 4;

struct Shape {
    int columns, rows, pad_left, wide, image_per_view;
};

}  // namespace weigh

extern "C" __global__ void __launch_bounds__(256)
    weight_projections(weigh::Shape shape, const float* __restrict__ projections, const float* __restrict__ image,
                       const float* __restrict__ column_weights, float* __restrict__ weighted) {
    int wide_column = int(blockIdx.x * 128 + threadIdx.x);
    int first_row = int(blockIdx.y * 2 + threadIdx.y) * weigh::ROWS;
    int view = int(blockIdx.z);
    if (wide_column >= shape.wide) return;
    int u = wide_column - shape.pad_left;
    bool seen = u >= 0 && u < shape.columns;
    float column_weight = seen ? column_weights[static_cast<long long>(view) * shape.columns + u] : 0.0f;
    long long view_rows = static_cast<long long>(view) * shape.rows;
    long long image_rows = shape.image_per_view ? view_rows : 0;
#pragma unroll
    for (int i = 0; i < weigh::ROWS; i++) {
        int v = first_row + i;
        if (v >= shape.rows) break;
        float value = 0.0f;
        if (seen) {
            value = projections[(view_rows + v) * shape.columns + u] * image[(image_rows + v) * shape.columns + u] *
                    column_weight;
        }
        weighted[(view_rows + v) * shape.wide + wide_column] = value;
    }
}
REGISTER_KERNEL(weight_projections)
