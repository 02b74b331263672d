//! 3D Gaussians (R2-Gaussian's representation): parameters in arrays of a fixed capacity, steps of Adam, [`initialise`] and [`adapt`].
//!
//! **Parametrisation.** Density `rho = unit * softplus(raw)`, in 1/mm, never negative; position in mm, free; natural logarithm of the scales, held
//! within limits after every step; a quaternion, brought back to unit length after every step. All memory is taken by
//! [`Gaussians::new`]; nothing here allocates after it.

#![forbid(unsafe_code)]

pub mod adapt;
mod drive;
pub mod initialise;
mod plan;

pub use drive::{GaussianRepresentation, GaussianSchedule};
pub use plan::GaussianPlan;

use crate::compute::ComputeError;
use crate::compute::gaussians::{AdamStep, GaussianCompute, GaussianGradients, GaussianSet};
use crate::error::{Classed, ErrorClass};

/// Why a set of Gaussians cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GaussianError {
    /// A setting that cannot work.
    #[error("gaussians: {field} = {value}: {requirement}")]
    Setting {
        /// Name of the setting.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must satisfy.
        requirement: &'static str,
    },
    /// The volume to begin with has another length than its grid.
    #[error("gaussians: the initial volume holds {given} voxels, its grid {needed}")]
    Volume {
        /// Voxels given.
        given: usize,
        /// Voxels of the grid.
        needed: usize,
    },
    /// Nothing in the volume to begin with.
    #[error(
        "gaussians: no voxel of the initial volume is above {threshold_per_mm} /mm (largest: {largest_per_mm}); lower the threshold or check the projections' scale"
    )]
    Empty {
        /// The threshold.
        threshold_per_mm: f32,
        /// The largest finite value in the volume.
        largest_per_mm: f32,
    },
    /// The memory is not to be had.
    #[error("gaussians: {bytes} bytes for {capacity} Gaussians are not to be had; lower the capacity")]
    Memory {
        /// Gaussians asked for.
        capacity: usize,
        /// Bytes they need.
        bytes: usize,
    },
}

impl Classed for GaussianError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

/// What is fixed for a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianLimits {
    /// Largest number of Gaussians.
    pub capacity: usize,
    /// Density at which softplus goes over from exponential to linear; about the attenuation of water.
    pub density_unit_per_mm: f32,
    /// Smallest scale.
    pub smallest_scale_mm: f32,
    /// Largest scale.
    pub largest_scale_mm: f32,
    /// Low pass of all operations: see [`crate::compute::gaussians`].
    pub low_pass_mm: f32,
}

impl GaussianLimits {
    /// Refuses limits that cannot work.
    ///
    /// # Errors
    /// [`GaussianError::Setting`] naming the field.
    pub fn check(&self) -> Result<(), GaussianError> {
        let refuse = |field, value: f32, requirement| {
            Err(GaussianError::Setting { field, value: f64::from(value), requirement })
        };
        if self.capacity == 0 || self.capacity > 1 << 26 {
            return refuse("capacity", self.capacity as f32, "must be between 1 and 67108864");
        }
        for (field, value) in [
            ("density_unit_per_mm", self.density_unit_per_mm),
            ("smallest_scale_mm", self.smallest_scale_mm),
            ("largest_scale_mm", self.largest_scale_mm),
        ] {
            if !(value > 1e-9 && value < 1e9) {
                return refuse(field, value, "must be finite and > 0 (1e-9 to 1e9)");
            }
        }
        if self.largest_scale_mm < self.smallest_scale_mm {
            return refuse("largest_scale_mm", self.largest_scale_mm, "must not be below smallest_scale_mm");
        }
        if !(self.low_pass_mm >= 0.0 && self.low_pass_mm.is_finite()) {
            return refuse("low_pass_mm", self.low_pass_mm, "must be finite and not negative");
        }
        Ok(())
    }
}

/// Learning rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianRates {
    /// Of the density's raw value (in units of [`GaussianLimits::density_unit_per_mm`] where large).
    pub density: f32,
    /// Of positions, in mm.
    pub position_mm: f32,
    /// Of log scales.
    pub log_scale: f32,
    /// Of unit quaternions.
    pub rotation: f32,
    /// How much of Adam's first moment stays from step to step.
    pub beta1: f32,
    /// And of the second.
    pub beta2: f32,
}

impl GaussianRates {
    /// R2-Gaussian's rates at a share 0 to 1 of the run, log-linear between their ends; `half_size_mm` is what its scene of
    /// `[-1, 1]^3` stands for.
    #[must_use]
    pub fn usual(share: f32, half_size_mm: f32) -> Self {
        let decay = 0.1f32.powf(share.clamp(0.0, 1.0));
        Self {
            density: 1e-2 * decay,
            position_mm: 2e-4 * half_size_mm * decay,
            log_scale: 5e-3 * decay,
            rotation: 1e-3 * decay,
            beta1: 0.9,
            beta2: 0.999,
        }
    }
}

