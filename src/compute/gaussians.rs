//! The operations of 3D Gaussians: what the representation asks of a processor, beside [`super::Compute`].
//!
//! **The object.** Gaussian `i` adds to the volume, at a point with `y = S^-1 R' (x - p)` and `q = y.y`,
//! `rho * (exp(-q/2) - exp(-Q) exp(q/2))` where `q < Q`, else nothing: a Gaussian that ends smoothly at `Q = `[`CUTOFF`] (it
//! differs from the endless Gaussian by less than `exp(-Q/2) = 9.2e-4` of `rho` everywhere, most at the edge, and holds 99.46 % of its mass).
//! The volume **is** this sum: the projector gives its exact line integrals and the voxeliser its exact values, so that the
//! two agree to the voxels' own sampling error.
//!
//! **Low pass.** All operations work on `s_k' = sqrt(s_k^2 + low_pass^2)` and `rho' = rho * prod(s_k / s_k')`: the Gaussian convolved
//! with an isotropic one of `low_pass_mm`, its mass kept. A Gaussian thinner than a pixel then cannot fall between the pixels'
//! centres: sampled sums of a Gaussian of `s` pixels miss its mass by at most `2 exp(-2 pi^2 s^2)` a direction, 8.5 % at 0.4 and 1.4 %
//! at 0.5 pixel. Averaging over a cubic cell of edge `v` instead of sampling its centre has the variance of
//! `low_pass_mm = v / sqrt(12)`; variances add.

use super::{ComputeError, Values, ValuesMut};
use crate::geometry::{ScanGeometry, VolumeGrid};

/// `Q`: the squared Mahalanobis distance at which a Gaussian ends.
pub const CUTOFF: f64 = 14.0;

/// Largest problem that a carrier must be ready for; see [`super::Workload`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GaussianWorkload {
    /// Gaussians (the fixed capacity).
    pub gaussians: usize,
    /// Detector columns.
    pub columns: usize,
    /// Detector rows.
    pub rows: usize,
    /// Views handed over in one backward call.
    pub views_per_call: usize,
    /// Voxels along x, y, z of the largest grid.
    pub voxels: [usize; 3],
}

/// Channels of a Gaussian's parameters: raw density, position x y z in mm, natural logarithm of the scales 0 1 2, rotation w x y z.
pub const CHANNELS: usize = 11;

/// Gaussians in the memory of a carrier; see [`GaussianSet`] for what the values mean. The capacity is the length of `density_per_mm`.
#[derive(Debug, Clone, Copy)]
pub struct GaussianArrays<V> {
    /// `[channel][capacity]`, [`CHANNELS`] of them; the first is what a representation makes the density of, which the operations do not read.
    pub parameters: V,
    /// `rho` in 1/mm, `[capacity]`.
    pub density_per_mm: V,
    /// Gaussians there are: the first so many of each channel.
    pub len: usize,
    /// Standard deviation of the low pass, one for all; 0 for none.
    pub low_pass_mm: f32,
}

