// The gradient of a learned prior, Fields of Experts (definition: src/compute/experts.rs): responses, influence and the way back in one sweep.
//
//   gradient += weight * sum_k (taps_k, turned over) * (b rho_k'(t_k)),   t_k = taps_k over 3 x 3 x 3 voxels / unit
//   rho_k'(t) = a t / sqrt(s^2 + t^2) + a' s' t / (s'^2 + t^2),           b piecewise linear in the neighbourhood's mean
//
// Shapes: volume, gradient [x][y][z]; table [expert][32]: 27 taps [dx][dy][dz], one 0, s^2, a, s'^2, a' s'; then [MOST_SLOPES] slopes of b.
// Launch: blocks of 8 z x 16 y threads, four centres along z a thread. A block takes the neighbourhoods around 32 z x 16 y x (DEPTH + 2) x voxels
// and adds to the 30 x 14 x DEPTH within, so that nobody else writes there; grid (z, y, x).
// A thread goes along x with the 3 x 3 x 6 voxels around its centres in registers, and beside them what goes back to these voxels. An expert's
// taps are read from shared memory once and serve for four responses and the way back. A plane is whole once the centres beyond it
// have been seen: edges along z then go through shuffles, rows above and below through shared memory. No response goes to memory.
// Work: an expert takes 54 multiply-adds of a centre, and 12 operations and two special functions for its influence; 24 experts 1600, and 100 others.
// Bytes: 12 a voxel. Centres that two blocks work out: 32/30 * 16/14 * 18/16 = 1.37 times the voxels.
// Floor at 256^3 with 24 experts: 2.3e7 centres, 3.9e10 operations, 1.2 ms at 33e12 a second. Beside it, special functions 0.26 ms at 16 a clock, shared
// memory 0.5 ms (8 loads of 16 bytes an expert and warp, 4 clocks each), bytes 0.05 ms. 168 registers: three blocks a multiprocessor.
// Order: centres along x in their order and for each the experts in theirs, then what the lanes beside bring; a row's own sum, the one above's, the
// one below's.
#include "common.cuh"

namespace experts {

constexpr int LANES = 8, ROWS = 16, WIDE = 4, DEPTH = 16;
constexpr int TAPS = 27, RECORD = 32, MOST = 32, MOST_SLOPES = 16;
// Voxels along z that a thread's centres look at.
constexpr int SEEN = WIDE + 2;

// `Definition` of src/compute/cuda/experts.rs is the same.
struct Definition {
    int voxels_x, voxels_y, voxels_z, experts, slopes;
    float units_per_value, lowest, knot, weight;
};

// What is seen of a plane, in units; nothing beyond the grid.
__device__ __forceinline__ void look(const Definition& d, const float* __restrict__ volume, int x, int y, int z,
                                     float (&seen)[3][SEEN]) {
#pragma unroll
    for (int dy = 0; dy < 3; dy++) {
        int row = y + dy - 1;
        bool inside = x >= 0 && x < d.voxels_x && row >= 0 && row < d.voxels_y;
        const float* from = volume + (static_cast<long long>(x) * d.voxels_y + row) * d.voxels_z;
#pragma unroll
        for (int i = 0; i < SEEN; i++) {
            int height = z + i - 1;
            seen[dy][i] = inside && height >= 0 && height < d.voxels_z ? d.units_per_value * __ldg(from + height) : 0.0f;
        }
    }
}

// What tissue of this mean weighs.
__device__ __forceinline__ float tissue(const Definition& d, const float* slopes, float mean) {
    float weight = d.lowest;
    for (int i = 0; i < d.slopes; i++) {
        weight = fmaf(fminf(fmaxf(mean - float(i) * d.knot, 0.0f), d.knot), slopes[i], weight);
    }
    return weight;
}

}  // namespace experts

