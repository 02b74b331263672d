//! What a step of the Gaussians' parameters takes beside Adam.
//!
//! **Bytes** are the floor of all of them: 8 in and 4 out, 16 and 4, 32 and 32 a Gaussian.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::super::gaussians::softplus;

/// Gaussians of a task.
const TASK: usize = 4096;

/// See [`super::super::gaussians::GaussianCompute::weigh_density_gradient`]; lengths were checked, here and below.
pub(super) fn weigh_density_gradient(unit_per_mm: f32, raw: &[f32], gradient: &mut [f32]) {
    gradient.par_chunks_mut(TASK).zip(raw.par_chunks(TASK)).for_each(|(gradient, raw)| {
        for (gradient, &raw) in gradient.iter_mut().zip(raw) {
            // d softplus = the logistic function.
            *gradient *= unit_per_mm / (1.0 + (-raw).exp());
        }
    });
}

/// See [`super::super::gaussians::GaussianCompute::add_position_norms`].
pub(super) fn add_norms([x, y, z]: [&[f32]; 3], norms: &mut [f32]) {
    let axes = x.par_chunks(TASK).zip(y.par_chunks(TASK)).zip(z.par_chunks(TASK));
    norms.par_chunks_mut(TASK).zip(axes).for_each(|(norms, ((x, y), z))| {
        for (((norm, x), y), z) in norms.iter_mut().zip(x).zip(y).zip(z) {
            *norm += (x * x + y * y + z * z).sqrt();
        }
    });
}

/// See [`super::super::gaussians::GaussianCompute::settle_gaussians`]: scales and rotations.
pub(super) fn settle(scales_mm: [f32; 2], log_scale: [&mut [f32]; 3], rotation: [&mut [f32]; 4]) {
    let [low, high] = scales_mm.map(f32::ln);
    for scales in log_scale {
        scales
            .par_chunks_mut(TASK)
            .for_each(|scales| scales.iter_mut().for_each(|scale| *scale = scale.clamp(low, high)));
    }
    let [w, x, y, z] = rotation.map(|component| component.par_chunks_mut(TASK));
    w.zip(x).zip(y.zip(z)).for_each(|((w, x), (y, z))| {
        for (((w, x), y), z) in w.iter_mut().zip(x).zip(y).zip(z) {
            let square = *w * *w + *x * *x + *y * *y + *z * *z;
            // A quaternion that a step has brought to nothing begins anew.
            let (factor, turn) = if square > 1e-12 { (1.0 / square.sqrt(), 0.0) } else { (0.0, 1.0) };
            for component in [&mut *w, x, y, z] {
                *component *= factor;
            }
            *w += turn;
        }
    });
}

/// The same: densities.
pub(super) fn densities(unit_per_mm: f32, raw: &[f32], density_per_mm: &mut [f32]) {
    density_per_mm.par_chunks_mut(TASK).zip(raw.par_chunks(TASK)).for_each(|(density, raw)| {
        for (density, &raw) in density.iter_mut().zip(raw) {
            *density = unit_per_mm * softplus(raw);
        }
    });
}
