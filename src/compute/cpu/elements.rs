//! Memory on the host, and the element-wise operations of [`ElementCompute`].
//!
//! **Bytes** are the floor of all of them: 4 a value read or written. Sums run as those of [`super::sart`] do.

#![forbid(unsafe_code)]

use super::super::elements::ElementCompute;
use super::super::{Buffer, ComputeError, Memory, Values, ValuesMut};
use super::sart::{over, reduce};
use super::{CpuCompute, check_len, take_aperture};
use crate::geometry::Detector;

impl Memory for CpuCompute {
    fn buffer(&self, buffer: &'static str, len: usize) -> Result<Buffer, ComputeError> {
        let mut values = Vec::new();
        let bytes = len.saturating_mul(size_of::<f32>());
        values.try_reserve_exact(len).map_err(|_| ComputeError::Memory { buffer, bytes })?;
        values.resize(len, 0.0_f32);
        Ok(values.into())
    }

    fn write(&self, from: &[f32], to: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.copy(Values::Host(from), to)
    }

    fn read(&self, from: Values<'_>, to: &mut [f32]) -> Result<(), ComputeError> {
        self.copy(from, ValuesMut::Host(to))
    }

    fn copy(&self, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("copy", [from], to, |[from], to| to.copy_from_slice(from))
    }

    fn fill(&self, value: f32, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("fill", [], to, |[], to| to.fill(value))
    }

    fn copy_len(&self, _len: usize) -> usize {
        0
    }
}

impl CpuCompute {
    /// Runs `work` on tasks of `out` beside those of `inputs`.
    pub(super) fn each<const N: usize>(
        &self,
        operation: &'static str,
        inputs: [Values<'_>; N],
        out: ValuesMut<'_>,
        work: impl Fn([&[f32]; N], &mut [f32]) + Sync,
    ) -> Result<(), ComputeError> {
        let out = out.host(operation)?;
        let inputs = slices(operation, inputs, out.len())?;
        let work = |inputs: [&[f32]; N], out: &mut [f32]| {
            work(inputs, out);
            0.0
        };
        self.pool.install(|| over(&work, inputs, out));
        Ok(())
    }

    /// The sum of what `work` gives for each task.
    fn sum<const N: usize>(
        &self,
        operation: &'static str,
        inputs: [Values<'_>; N],
        work: impl Fn([&[f32]; N]) -> f64 + Sync,
    ) -> Result<f64, ComputeError> {
        let inputs = slices(operation, inputs, inputs[0].len())?;
        let work = |inputs: [&[f32]; N], _: &mut [f32]| work(inputs);
        Ok(self.pool.install(|| reduce(&work, inputs)))
    }
}

/// Host values of one length.
fn slices<'a, const N: usize>(
    operation: &'static str,
    inputs: [Values<'a>; N],
    len: usize,
) -> Result<[&'a [f32]; N], ComputeError> {
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, input) in slices.iter_mut().zip(inputs) {
        *slice = input.host(operation)?;
        check_len(operation, "values", slice.len(), len)?;
    }
    Ok(slices)
}

impl ElementCompute for CpuCompute {
    fn subtract(&self, first: Values<'_>, second: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("subtract", [first, second], out, |[first, second], out| {
            for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
                *out = first - second;
            }
        })
    }

    fn add_scaled(&self, factor: f32, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("add_scaled", [from], to, |[from], to| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
        })
    }

    fn scale(&self, factor: f32, values: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("scale", [], values, |[], values| values.iter_mut().for_each(|value| *value *= factor))
    }

    fn copy_scaled(&self, factor: f32, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("copy_scaled", [from], to, |[from], to| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = factor * from);
        })
    }

    fn crc32c(&self, values: Values<'_>) -> Result<u32, ComputeError> {
        Ok(firmware_bridge::crc::crc32c(bytemuck::cast_slice(values.host("crc32c")?)))
    }

    fn dot(&self, first: Values<'_>, second: Values<'_>) -> Result<f64, ComputeError> {
        self.sum("dot", [first, second], |[first, second]| {
            first.iter().zip(second).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        })
    }

    fn are_finite(&self, values: Values<'_>) -> Result<bool, ComputeError> {
        // Not one NaN or infinity: only then all values times 0 add up to 0.
        let sum = self
            .sum("are_finite", [values], |[values]| f64::from(values.iter().map(|value| value * 0.0).sum::<f32>()))?;
        Ok(sum == 0.0)
    }

    fn hold_at_zero(&self, volume: Values<'_>, gradient: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("hold_at_zero", [volume], gradient, |[volume], gradient| {
            for (gradient, value) in gradient.iter_mut().zip(volume) {
                if *value <= 0.0 && *gradient > 0.0 {
                    *gradient = 0.0;
                }
            }
        })
    }

    fn add_modulus_gradient(
        &self,
        weight: f32,
        volume: Values<'_>,
        reference: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        self.each("add_modulus_gradient", [volume, reference], gradient, |[volume, reference], gradient| {
            for ((gradient, value), reference) in gradient.iter_mut().zip(volume).zip(reference) {
                let difference = value - reference;
                if difference != 0.0 {
                    *gradient += weight * difference.signum();
                }
            }
        })
    }

    fn take_aperture(
        &self,
        detector: Detector,
        shares: [f32; 2],
        views: Values<'_>,
        out: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "take_aperture";
        let (views, out) = (views.host(OPERATION)?, out.host(OPERATION)?);
        check_len(OPERATION, "views", views.len(), out.len())?;
        let pixels = detector.pixels().max(1);
        check_len(OPERATION, "views", views.len(), views.len().next_multiple_of(pixels))?;
        self.pool.install(|| take_aperture::take_aperture(detector, shares, views, out));
        Ok(())
    }

    fn whiten(&self, weights: Values<'_>, gradient: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("whiten", [weights, gradient], out, |[weights, gradient], out| {
            for ((out, w), g) in out.iter_mut().zip(weights).zip(gradient) {
                *out = if *w > 0.0 { g / w.sqrt() } else { 0.0 };
            }
        })
    }

    fn mix_sharpened(
        &self,
        share: f32,
        gain: f32,
        weights: Values<'_>,
        filtered: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        self.each("mix_sharpened", [weights, filtered], gradient, |[weights, filtered], gradient| {
            for ((g, w), f) in gradient.iter_mut().zip(weights).zip(filtered) {
                *g = (1.0 - share) * *g + share * gain * w.sqrt() * f;
            }
        })
    }

    fn times_root(&self, weights: Values<'_>, values: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("times_root", [weights, values], out, |[weights, values], out| {
            for ((out, w), value) in out.iter_mut().zip(weights).zip(values) {
                *out = w.sqrt() * value;
            }
        })
    }

    fn held_back_squares(
        &self,
        projections: Values<'_>,
        measured: Values<'_>,
        weights: Values<'_>,
    ) -> Result<f64, ComputeError> {
        self.sum("held_back_squares", [projections, measured, weights], |[projections, measured, weights]| {
            let held_back = projections.iter().zip(measured).zip(weights).filter(|(_, w)| **w == 0.0);
            held_back.map(|((p, m), _)| f64::from(p - m).powi(2)).sum()
        })
    }
}
