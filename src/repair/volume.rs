//! A volume through the model: all slices of the planes chosen, averaged, as a pseudo-reference; and how far the planes disagree.

#![forbid(unsafe_code)]

use std::time::Instant;

use super::{RepairError, SliceFixer};

/// A repaired value may lie this many times as far from the window's middle as its edges, or as the farthest of the volume's own values
/// where that is farther. A model repairs; it does not invent metal.
pub const LARGEST: f32 = 4.0;

/// Watches a repair.
pub trait Watch {
    /// Called after each batch: so many slices of all are done.
    fn at(&mut self, done: usize, slices: usize);

    /// Whether to leave off; asked before each batch.
    fn interrupts(&self) -> bool {
        false
    }
}

impl Watch for () {
    fn at(&mut self, _: usize, _: usize) {}
}

/// Buffers of a repair: the mean over the planes and their spread.
#[derive(Debug)]
pub struct Repair {
    voxels: [usize; 3],
    mu_water_per_mm: f64,
    mean: Vec<f32>,
    /// Sums of squared deviations, later standard deviations; empty for one plane.
    spread: Vec<f32>,
}

/// A repaired volume, `[x][y][z]` as the volume that was given.
#[derive(Debug, Clone, Copy)]
pub struct Repaired<'a> {
    /// Attenuation in 1/mm: the mean of the planes.
    pub per_mm: &'a [f32],
    /// Standard deviation over the planes in HU, where there is more than one.
    pub disagreement_hu: Option<&'a [f32]>,
}

impl Repair {
    /// Buffers for the volumes and planes of a model.
    ///
    /// # Errors
    /// [`RepairError::Input`] for an attenuation of water that is none.
    pub fn new(fixer: &SliceFixer, mu_water_per_mm: f64) -> Result<Self, RepairError> {
        if !(mu_water_per_mm.is_finite() && mu_water_per_mm > 1e-9 && mu_water_per_mm < 1e9) {
            return Err(RepairError::input(
                "mu_water_per_mm",
                mu_water_per_mm,
                "must be an attenuation in 1/mm above 0",
            ));
        }
        let voxels = fixer.voxels();
        let count = voxels.iter().product();
        let spread = if fixer.planes().len() > 1 { vec![0.0; count] } else { Vec::new() };
        Ok(Self { voxels, mu_water_per_mm, mean: vec![0.0; count], spread })
    }

    /// Bytes of the buffers for so many voxels and planes.
    #[must_use]
    pub fn bytes(voxels: [usize; 3], planes: usize) -> usize {
        size_of::<f32>() * voxels.iter().product::<usize>() * planes.min(2)
    }

