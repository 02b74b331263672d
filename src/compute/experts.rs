//! A learned prior of volumes as an operation: Fields of Experts (Roth and Black 2009, Int. J. Comput. Vis. 82, 205), beside [`super::Compute`].
//!
//! **Definition.** Every neighbourhood of 3 x 3 x 3 voxels that lies wholly inside the grid is looked at by a few *experts*, each a pattern of 27
//! taps that sum up to zero and a potential that says how unlikely a response is:
//!
//! `R(f) = sum_i b(m_i) sum_k rho_k(t_ik)`, `t_ik = sum_o tap_ko f[i + o] / unit`, `m_i` the neighbourhood's mean over the unit;
//! `rho_k'(t) = a t / sqrt(s^2 + t^2) + a' s' t / (s'^2 + t^2)`.
//!
//! The first part of the potential is convex and grows like the modulus, as total variation does; the second saturates, so that a strong edge costs
//! hardly more than a clear one. `b` weighs tissues (lung, soft tissue, bone) differently: it is piecewise linear in the neighbourhood's
//! mean, which is **held** in the gradient, as reweighted methods do.
//!
//! Total variation is the prior of pictures of flat pieces. This one is learnt from CT volumes; `models/prior` says which, and how.

use super::{ComputeError, Values, ValuesMut};

/// Taps of an expert's pattern.
pub const TAPS: usize = 27;
/// Experts at most.
pub const MOST_EXPERTS: usize = 32;
/// Tissue weights at most.
pub const MOST_TISSUES: usize = 16;
/// Experts that are worked on together; their number is filled up to a multiple with experts that say nothing.
pub(super) const GROUP: usize = 8;

/// One expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expert {
    /// `[dx][dy][dz]`, each offset from -1 to 1.
    pub taps: [f32; TAPS],
    /// `a` and `s` of the convex part.
    pub convex: [f32; 2],
    /// `a'` and `s'` of the part that saturates.
    pub saturating: [f32; 2],
}

impl Expert {
    /// `rho'(t)` in float64: what the operation's is compared with.
    #[must_use]
    pub fn influence(&self, t: f64) -> f64 {
        let ([a, s], [b, c]) = (self.convex.map(f64::from), self.saturating.map(f64::from));
        a * t / t.hypot(s) + b * c * t / (c * c + t * t)
    }

    /// `rho(t)`, 0 at 0.
    #[must_use]
    pub fn potential(&self, t: f64) -> f64 {
        let ([a, s], [b, c]) = (self.convex.map(f64::from), self.saturating.map(f64::from));
        a * (t.hypot(s) - s) + 0.5 * b * c * (t / c).powi(2).ln_1p()
    }
}

/// All experts, as the operation reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    experts: Vec<Expert>,
    tissues: Vec<f32>,
    unit_per_mm: f32,
    /// Taps as the responses take them: `[group][offset][expert of the group]`.
    pub(super) taps: Vec<f32>,
    /// Taps as the way back takes them: `[dx][expert][dy][dz]`.
    pub(super) taps_back: Vec<f32>,
    /// `[expert]`: `s^2`, `a`, `s'^2`, `a' s'`.
    pub(super) potentials: Vec<[f32; 4]>,
    /// Slopes of the tissue weights from each knot to the next.
    pub(super) slopes: Vec<f32>,
}

