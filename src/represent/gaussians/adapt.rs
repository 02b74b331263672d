//! Adaptive control: where the views pull hardest, Gaussians are cloned or split; what holds nothing is taken away. The same input gives
//! the same Gaussians, in the same order.
//!
//! * **Prune** what is thinner than a density, or centred outside the box.
//! * **Split** large Gaussians along their longest axis into two of `c = 0.6` of that scale, `0.8` of it to either side, each with `1 / (2 c)` of the
//!   density: mass, centre and covariance of the pair are those of the one (two at `scale / 1.6` and half the density, as the literature has it,
//!   keep a quarter of the mass, and the projections jump).
//! * **Clone** small ones: two of half the density, the second moved by a seeded random offset of a third of its scales, without which both
//!   would forever take the same steps.
//!
//! Where the capacity does not suffice, those with the largest gradients are served.

#![forbid(unsafe_code)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{CHANNELS, Gaussians, POSITION, ROTATION, SCALE, Table, raw_of, softplus};
use crate::compute::{ComputeError, Operations};
use crate::geometry::VolumeGrid;

/// Rules of one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveControl {
    /// Mean over views of the norm of the gradient by position (loss per mm) above which a Gaussian is cloned or split.
    pub gradient_threshold: f32,
    /// Largest scale up to which a Gaussian is cloned instead of split.
    pub clone_up_to_mm: f32,
    /// Density below which a Gaussian is pruned.
    pub prune_below_per_mm: f32,
    /// Seed of the clones' offsets.
    pub seed: u64,
    /// Number of the round: another stream of the same seed.
    pub round: u64,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Adapted {
    /// Gaussians taken away.
    pub pruned: usize,
    /// Gaussians cloned.
    pub cloned: usize,
    /// Gaussians split.
    pub split: usize,
    /// Gaussians left as they are for want of room.
    pub without_room: usize,
}

/// Share of its scale along the longest axis that each half of a split Gaussian has.
const HALF_SCALE: f32 = 0.6;
/// How far the halves move: `sqrt(1 - 0.6^2)` scales.
const HALF_OFFSET: f32 = 0.8;
/// Scales that a clone is moved by (standard deviation would be this over the root of three).
const CLONE_OFFSET: f32 = 1.0 / 3.0;

impl Gaussians {
    /// One round of adaptive control within `grid`'s box; begins new sums of gradients.
    ///
    /// # Errors
    /// As the operations.
    pub fn adapt(
        &mut self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        rules: &AdaptiveControl,
    ) -> Result<Adapted, ComputeError> {
        let adapted = self.edit(compute, |table| table.adapt(grid, rules))?;
        self.settle(compute)?;
        Ok(adapted)
    }
}

impl Table {
    fn adapt(&mut self, grid: &VolumeGrid, rules: &AdaptiveControl) -> Adapted {
        let pruned = self.prune(grid, rules.prune_below_per_mm);
        let (capacity, views) = (self.limits.capacity, self.views.max(1) as f32);
        let norms = CHANNELS * capacity;
        let mut chosen = 0;
        for i in 0..self.len {
            if self.gradients[norms + i] / views > rules.gradient_threshold {
                self.indices[chosen] = i as u32;
                chosen += 1;
            }
        }
        let served = chosen.min(capacity - self.len);
        if served < chosen && served > 0 {
            let gradients = &self.gradients[norms..];
            // A strict order: those served do not depend on how the selection goes about it.
            self.indices[..chosen].select_nth_unstable_by(served - 1, |&a, &b| {
                gradients[b as usize].total_cmp(&gradients[a as usize]).then(a.cmp(&b))
            });
            self.indices[..served].sort_unstable();
        }
        let mut adapted = Adapted { pruned, without_room: chosen - served, ..Adapted::default() };
        let mut random = ChaCha8Rng::seed_from_u64(rules.seed);
        random.set_stream(rules.round);
        for k in 0..served {
            let i = self.indices[k] as usize;
            let values = self.values(i);
            let scales: [f32; 3] = std::array::from_fn(|axis| values[SCALE + axis].exp());
            let longest = (0..3).fold(0, |best, axis| if scales[axis] > scales[best] { axis } else { best });
            let (mut one, mut other) = (values, values);
            if scales[longest] <= rules.clone_up_to_mm {
                let raw = raw_of(0.5 * softplus(values[0]));
                (one[0], other[0]) = (raw, raw);
                let offset = scales.map(|scale| CLONE_OFFSET * scale * random.random_range(-1.0f32..1.0));
                move_along(&mut other, offset);
                // The first goes on with its moments.
                for (channel, value) in one.into_iter().enumerate() {
                    self.parameters[channel * capacity + i] = value;
                }
                adapted.cloned += 1;
            } else {
                let raw = raw_of(softplus(values[0]) / (2.0 * HALF_SCALE));
                for (half, side) in [(&mut one, -1.0), (&mut other, 1.0)] {
                    half[0] = raw;
                    half[SCALE + longest] += HALF_SCALE.ln();
                    let mut offset = [0.0; 3];
                    offset[longest] = side * HALF_OFFSET * scales[longest];
                    move_along(half, offset);
                }
                self.put(i, &one);
                adapted.split += 1;
            }
            self.put(self.len, &other);
            self.len += 1;
        }
        self.clear_norms();
        adapted
    }

    /// Takes away what is too thin, outside the box, or not a number; the others close up in their order.
    fn prune(&mut self, grid: &VolumeGrid, below_per_mm: f32) -> usize {
        let capacity = self.limits.capacity;
        let half = 0.5 * grid.size_mm();
        let mut kept = 0;
        for i in 0..self.len {
            let inside = (0..3).all(|axis| {
                let from_centre = f64::from(self.parameters[(POSITION + axis) * capacity + i]) - grid.centre_mm[axis];
                from_centre.abs() <= half[axis]
            });
            if !(inside && self.density_per_mm[i] >= below_per_mm) {
                continue;
            }
            if kept < i {
                for channel in 0..CHANNELS {
                    let (to, from) = (channel * capacity + kept, channel * capacity + i);
                    self.parameters[to] = self.parameters[from];
                    self.first[to] = self.first[from];
                    self.second[to] = self.second[from];
                }
                self.gradients[CHANNELS * capacity + kept] = self.gradients[CHANNELS * capacity + i];
                self.density_per_mm[kept] = self.density_per_mm[i];
            }
            kept += 1;
        }
        let pruned = self.len - kept;
        self.len = kept;
        pruned
    }
}

/// Moves a Gaussian by `offset` mm along its own axes.
fn move_along(values: &mut [f32; CHANNELS], offset: [f32; 3]) {
    let [w, x, y, z]: [f32; 4] = std::array::from_fn(|k| values[ROTATION + k]);
    let turned = glam::Quat::from_xyzw(x, y, z, w).normalize() * glam::Vec3::from_array(offset);
    for (axis, by) in turned.to_array().into_iter().enumerate() {
        values[POSITION + axis] += by;
    }
}
