// The executor as a shared library: every kernel of ../ compiled for the CPU, and the C functions that `src/compute/cuda/executor.rs`
// loads. One translation unit, so that one call of the compiler builds it (see ../README.md).

#include "../adam_step.cu"
#include "../back_project_fdk.cu"
#include "../back_project_matched.cu"
#include "../crc32c.cu"
#include "../experts.cu"
#include "../field_gradients.cu"
#include "../field_project.cu"
#include "../field_project_backward.cu"
#include "../field_voxelise.cu"
#include "../field_voxelise_backward.cu"
#include "../filter_rows.cu"
#include "../forward_project.cu"
#include "../gaussian_lists.cu"
#include "../gaussian_project.cu"
#include "../gaussian_project_backward.cu"
#include "../gaussian_step.cu"
#include "../gaussian_voxelise.cu"
#include "../gaussian_voxelise_backward.cu"
#include "../line_integrals.cu"
#include "../loss_image.cu"
#include "../loss_volume.cu"
#include "../parameters.cu"
#include "../sart.cu"
#include "../slices.cu"
#include "../sum.cu"
#include "../total_variation.cu"
#include "../values.cu"
#include "../views.cu"
#include "../weight_projections.cu"

namespace {

dim3 size_of(const uint32_t* xyz) { return {xyz[0], xyz[1], xyz[2]}; }

}  // namespace

extern "C" {

// Counts every change of these functions; the Rust side refuses another.
__attribute__((visibility("default"))) uint32_t diffnr_executor_version() { return 2; }

// Launches kernel `name` on `workers` threads and waits for its end. `arguments` are pointers to the arguments, as cuLaunchKernel takes
// them, `bytes` their sizes, which are compared with the kernel's. Returns 0, or 1 with the reason in `reason`.
__attribute__((visibility("default"))) int32_t diffnr_executor_launch(const char* name, const uint32_t* grid,
                                                                     const uint32_t* block, uint32_t shared_bytes,
                                                                     void** arguments, const size_t* bytes, size_t count,
                                                                     uint32_t workers, uint32_t descending, char* reason,
                                                                     size_t reason_bytes) {
    executor::Launch launch{size_of(grid), size_of(block), shared_bytes, workers, descending != 0};
    std::string refused = executor::launch(name, launch, arguments, bytes, count);
    snprintf(reason, reason_bytes, "%s", refused.c_str());
    return refused.empty() ? 0 : 1;
}

// Writes the sizes of a kernel's arguments, no more than `most`, and returns their number; -1 where there is no such kernel.
__attribute__((visibility("default"))) int32_t diffnr_executor_argument_bytes(const char* name, size_t* bytes, size_t most) {
    for (const executor::Kernel& kernel : executor::kernels()) {
        if (strcmp(kernel.name, name) != 0 || kernel.argument_bytes.size() > most) continue;
        std::copy(kernel.argument_bytes.begin(), kernel.argument_bytes.end(), bytes);
        return int32_t(kernel.argument_bytes.size());
    }
    return -1;
}

// Under AddressSanitizer: memory that no kernel may touch, and memory that it may. Else nothing.
__attribute__((visibility("default"))) void diffnr_executor_forbid(void* from, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(from, bytes);
#endif
    (void)from, (void)bytes;
}
__attribute__((visibility("default"))) void diffnr_executor_allow(void* from, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(from, bytes);
#endif
    (void)from, (void)bytes;
}
}
