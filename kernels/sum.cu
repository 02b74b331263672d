// Sums what the blocks of another kernel have left, in a fixed order.
//
//   total[0] = sum partials[0 .. count]                                        (float64)
//
// Launch: one block of 256 threads. Work: 8 bytes a partial; 4096 of them (256^3 voxels) are 33 kB, so that the launch itself (some
// microseconds) is what it takes.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) sum_partials(const double* __restrict__ partials, int count,
                                                               double* __restrict__ total) {
    double sum = 0.0;
#pragma unroll 4
    for (int i = int(threadIdx.x); i < count; i += 256) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total[0] = sum;
}
REGISTER_KERNEL(sum_partials)
