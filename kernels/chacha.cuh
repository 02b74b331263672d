// ChaCha with eight rounds (Bernstein 2008), as `rand_chacha::ChaCha8Rng` of the CPU gives it: the same numbers for the same seed.
//
// State: 4 constants; 8 words of key, of which the first four are seed and iteration (low word first) and the others 0; the number of
// the block of 16 words; the stream. A block takes 8 x 4 quarter rounds of 12 operations, 400 in all; four lanes of a warp take one each.
#pragma once
#include "common.cuh"

namespace chacha {

constexpr int WORDS = 16;

// Seed and iteration of `FieldJitter`, each with its low word first.
struct Key {
    unsigned words[4];
};

__device__ __forceinline__ unsigned turned(unsigned word, int by) { return word << by | word >> (32 - by); }

__device__ __forceinline__ void quarter(unsigned& a, unsigned& b, unsigned& c, unsigned& d) {
    a += b, d = turned(d ^ a, 16);
    c += d, b = turned(b ^ c, 12);
    a += b, d = turned(d ^ a, 8);
    c += d, b = turned(b ^ c, 7);
}

// Block number `number` of a stream.
__device__ __forceinline__ void block(const Key& key, unsigned number, unsigned long long stream, unsigned* to) {
    unsigned start[WORDS] = {0x61707865u,  0x3320646eu,  0x79622d32u,  0x6b206574u,
                             key.words[0], key.words[1], key.words[2], key.words[3],
                             0u,           0u,           0u,           0u,
                             number,       0u,           unsigned(stream), unsigned(stream >> 32)};
    unsigned s[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) s[i] = start[i];
#pragma unroll
    for (int twice = 0; twice < 4; twice++) {
#pragma unroll
        for (int i = 0; i < 4; i++) quarter(s[i], s[4 + i], s[8 + i], s[12 + i]);
#pragma unroll
        for (int i = 0; i < 4; i++) quarter(s[i], s[4 + (i + 1) % 4], s[8 + (i + 2) % 4], s[12 + (i + 3) % 4]);
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++) to[i] = s[i] + start[i];
}

// In [0, 1), of the word's 24 highest bits.
__device__ __forceinline__ float uniform(unsigned word) { return float(word >> 8) * 0x1p-24f; }

}  // namespace chacha
