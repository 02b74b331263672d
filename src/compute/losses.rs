//! Losses as operations: each gives its value in float64 and its gradient by what was compared, in one call.
//!
//! **Structural similarity** (Wang et al. 2004, IEEE Trans. Image Process. 13, 600) with an 11 x 11 Gaussian window of sigma 1.5, population variances,
//! `C1 = (0.01 L)^2`, `C2 = (0.03 L)^2`, `L` the data range:
//!
//! `SSIM = (2 ma mb + C1)(2 cov + C2) / ((ma^2 + mb^2 + C1)(va + vb + C2))`.
//!
//! **At the border** the window keeps the pixels that there are, its weights rescaled to sum 1: every pixel is the centre of a window, so
//! that pixels at the border are held to the reference as firmly as others, no edge is invented (padding with zeros invents one, and biases the
//! variance of what is bright there), and images smaller than the window have a value too. [`crate::measure`] counts only the windows that lie
//! wholly inside, as the metric's tradition has it; the two agree window by window where both have one.

use super::cpu::check_values;
use super::{ComputeError, Left, Values, ValuesMut};
use crate::geometry::Detector;

/// Largest problem that a carrier must be ready for; see [`super::Workload`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LossWorkload {
    /// Detector columns; 0 where no [`LossCompute::image_loss`] is asked for.
    pub columns: usize,
    /// Detector rows.
    pub rows: usize,
    /// Views handed over in one call.
    pub views_per_call: usize,
    /// Voxels along x, y, z; 0 where no [`LossCompute::volume_ssim_loss`] is asked for.
    pub voxels: [usize; 3],
}

/// What [`LossCompute::image_loss`] is made of. A part of weight 0 is not worked out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageLoss {
    /// Weight of the mean of `|p - m|`.
    pub l1: f32,
    /// `|r|` is replaced by Huber's `r^2 / (2 h)` where `|r| < h` and `|r| - h/2` elsewhere; 0 for the plain modulus.
    pub huber: f32,
    /// Weight of the mean of `(p - m)^2`.
    pub squares: f32,
    /// Weight of `1 - SSIM`, the mean over all windows of all views.
    pub dissimilarity: f32,
    /// `L` of the similarity, in the projections' unit (dimensionless line integrals): usually the largest measured value.
    pub data_range: f32,
}

impl ImageLoss {
    /// Refuses settings that no loss can be worked out with; gives the largest value that goes with them.
    pub(super) fn check(&self, operation: &'static str) -> Result<f32, ComputeError> {
        check_setting(operation, "l1", self.l1)?;
        check_setting(operation, "huber", self.huber)?;
        check_setting(operation, "squares", self.squares)?;
        check_setting(operation, "dissimilarity", self.dissimilarity)?;
        Ok(if self.dissimilarity > 0.0 { check_range(operation, self.data_range)?.min(1e15) } else { 1e15 })
    }

    /// The pointwise parts of the gradient over `pixels` pixels.
    pub(super) fn slopes(&self, pixels: usize) -> PointSlopes {
        PointSlopes {
            sharpness: if self.huber > 0.0 { (1.0 / self.huber).min(f32::MAX) } else { f32::MAX },
            l1: (f64::from(self.l1) / pixels as f64) as f32,
            squares: (2.0 * f64::from(self.squares) / pixels as f64) as f32,
        }
    }

    /// Factor of the similarity's gradient over `pixels` pixels, by values in data ranges.
    pub(super) fn similarity_slope(&self, pixels: usize) -> f32 {
        (f64::from(self.dissimilarity) / (f64::from(self.data_range) * pixels as f64)) as f32
    }

    /// The value from the sums over `pixels` pixels of the parts that were worked out.
    pub(super) fn value(&self, pixels: usize, [moduli, squares, dissimilarity]: [f64; 3]) -> ImageLossValue {
        let part = |weight: f32, sum: f64| if weight > 0.0 { sum / pixels as f64 } else { 0.0 };
        let l1 = part(self.l1, moduli);
        let squares = part(self.squares, squares);
        let dissimilarity = part(self.dissimilarity, dissimilarity);
        let weighted = |weight: f32, value: f64| f64::from(weight) * value;
        let total =
            weighted(self.l1, l1) + weighted(self.squares, squares) + weighted(self.dissimilarity, dissimilarity);
        ImageLossValue { total, l1, squares, dissimilarity }
    }
}

