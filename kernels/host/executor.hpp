// Runs the blocks of a launch: worker threads take blocks one after the other, and a block's CUDA threads are fibers of its worker.
//
// A fiber runs until it waits at a barrier or ends; then the next one of its warp runs. A warp goes on until all its threads wait for the block
// or have ended; then the next warp runs. So threads interleave only where the source says so, in an order that the caller chooses (ascending or
// descending), and of two accesses that nothing orders one or the other comes first in the two: a kernel that lacks a barrier gives different numbers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <link.h>
#include <thread>
#include <tuple>
#include <vector>

#include "fiber.hpp"

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
    unsigned x, y, z;
};

// CUDA's built-in variables, those of the thread that runs.
inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace executor {

constexpr unsigned LANES = 32;
constexpr unsigned MOST_THREADS = 1024;
// Of one block, static and dynamic together, on the smallest device that images are built for (sm_120).
constexpr size_t MOST_SHARED_BYTES = 99 * 1024;

struct Launch {
    dim3 grid, block;
    size_t shared_bytes = 0;
    // Worker threads, and whether the threads of a block take turns from the last to the first.
    unsigned workers = 1;
    bool descending = false;
};

enum class State : uint8_t { Ready, AtBlockBarrier, AtWarpBarrier, Ended };

// Where in the source a thread waits.
struct Site {
    const char* file = nullptr;
    int line = 0;
    bool operator==(const Site& other) const { return line == other.line && strcmp(file, other.file) == 0; }
};

struct Thread {
    Context context;
    State state = State::Ready;
    // Index into the worker's stacks; -1 before it has begun and after it has ended.
    int stack = -1;
    uint32_t mask = 0;
    // Which of the two sets of slots its next exchange uses: a lane may be one exchange ahead of another.
    uint8_t slots = 0;
};

struct Warp {
    // What lanes show each other, 16 bytes each.
    alignas(16) unsigned char shown[2][LANES][16];
    uint32_t waiting = 0;
    uint32_t alive = 0;
};

// What __syncthreads_or and its kin gather.
struct Votes {
    int any = 0, all = 1, count = 0;
};

class Block;
inline thread_local Block* running = nullptr;

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "kernel executor: %s; block (%u, %u, %u), thread (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y,
            blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    abort();
}

// What a thread has of this library's variables that are each thread's own.
struct OwnMemory {
    char* begin = nullptr;
    size_t bytes = 0;

    static OwnMemory of_this_thread() {
        OwnMemory own;
        // Asked for before it is there, it is made.
        own.begin = reinterpret_cast<char*>(&threadIdx);
        dl_iterate_phdr(
            [](dl_phdr_info* library, size_t, void* to) {
                OwnMemory& own = *static_cast<OwnMemory*>(to);
                char* begin = static_cast<char*>(library->dlpi_tls_data);
                for (int i = 0; begin && i < library->dlpi_phnum; i++) {
                    const auto& part = library->dlpi_phdr[i];
                    if (part.p_type != PT_TLS || own.begin < begin || own.begin >= begin + part.p_memsz) continue;
                    own = {begin, part.p_memsz};
                    return 1;
                }
                return 0;
            },
            &own);
        return own;
    }
};

// The block that a worker runs; its memory serves all blocks of the worker.
class Block {
public:
    ~Block() { SpareStacks::give(stacks_); }

    void begin(const Launch& launch, void (*kernel)(void*), void* arguments) {
        launch_ = launch;
        kernel_ = kernel;
        arguments_ = arguments;
        count_ = launch.block.x * launch.block.y * launch.block.z;
        threads_.resize(count_);
        warps_.resize((count_ + LANES - 1) / LANES);
        shared_.resize(launch.shared_bytes + 64);
        gridDim = launch.grid;
        blockDim = launch.block;
    }

