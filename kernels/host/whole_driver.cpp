// The stand-in for libcuda.so together with the kernels, in one library: for programs that know nothing of it (scripts/gpu-check).
//
//   c++ -std=c++17 -O2 -g1 -fPIC -shared -pthread -ffp-contract=off -Wno-unknown-pragmas -Wl,-soname,libcuda.so.1
//       whole_driver.cpp driver.cpp library.cpp -o libcuda.so.1
#include <cstddef>
#include <cstdint>

extern "C" {
int32_t diffnr_executor_launch(const char*, const uint32_t*, const uint32_t*, uint32_t, void**, const size_t*, size_t, uint32_t, uint32_t,
                               char*, size_t);
int32_t diffnr_executor_argument_bytes(const char*, size_t*, size_t);
void diffnr_stand_in_begin(decltype(&diffnr_executor_launch), decltype(&diffnr_executor_argument_bytes));
}

namespace {

const bool begun = (diffnr_stand_in_begin(diffnr_executor_launch, diffnr_executor_argument_bytes), true);

}  // namespace