/// Channels of parameters: raw density, position x y z, log scale 0 1 2, rotation w x y z.
const CHANNELS: usize = 11;
const POSITION: usize = 1;
const SCALE: usize = 4;
const ROTATION: usize = 7;

/// Parameters of Gaussians, their gradients and Adam's moments.
#[derive(Debug)]
pub struct Gaussians {
    limits: GaussianLimits,
    len: usize,
    /// `[channel][capacity]`.
    parameters: Vec<f32>,
    /// `rho` of the present parameters.
    density_per_mm: Vec<f32>,
    /// As `parameters`, and one more channel: the sum of the views' norms.
    gradients: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    /// Views since the norms were last cleared.
    views: u64,
    /// Indices, for initialisation and adaptive control.
    indices: Vec<u32>,
    cells: Vec<u32>,
}

impl Gaussians {
    /// Room for [`GaussianLimits::capacity`] Gaussians, none of which is there yet.
    ///
    /// # Errors
    /// [`GaussianError::Setting`] or [`GaussianError::Memory`].
    pub fn new(limits: &GaussianLimits) -> Result<Self, GaussianError> {
        limits.check()?;
        let capacity = limits.capacity;
        let memory = || GaussianError::Memory { capacity, bytes: Self::bytes(capacity) };
        let floats = |channels: usize| {
            let mut vec = Vec::new();
            vec.try_reserve_exact(channels * capacity).map_err(|_| memory())?;
            vec.resize(channels * capacity, 0.0f32);
            Ok::<_, GaussianError>(vec)
        };
        let words = |count: usize| {
            let mut vec = Vec::new();
            vec.try_reserve_exact(count).map_err(|_| memory())?;
            vec.resize(count, 0u32);
            Ok::<_, GaussianError>(vec)
        };
        Ok(Self {
            limits: *limits,
            len: 0,
            parameters: floats(CHANNELS)?,
            density_per_mm: floats(1)?,
            gradients: floats(CHANNELS + 1)?,
            first: floats(CHANNELS)?,
            second: floats(CHANNELS)?,
            views: 0,
            indices: words(capacity)?,
            cells: words(capacity + 1)?,
        })
    }

    /// Bytes that [`Gaussians::new`] takes; `plan` lists them.
    #[must_use]
    pub fn bytes(capacity: usize) -> usize {
        (4 * CHANNELS + 4) * 4 * capacity + 4
    }

    /// Gaussians there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The limits given.
    #[must_use]
    pub fn limits(&self) -> &GaussianLimits {
        &self.limits
    }