    void run(uint3 index) {
        blockIdx = index;
        alive_ = count_;
        waiting_ = 0;
        votes_ = {};
        forget_shared();
        for (unsigned warp = 0; warp < warps_.size(); warp++) {
            unsigned lanes = std::min(LANES, count_ - warp * LANES);
            warps_[warp].waiting = 0;
            warps_[warp].alive = lanes == LANES ? ~0u : (1u << lanes) - 1;
        }
        for (Thread& thread : threads_) {
            thread.state = State::Ready;
            thread.stack = -1;
            thread.slots = 0;
        }
        while (alive_ > 0) {
            bool any = false;
            for (unsigned turn = 0; turn < warps_.size(); turn++) {
                unsigned warp = launch_.descending ? unsigned(warps_.size()) - 1 - turn : turn;
                while (give_turns(warp)) any = true;
            }
            if (!any) fail("dead-lock: a barrier that some threads of the block or warp never reach");
        }
    }

    // __syncthreads: waits for all threads of the block that have not ended.
    Votes block_barrier(Site site, int vote) {
        if (waiting_ > 0 && !(site == site_)) {
            fprintf(stderr, "kernel executor: threads of one block wait at %s:%d and at %s:%d\n", site_.file,
                    site_.line, site.file, site.line);
            fail("divergent __syncthreads");
        }
        site_ = site;
        votes_.any |= vote != 0;
        votes_.all &= vote != 0;
        votes_.count += vote != 0;
        threads_[current_].state = State::AtBlockBarrier;
        waiting_++;
        release_block();
        leave();
        return result_;
    }

    // __syncwarp: waits for the lanes of `mask` that have not ended.
    void warp_barrier(uint32_t mask) {
        Thread& thread = threads_[current_];
        if (!(mask >> lane() & 1)) fail("a lane calls a *_sync function whose mask lacks it");
        thread.state = State::AtWarpBarrier;
        thread.mask = mask;
        warp().waiting |= 1u << lane();
        release_warp(current_ / LANES, mask);
        if (thread.state == State::AtWarpBarrier) leave();
    }

    // Shows `value` to the lanes of `mask` and returns what lane `source` shows.
    template <class T>
    T exchange(uint32_t mask, T value, unsigned source) {
        unsigned char(*shown)[16] = show(mask, value);
        if (!(mask >> source & 1)) fail("a shuffle reads a lane that its mask lacks");
        T result;
        memcpy(&result, shown[source], sizeof result);
        return result;
    }

    unsigned ballot(uint32_t mask, int vote) {
        unsigned char(*shown)[16] = show(mask, vote);
        unsigned result = 0;
        for (unsigned lane = 0; lane < LANES; lane++) {
            int other = 0;
            if (mask & warp().alive & (1u << lane)) memcpy(&other, shown[lane], sizeof other);
            result |= unsigned(other != 0) << lane;
        }
        return result;
    }

    unsigned lane() const { return current_ % LANES; }
    uint32_t alive_lanes() { return warp().alive; }

    void* dynamic_shared() {
        return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(shared_.data()) + 63) & ~uintptr_t(63));
    }

