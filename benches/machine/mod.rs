//! What this machine can do at most, measured: the floors that the benches divide by.

#![allow(unsafe_code)] // SIMD.

use std::time::Instant;

use rayon::prelude::*;

/// Peak rates of all threads together.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Arithmetic vector instructions (fused multiply-adds) a second.
    pub instructions_per_s: f64,
    /// Floats in a vector.
    pub lanes: usize,
    /// Bytes a second, read and written, through arrays far larger than the caches of the cores.
    pub bytes_per_s: f64,
}

impl Machine {
    /// Measures on `threads` threads of the current rayon pool.
    pub fn measure() -> Self {
        let threads = rayon::current_num_threads();
        let instructions = |_| best_of(5, vector_instructions);
        let rates: Vec<f64> = (0..threads).into_par_iter().with_max_len(1).map(instructions).collect();
        Self { instructions_per_s: rates.iter().sum(), lanes: lanes(), bytes_per_s: best_of(3, bytes) }
    }
}

fn best_of(times: usize, rate: impl Fn() -> f64) -> f64 {
    (0..times).map(|_| rate()).fold(0.0, f64::max)
}

/// Floats in the widest vector that the operations use here.
pub fn lanes() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return 16;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return 8;
        }
    }
    4
}

fn vector_instructions() -> f64 {
    const ROUNDS: u64 = 4_000_000;
    const CHAINS: u64 = 12;
    let begin = Instant::now();
    #[cfg(target_arch = "x86_64")]
    match lanes() {
        // SAFETY: `lanes` found the features.
        16 => unsafe { chains_512(ROUNDS) },
        // SAFETY: as above.
        8 => unsafe { chains_256(ROUNDS) },
        _ => chains_plain(ROUNDS),
    }
    #[cfg(not(target_arch = "x86_64"))]
    chains_plain(ROUNDS);
    (ROUNDS * CHAINS) as f64 / begin.elapsed().as_secs_f64()
}

/// # Safety
/// AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn chains_512(rounds: u64) {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_set1_ps(1.0); 12];
    let factor = std::hint::black_box(_mm512_set1_ps(0.999));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    std::hint::black_box(sums);
}

/// # Safety
/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn chains_256(rounds: u64) {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_set1_ps(1.0); 12];
    let factor = std::hint::black_box(_mm256_set1_ps(0.999));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    std::hint::black_box(sums);
}

fn chains_plain(rounds: u64) {
    let mut sums = [[1.0_f32; 4]; 12];
    let factor = std::hint::black_box([0.999_f32; 4]);
    for _ in 0..rounds {
        for sum in &mut sums {
            for (s, f) in sum.iter_mut().zip(factor) {
                *s = *s * f + f;
            }
        }
    }
    std::hint::black_box(sums);
}

fn bytes() -> f64 {
    const FLOATS: usize = 32 << 20;
    let from = vec![1.0_f32; FLOATS];
    let mut to = vec![0.0_f32; FLOATS];
    let begin = Instant::now();
    to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to += *from;
        }
    });
    std::hint::black_box(&to);
    (3 * FLOATS * size_of::<f32>()) as f64 / begin.elapsed().as_secs_f64()
}
