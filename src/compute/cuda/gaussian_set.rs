//! Gaussians on the device: the arrays of [`crate::compute::gaussians::GaussianSet`] and their gradients, channel by channel.

#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::{DeviceSlice, check_len, count};

/// Channels of parameters, and of gradients.
pub(super) const CHANNELS: usize = 11;

/// Gaussians on the device. The capacity is the number of densities that there is room for.
#[derive(Debug, Clone, Copy)]
pub struct DeviceGaussians {
    /// `[channel][capacity]`: the density's raw value (which the operations do not read), position x y z in mm, log scale 0 1 2, quaternion w x y z.
    pub parameters: DeviceSlice<f32>,
    /// `rho`, `[capacity]`, in 1/mm.
    pub density_per_mm: DeviceSlice<f32>,
    /// Gaussians there are: the first so many of each channel.
    pub len: usize,
    /// Standard deviation of the low pass, one for all; 0 for none.
    pub low_pass_mm: f32,
}

/// `gaussians::Set` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SetArgument {
    count: i32,
    capacity: i32,
    low_pass_mm: f32,
}

impl DeviceGaussians {
    /// Gaussians there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.density_per_mm.len()
    }

    /// Refuses arrays of other lengths.
    pub(super) fn check(&self, operation: &'static str) -> Result<SetArgument, ComputeError> {
        let capacity = self.capacity();
        check_len(operation, "parameters", self.parameters.len(), CHANNELS.saturating_mul(capacity))?;
        if self.len > capacity {
            return Err(ComputeError::Shape { operation, buffer: "gaussians", given: capacity, needed: self.len });
        }
        if !self.low_pass_mm.is_finite() || self.low_pass_mm < 0.0 {
            return Err(ComputeError::Value {
                operation,
                parameter: "low_pass_mm",
                index: 0,
                value: self.low_pass_mm,
                requirement: "must be finite and not negative",
            });
        }
        Ok(SetArgument {
            count: count(operation, "Gaussians", self.len)?,
            capacity: count(operation, "Gaussians", capacity)?,
            low_pass_mm: self.low_pass_mm,
        })
    }

    /// Refuses gradients (`[12][capacity]`: a channel a parameter as in `parameters`, density first, and the views' norms) of another length.
    pub(super) fn check_gradients(
        &self,
        operation: &'static str,
        gradients: DeviceSlice<f32>,
    ) -> Result<(), ComputeError> {
        check_len(operation, "gradients", gradients.len(), (CHANNELS + 1).saturating_mul(self.capacity()))
    }
}