    /// Bytes of the buffers.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        size_of_val(&self.mean[..]) + size_of_val(&self.spread[..])
    }

    /// Repairs a volume in 1/mm, `[x][y][z]`; `unexplained` is what the scan says and the volume does not, likewise, and is not looked at (it may be empty)
    /// where the manifest does not ask for it. Nothing is given unless every slice of every plane is there, in time and sound: a run that
    /// is still going at the deadline is ended (between two nodes of the graph).
    ///
    /// # Errors
    /// [`RepairError::Input`] for a volume of another shape, with values that are no numbers, or before the scan's conditioning;
    /// [`RepairError::Output`], [`RepairError::Late`], [`RepairError::Interrupted`], [`RepairError::Run`].
    pub fn run(
        &mut self,
        fixer: &mut SliceFixer,
        volume: &[f32],
        unexplained: &[f32],
        deadline: Option<Instant>,
        watch: &mut dyn Watch,
    ) -> Result<Repaired<'_>, RepairError> {
        fixer.allow_until(deadline)?;
        let outcome = self.all_planes(fixer, (volume, unexplained), deadline, watch);
        // Runs that are not a repair's have no deadline.
        fixer.allow_until(None)?;
        outcome?;
        let disagreement_hu = (!self.spread.is_empty()).then_some(&self.spread[..]);
        Ok(Repaired { per_mm: &self.mean, disagreement_hu })
    }

    fn all_planes(
        &mut self,
        fixer: &mut SliceFixer,
        (volume, unexplained): (&[f32], &[f32]),
        deadline: Option<Instant>,
        watch: &mut dyn Watch,
    ) -> Result<(), RepairError> {
        if fixer.voxels() != self.voxels || fixer.planes().len() > 1 && self.spread.is_empty() {
            let given = format!("{:?}", fixer.voxels());
            return Err(RepairError::input("model", given, "is not the one that this repair was made for"));
        }
        if volume.len() != self.mean.len() {
            let wanted = format!("must be {:?}", self.voxels);
            return Err(RepairError::input("volume", format!("{} voxels", volume.len()), wanted));
        }
        let sees_unexplained = fixer.manifest().unexplained;
        if sees_unexplained && unexplained.len() != volume.len() {
            let given = format!("{} voxels", unexplained.len());
            let wanted = format!(
                "{} sees what the scan says and the volume does not: must be as long as the volume",
                fixer.manifest().name
            );
            return Err(RepairError::input("unexplained", given, wanted));
        }
        if !fixer.is_conditioned() {
            return Err(RepairError::input("scan", "(none)", "the model must be conditioned on it first"));
        }
        let window = fixer.manifest().window;
        let to_unit = window.of_attenuation(self.mu_water_per_mm);
        let limit = self.limit("volume", volume, to_unit)?;
        let seen = [(volume, to_unit), (unexplained, [to_unit[0], 0.0])];
        let seen = if sees_unexplained { &seen[..] } else { &seen[..1] };
        if sees_unexplained {
            self.limit("unexplained", unexplained, to_unit)?;
        }
        let (slices, mut done) = (fixer.slices(), 0);
        let late = |done: usize| match deadline {
            Some(deadline) if Instant::now() >= deadline => Err(RepairError::Late { done, slices }),
            _ => Ok(()),
        };
        for place in 0..fixer.bound().len() {
            let bound = &fixer.bound()[place];
            let (plane, layout, batch) = (bound.plane, bound.layout, bound.batch);
            for first in (0..layout.size[0]).step_by(batch) {
                late(done)?;
                if watch.interrupts() {
                    return Err(RepairError::Interrupted);
                }
                let count = batch.min(layout.size[0] - first);
                // A run that was ended fails like any other; the clock says why, or whoever watches.
                let repaired = match fixer.repair_batch(place, first, seen) {
                    Err(RepairError::Run { .. }) if late(done).is_err() => return late(done),
                    Err(RepairError::Run { .. }) if watch.interrupts() => return Err(RepairError::Interrupted),
                    outcome => outcome?,
                };
                let pixels = layout.padded[0] * layout.padded[1];
                let wrong = |value: &f32| value.is_nan() || value.abs() > limit;
                if let Some(at) = repaired[..count * pixels].iter().position(wrong) {
                    return Err(RepairError::Output { plane, slice: first + at / pixels, value: repaired[at], limit });
                }
                self.add(place, |take| layout.scatter(repaired, first, count, take));
                done += count;
                watch.at(done, slices);
            }
        }
        // A repair that ends late is late.
        late(done)?;
        let planes = fixer.bound().len();
        let half_width_hu = 0.5 * (window.high_hu - window.low_hu);
        let [scale, offset] = to_unit;
        for value in &mut self.mean {
            *value = ((f64::from(*value) - offset) / scale) as f32;
        }
        for value in &mut self.spread {
            *value = (half_width_hu * (f64::from(*value) / planes as f64).sqrt()) as f32;
        }
        Ok(())
    }

    /// Largest magnitude in window units that is taken; refuses volumes that are no numbers.
    fn limit(&self, name: &str, volume: &[f32], [scale, offset]: [f64; 2]) -> Result<f32, RepairError> {
        let mut farthest = 1.0_f32;
        for (at, value) in volume.iter().enumerate() {
            if !value.is_finite() {
                let [_, ny, nz] = self.voxels;
                let place = format!("{name}[{}, {}, {}]", at / (ny * nz), at / nz % ny, at % nz);
                return Err(RepairError::input(place, value, "must be finite"));
            }
            farthest = farthest.max((scale * f64::from(*value) + offset).abs() as f32);
        }
        Ok(LARGEST * farthest)
    }

    /// Takes the values of one more plane into mean and spread (Welford: nothing large is subtracted from anything large).
    fn add(&mut self, place: usize, each: impl FnOnce(&mut dyn FnMut(usize, f32))) {
        let (mean, spread) = (&mut self.mean, &mut self.spread);
        if place == 0 {
            each(&mut |at, value| {
                mean[at] = value;
                if let Some(spread) = spread.get_mut(at) {
                    *spread = 0.0;
                }
            });
        } else {
            let count = (place + 1) as f32;
            each(&mut |at, value| {
                let away = value - mean[at];
                mean[at] += away / count;
                spread[at] += away * (value - mean[at]);
            });
        }
    }
}
