// Brings the numbers that change from one iteration to the next to where the kernels of the iteration read them, so that these are launched
// with the same arguments every time (a captured graph). By value, since an argument is the launch's own: nothing need be kept until it has run.
//
//   block[i] = words[i]
//
// Shapes: block [count], no more than MOST. Launch: one block of MOST threads. Floor: the launch itself.
#include "common.cuh"

namespace parameters {

constexpr int MOST = 64;

struct Words {
    unsigned words[MOST];
};

}  // namespace parameters

extern "C" __global__ void __launch_bounds__(parameters::MOST)
    set_parameters(parameters::Words words, int count, unsigned* __restrict__ block) {
    if (int(threadIdx.x) < count) block[threadIdx.x] = words.words[threadIdx.x];
}
REGISTER_KERNEL(set_parameters)
