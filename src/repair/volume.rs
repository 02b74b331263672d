//! A volume through the model: all slices of the planes chosen, averaged, as a pseudo-reference; and how far the planes disagree.

#![forbid(unsafe_code)]

use std::time::Instant;

use super::{RepairError, SliceFixer};
use crate::compute::slices::WindowUnits;
use crate::compute::{Operations, Values, ValuesMut};

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

/// What is repaired, `[x][y][z]`, in the memory of the model's carrier.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// Attenuation in 1/mm.
    pub volume: Values<'a>,
    /// What the scan says and the volume does not, likewise; it may be empty where the manifest does not ask for it.
    pub unexplained: Values<'a>,
}

/// Where a repaired volume is put, `[x][y][z]`, in the memory of the model's carrier. What a repair that failed leaves there means nothing.
#[derive(Debug)]
pub struct Repaired<'a> {
    /// Attenuation in 1/mm: the mean of the planes.
    pub per_mm: ValuesMut<'a>,
    /// Standard deviation over the planes in HU; empty where nobody asks.
    pub disagreement_hu: ValuesMut<'a>,
}

/// Repairs volumes of one scale.
#[derive(Debug, Clone, Copy)]
pub struct Repair {
    mu_water_per_mm: f64,
}

impl Repair {
    /// Repairs volumes whose water is `mu_water_per_mm`.
    ///
    /// # Errors
    /// [`RepairError::Input`] for an attenuation of water that is none.
    pub fn new(mu_water_per_mm: f64) -> Result<Self, RepairError> {
        if !(mu_water_per_mm.is_finite() && mu_water_per_mm > 1e-9 && mu_water_per_mm < 1e9) {
            return Err(RepairError::input(
                "mu_water_per_mm",
                mu_water_per_mm,
                "must be an attenuation in 1/mm above 0",
            ));
        }
        Ok(Self { mu_water_per_mm })
    }

    /// Repairs a volume. Nothing is given unless every slice of every plane is there, in time and sound: a run that is still going at the deadline is
    /// ended (between two nodes of the graph).
    ///
    /// # Errors
    /// [`RepairError::Input`] for a volume of another shape, with values that are no numbers, or before the scan's conditioning;
    /// [`RepairError::Output`], [`RepairError::Late`], [`RepairError::Interrupted`], [`RepairError::Run`], [`RepairError::Compute`].
    pub fn run(
        &self,
        compute: &dyn Operations,
        fixer: &mut SliceFixer,
        given: Given<'_>,
        repaired: Repaired<'_>,
        deadline: Option<Instant>,
        watch: &mut dyn Watch,
    ) -> Result<(), RepairError> {
        fixer.allow_until(deadline)?;
        let outcome = self.all_planes(compute, fixer, given, repaired, deadline, watch);
        // Runs that are not a repair's have no deadline.
        fixer.allow_until(None)?;
        outcome
    }

    fn all_planes(
        &self,
        compute: &dyn Operations,
        fixer: &mut SliceFixer,
        given: Given<'_>,
        repaired: Repaired<'_>,
        deadline: Option<Instant>,
        watch: &mut dyn Watch,
    ) -> Result<(), RepairError> {
        let Given { volume, unexplained } = given;
        let Repaired { per_mm: mut mean, disagreement_hu: mut squares } = repaired;
        let voxels = fixer.voxels();
        if volume.len() != voxels.iter().product::<usize>() {
            let wanted = format!("must be {voxels:?}");
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
        let units = window.of_attenuation(self.mu_water_per_mm);
        let limit = limit(compute, "volume", voxels, volume, units)?;
        let seen = [(volume, units), (unexplained, WindowUnits { offset: 0.0, ..units })];
        let seen = if sees_unexplained { &seen[..] } else { &seen[..1] };
        if sees_unexplained {
            self::limit(compute, "unexplained", voxels, unexplained, units)?;
        }
        let (slices, mut done) = (fixer.slices(), 0);
        let late = |done: usize| match deadline {
            Some(deadline) if Instant::now() >= deadline => Err(RepairError::Late { done, slices }),
            _ => Ok(()),
        };
        let planes = fixer.bound().len();
        for place in 0..planes {
            let bound = &fixer.bound()[place];
            let (plane, layout, batch) = (bound.plane, bound.layout, bound.batch);
            for first in (0..layout.slices()).step_by(batch) {
                late(done)?;
                if watch.interrupts() {
                    return Err(RepairError::Interrupted);
                }
                let count = batch.min(layout.slices() - first);
                // A run that was ended fails like any other; the clock says why, or whoever watches.
                let repaired = match fixer.repair_batch(compute, place, first, seen) {
                    Err(RepairError::Run { .. }) if late(done).is_err() => return late(done),
                    Err(RepairError::Run { .. }) if watch.interrupts() => return Err(RepairError::Interrupted),
                    outcome => outcome?.part(0..count * layout.pixels()),
                };
                if let Some(at) = compute.first_beyond(limit, repaired)? {
                    let value = value(compute, repaired, at)?;
                    return Err(RepairError::Output { plane, slice: first + at / layout.pixels(), value, limit });
                }
                compute.add_slices(&layout, first, place, repaired, mean.reborrow(), squares.reborrow())?;
                done += count;
                watch.at(done, slices);
            }
        }
        // A repair that ends late is late.
        late(done)?;
        compute.leave_window(units, mean)?;
        Ok(compute.deviations(0.5 * (window.high_hu - window.low_hu), planes, squares)?)
    }
}

/// Largest magnitude in window units that is taken; refuses volumes that are no numbers.
fn limit(
    compute: &dyn Operations,
    name: &str,
    [_, ny, nz]: [usize; 3],
    volume: Values<'_>,
    units: WindowUnits,
) -> Result<f32, RepairError> {
    let farthest = compute.farthest(units, volume)?;
    if !farthest.is_finite()
        && let Some(at) = compute.first_beyond(f32::MAX, volume)?
    {
        let place = format!("{name}[{}, {}, {}]", at / (ny * nz), at / nz % ny, at % nz);
        return Err(RepairError::input(place, value(compute, volume, at)?, "must be finite"));
    }
    Ok(LARGEST * farthest.max(1.0))
}

/// One of the values.
fn value(compute: &dyn Operations, values: Values<'_>, at: usize) -> Result<f32, RepairError> {
    let mut value = [0.0];
    compute.read(values.part(at..at + 1), &mut value)?;
    Ok(value[0])
}
