// One step of Adam, in place.
//
//   first  += (1 - beta1) (gradient - first)
//   second += (1 - beta2) (gradient^2 - second)
//   parameters -= rate * first / (sqrt(root * second) + epsilon)
//
// `rate` and `root` contain the corrections of the start (rate / (1 - beta1^step), 1 / (1 - beta2^step)).
// Shapes: all four [count]. Launch: blocks of 256 threads, 4096 values a block.
// Floor: 16 bytes read and 12 written a parameter at 4.3 TB/s: 6.5 ns for 1,000; 12 operations hide behind them.
#include "common.cuh"

namespace adam {

struct Settings {
    float rate, root, share1, share2, epsilon;
};

__device__ __forceinline__ void step(const Settings& s, float& parameter, float gradient, float& first, float& second) {
    first += s.share1 * (gradient - first);
    second += s.share2 * (gradient * gradient - second);
    parameter -= s.rate * first / (sqrtf(second * s.root) + s.epsilon);
}

}  // namespace adam

extern "C" __global__ void __launch_bounds__(256) adam_step(adam::Settings settings, float* __restrict__ parameters,
                                                            const float* __restrict__ gradients,
                                                            float* __restrict__ first, float* __restrict__ second,
                                                            long long count) {
    long long start = 4096LL * blockIdx.x + 4 * threadIdx.x;
    // Two fours at a time: eight loads in flight.
#pragma unroll 2
    for (long long i = start; i < min(count, 4096LL * (blockIdx.x + 1)); i += 1024) {
        float4 p = load4(parameters, i, count), g = load4(gradients, i, count);
        float4 m = load4(first, i, count), v = load4(second, i, count);
        adam::step(settings, p.x, g.x, m.x, v.x);
        adam::step(settings, p.y, g.y, m.y, v.y);
        adam::step(settings, p.z, g.z, m.z, v.z);
        adam::step(settings, p.w, g.w, m.w, v.w);
        store4(parameters, i, count, p);
        store4(first, i, count, m);
        store4(second, i, count, v);
    }
}
REGISTER_KERNEL(adam_step)