    /// The Gaussians as the operations read them.
    #[must_use]
    pub fn set(&self) -> GaussianSet<'_> {
        set(&self.parameters, &self.density_per_mm, &self.limits, self.len)
    }

    /// The Gaussians and their gradients, for the backward operations.
    pub fn set_and_gradients(&mut self) -> (GaussianSet<'_>, GaussianGradients<'_>) {
        let mut channels =
            self.gradients.chunks_exact_mut(self.limits.capacity).map(|channel| &mut channel[..self.len]);
        // As many channels as are taken here.
        let mut next = || channels.next().unwrap_or_default();
        let gradients = GaussianGradients {
            density_per_mm: next(),
            position_mm: [next(), next(), next()],
            log_scale: [next(), next(), next()],
            rotation: [next(), next(), next(), next()],
            view_norm: next(),
        };
        (set(&self.parameters, &self.density_per_mm, &self.limits, self.len), gradients)
    }

    /// Sets the gradients to 0, but not the sums that adaptive control decides by; `views` are about to be added to these.
    pub fn begin_step(&mut self, views: usize) {
        self.gradients[..CHANNELS * self.limits.capacity].fill(0.0);
        self.views += views as u64;
    }

    /// Adds the norm of the present gradient by position to the sums that adaptive control decides by: where the gradient comes through a
    /// volume, no view has one of its own.
    pub fn add_position_norms(&mut self) {
        let (channels, norms) = self.gradients.split_at_mut(CHANNELS * self.limits.capacity);
        let axis = |k: usize| &channels[(POSITION + k) * self.limits.capacity..][..self.len];
        for (((norm, x), y), z) in norms.iter_mut().zip(axis(0)).zip(axis(1)).zip(axis(2)) {
            *norm += (x * x + y * y + z * z).sqrt();
        }
    }

    /// The mean norm that `share` of the Gaussians exceed: a threshold for [`adapt::AdaptiveControl`].
    pub fn norm_exceeded_by(&mut self, share: f32) -> f32 {
        let norms = &self.gradients[CHANNELS * self.limits.capacity..][..self.len];
        // Floats that are not negative sort as their bits do.
        let bits = &mut self.cells[..self.len];
        for (bits, norm) in bits.iter_mut().zip(norms) {
            *bits = norm.abs().to_bits();
        }
        let above = (share.clamp(0.0, 1.0) * self.len as f32) as usize;
        match self.len.checked_sub(above + 1) {
            Some(nth) => f32::from_bits(*bits.select_nth_unstable(nth).1) / self.views.max(1) as f32,
            None => 0.0,
        }
    }

    /// One step of Adam along the gradients; `step` counts from 1.
    ///
    /// # Errors
    /// As the operation; none with the lengths used here.
    pub fn step(
        &mut self,
        compute: &(impl GaussianCompute + ?Sized),
        rates: &GaussianRates,
        step: u32,
    ) -> Result<(), ComputeError> {
        let (capacity, len) = (self.limits.capacity, self.len);
        let unit = self.limits.density_unit_per_mm;
        for (gradient, &raw) in self.gradients[..len].iter_mut().zip(&self.parameters) {
            // d softplus = the logistic function.
            *gradient *= unit / (1.0 + (-raw).exp());
        }
        for channel in 0..CHANNELS {
            let rate = match channel {
                0 => rates.density,
                POSITION..SCALE => rates.position_mm,
                SCALE..ROTATION => rates.log_scale,
                _ => rates.rotation,
            };
            let part = channel * capacity..channel * capacity + len;
            compute.adam_step(
                &AdamStep { rate, beta1: rates.beta1, beta2: rates.beta2, ..AdamStep::new(rate, step) },
                &mut self.parameters[part.clone()],
                &self.gradients[part.clone()],
                &mut self.first[part.clone()],
                &mut self.second[part],
            )?;
        }
        self.settle();
        Ok(())
    }

    /// Brings scales within their limits and quaternions to unit length, and works out the densities.
    fn settle(&mut self) {
        let (capacity, len) = (self.limits.capacity, self.len);
        let (low, high) = (self.limits.smallest_scale_mm.ln(), self.limits.largest_scale_mm.ln());
        for channel in SCALE..ROTATION {
            for scale in &mut self.parameters[channel * capacity..][..len] {
                *scale = scale.clamp(low, high);
            }
        }
        for i in 0..len {
            let at = |k: usize| (ROTATION + k) * capacity + i;
            let square: f32 = (0..4).map(|k| self.parameters[at(k)] * self.parameters[at(k)]).sum();
            // A quaternion that a step has brought to nothing begins anew.
            let (factor, w) = if square > 1e-12 { (1.0 / square.sqrt(), 0.0) } else { (0.0, 1.0) };
            for k in 0..4 {
                self.parameters[at(k)] *= factor;
            }
            self.parameters[at(0)] += w;
        }
        for (density, &raw) in self.density_per_mm[..len].iter_mut().zip(&self.parameters) {
            *density = self.limits.density_unit_per_mm * softplus(raw);
        }
    }

    /// Multiplies all densities.
    ///
    /// # Errors
    /// [`GaussianError::Setting`] where the factor is not finite and positive.
    pub fn scale_densities(&mut self, factor: f32) -> Result<(), GaussianError> {
        if !(factor > 0.0 && factor.is_finite()) {
            return Err(GaussianError::Setting {
                field: "density factor",
                value: f64::from(factor),
                requirement: "must be finite and > 0",
            });
        }
        for (raw, &density) in self.parameters[..self.len].iter_mut().zip(&self.density_per_mm) {
            *raw = raw_of(factor * density / self.limits.density_unit_per_mm);
        }
        self.settle();
        Ok(())
    }

    /// Sets Gaussian `i`'s parameters and clears its moments and sums.
    fn put(&mut self, i: usize, values: &[f32; CHANNELS]) {
        for (channel, value) in values.iter().enumerate() {
            self.parameters[channel * self.limits.capacity + i] = *value;
        }
        self.forget(i);
    }

    /// Gaussian `i`'s parameters.
    fn values(&self, i: usize) -> [f32; CHANNELS] {
        std::array::from_fn(|channel| self.parameters[channel * self.limits.capacity + i])
    }

    /// Clears Gaussian `i`'s moments.
    fn forget(&mut self, i: usize) {
        for channel in 0..CHANNELS {
            self.first[channel * self.limits.capacity + i] = 0.0;
            self.second[channel * self.limits.capacity + i] = 0.0;
        }
    }
}

fn set<'a>(parameters: &'a [f32], density: &'a [f32], limits: &GaussianLimits, len: usize) -> GaussianSet<'a> {
    let channel = |k: usize| &parameters[k * limits.capacity..][..len];
    GaussianSet {
        density_per_mm: &density[..len],
        position_mm: [channel(1), channel(2), channel(3)],
        log_scale: [channel(4), channel(5), channel(6)],
        rotation: [channel(7), channel(8), channel(9), channel(10)],
        low_pass_mm: limits.low_pass_mm,
    }
}

/// `ln(1 + e^x)`.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The `x` whose softplus is `value`, for values down to 1e-9.
fn raw_of(value: f32) -> f32 {
    let value = value.max(1e-9);
    value + (-(-value).exp_m1()).ln()
}

#[cfg(test)]
mod tests;
