//! One step of Adam.
//!
//! **Bytes.** Reads four and writes three floats a parameter, 28 bytes: memory is the floor (11 parameters a Gaussian: 308 bytes; 50,000
//! Gaussians 15 MB). **Operations.** 12, a root and a division among them, all rounded alike at every level: the result is the same bit for bit.

// One loop compiled for several levels.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::gaussians::AdamStep;
use super::check_len;
use super::simd::SimdLevel;

/// Parameters of a task.
const TASK: usize = 4096;

/// See [`super::super::gaussians::GaussianCompute::adam_step`].
pub(super) fn adam_step(
    simd: SimdLevel,
    settings: &AdamStep,
    parameters: &mut [f32],
    gradients: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) -> Result<(), ComputeError> {
    const OPERATION: &str = "adam_step";
    let n = parameters.len();
    check_len(OPERATION, "gradients", gradients.len(), n)?;
    check_len(OPERATION, "first", first.len(), n)?;
    check_len(OPERATION, "second", second.len(), n)?;
    let (rate, root) = settings.corrected();
    let corrected = Corrected { rate, root, settings: *settings };
    parameters
        .par_chunks_mut(TASK)
        .zip(gradients.par_chunks(TASK))
        .zip(first.par_chunks_mut(TASK).zip(second.par_chunks_mut(TASK)))
        .for_each(|((parameters, gradients), (first, second))| match simd {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the carrier refuses levels that the processor lacks.
            SimdLevel::Avx512 => unsafe { step_avx512(&corrected, parameters, gradients, first, second) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            SimdLevel::Avx2 => unsafe { step_avx2(&corrected, parameters, gradients, first, second) },
            _ => step(&corrected, parameters, gradients, first, second),
        });
    Ok(())
}

/// Settings with the corrections of the start worked in.
struct Corrected {
    rate: f32,
    root: f32,
    settings: AdamStep,
}

#[inline(always)]
fn step(c: &Corrected, parameters: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
    let AdamStep { beta1, beta2, epsilon, .. } = c.settings;
    for (((p, &g), m), v) in parameters.iter_mut().zip(gradients).zip(first).zip(second) {
        *m += (1.0 - beta1) * (g - *m);
        *v += (1.0 - beta2) * (g * g - *v);
        *p -= c.rate * *m / ((*v * c.root).sqrt() + epsilon);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn step_avx512(c: &Corrected, parameters: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
    step(c, parameters, gradients, first, second);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn step_avx2(c: &Corrected, parameters: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
    step(c, parameters, gradients, first, second);
}