private:
    Warp& warp() { return warps_[current_ / LANES]; }

    template <class T>
    unsigned char (*show(uint32_t mask, T value))[16] {
        static_assert(sizeof(T) <= 16, "a lane shows at most 16 bytes");
        Thread& thread = threads_[current_];
        unsigned char(*shown)[16] = warp().shown[thread.slots];
        thread.slots ^= 1;
        memcpy(shown[lane()], &value, sizeof value);
        warp_barrier(mask);
        return shown;
    }

    // Shared memory holds nothing at the start of a block: as NaN it shows when it is read nevertheless. What is static is all this library has of
    // the worker's own memory, but for CUDA's variables.
    void forget_shared() {
        memset(shared_.data(), 0xff, shared_.size());
        auto [thread, block, size, blocks, self] = std::make_tuple(threadIdx, blockIdx, blockDim, gridDim, running);
        memset(own_memory_.begin, 0xff, own_memory_.bytes);
        threadIdx = thread, blockIdx = block, blockDim = size, gridDim = blocks, running = self;
    }

    // Each of the warp's threads that can go on does; whether any could.
    bool give_turns(unsigned warp) {
        unsigned lanes = std::min(LANES, count_ - warp * LANES);
        bool any = false;
        for (unsigned turn = 0; turn < lanes; turn++) {
            unsigned index = warp * LANES + (launch_.descending ? lanes - 1 - turn : turn);
            if (threads_[index].state != State::Ready) continue;
            give_turn(index);
            any = true;
        }
        return any;
    }

    void give_turn(unsigned index) {
        Thread& thread = threads_[index];
        if (thread.stack < 0) {
            if (free_.empty()) {
                free_.push_back(int(stacks_.size()));
                stacks_.push_back(SpareStacks::take());
            }
            thread.stack = free_.back();
            free_.pop_back();
            stacks_[thread.stack].prepare(thread.context, first_turn);
        }
        current_ = index;
        dim3 size = launch_.block;
        threadIdx = {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
        go_on_with(thread.context, scheduler_);
        if (thread.state == State::Ended) {
            free_.push_back(thread.stack);
            thread.stack = -1;
            alive_--;
            Warp& warp = warps_[index / LANES];
            warp.alive &= ~(1u << index % LANES);
            release_block();
            for (unsigned lane = 0; lane < LANES; lane++) {
                if (warp.waiting >> lane & 1) release_warp(index / LANES, threads_[index / LANES * LANES + lane].mask);
            }
        }
    }

    static void first_turn() {
        Block& block = *running;
        arrived_from(block.scheduler_);
        block.kernel_(block.arguments_);
        Thread& thread = block.threads_[block.current_];
        thread.state = State::Ended;
        go_on_with(block.scheduler_, thread.context, true);
        abort();
    }

    void leave() { go_on_with(scheduler_, threads_[current_].context); }

    void release_block() {
        if (waiting_ == 0 || waiting_ != alive_) return;
        result_ = votes_;
        votes_ = {};
        waiting_ = 0;
        for (Thread& thread : threads_) {
            if (thread.state == State::AtBlockBarrier) thread.state = State::Ready;
        }
    }

    void release_warp(unsigned index, uint32_t mask) {
        Warp& warp = warps_[index];
        uint32_t all = mask & warp.alive;
        if ((warp.waiting & all) != all) return;
        for (unsigned lane = 0; lane < LANES; lane++) {
            if (!(all >> lane & 1)) continue;
            Thread& thread = threads_[index * LANES + lane];
            if (thread.mask != mask) fail("lanes wait for each other in a *_sync function with different masks");
            thread.state = State::Ready;
        }
        warp.waiting &= ~all;
    }

    Launch launch_;
    void (*kernel_)(void*) = nullptr;
    void* arguments_ = nullptr;
    Context scheduler_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    std::vector<Stack> stacks_;
    std::vector<int> free_;
    std::vector<unsigned char> shared_;
    OwnMemory own_memory_ = OwnMemory::of_this_thread();
    unsigned count_ = 0, current_ = 0, alive_ = 0, waiting_ = 0;
    Site site_;
    Votes votes_, result_;
};

// Runs `kernel(arguments)` in every thread of every block.
inline void run(const Launch& launch, void (*kernel)(void*), void* arguments) {
    size_t blocks = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    std::atomic<size_t> next{0};
    auto work = [&] {
        Block block;
        running = &block;
        block.begin(launch, kernel, arguments);
        for (size_t i; (i = next.fetch_add(1)) < blocks;) {
            block.run({unsigned(i % launch.grid.x), unsigned(i / launch.grid.x % launch.grid.y),
                       unsigned(i / launch.grid.x / launch.grid.y)});
        }
        running = nullptr;
    };
    // None on the caller's thread, whose memory is not the executor's.
    std::vector<std::thread> workers;
    for (unsigned i = 0; i == 0 || (i < launch.workers && i < blocks); i++) workers.emplace_back(work);
    for (std::thread& worker : workers) worker.join();
}

}  // namespace executor
