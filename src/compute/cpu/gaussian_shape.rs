//! From a Gaussian's parameters to what projector and voxeliser work with, and the gradients back: float64, a Gaussian at a time.

#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};
use glam::DVec3;

use super::super::ComputeError;
use super::super::gaussians::{GaussianGradients, GaussianSet};
use super::check_len;

/// A symmetric matrix: xx, xy, xz, yy, yz, zz.
#[derive(Debug, Clone, Copy, Default, PartialEq, Zeroable, Pod)]
#[repr(C)]
pub(super) struct Symmetric(pub(super) [f64; 6]);

impl Symmetric {
    #[inline(always)]
    pub(super) fn times(&self, v: DVec3) -> DVec3 {
        let m = &self.0;
        DVec3::new(
            m[0] * v.x + m[1] * v.y + m[2] * v.z,
            m[1] * v.x + m[3] * v.y + m[4] * v.z,
            m[2] * v.x + m[4] * v.y + m[5] * v.z,
        )
    }

    /// Adds `factor v v'`.
    #[inline(always)]
    pub(super) fn add_square(&mut self, factor: f64, v: DVec3) {
        let f = v * factor;
        for (m, add) in self.0.iter_mut().zip([f.x * v.x, f.x * v.y, f.x * v.z, f.y * v.y, f.y * v.z, f.z * v.z]) {
            *m += add;
        }
    }

    /// Adds `factor (a b' + b a') / 2`.
    #[inline(always)]
    pub(super) fn add_product(&mut self, factor: f64, a: DVec3, b: DVec3) {
        let f = a * (0.5 * factor);
        let add = [
            2.0 * f.x * b.x,
            f.x * b.y + f.y * b.x,
            f.x * b.z + f.z * b.x,
            2.0 * f.y * b.y,
            f.y * b.z + f.z * b.y,
            2.0 * f.z * b.z,
        ];
        for (m, add) in self.0.iter_mut().zip(add) {
            *m += add;
        }
    }
}

/// A Gaussian after the low pass: `amplitude * g3(d' precision d)`.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C)]
pub(super) struct Shape {
    pub(super) centre_mm: [f64; 3],
    /// In 1/mm.
    pub(super) amplitude: f64,
    /// `R diag(s'^2) R'`, in mm^2.
    pub(super) covariance: Symmetric,
    /// Its inverse; both are kept, for neither is to be had from the other without loss for needles.
    pub(super) precision: Symmetric,
    /// Product of the three `s'`, in mm^3.
    pub(super) volume: f64,
}

/// Floats a [`Shape`] takes in the scratch.
pub(super) const SHAPE_FLOATS: usize = size_of::<Shape>() / size_of::<f32>();

/// Gradients by what a [`Shape`] holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ShapeGradient {
    pub(super) centre: DVec3,
    pub(super) amplitude: f64,
    pub(super) covariance: Symmetric,
    pub(super) precision: Symmetric,
    /// By the logarithm of the volume.
    pub(super) log_volume: f64,
    pub(super) view_norm: f64,
}

/// What is between parameters and [`Shape`].
struct Axes {
    /// The Gaussian's own axes in the world.
    axes: [DVec3; 3],
    /// Unit quaternion w, x, y, z and the stored one's length.
    unit: [f64; 4],
    length: f64,
    /// `s^2` and `s'^2`.
    square: [f64; 3],
    low_passed: [f64; 3],
}

impl Axes {
    #[inline(always)]
    fn of(set: &GaussianSet<'_>, i: usize) -> Self {
        let q = set.rotation.map(|c| f64::from(c[i]));
        let length = q.iter().map(|c| c * c).sum::<f64>().sqrt();
        let unit @ [w, x, y, z] = q.map(|c| c / length);
        let square = set.log_scale.map(|c| (2.0 * f64::from(c[i])).exp());
        let low_pass = f64::from(set.low_pass_mm) * f64::from(set.low_pass_mm);
        Self {
            axes: [
                DVec3::new(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)),
                DVec3::new(2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)),
                DVec3::new(2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)),
            ],
            unit,
            length,
            square,
            low_passed: square.map(|s| s + low_pass),
        }
    }

    /// Product of `s / s'`.
    #[inline(always)]
    fn kept(&self) -> f64 {
        let [a, b, c] = self.square;
        let [d, e, f] = self.low_passed;
        (a * b * c / (d * e * f)).sqrt()
    }
}

