//! The machine's floor, measured in the same run as what stands beside it: multiply-adds and bytes copied a second.

// SIMD intrinsics behind a run-time check.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use diffnr::compute::cpu::SimdLevel;

/// What `threads` threads do in a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    /// Register operations on single lanes (a fused multiply-add counts as one).
    pub(crate) lane_operations_per_s: f64,
    /// Bytes read plus bytes written, buffers far larger than the second-level cache.
    pub(crate) bytes_per_s: f64,
}

impl Floor {
    /// Measures one SIMD level on `threads` threads; the best of several tries, since others may share the machine.
    #[must_use]
    pub(crate) fn measure(simd: SimdLevel, threads: usize) -> Self {
        Self {
            lane_operations_per_s: best(threads, || lane_operations(simd)),
            bytes_per_s: {
                const FLOATS: usize = 16 << 20;
                best(threads, || {
                    let (from, mut to) = (vec![1.0f32; FLOATS], vec![0.0f32; FLOATS]);
                    let start = Instant::now();
                    for _ in 0..4 {
                        black_box(&mut to).copy_from_slice(black_box(&from));
                    }
                    (4 * 2 * 4 * FLOATS) as f64 / start.elapsed().as_secs_f64()
                })
            },
        }
    }

    /// Least time for this much work: operations and bytes can overlap.
    #[must_use]
    pub(crate) fn seconds(&self, lane_operations: f64, bytes: f64) -> f64 {
        (lane_operations / self.lane_operations_per_s).max(bytes / self.bytes_per_s)
    }
}

/// Sum over the threads of the rate each reports while all work; the best of five.
fn best(threads: usize, rate: impl Fn() -> f64 + Sync) -> f64 {
    (0..5)
        .map(|_| {
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(&rate)).collect();
                workers.into_iter().filter_map(|worker| worker.join().ok()).sum()
            })
        })
        .fold(0.0, f64::max)
}

/// Lane operations a second of independent multiply-adds.
fn lane_operations(simd: SimdLevel) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let start = Instant::now();
    let lanes = match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: only available levels are measured.
        SimdLevel::Avx512 => unsafe { fma_avx512(ROUNDS) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx2 => unsafe { fma_avx2(ROUNDS) },
        _ => multiply_add_plain(ROUNDS),
    };
    (ROUNDS * 16 * lanes) as f64 / start.elapsed().as_secs_f64()
}

/// Multiply and add are two instructions here, and count as two operations.
fn multiply_add_plain(rounds: usize) -> usize {
    let mut sums = [[0.5f32; 4]; 8];
    let (a, b) = (black_box([0.999f32; 4]), black_box([0.001f32; 4]));
    for _ in 0..rounds {
        for sum in &mut sums {
            for lane in 0..4 {
                sum[lane] = sum[lane] * a[lane] + b[lane];
            }
        }
    }
    black_box(sums);
    4
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn fma_avx512(rounds: usize) -> usize {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_set1_ps(0.5); 16];
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums);
    16
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fma_avx2(rounds: usize) -> usize {
    use std::arch::x86_64::*;
    // 16 sums and two factors would not fit into 16 registers: 8 sums twice a round, enough to cover the latency.
    let mut sums = [_mm256_set1_ps(0.5); 8];
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    for _ in 0..2 * rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums);
    8
}