/// Gaussians on the host: a structure of arrays, each of the same length.
#[derive(Debug, Clone, Copy)]
pub struct GaussianSet<'a> {
    /// `rho`, attenuation at the centre in 1/mm; any sign.
    pub density_per_mm: &'a [f32],
    /// Centre x, y, z in the world frame.
    pub position_mm: [&'a [f32]; 3],
    /// Natural logarithm of the standard deviations in mm along the Gaussian's own axes; within ±25.
    pub log_scale: [&'a [f32]; 3],
    /// Quaternion w, x, y, z that turns the Gaussian's own axes into the world's; need not be of unit length, must not be zero.
    pub rotation: [&'a [f32]; 4],
    /// Standard deviation of the low pass (see the module), one for all; 0 for none.
    pub low_pass_mm: f32,
}

impl GaussianSet<'_> {
    /// Gaussians in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.density_per_mm.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Gradients of a loss by each value of a [`GaussianSet`], in the same units and order. The operations **add** to them.
#[derive(Debug)]
pub struct GaussianGradients<'a> {
    /// By `density_per_mm`.
    pub density_per_mm: &'a mut [f32],
    /// By `position_mm`.
    pub position_mm: [&'a mut [f32]; 3],
    /// By the logarithms of the scales.
    pub log_scale: [&'a mut [f32]; 3],
    /// By the quaternion as stored (at right angles to it: its length has no effect).
    pub rotation: [&'a mut [f32]; 4],
    /// Sum over views of the norm of that view's gradient by position (loss per mm): what adaptive control decides by. The
    /// gradients of single views point different ways where one Gaussian stands for two things; their norms do not cancel.
    pub view_norm: &'a mut [f32],
}

/// Settings of one step of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate, in the parameters' unit.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Number of this step, from 1 (for the correction of the start).
    pub step: u32,
}

impl AdamStep {
    /// The usual decays 0.9 and 0.999 and an epsilon of 1e-15 (gradients of a mean over a million pixels are tiny).
    #[must_use]
    pub fn new(rate: f32, step: u32) -> Self {
        Self { rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-15, step }
    }

    /// The rate over `1 - beta1^step`, and `1 / (1 - beta2^step)`, which the second moment is multiplied by: the correction of the start.
    pub(super) fn corrected(&self) -> (f32, f32) {
        let power = |beta: f32| 1.0 - f64::from(beta).powf(f64::from(self.step.max(1)));
        ((f64::from(self.rate) / power(self.beta1)) as f32, (1.0 / power(self.beta2)) as f32)
    }
}

/// `ln(1 + e^x)`.
pub(crate) fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The operations of 3D Gaussians. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// As with [`super::Compute`]: nothing is allocated after [`GaussianCompute::prepare_gaussians`], and every result is
/// bit-identical for any number of threads.
pub trait GaussianCompute: Send + Sync {
    /// Bytes of scratch that `workload` needs; `plan` lists them.
    fn gaussian_scratch_bytes(&self, workload: &GaussianWorkload) -> usize;

    /// Allocates the scratch of `workload`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    fn prepare_gaussians(&mut self, workload: &GaussianWorkload) -> Result<(), ComputeError>;

    /// Line integrals (dimensionless) of all Gaussians along each pixel's ray, through the pixel's centre, summed, onto
    /// `[view][row v][column u]`. Overwrites `projections`. Gaussians that do not lie wholly before the source (seen along the
    /// detector's normal) add nothing to that view.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] and [`ComputeError::Scratch`] where a buffer does not fit, [`ComputeError::Value`] where a parameter is not finite.
    fn gaussian_project(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianArrays<Values<'_>>,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Adds to `gradients` what the gradient `by_projections` of a loss (`[view][row v][column u]`) means for each parameter: `[channel][capacity]`,
    /// density, position, logarithms of the scales, rotation, and as one more channel the views' norms (see [`GaussianGradients`]).
    ///
    /// # Errors
    /// As [`GaussianCompute::gaussian_project`].
    fn gaussian_project_backward(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianArrays<Values<'_>>,
        by_projections: Values<'_>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Values (1/mm) of the sum of all Gaussians at the voxels' centres, `[x][y][z]`. Overwrites `volume`. A part of a grid is a grid
    /// of its own: see [`VolumeGrid::part`].
    ///
    /// # Errors
    /// As [`GaussianCompute::gaussian_project`].
    fn gaussian_voxelise(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianArrays<Values<'_>>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Adds to `gradients` what the gradient `by_volume` of a loss (`[x][y][z]`) means for each parameter; the views' norms are left alone.
    ///
    /// # Errors
    /// As [`GaussianCompute::gaussian_project`].
    fn gaussian_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianArrays<Values<'_>>,
        by_volume: Values<'_>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// One step of Adam (Kingma and Ba 2015) on `parameters`; `first` and `second` are its moments, all of one length.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn adam_step(
        &self,
        settings: &AdamStep,
        parameters: ValuesMut<'_>,
        gradients: Values<'_>,
        first: ValuesMut<'_>,
        second: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Turns the gradient by density, the first channel of `gradients`, into that by its raw value: `gradient *= unit / (1 + exp(-raw))` for a density of
    /// `unit * softplus(raw)`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn weigh_density_gradient(
        &self,
        gaussians: &GaussianArrays<Values<'_>>,
        density_unit_per_mm: f32,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Adds the norm of the gradient by position to the last channel of `gradients`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn add_position_norms(
        &self,
        gaussians: &GaussianArrays<Values<'_>>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// After a step: brings scales within `scales_mm` (smallest, largest) and quaternions to unit length (one that has vanished, squared length up to
    /// 1e-12, becomes 1, 0, 0, 0), and works out the densities `unit * softplus(raw)`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn settle_gaussians(
        &self,
        gaussians: GaussianArrays<ValuesMut<'_>>,
        density_unit_per_mm: f32,
        scales_mm: [f32; 2],
    ) -> Result<(), ComputeError>;
}
