// Tests of the executor itself, with kernels of its own: run by `make test-kernels`, also under AddressSanitizer and UBSan.

#include <functional>
#include <initializer_list>
#include <sys/wait.h>
#include <unistd.h>

#include "device.hpp"

namespace {

__global__ void reverse_through_shared(const int* in, int* out, int n) {
    DYNAMIC_SHARED(int, tile);
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    tile[threadIdx.x] = i < n ? in[i] : 0;
    __syncthreads();
    int mirrored = int(blockIdx.x * blockDim.x + blockDim.x - 1 - threadIdx.x);
    if (mirrored < n) out[mirrored] = tile[blockDim.x - 1 - threadIdx.x];
}

// Without a barrier between writing and reading: what is read hangs on the order of threads.
__global__ void lacks_a_barrier(int* out) {
    __shared__ int tile[64];
    tile[threadIdx.x] = int(blockIdx.x * 1000 + threadIdx.x);
    out[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];
}

// With a shuffle in the barrier's place, which orders the threads of a warp alone.
__global__ void shuffles_for_a_barrier(int* out) {
    __shared__ int tile[64];
    tile[threadIdx.x] = int(blockIdx.x * 1000 + threadIdx.x);
    int own = __shfl_sync(~0u, int(threadIdx.x), int(threadIdx.x % 32));
    out[blockIdx.x * 64 + threadIdx.x] = tile[63 - own];
}

__global__ void reads_what_nobody_wrote(unsigned* out) {
    __shared__ unsigned own[32];
    DYNAMIC_SHARED(unsigned, asked_for);
    unsigned* at = out + 64 * blockIdx.x + threadIdx.x;
    at[0] = own[threadIdx.x], at[32] = asked_for[threadIdx.x];
    // The next block finds nothing of it.
    own[threadIdx.x] = asked_for[threadIdx.x] = 1;
}

__global__ void warp_sums(const int* in, int* sums) {
    int value = in[threadIdx.x];
    unsigned lanes = threadIdx.x / 32 == blockDim.x / 32 ? (1u << blockDim.x % 32) - 1 : ~0u;
    for (int by = 16; by > 0; by /= 2) {
        // A partial warp has no lanes above; they count as zero.
        int source = int(threadIdx.x % 32) + by;
        bool there = source < 32 && (lanes >> source & 1);
        int other = __shfl_sync(lanes, value, there ? source : int(threadIdx.x % 32));
        value += there ? other : 0;
    }
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
}

__global__ void shuffles_and_votes(int* out) {
    int lane = int(threadIdx.x % 32);
    int* at = out + 8 * threadIdx.x;
    at[0] = __shfl_sync(~0u, lane, 3, 8);
    at[1] = __shfl_down_sync(~0u, lane, 2);
    at[2] = __shfl_up_sync(~0u, lane, 2, 16);
    at[3] = __shfl_xor_sync(~0u, lane, 5);
    at[4] = int(__ballot_sync(~0u, lane % 3 == 0));
    at[5] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31);
    at[6] = __syncthreads_count(lane < 5);
    at[7] = __syncthreads_or(threadIdx.x == 40) + 2 * __syncthreads_and(lane >= 0);
}

__global__ void early_exits(int* out) {
    if (threadIdx.x % 3 == 0) return;
    __syncthreads();
    if (threadIdx.x % 3 == 1) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void histogram(const unsigned char* in, unsigned* counts, int n) {
    for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x)) {
        atomicAdd(&counts[in[i]], 1u);
    }
}

__global__ void one_half_waits() {
    if (threadIdx.x < 16) __syncwarp();
    __syncthreads();
}

__global__ void two_barriers() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void reads_absent_lane(int* out) { out[threadIdx.x] = __shfl_sync(1u << threadIdx.x, 1, 31); }

__global__ void deep(int* out) {
    // More than the stack: the guard page must end it.
    volatile char large[2 * executor::STACK_BYTES];
    for (size_t i = sizeof large; i > 0; i -= 1024) large[i - 1] = 1;
    out[0] = large[sizeof large - 1];
}

int failures = 0;

void check(bool good, const char* what) {
    printf("%s %s\n", good ? "ok    " : "FAILED", what);
    failures += !good;
}

template <auto kernel, class... Arguments>
void launch(executor::Launch shape, Arguments... arguments) {
    void* pointers[] = {static_cast<void*>(&arguments)..., nullptr};
    executor::describe<kernel>("", kernel).call(shape, pointers);
}

// Whether `work` ends its process.
bool dies(const std::function<void()>& work) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        work();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    // AddressSanitizer reports a signal and exits.
    return WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
}

