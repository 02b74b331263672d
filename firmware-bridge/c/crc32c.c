/*
 * CRC32C (Castagnoli): reflected polynomial 0x82F63B78, initial value and final xor all ones.
 *
 * x86-64: the SSE4.2 instruction, chosen at run time, three streams at once (its latency is three times its throughput);
 * the streams are joined by a multiplication with x^(8 * STREAM) modulo the polynomial. ARM: the CRC instruction where
 * the compiler may use it. Elsewhere: eight table look-ups for eight bytes.
 */
#include "diffnr_producer.h"

#include "crc32c_table.h"

#include <string.h>

static uint64_t load64(const unsigned char *data) {
    uint64_t word;
    memcpy(&word, data, 8);
    return word;
}

uint32_t dnr_crc32c_portable(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *at = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word = load64(at) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++) {
            crc ^= dnr_crc32c_table[7 - k][(word >> (8 * k)) & 0xff];
        }
    }
    for (; bytes > 0; bytes--, at++) {
        crc = (crc >> 8) ^ dnr_crc32c_table[0][(crc ^ *at) & 0xff];
    }
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)

#include <nmmintrin.h>

#define STREAM ((size_t)8192)
#define X_TO_THE_STREAM 0x28461564u /* x^(8 * 8192) modulo the polynomial, reflected */

/* a * b modulo the polynomial, both reflected (bit 31 = x^0). */
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int bit = 31; bit >= 0; bit--) {
        product ^= b & (0u - ((a >> bit) & 1u));
        b = (b >> 1) ^ (0x82f63b78u & (0u - (b & 1u)));
    }
    return product;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const unsigned char *at, size_t bytes) {
    uint64_t a = ~crc;
    for (; bytes >= 3 * STREAM; bytes -= 3 * STREAM, at += 3 * STREAM) {
        uint64_t b = 0, c = 0;
        for (size_t i = 0; i < STREAM; i += 8) {
            a = _mm_crc32_u64(a, load64(at + i));
            b = _mm_crc32_u64(b, load64(at + STREAM + i));
            c = _mm_crc32_u64(c, load64(at + 2 * STREAM + i));
        }
        a = multiply(X_TO_THE_STREAM, (uint32_t)a) ^ b;
        a = multiply(X_TO_THE_STREAM, (uint32_t)a) ^ c;
    }
    for (; bytes >= 8; bytes -= 8, at += 8) {
        a = _mm_crc32_u64(a, load64(at));
    }
    uint32_t rest = (uint32_t)a;
    for (; bytes > 0; bytes--, at++) {
        rest = _mm_crc32_u8(rest, *at);
    }
    return ~rest;
}

uint32_t dnr_crc32c(uint32_t crc, const void *data, size_t bytes) {
    /* Reads a variable that libgcc fills before main: no system call, no cpuid here. */
    return __builtin_cpu_supports("sse4.2") ? crc32c_sse42(crc, data, bytes) : dnr_crc32c_portable(crc, data, bytes);
}

#elif defined(__ARM_FEATURE_CRC32)

#include <arm_acle.h>

uint32_t dnr_crc32c(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *at = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        crc = __crc32cd(crc, load64(at));
    }
    for (; bytes > 0; bytes--, at++) {
        crc = __crc32cb(crc, *at);
    }
    return ~crc;
}

#else

uint32_t dnr_crc32c(uint32_t crc, const void *data, size_t bytes) {
    return dnr_crc32c_portable(crc, data, bytes);
}

#endif