extern "C" __global__ void __launch_bounds__(experts::LANES* experts::ROWS, 3)
    add_experts_gradient(experts::Definition d, const float* __restrict__ table, const float* __restrict__ volume,
                         float* __restrict__ gradient) {
    using namespace experts;
    __shared__ float4 records[MOST * RECORD / 4];
    __shared__ float slopes[MOST_SLOPES];
    // What goes to the rows before and after; of two planes by turns, so that one barrier a plane is enough.
    __shared__ float4 to_before[2][ROWS][LANES], to_after[2][ROWS][LANES];

    int lane = int(threadIdx.x), line = int(threadIdx.y), thread = line * LANES + lane;
    for (int i = thread; i < d.experts * (RECORD / 4); i += LANES * ROWS) {
        records[i] = load4(table, 4 * i, d.experts * RECORD);
    }
    if (thread < MOST_SLOPES) slopes[thread] = table[d.experts * RECORD + thread];
    __syncthreads();

    // The first centre of this thread; centres stand one before the voxels that the block adds to.
    int y = int(blockIdx.y) * (ROWS - 2) + line - 1, z = int(blockIdx.x) * (LANES * WIDE - 2) + lane * WIDE - 1;
    int first = int(blockIdx.z) * DEPTH, end = min(first + DEPTH, d.voxels_x);
    bool row_whole = y > 0 && y + 1 < d.voxels_y;
    // Along z the first centre and the last that are whole.
    int low = max(0, 1 - z), high = min(WIDE - 1, d.voxels_z - 2 - z);

    float seen[3][3][SEEN], back[3][3][SEEN];
    look(d, volume, first - 2, y, z, seen[1]);
    look(d, volume, first - 1, y, z, seen[2]);
#pragma unroll
    for (int i = 0; i < 3 * SEEN; i++) back[0][i / SEEN][i % SEEN] = back[1][i / SEEN][i % SEEN] = 0.0f;

    for (int x = first - 1; x <= end; x++) {
#pragma unroll
        for (int i = 0; i < 3 * SEEN; i++) {
            int dy = i / SEEN, dz = i % SEEN;
            seen[0][dy][dz] = seen[1][dy][dz];
            seen[1][dy][dz] = seen[2][dy][dz];
            back[2][dy][dz] = 0.0f;
        }
        look(d, volume, x + 1, y, z, seen[2]);

        if (row_whole && x > 0 && x + 1 < d.voxels_x && low <= high) {
            float share[WIDE];
#pragma unroll
            for (int j = 0; j < WIDE; j++) {
                float sum = 0.0f;
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) sum += seen[tap / 9][tap / 3 % 3][tap % 3 + j];
                share[j] = tissue(d, slopes, fmaxf(sum * (1.0f / TAPS), 0.0f));
            }
#pragma unroll 1
            for (int expert = 0; expert < d.experts; expert++) {
                float taps[RECORD];
#pragma unroll
                for (int i = 0; i < RECORD / 4; i++) {
                    float4 four = records[expert * (RECORD / 4) + i];
                    taps[4 * i] = four.x, taps[4 * i + 1] = four.y, taps[4 * i + 2] = four.z, taps[4 * i + 3] = four.w;
                }
                float influence[WIDE];
#pragma unroll
                for (int j = 0; j < WIDE; j++) influence[j] = 0.0f;
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) {
#pragma unroll
                    for (int j = 0; j < WIDE; j++) {
                        influence[j] = fmaf(taps[tap], seen[tap / 9][tap / 3 % 3][tap % 3 + j], influence[j]);
                    }
                }
#pragma unroll
                for (int j = 0; j < WIDE; j++) {
                    float t = influence[j], square = t * t;
                    float slope = fmaf(taps[29], rsqrtf(square + taps[28]), __fdividef(taps[31], square + taps[30]));
                    influence[j] = j < low || j > high ? 0.0f : t * share[j] * slope;
                }
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) {
#pragma unroll
                    for (int j = 0; j < WIDE; j++) {
                        float& sum = back[tap / 9][tap / 3 % 3][tap % 3 + j];
                        sum = fmaf(taps[tap], influence[j], sum);
                    }
                }
            }
        }

        // The plane before the centre is whole: own heights, and from the lanes beside what goes beyond theirs.
        float rows[3][WIDE];
#pragma unroll
        for (int dy = 0; dy < 3; dy++) {
            float after = __shfl_up_sync(0xffffffffu, back[0][dy][SEEN - 1], 1, LANES);
            float before = __shfl_down_sync(0xffffffffu, back[0][dy][0], 1, LANES);
#pragma unroll
            for (int j = 0; j < WIDE; j++) rows[dy][j] = back[0][dy][j + 1];
            rows[dy][0] += after;
            rows[dy][WIDE - 1] += before;
        }
        int turn = (x - first) & 1;
        to_before[turn][line][lane] = make_float4(rows[0][0], rows[0][1], rows[0][2], rows[0][3]);
        to_after[turn][line][lane] = make_float4(rows[2][0], rows[2][1], rows[2][2], rows[2][3]);
        __syncthreads();
        if (x > first && line > 0 && line < ROWS - 1 && y < d.voxels_y) {
            float4 above = to_after[turn][line - 1][lane], below = to_before[turn][line + 1][lane];
            float sums[WIDE] = {rows[1][0] + above.x + below.x, rows[1][1] + above.y + below.y,
                                rows[1][2] + above.z + below.z, rows[1][3] + above.w + below.w};
            float* to = gradient + (static_cast<long long>(x - 1) * d.voxels_y + y) * d.voxels_z;
#pragma unroll
            for (int j = 0; j < WIDE; j++) {
                bool edge = (lane == 0 && j == 0) || (lane == LANES - 1 && j == WIDE - 1);
                if (!edge && z + j < d.voxels_z) to[z + j] = fmaf(d.weight, sums[j], to[z + j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 3 * SEEN; i++) {
            int dy = i / SEEN, dz = i % SEEN;
            back[0][dy][dz] = back[1][dy][dz];
            back[1][dy][dz] = back[2][dy][dz];
        }
    }
}
REGISTER_KERNEL(add_experts_gradient)