impl Shape {
    /// Shape of Gaussian `i`.
    #[inline(always)]
    pub(super) fn of(set: &GaussianSet<'_>, i: usize) -> Self {
        let a = Axes::of(set, i);
        let (mut covariance, mut precision) = (Symmetric::default(), Symmetric::default());
        for (axis, square) in a.axes.into_iter().zip(a.low_passed) {
            covariance.add_square(square, axis);
            precision.add_square(1.0 / square, axis);
        }
        Self {
            centre_mm: set.position_mm.map(|c| f64::from(c[i])),
            amplitude: f64::from(set.density_per_mm[i]) * a.kept(),
            covariance,
            precision,
            volume: a.low_passed.iter().product::<f64>().sqrt(),
        }
    }

    #[inline(always)]
    pub(super) fn centre(&self) -> DVec3 {
        DVec3::from_array(self.centre_mm)
    }
}

/// Gradients of one Gaussian by its parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct ParameterGradient {
    pub(super) density: f64,
    pub(super) position: [f64; 3],
    pub(super) log_scale: [f64; 3],
    pub(super) rotation: [f64; 4],
    pub(super) view_norm: f64,
}

impl ShapeGradient {
    /// Through the low pass, the scales and the rotation.
    #[inline(always)]
    pub(super) fn by_parameters(&self, set: &GaussianSet<'_>, i: usize) -> ParameterGradient {
        let a = Axes::of(set, i);
        let kept = a.kept();
        let amplitude = f64::from(set.density_per_mm[i]) * kept;
        let mut log_scale = [0.0; 3];
        let mut by_axes = [DVec3::ZERO; 3];
        for k in 0..3 {
            let wide = a.low_passed[k] * self.covariance.times(a.axes[k]);
            let narrow = self.precision.times(a.axes[k]) / a.low_passed[k];
            by_axes[k] = 2.0 * (wide + narrow);
            let share = a.square[k] / a.low_passed[k];
            let by_low_passed = 2.0 * a.axes[k].dot(wide - narrow) + self.log_volume;
            log_scale[k] = share * by_low_passed + (1.0 - share) * self.amplitude * amplitude;
        }
        let [w, x, y, z] = a.unit;
        let [r0, r1, r2] = by_axes;
        let by_unit = [
            2.0 * (z * r0.y - y * r0.z - z * r1.x + x * r1.z + y * r2.x - x * r2.y),
            2.0 * (y * r0.y + z * r0.z + y * r1.x - 2.0 * x * r1.y + w * r1.z + z * r2.x - w * r2.y - 2.0 * x * r2.z),
            2.0 * (-2.0 * y * r0.x + x * r0.y - w * r0.z + x * r1.x + z * r1.z + w * r2.x + z * r2.y - 2.0 * y * r2.z),
            2.0 * (-2.0 * z * r0.x + w * r0.y + x * r0.z - w * r1.x - 2.0 * z * r1.y + y * r1.z + x * r2.x + y * r2.y),
        ];
        let along: f64 = by_unit.iter().zip(a.unit).map(|(g, q)| g * q).sum();
        let mut rotation = [0.0; 4];
        for k in 0..4 {
            rotation[k] = (by_unit[k] - along * a.unit[k]) / a.length;
        }
        ParameterGradient {
            density: self.amplitude * kept,
            position: self.centre.to_array(),
            log_scale,
            rotation,
            view_norm: self.view_norm,
        }
    }
}

