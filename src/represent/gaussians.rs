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

use crate::compute::gaussians::{AdamStep, CHANNELS, GaussianArrays, softplus};
use crate::compute::{Buffer, ComputeError, Memory, Operations, Values, ValuesMut};
use crate::error::{Classed, ErrorClass};

/// Why a set of Gaussians cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GaussianError {
    /// An operation failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
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

// Where the channels of parameters begin.
const POSITION: usize = 1;
const SCALE: usize = 4;
const ROTATION: usize = 7;

/// Parameters of Gaussians, their gradients and Adam's moments, in the memory of the carrier that works on them.
#[derive(Debug)]
pub struct Gaussians {
    limits: GaussianLimits,
    len: usize,
    /// `[channel][capacity]`.
    parameters: Buffer,
    /// `rho` of the present parameters.
    density_per_mm: Buffer,
    /// As `parameters`, and one more channel: the sum of the views' norms.
    gradients: Buffer,
    first: Buffer,
    second: Buffer,
    /// Views since the norms were last cleared.
    views: u64,
    table: Table,
}

impl Gaussians {
    /// Room for [`GaussianLimits::capacity`] Gaussians, none of which is there yet.
    ///
    /// # Errors
    /// [`GaussianError::Setting`] or [`GaussianError::Memory`].
    pub fn new(compute: &dyn Memory, limits: &GaussianLimits) -> Result<Self, GaussianError> {
        limits.check()?;
        let capacity = limits.capacity;
        let floats = |channels: usize| {
            compute
                .buffer("gaussians", channels * capacity)
                .map_err(|_| GaussianError::Memory { capacity, bytes: Self::bytes(capacity) })
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
            table: Table::new(compute, limits)?,
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
    pub fn arrays(&self) -> GaussianArrays<Values<'_>> {
        arrays(&self.limits, self.len, &self.parameters, &self.density_per_mm)
    }

    /// The Gaussians and their gradients, for the backward operations.
    pub fn arrays_and_gradients(&mut self) -> (GaussianArrays<Values<'_>>, ValuesMut<'_>) {
        let Self { limits, len, parameters, density_per_mm, gradients, .. } = self;
        (arrays(limits, *len, parameters, density_per_mm), gradients.values_mut())
    }

    /// Sets the gradients to 0, but not the sums that adaptive control decides by; `views` are about to be added to these.
    ///
    /// # Errors
    /// As the operation.
    pub fn begin_step(&mut self, compute: &dyn Operations, views: usize) -> Result<(), ComputeError> {
        self.views += views as u64;
        compute.fill(0.0, self.gradients.values_mut().part(0..CHANNELS * self.limits.capacity))
    }

    /// Adds the norm of the present gradient by position to the sums that adaptive control decides by: where the gradient comes through a
    /// volume, no view has one of its own.
    ///
    /// # Errors
    /// As the operation.
    pub fn add_position_norms(&mut self, compute: &dyn Operations) -> Result<(), ComputeError> {
        let (gaussians, gradients) = self.arrays_and_gradients();
        compute.add_position_norms(&gaussians, gradients)
    }

    /// The mean norm that `share` of the Gaussians exceed: a threshold for [`adapt::AdaptiveControl`].
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the device does not give the norms back.
    pub fn norm_exceeded_by(&mut self, compute: &dyn Operations, share: f32) -> Result<f32, ComputeError> {
        self.edit(compute, |table| table.norm_exceeded_by(share))
    }

    /// One step of Adam along the gradients; `step` counts from 1.
    ///
    /// # Errors
    /// As the operation; none with the lengths used here.
    pub fn step(&mut self, compute: &dyn Operations, rates: &GaussianRates, step: u32) -> Result<(), ComputeError> {
        let unit_per_mm = self.limits.density_unit_per_mm;
        let (gaussians, gradients) = self.arrays_and_gradients();
        compute.weigh_density_gradient(&gaussians, unit_per_mm, gradients)?;
        let Self { limits: GaussianLimits { capacity, .. }, len, parameters, gradients, first, second, .. } = self;
        for channel in 0..CHANNELS {
            let rate = match channel {
                0 => rates.density,
                POSITION..SCALE => rates.position_mm,
                SCALE..ROTATION => rates.log_scale,
                _ => rates.rotation,
            };
            let part = channel * *capacity..channel * *capacity + *len;
            compute.adam_step(
                &AdamStep { rate, beta1: rates.beta1, beta2: rates.beta2, ..AdamStep::new(rate, step) },
                parameters.values_mut().part(part.clone()),
                gradients.values().part(part.clone()),
                first.values_mut().part(part.clone()),
                second.values_mut().part(part),
            )?;
        }
        self.settle(compute)
    }

    /// Brings scales within their limits and quaternions to unit length, and works out the densities.
    fn settle(&mut self, compute: &dyn Operations) -> Result<(), ComputeError> {
        let Self { limits, len, parameters, density_per_mm, .. } = self;
        let gaussians = GaussianArrays {
            parameters: parameters.values_mut(),
            density_per_mm: density_per_mm.values_mut(),
            len: *len,
            low_pass_mm: limits.low_pass_mm,
        };
        let scales_mm = [limits.smallest_scale_mm, limits.largest_scale_mm];
        compute.settle_gaussians(gaussians, limits.density_unit_per_mm, scales_mm)
    }

    /// Multiplies all densities.
    ///
    /// # Errors
    /// [`GaussianError::Setting`] where the factor is not finite and positive, [`GaussianError::Compute`] as the operations.
    pub fn scale_densities(&mut self, compute: &dyn Operations, factor: f32) -> Result<(), GaussianError> {
        if !(factor > 0.0 && factor.is_finite()) {
            return Err(GaussianError::Setting {
                field: "density factor",
                value: f64::from(factor),
                requirement: "must be finite and > 0",
            });
        }
        self.edit(compute, |table| {
            for (raw, &density) in table.parameters[..table.len].iter_mut().zip(&table.density_per_mm) {
                *raw = raw_of(factor * density / table.limits.density_unit_per_mm);
            }
        })?;
        Ok(self.settle(compute)?)
    }

    /// Has `work` change the Gaussians on the host.
    fn edit<R>(&mut self, compute: &dyn Memory, work: impl FnOnce(&mut Table) -> R) -> Result<R, ComputeError> {
        let Self { len, views, parameters, density_per_mm, gradients, first, second, table, .. } = self;
        (table.len, table.views) = (*len, *views);
        parameters.lend(compute, &mut table.parameters)?;
        density_per_mm.lend(compute, &mut table.density_per_mm)?;
        gradients.lend(compute, &mut table.gradients)?;
        first.lend(compute, &mut table.first)?;
        second.lend(compute, &mut table.second)?;
        let result = work(table);
        parameters.take_back(compute, &mut table.parameters)?;
        density_per_mm.take_back(compute, &mut table.density_per_mm)?;
        gradients.take_back(compute, &mut table.gradients)?;
        first.take_back(compute, &mut table.first)?;
        second.take_back(compute, &mut table.second)?;
        (*len, *views) = (table.len, table.views);
        Ok(result)
    }
}

/// The arrays of [`Gaussians`] on the host, while something is done there: the first draw, and rounds of adaptive control.
#[derive(Debug)]
struct Table {
    limits: GaussianLimits,
    len: usize,
    views: u64,
    parameters: Vec<f32>,
    density_per_mm: Vec<f32>,
    gradients: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    /// Indices, for initialisation and adaptive control.
    indices: Vec<u32>,
    cells: Vec<u32>,
}

impl Table {
    fn new(compute: &dyn Memory, limits: &GaussianLimits) -> Result<Self, GaussianError> {
        let capacity = limits.capacity;
        let memory = || GaussianError::Memory { capacity, bytes: Gaussians::bytes(capacity) };
        let floats = |channels: usize| {
            let (mut vec, len) = (Vec::new(), compute.copy_len(channels * capacity));
            vec.try_reserve_exact(len).map_err(|_| memory())?;
            vec.resize(len, 0.0f32);
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
            views: 0,
            parameters: floats(CHANNELS)?,
            density_per_mm: floats(1)?,
            gradients: floats(CHANNELS + 1)?,
            first: floats(CHANNELS)?,
            second: floats(CHANNELS)?,
            indices: words(capacity)?,
            cells: words(capacity + 1)?,
        })
    }

    /// See [`Gaussians::norm_exceeded_by`].
    fn norm_exceeded_by(&mut self, share: f32) -> f32 {
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

fn arrays<'a>(
    limits: &GaussianLimits,
    len: usize,
    parameters: &'a Buffer,
    density_per_mm: &'a Buffer,
) -> GaussianArrays<Values<'a>> {
    let (parameters, density_per_mm) = (parameters.values(), density_per_mm.values());
    GaussianArrays { parameters, density_per_mm, len, low_pass_mm: limits.low_pass_mm }
}

/// The `x` whose softplus is `value`, for values down to 1e-9.
fn raw_of(value: f32) -> f32 {
    let value = value.max(1e-9);
    value + (-(-value).exp_m1()).ln()
}

#[cfg(test)]
mod tests;