/// Factors of the gradient of an image loss's pointwise parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct PointSlopes {
    /// `1 / huber`, or so large that only the sign is left.
    pub(super) sharpness: f32,
    pub(super) l1: f32,
    pub(super) squares: f32,
}

/// Refuses a setting that is not finite or negative.
fn check_setting(operation: &'static str, parameter: &'static str, value: f32) -> Result<(), ComputeError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(ComputeError::Value { operation, parameter, index: 0, value, requirement: "must be finite and not negative" })
}

/// Refuses a data range that no similarity can be worked out with; gives the largest value that goes with it.
fn check_range(operation: &'static str, data_range: f32) -> Result<f32, ComputeError> {
    if (1e-12..=1e12).contains(&data_range) {
        return Ok(1e8 * data_range);
    }
    let requirement = "must lie within 1e-12 and 1e12: give the reference's largest value";
    Err(ComputeError::Value { operation, parameter: "data_range", index: 0, value: data_range, requirement })
}

/// Values of the parts of an image loss, before their weights (0 for a part that was not worked out), and their weighted sum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ImageLossValue {
    /// The weighted sum, whose gradient was written.
    pub total: f64,
    /// Mean of `w |p - m|` (or Huber's).
    pub l1: f64,
    /// Mean of `w (p - m)^2`.
    pub squares: f64,
    /// `1 - SSIM`.
    pub dissimilarity: f64,
}

/// Settings of [`LossCompute::volume_ssim_loss`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VolumeSsimLoss {
    /// Factor of the gradient that is added.
    pub weight: f32,
    /// `L`, in the volume's unit.
    pub data_range: f32,
    /// The value of "nothing there": a slice whose reference has nothing above it is left out.
    pub empty_at: f32,
    /// What the slices across x, y, z weigh in the mean over the axes: `[1.0; 3]` for the plain mean, `[0.0, 0.0, 1.0]` for axial slices alone. An axis of
    /// weight 0 is not worked out and costs nothing; of one whose slices are all empty the others take the share.
    pub axes: [f32; 3],
}

impl VolumeSsimLoss {
    /// Refuses settings that no loss can be worked out with; gives the largest value that goes with them.
    pub(super) fn check(&self, operation: &'static str) -> Result<f32, ComputeError> {
        let refuse = |parameter, value, requirement| {
            Err(ComputeError::Value { operation, parameter, index: 0, value, requirement })
        };
        check_setting(operation, "weight", self.weight)?;
        let limit = check_range(operation, self.data_range)?;
        if !self.empty_at.is_finite() {
            return refuse("empty_at", self.empty_at, "must be finite");
        }
        check_values(operation, "axes", &self.axes, 0.0..=1e15)?;
        if self.axes == [0.0; 3] {
            return refuse(
                "axes",
                0.0,
                "must be above 0 for one axis at least; leave the loss out where none is wanted",
            );
        }
        Ok(limit)
    }

    /// The share of each axis in the mean, those that have slices sharing 1.
    pub(super) fn parts(&self, slices: [usize; 3]) -> [f64; 3] {
        let axes = [0, 1, 2].map(|axis| if slices[axis] > 0 { f64::from(self.axes[axis]) } else { 0.0 });
        let shared: f64 = axes.iter().sum();
        axes.map(|axis| if axis > 0.0 { axis / shared } else { 0.0 })
    }
}

/// What [`LossCompute::volume_ssim_loss`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct VolumeSsimValue {
    /// `1 - SSIM3D` (weighted by [`VolumeSsimLoss::axes`] only); 0 where every slice of the reference is empty.
    pub dissimilarity: f64,
    /// Mean of `1 - SSIM` over the slices across x, y, z; 0 where none took part.
    pub by_axis: [f64; 3],
    /// Slices across x, y, z that took part.
    pub slices: [usize; 3],
}

/// The losses. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// As with [`super::Compute`]: nothing is allocated after [`LossCompute::prepare_losses`], and every value and gradient is bit-identical for
/// any number of threads.
pub trait LossCompute: Send + Sync {
    /// Bytes of scratch that `workload` needs; `plan` lists them.
    fn loss_scratch_bytes(&self, workload: &LossWorkload) -> usize;

    /// Allocates the scratch of `workload`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    fn prepare_losses(&mut self, workload: &LossWorkload) -> Result<(), ComputeError>;