impl Experts {
    /// Experts for volumes whose values are counted in `unit_per_mm` (1/mm), weighed by `tissues` at means of 0, 1/(n-1), ..., 1 units.
    ///
    /// # Errors
    /// [`ComputeError::Value`] for numbers that cannot work: none or too many, not finite, a width or unit not above 0, taps that do not sum up to 0.
    pub fn new(experts: Vec<Expert>, tissues: Vec<f32>, unit_per_mm: f32) -> Result<Self, ComputeError> {
        let refuse = |parameter, index, value, requirement| {
            Err(ComputeError::Value { operation: "experts", parameter, index, value, requirement })
        };
        if experts.is_empty() || experts.len() > MOST_EXPERTS {
            return refuse("experts", 0, experts.len() as f32, "there must be 1 to 32 experts");
        }
        if tissues.len() < 2 || tissues.len() > MOST_TISSUES {
            return refuse("tissues", 0, tissues.len() as f32, "there must be 2 to 16 tissue weights");
        }
        let positive = |value: f32| value > 1e-12 && value < 1e12;
        if !positive(unit_per_mm) {
            return refuse("unit_per_mm", 0, unit_per_mm, "must be finite and above 0");
        }
        if let Some(index) = tissues.iter().position(|&weight| !(0.0..1e12).contains(&weight)) {
            return refuse("tissues", index, tissues[index], "a tissue weight must be finite and not negative");
        }
        for (index, expert) in experts.iter().enumerate() {
            let size: f32 = expert.taps.iter().map(|tap| tap.abs()).sum();
            let sum: f32 = expert.taps.iter().sum();
            if !(size.is_finite() && sum.abs() <= 1e-4 * size.max(1e-6)) {
                return refuse("taps", index, sum, "the taps of an expert must be finite and sum up to 0");
            }
            for [amplitude, width] in [expert.convex, expert.saturating] {
                if !(0.0..1e12).contains(&amplitude) {
                    return refuse("amplitude", index, amplitude, "must be finite and not negative");
                }
                if !positive(width) {
                    return refuse("width", index, width, "must be finite and above 0");
                }
            }
        }
        let filled = experts.len().next_multiple_of(GROUP);
        let tap = |expert: usize, offset: usize| experts.get(expert).map_or(0.0, |expert| expert.taps[offset]);
        let mut taps = Vec::with_capacity(filled * TAPS);
        for group in 0..filled / GROUP {
            for offset in 0..TAPS {
                taps.extend((0..GROUP).map(|expert| tap(group * GROUP + expert, offset)));
            }
        }
        let mut taps_back = Vec::with_capacity(filled * TAPS);
        for dx in 0..3 {
            for expert in 0..filled {
                taps_back.extend((0..9).map(|offset| tap(expert, dx * 9 + offset)));
            }
        }
        let mut potentials: Vec<[f32; 4]> = experts
            .iter()
            .map(|expert| {
                let ([a, s], [b, c]) = (expert.convex, expert.saturating);
                [s * s, a, c * c, b * c]
            })
            .collect();
        potentials.resize(filled, [1.0, 0.0, 1.0, 0.0]);
        let slopes = tissues.windows(2).map(|pair| (pair[1] - pair[0]) * (tissues.len() - 1) as f32).collect();
        Ok(Self { experts, tissues, unit_per_mm, taps, taps_back, potentials, slopes })
    }

    /// The experts.
    #[must_use]
    pub fn experts(&self) -> &[Expert] {
        &self.experts
    }

    /// Weights of tissues by their mean, 0 to 1 units.
    #[must_use]
    pub fn tissues(&self) -> &[f32] {
        &self.tissues
    }

    /// What counts as 1, in 1/mm.
    #[must_use]
    pub fn unit_per_mm(&self) -> f32 {
        self.unit_per_mm
    }

    /// `b(m)`: linear between the tissue weights, flat beyond them.
    #[must_use]
    pub fn tissue_weight(&self, mean: f64) -> f64 {
        let at = mean.clamp(0.0, 1.0) * (self.tissues.len() - 1) as f64;
        let knot = (at as usize).min(self.tissues.len() - 2);
        let share = at - knot as f64;
        f64::from(self.tissues[knot]) * (1.0 - share) + f64::from(self.tissues[knot + 1]) * share
    }
}

/// The prior's operation. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// Nothing is allocated after [`ExpertsCompute::prepare_experts`], and the result is bit-identical for any number of threads.
pub trait ExpertsCompute: Send + Sync {
    /// Bytes of scratch for volumes of this size; `plan` lists them.
    fn experts_scratch_bytes(&self, voxels: [usize; 3]) -> usize;

    /// Allocates that scratch.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    fn prepare_experts(&mut self, voxels: [usize; 3]) -> Result<(), ComputeError>;

    /// **Adds** `weight * dR/df` times the unit, tissue weights held, to `gradient` (both `[x][y][z]`, the volume in 1/mm): that is
    /// `weight * sum_k (taps, turned over) * (b rho_k'(t_k))`. Where the grid is thinner than 3 voxels nothing is added.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] and [`ComputeError::Scratch`] where a buffer does not fit.
    fn add_experts_gradient(
        &self,
        experts: &Experts,
        voxels: [usize; 3],
        weight: f32,
        volume: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;
}
