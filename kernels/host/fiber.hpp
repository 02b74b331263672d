// One fiber: a stack and the place at which its work goes on. The executor runs every CUDA thread of a block in one.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sys/mman.h>
#include <utility>
#include <vector>

// Elsewhere ucontext changes stacks, with two system calls a change.
#if defined(__x86_64__) && !defined(EXECUTOR_UCONTEXT)
#define EXECUTOR_SWITCH
#else
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace executor {

// AddressSanitizer's frames are several times larger.
constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t PAGE_BYTES = 4096;

// Where a flow of control stands while another one runs.
struct Context {
#if defined(EXECUTOR_SWITCH)
    void* stack_pointer = nullptr;
#else
    ucontext_t registers;
#endif
    // For AddressSanitizer, which must be told of every change of stacks.
    const void* stack = nullptr;
    size_t bytes = 0;
    void* fake_stack = nullptr;
};

#if defined(EXECUTOR_SWITCH)
// Saves what a call must keep on the running stack, stores its pointer at `save`, and goes on where `load` was saved.
extern "C" void executor_switch(void** save, void* load);
asm(R"(
.text
.weak executor_switch
.hidden executor_switch
.type executor_switch, @function
executor_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size executor_switch, .-executor_switch
)");
#endif

// Leaves `from` and goes on with `to`; returns when somebody goes on with `from`. `ends`: nobody ever will.
inline void go_on_with(Context& to, Context& from, bool ends = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.bytes);
#else
    (void)ends;
#endif
#if defined(EXECUTOR_SWITCH)
    executor_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.registers, &to.registers);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing a new fiber does; `back` is the context that started it.
inline void arrived_from(Context& back) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &back.stack, &back.bytes);
#else
    (void)back;
#endif
}

// A stack above a page that must not be touched, so that an overflow ends in a signal and not in wrong numbers.
class Stack {
public:
    Stack() {
        void* pages = mmap(nullptr, PAGE_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages, PAGE_BYTES, PROT_NONE) != 0) {
            perror("kernel executor: no memory for a thread's stack");
            abort();
        }
        pages_ = static_cast<char*>(pages);
    }
    ~Stack() {
        if (pages_) munmap(pages_, PAGE_BYTES + STACK_BYTES);
    }
    Stack(Stack&& other) noexcept : pages_(other.pages_) { other.pages_ = nullptr; }
    Stack& operator=(Stack&& other) noexcept {
        std::swap(pages_, other.pages_);
        return *this;
    }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;

    // Makes `context` begin with `entry` on this stack.
    void prepare(Context& context, void (*entry)()) {
        char* lowest = pages_ + PAGE_BYTES;
#if defined(__SANITIZE_ADDRESS__)
        // A fiber that ended here before never returned from its frames.
        __asan_unpoison_memory_region(lowest, STACK_BYTES);
#endif
        context.stack = lowest;
        context.bytes = STACK_BYTES;
#if defined(EXECUTOR_SWITCH)
        // From above: no return address, the entry that `ret` takes, six registers. The entry finds the stack as after a call.
        void** top = reinterpret_cast<void**>(lowest + STACK_BYTES);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; i++) *--top = nullptr;
        context.stack_pointer = top;
#else
        getcontext(&context.registers);
        context.registers.uc_stack.ss_sp = lowest;
        context.registers.uc_stack.ss_size = STACK_BYTES;
        context.registers.uc_link = nullptr;
        makecontext(&context.registers, entry, 0);
#endif
    }

private:
    char* pages_ = nullptr;
};

// Stacks that no worker has: the workers of a launch end with it, and the next ones' stacks need not be mapped again.
class SpareStacks {
public:
    static Stack take() {
        SpareStacks& spare = instance();
        std::lock_guard<std::mutex> lock(spare.mutex_);
        if (spare.stacks_.empty()) return Stack();
        Stack stack = std::move(spare.stacks_.back());
        spare.stacks_.pop_back();
        return stack;
    }
    static void give(std::vector<Stack>& stacks) {
        SpareStacks& spare = instance();
        std::lock_guard<std::mutex> lock(spare.mutex_);
        for (Stack& stack : stacks) spare.stacks_.push_back(std::move(stack));
        stacks.clear();
    }

private:
    // Never destroyed: a worker may end after everything static.
    static SpareStacks& instance() {
        static SpareStacks& spare = *new SpareStacks;
        return spare;
    }
    std::mutex mutex_;
    std::vector<Stack> stacks_;
};

}  // namespace executor
