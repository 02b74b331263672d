// CRC32C (Castagnoli, as in a volume's header) of values as they lie in memory, little-endian.
//
//   crc[0] ^= CRC32C of values[0 .. count]; crc[0] is 0 before, count at least 1
//
// Shapes: values [count] (float32, 16-byte loads where they are aligned so), crc [1].
// Launch: 256 threads a block, 32768 values a block. The blocks are laid out from the end of the values: what stands before the first value counts
// as zeros, which no CRC without an initial value notices; the initial value is turned into a change of the first word.
//
// A CRC is a remainder of polynomials: a word w, n words before the end, adds w x^(32 n) mod P. A thread keeps four sums, one for each word of its
// loads, and multiplies them by x^(32 * 1024) from load to load: four look-ups each in a table in shared memory. The threads' sums, then the warps', are
// joined two by two, the earlier times a power of x; the block's goes into crc[0] by an integer exclusive-or, which no order changes.
//
// Bytes: 4 a value, 256^3: 67 MB, 0.016 ms. Look-ups: 4 a value at some 9 a clock and multiprocessor (32 lanes meet in some 3.5 turns a bank): 256^3 takes
// 0.029 ms, the floor. Joining: 11 products of some 100 instructions a thread, 0.004 ms.
#include "common.cuh"

namespace castagnoli {

constexpr int THREADS = 256;
constexpr int TURN = 4 * THREADS;
constexpr int TURNS = 32;
constexpr int OF_BLOCK = TURN * TURNS;
constexpr unsigned POLYNOMIAL = 0x82F63B78u;

// Bit 31 stands for 1, bit 0 for x^31.
__host__ __device__ constexpr unsigned times_x(unsigned a) { return (a >> 1) ^ (a & 1u ? POLYNOMIAL : 0u); }

__host__ __device__ constexpr unsigned product(unsigned a, unsigned b) {
    unsigned sum = 0;
    for (int bit = 31; bit >= 0; bit--, b = times_x(b)) sum ^= a >> bit & 1u ? b : 0u;
    return sum;
}

// x^(32 * words).
__host__ __device__ constexpr unsigned power(unsigned long long words) {
    unsigned result = 1u << 31, square = 1u << 30;
    for (unsigned long long exponent = 32 * words; exponent > 0; exponent /= 2) {
        if (exponent % 2 == 1) result = product(result, square);
        square = product(square, square);
    }
    return result;
}

// a x^(32 * WORDS); the powers are constants once the loop is unrolled.
template <unsigned long long WORDS>
__device__ __forceinline__ unsigned advance(unsigned a) {
    constexpr unsigned BY = power(WORDS);
    unsigned sum = 0, by = BY;
#pragma unroll
    for (int bit = 31; bit >= 0; bit--) {
        sum ^= by & (0u - (a >> bit & 1u));
        by = (by >> 1) ^ (POLYNOMIAL & (0u - (by & 1u)));
    }
    return sum;
}

// a x^(32 * OF_BLOCK * blocks), by the bits of `blocks`.
template <int BIT>
__device__ __forceinline__ unsigned advance_blocks(unsigned a, unsigned blocks) {
    if (blocks >> BIT & 1u) a = advance<static_cast<unsigned long long>(OF_BLOCK) << BIT>(a);
    if constexpr (BIT < 15) a = advance_blocks<BIT + 1>(a, blocks);
    return a;
}

// Joins lanes that hold the sums of BY lanes, WORDS words: every 2 BY-th gets that of 2 BY.
template <int BY, unsigned long long WORDS>
__device__ __forceinline__ unsigned join(unsigned sum) {
    unsigned later = __shfl_down_sync(0xffffffffu, sum, BY);
    return advance<WORDS>(sum) ^ later;
}

}  // namespace castagnoli

extern "C" __global__ void __launch_bounds__(castagnoli::THREADS)
    crc32c(const float* __restrict__ values, long long count, unsigned* __restrict__ crc) {
    using namespace castagnoli;
    // What a byte at each of the four places of a sum becomes from turn to turn.
    __shared__ unsigned table[4][256];
    __shared__ unsigned of_warps[THREADS / 32];
    const int thread = int(threadIdx.x);
    for (int byte = 0; byte < 4; byte++) table[byte][thread] = advance<TURN>(unsigned(thread) << 8 * byte);
    __syncthreads();

    // Place of the block's first value; the first block's may be before the values.
    const long long first = count - static_cast<long long>(OF_BLOCK) * (gridDim.x - blockIdx.x);
    unsigned sums[4] = {0, 0, 0, 0};
#pragma unroll 4
    for (int turn = 0; turn < TURNS; turn++) {
        const long long place = first + turn * TURN + 4 * thread;
        unsigned words[4] = {0, 0, 0, 0};
        if (place >= 0) {
            const float4 four = load4(values, place, count);
            words[0] = unsigned(__float_as_int(four.x));
            words[1] = unsigned(__float_as_int(four.y));
            words[2] = unsigned(__float_as_int(four.z));
            words[3] = unsigned(__float_as_int(four.w));
        } else {
            for (int i = 0; i < 4; i++) {
                if (place + i >= 0) words[i] = unsigned(__float_as_int(values[place + i]));
            }
        }
        for (int i = 0; i < 4; i++) {
            if (place + i == 0) words[i] ^= 0xffffffffu;
            sums[i] = table[0][sums[i] & 255u] ^ table[1][sums[i] >> 8 & 255u] ^ table[2][sums[i] >> 16 & 255u] ^
                      table[3][sums[i] >> 24] ^ words[i];
        }
    }

    unsigned sum = sums[0];
    for (int i = 1; i < 4; i++) sum = advance<1>(sum) ^ sums[i];
    sum = join<1, 4>(sum);
    sum = join<2, 8>(sum);
    sum = join<4, 16>(sum);
    sum = join<8, 32>(sum);
    sum = join<16, 64>(sum);
    if (thread % 32 == 0) of_warps[thread / 32] = sum;
    __syncthreads();
    if (thread >= 32) return;
    sum = thread < THREADS / 32 ? of_warps[thread] : 0u;
    sum = join<1, 128>(sum);
    sum = join<2, 256>(sum);
    sum = join<4, 512>(sum);
    if (thread > 0) return;
    // The last word is one before the end. And the final value: all ones, once.
    sum = advance_blocks<0>(advance<1>(sum), gridDim.x - 1 - blockIdx.x);
    atomicXor(crc, blockIdx.x == 0 ? ~sum : sum);
}
REGISTER_KERNEL(crc32c)