void barriers() {
    const int n = 1000;
    std::vector<int> in(n), expected(n);
    for (int i = 0; i < n; i++) in[i] = i * 7;
    for (unsigned threads : {1u, 31u, 32u, 33u, 96u, 1024u}) {
        for (bool descending : {false, true}) {
            for (unsigned workers : {1u, 3u}) {
                std::vector<int> out(n, -1);
                executor::Launch shape{{(n + threads - 1) / threads}, {threads}, threads * sizeof(int), workers, descending};
                launch<reverse_through_shared>(shape, in.data(), out.data(), n);
                if (out != in) return check(false, "barriers and dynamic shared memory");
            }
        }
    }
    check(true, "barriers and dynamic shared memory");
}

void order_shows_a_missing_barrier() {
    std::vector<int> up(128), down(128);
    launch<lacks_a_barrier>({{2}, {64}, 0, 1, false}, up.data());
    launch<lacks_a_barrier>({{2}, {64}, 0, 1, true}, down.data());
    check(up != down, "the order of threads shows a missing barrier");
    launch<shuffles_for_a_barrier>({{2}, {64}, 0, 1, false}, up.data());
    launch<shuffles_for_a_barrier>({{2}, {64}, 0, 1, true}, down.data());
    check(up != down, "a shuffle in its place does not hide it");
}

void shared_memory_holds_nothing() {
    std::vector<unsigned> out(4 * 64);
    launch<reads_what_nobody_wrote>({{4}, {32}, 32 * sizeof(unsigned)}, out.data());
    check(out == std::vector<unsigned>(4 * 64, ~0u), "shared memory holds nothing at the start of a block");
}

void warps() {
    std::vector<int> in(77), sums(3, -1);
    for (int i = 0; i < 77; i++) in[i] = i;
    launch<warp_sums>({{1}, {77}}, in.data(), sums.data());
    check(sums == std::vector<int>{496, 1520, 910}, "shuffles in whole and partial warps");

    bool good = true;
    for (bool descending : {false, true}) {
        std::vector<int> out(64 * 8);
        launch<shuffles_and_votes>({{1}, {64}, 0, 1, descending}, out.data());
        for (int i = 0; i < 64; i++) {
            int lane = i % 32;
            int expected[8] = {(lane & ~7) + 3, lane < 30 ? lane + 2 : lane, lane % 16 < 2 ? lane : lane - 2, lane ^ 5,
                               0x49249249,      1,                          10,                            3};
            good &= memcmp(expected, &out[8 * i], sizeof expected) == 0;
        }
    }
    check(good, "shuffles, ballots and votes");
}

void exits() {
    std::vector<int> out(50);
    launch<early_exits>({{1}, {50}}, out.data());
    bool good = true;
    for (int i = 0; i < 50; i++) good &= out[i] == (i % 3 == 2);
    check(good, "barriers do not wait for threads that have ended");
}

void atomics() {
    const int n = 100000;
    std::vector<unsigned char> in(n);
    std::vector<unsigned> counts(256), expected(256);
    for (int i = 0; i < n; i++) expected[in[i] = static_cast<unsigned char>(i * 31)]++;
    launch<histogram>({{16}, {128}, 0, 4}, in.data(), counts.data(), n);
    check(counts == expected, "integer atomics of several workers");
}

void deaths() {
    check(dies([] { launch<one_half_waits>({{1}, {32}}); }), "lanes that never come to a warp's barrier end the process");
    check(dies([] { launch<two_barriers>({{1}, {64}}); }), "waiting at two different barriers ends the process");
    std::vector<int> out(32);
    check(dies([&] { launch<reads_absent_lane>({{1}, {32}}, out.data()); }), "shuffling from an absent lane ends the process");
    check(dies([&] { launch<deep>({{1}, {1}}, out.data()); }), "a stack that is too small ends the process");
    check(!dies([&] { launch<early_exits>({{1}, {32}}, out.data()); }), "a sound kernel does not");
}

void refusals() {
    executor::kernels().push_back(executor::describe<&early_exits>("early_exits", &early_exits));
    int value = 0;
    int* pointer = &value;
    void* arguments[] = {&pointer};
    size_t eight = 8, four = 4;
    check(executor::launch("none", {{1}, {1}}, arguments, &eight, 1) == "no such kernel", "unknown kernels are refused");
    check(!executor::launch("early_exits", {{1}, {1}}, arguments, &four, 1).empty(), "arguments of another size are refused");
    check(!executor::launch("early_exits", {{1}, {1025}}, arguments, &eight, 1).empty(), "blocks that are too large are refused");
    check(!executor::launch("early_exits", {{1, 0}, {1}}, arguments, &eight, 1).empty(), "empty grids are refused");
    check(executor::launch("early_exits", {{1}, {1}}, arguments, &eight, 1).empty(), "a sound launch is not");
}

}  // namespace

int main() {
    barriers();
    order_shows_a_missing_barrier();
    shared_memory_holds_nothing();
    warps();
    exits();
    atomics();
    deaths();
    refusals();
    printf(failures ? "%d FAILED\n" : "all passed\n", failures);
    return failures != 0;
}