    /// Loss of `projections` against `measured`, both `[view][row v][column u]` of any number of views, and its gradient by `projections`, which
    /// **overwrites** `by_projections`. `weights` (same shape, not negative; none: 1) weigh each pixel in both pointwise parts, not in the
    /// similarity; see [`poisson_weights`].
    ///
    /// # Errors
    /// [`ComputeError::Shape`] and [`ComputeError::Scratch`] where a buffer does not fit, [`ComputeError::Value`] where a value or setting is not finite,
    /// out of range or negative; `by_projections` is then unspecified.
    fn image_loss(
        &self,
        detector: Detector,
        settings: &ImageLoss,
        projections: Values<'_>,
        measured: Values<'_>,
        weights: Option<Values<'_>>,
        by_projections: ValuesMut<'_>,
    ) -> Result<Left<ImageLossValue>, ComputeError>;

    /// The value that the last [`LossCompute::image_loss`] has left with the carrier, once its group has ended.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where it has left none, or the device refuses.
    fn image_loss_left(&self) -> Result<ImageLossValue, ComputeError> {
        Err(none_left("image_loss"))
    }

    /// `1 - SSIM3D` of `volume` against `reference`, both `[x][y][z]` and in one unit (1/mm): the mean over the three axes, weighted by
    /// [`VolumeSsimLoss::axes`], of the mean over the slices across each of the slices' two-dimensional SSIM, slices whose reference is empty
    /// left out. **Adds** `weight` times its gradient by `volume` to `by_volume`.
    ///
    /// # Errors
    /// As [`LossCompute::image_loss`]; `by_volume` is then untouched.
    fn volume_ssim_loss(
        &self,
        voxels: [usize; 3],
        settings: &VolumeSsimLoss,
        volume: Values<'_>,
        reference: Values<'_>,
        by_volume: ValuesMut<'_>,
    ) -> Result<Left<VolumeSsimValue>, ComputeError>;

    /// As [`LossCompute::image_loss_left`], of [`LossCompute::volume_ssim_loss`].
    ///
    /// # Errors
    /// As there.
    fn volume_ssim_loss_left(&self) -> Result<VolumeSsimValue, ComputeError> {
        Err(none_left("volume_ssim_loss"))
    }
}

/// For a carrier that has left no value of an operation.
pub(super) fn none_left(operation: &str) -> ComputeError {
    ComputeError::Device { device: "carrier".into(), reason: format!("{operation} has left no value with it") }
}

/// Weights of line integrals by their noise, with mean 1: the inverse of the variance of `-ln(N / photons)`, `N^2 / (N + electronic_noise^2)`, where
/// `N = photons exp(-p)` is the number of counts that line integral `p` makes one expect. Writes `weights`.
///
/// `photons` is the number per pixel without object, `electronic_noise` the detector's standard deviation in counts. Weights from the noisy
/// measurement itself favour pixels that happen to be bright; a smoothed or computed projection avoids that bias where counts are few.
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Value`] where a value is not finite or a setting not positive.
pub fn poisson_weights(
    photons: f64,
    electronic_noise: f64,
    line_integrals: &[f32],
    weights: &mut [f32],
) -> Result<(), ComputeError> {
    const OPERATION: &str = "poisson_weights";
    let (given, needed) = (weights.len(), line_integrals.len());
    if given != needed {
        return Err(ComputeError::Shape { operation: OPERATION, buffer: "weights", given, needed });
    }
    let refuse = |parameter, index, value, requirement| {
        Err(ComputeError::Value { operation: OPERATION, parameter, index, value, requirement })
    };
    if !(photons.is_finite() && photons > 0.0) {
        return refuse("photons", 0, photons as f32, "must be finite and above 0");
    }
    if !(electronic_noise.is_finite() && electronic_noise >= 0.0) {
        return refuse("electronic_noise", 0, electronic_noise as f32, "must be finite and not negative");
    }
    let mut sum = 0.0;
    for (index, (weight, &p)) in weights.iter_mut().zip(line_integrals).enumerate() {
        if !p.is_finite() {
            return refuse("line_integrals", index, p, "must be finite");
        }
        // In units of `photons`, and no brighter than e^5 times the air: a single wild value must not take all the weight.
        let counts = (-f64::from(p).max(-5.0)).exp();
        let relative = counts * counts / (counts + electronic_noise * electronic_noise / photons);
        *weight = relative as f32;
        sum += f64::from(*weight);
    }
    if sum > 0.0 {
        let scale = weights.len() as f64 / sum;
        weights.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * scale) as f32);
    }
    Ok(())
}
