// What a kernel's source uses of CUDA, for a C++17 compiler: qualifiers, barriers, shuffles, votes, integer atomics, vector types and
// the arithmetic functions. Floating-point atomics are missing on purpose: no result may hang on the order of threads.
#pragma once

#include <cmath>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "executor.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A worker runs one block at a time, so that what is the worker's is the block's.
#define __shared__ static thread_local

using std::max;
using std::min;

struct alignas(8) float2 {
    float x, y;
};
struct float3 {
    float x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Barriers. The default arguments are filled in where the call stands.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    executor::running->block_barrier({file, line}, 0);
}
inline int __syncthreads_or(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return executor::running->block_barrier({file, line}, vote).any;
}
inline int __syncthreads_and(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return executor::running->block_barrier({file, line}, vote).all;
}
inline int __syncthreads_count(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return executor::running->block_barrier({file, line}, vote).count;
}
inline void __syncwarp(unsigned mask = ~0u) { executor::running->warp_barrier(mask); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() {}

// Shuffles within groups of `width` lanes; a source outside the group gives the lane's own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
    int lane = int(executor::running->lane());
    return executor::running->exchange(mask, value, unsigned((lane & ~(width - 1)) | (source & (width - 1))));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
    int lane = int(executor::running->lane());
    bool own = (lane & (width - 1)) + int(by) >= width;
    return executor::running->exchange(mask, value, unsigned(own ? lane : lane + int(by)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
    int lane = int(executor::running->lane());
    bool own = (lane & (width - 1)) < int(by);
    return executor::running->exchange(mask, value, unsigned(own ? lane : lane - int(by)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = warpSize) {
    int lane = int(executor::running->lane()), source = lane ^ by;
    return executor::running->exchange(mask, value, unsigned(source / width > lane / width ? lane : source));
}
inline unsigned __ballot_sync(unsigned mask, int vote) { return executor::running->ballot(mask, vote); }
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }

// Integer atomics; blocks may run on several processors.
template <class T>
std::enable_if_t<std::is_integral_v<T>, T> atomicAdd(T* at, std::common_type_t<T> value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
std::enable_if_t<std::is_integral_v<T>, T> atomicXor(T* at, std::common_type_t<T> value) {
    return __atomic_fetch_xor(at, value, __ATOMIC_RELAXED);
}
template <class T>
std::enable_if_t<std::is_integral_v<T>, T> atomicMax(T* at, std::common_type_t<T> value) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T>
std::enable_if_t<std::is_integral_v<T>, T> atomicMin(T* at, std::common_type_t<T> value) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T>
std::enable_if_t<std::is_integral_v<T>, T> atomicExch(T* at, std::common_type_t<T> value) {
    return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}
template <class T>
std::enable_if_t<std::is_integral_v<T>, T> atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> value) {
    T old = expected;
    __atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}

// Arithmetic. The library is compiled without contraction of products and sums, each rounded once; or, with EXECUTOR_LIKE_NVCC and
// -ffp-contract=fast, with the compiler joining them where it likes, as nvcc does, but for those that are written as rounded, and with functions
// that are good to 2 units in the last place on the device one such unit off.
template <class T>
inline T rounded(T value) {
#ifdef EXECUTOR_LIKE_NVCC
    volatile T stored = value;
    return stored;
#else
    return value;
#endif
}
inline float approximate(float value) {
#ifdef EXECUTOR_LIKE_NVCC
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    // Up or down, as chance has it, but always the same; not beyond what is finite and normal.
    uint32_t exponent = bits >> 23 & 255;
    if (exponent > 0 && exponent < 254) bits += (bits * 2654435761u) >> 31 ? 1u : -1u;
    memcpy(&value, &bits, sizeof value);
#endif
    return value;
}
template <class T>
T __ldg(const T* at) {
    return *at;
}
inline float __fmul_rn(float a, float b) { return rounded(a * b); }
inline float __fadd_rn(float a, float b) { return rounded(a + b); }
inline float __fdiv_rn(float a, float b) { return rounded(a / b); }
inline double __dmul_rn(double a, double b) { return rounded(a * b); }
inline double __dadd_rn(double a, double b) { return rounded(a + b); }
inline double __ddiv_rn(double a, double b) { return rounded(a / b); }
inline double __dsqrt_rn(double a) { return rounded(std::sqrt(a)); }
inline float __fdividef(float a, float b) { return approximate(a / b); }
inline float __saturatef(float a) { return a > 0.0f ? min(a, 1.0f) : 0.0f; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float rsqrtf(float a) { return approximate(1.0f / sqrtf(a)); }
inline int __float_as_int(float a) {
    int bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
inline float __int_as_float(int bits) {
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
inline int __float2int_rd(float a) { return int(floorf(a)); }
inline void sincospif(float x, float* sine, float* cosine) {
    // The whole turns go first, exactly, as on the device.
    double angle = M_PI * std::remainder(double(x), 2.0);
    *sine = approximate(float(std::sin(angle)));
    *cosine = approximate(float(std::cos(angle)));
}
#ifdef EXECUTOR_LIKE_NVCC
inline float approximate_expf(float x) { return approximate(expf(x)); }
inline float approximate_exp2f(float x) { return approximate(exp2f(x)); }
inline float approximate_log1pf(float x) { return approximate(log1pf(x)); }
#define expf approximate_expf
#define exp2f approximate_exp2f
#define log1pf approximate_log1pf
#endif
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(executor::running->dynamic_shared())

namespace executor {

// A kernel by its name, called with an array of pointers to its arguments as cuLaunchKernel takes it.
struct Kernel {
    const char* name;
    std::vector<size_t> argument_bytes;
    void (*call)(const Launch&, void** arguments);
};

inline std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

template <auto kernel, class... Arguments, size_t... I>
void call(const Launch& launch, void** arguments, std::index_sequence<I...>) {
    run(launch,
        [](void* pointer) {
            void** arguments = static_cast<void**>(pointer);
            kernel(*static_cast<std::remove_reference_t<Arguments>*>(arguments[I])...);
        },
        arguments);
}

template <auto kernel, class... Arguments>
Kernel describe(const char* name, void (*)(Arguments...)) {
    return {name, {sizeof(Arguments)...}, [](const Launch& launch, void** arguments) {
                call<kernel, Arguments...>(launch, arguments, std::index_sequence_for<Arguments...>{});
            }};
}

// Launches a kernel by name; an empty string, or why it was refused.
inline std::string launch(const char* name, const Launch& launch, void** arguments, const size_t* bytes, size_t count) {
    const std::vector<Kernel>& all = kernels();
    auto kernel = std::find_if(all.begin(), all.end(), [&](const Kernel& k) { return strcmp(k.name, name) == 0; });
    if (kernel == all.end()) return "no such kernel";
    if (kernel->argument_bytes != std::vector<size_t>(bytes, bytes + count)) {
        std::string text = "its arguments take";
        for (size_t needed : kernel->argument_bytes) text += " " + std::to_string(needed);
        text += " bytes, but those given";
        for (size_t i = 0; i < count; i++) text += " " + std::to_string(bytes[i]);
        return text;
    }
    size_t threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
    if (threads == 0 || threads > MOST_THREADS || launch.block.z > 64) return "a block of that size does not exist";
    size_t blocks = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    if (blocks == 0 || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535)
        return "a grid of that size does not exist";
    if (launch.shared_bytes > MOST_SHARED_BYTES) return "more shared memory than a block may have";
    kernel->call(launch, arguments);
    return "";
}

}  // namespace executor

#define REGISTER_KERNEL(name)                 \
    static const bool name##_is_registered = \
        (executor::kernels().push_back(executor::describe<&name>(#name, &name)), true);