/// Refuses arrays of different lengths.
pub(super) fn check_set(operation: &'static str, set: &GaussianSet<'_>) -> Result<(), ComputeError> {
    let n = set.len();
    for (name, array) in named(set) {
        check_len(operation, name, array.len(), n)?;
    }
    if !set.low_pass_mm.is_finite() || set.low_pass_mm < 0.0 {
        return Err(ComputeError::Value {
            operation,
            parameter: "low_pass_mm",
            index: 0,
            value: set.low_pass_mm,
            requirement: "must be finite and not negative",
        });
    }
    Ok(())
}

/// Refuses gradient arrays of another length than the set's.
pub(super) fn check_gradients(
    operation: &'static str,
    set: &GaussianSet<'_>,
    gradients: &GaussianGradients<'_>,
) -> Result<(), ComputeError> {
    let n = set.len();
    check_len(operation, "gradients.density_per_mm", gradients.density_per_mm.len(), n)?;
    check_len(operation, "gradients.view_norm", gradients.view_norm.len(), n)?;
    for array in &gradients.position_mm {
        check_len(operation, "gradients.position_mm", array.len(), n)?;
    }
    for array in &gradients.log_scale {
        check_len(operation, "gradients.log_scale", array.len(), n)?;
    }
    for array in &gradients.rotation {
        check_len(operation, "gradients.rotation", array.len(), n)?;
    }
    Ok(())
}

/// The arrays by the names that errors use.
fn named<'a>(set: &GaussianSet<'a>) -> [(&'static str, &'a [f32]); 11] {
    [
        ("density_per_mm", set.density_per_mm),
        ("position_mm.x", set.position_mm[0]),
        ("position_mm.y", set.position_mm[1]),
        ("position_mm.z", set.position_mm[2]),
        ("log_scale.0", set.log_scale[0]),
        ("log_scale.1", set.log_scale[1]),
        ("log_scale.2", set.log_scale[2]),
        ("rotation.w", set.rotation[0]),
        ("rotation.x", set.rotation[1]),
        ("rotation.y", set.rotation[2]),
        ("rotation.z", set.rotation[3]),
    ]
}

/// Whether Gaussian `i` can be worked with; [`refusal`] says what is wrong.
#[inline(always)]
pub(super) fn is_sound(set: &GaussianSet<'_>, i: usize) -> bool {
    let position = set.position_mm.map(|c| c[i]);
    let scale = set.log_scale.map(|c| c[i]);
    let rotation = set.rotation.map(|c| c[i]);
    // NaN fails every comparison.
    set.density_per_mm[i].is_finite()
        && position.iter().all(|c| c.abs() <= 1e9)
        && scale.iter().all(|c| c.abs() <= LOG_SCALE_LIMIT)
        && (1e-12..1e12).contains(&rotation.iter().map(|c| c * c).sum::<f32>())
}

/// Largest size of a log scale: 7e10 mm.
const LOG_SCALE_LIMIT: f32 = 25.0;

/// Why Gaussian `i` is not sound.
pub(super) fn refusal(operation: &'static str, set: &GaussianSet<'_>, i: usize) -> ComputeError {
    let error =
        |parameter, value, requirement| ComputeError::Value { operation, parameter, index: i, value, requirement };
    for (name, array) in named(set) {
        if !array[i].is_finite() {
            return error(name, array[i], "must be finite");
        }
    }
    for (name, array) in &named(set)[1..4] {
        if array[i].abs() > 1e9 {
            return error(name, array[i], "must lie within 1e9 mm of the isocenter");
        }
    }
    for (name, array) in &named(set)[4..7] {
        if array[i].abs() > LOG_SCALE_LIMIT {
            return error(name, array[i], "must lie within -25 and 25 (natural logarithm of mm)");
        }
    }
    let square = set.rotation.iter().map(|c| c[i] * c[i]).sum();
    error("rotation (squared length)", square, "must lie within 1e-12 and 1e12")
}
