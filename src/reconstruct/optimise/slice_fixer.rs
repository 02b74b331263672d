//! SliceFixer ([`crate::repair`]) as what repairs a run's volumes.

use super::augment::{NotRepaired, Repairer};
use crate::repair::{Repair, RepairError, SliceFixer, Watch};

/// A model that is conditioned on the scan, and its buffers.
pub struct SliceFixing {
    fixer: SliceFixer,
    repair: Repair,
}

impl SliceFixing {
    /// Repairs volumes whose water is `mu_water_per_mm` with `fixer`.
    ///
    /// # Errors
    /// [`RepairError::Input`] for an attenuation of water that is none.
    pub fn new(fixer: SliceFixer, mu_water_per_mm: f64) -> Result<Self, RepairError> {
        let repair = Repair::new(&fixer, mu_water_per_mm)?;
        Ok(Self { fixer, repair })
    }

    /// Bytes of the buffers; what ONNX Runtime takes for itself comes on top.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.fixer.buffer_bytes() + self.repair.buffer_bytes()
    }
}

/// Passes the question on.
struct Asked<'a>(&'a dyn Fn() -> bool);

impl Watch for Asked<'_> {
    fn at(&mut self, _: usize, _: usize) {}

    fn interrupts(&self) -> bool {
        (self.0)()
    }
}

impl Repairer for SliceFixing {
    fn repair(
        &mut self,
        volume: &[f32],
        reference: &mut [f32],
        interrupts: &dyn Fn() -> bool,
    ) -> Result<(), NotRepaired> {
        let repaired = self.repair.run(&mut self.fixer, volume, None, &mut Asked(interrupts));
        let repaired = repaired.map_err(|error| match error {
            RepairError::Output { .. } => NotRepaired::Output,
            RepairError::Late { .. } => NotRepaired::Late,
            RepairError::Interrupted => NotRepaired::Interrupted,
            _ => NotRepaired::Session,
        })?;
        reference.copy_from_slice(repaired.per_mm);
        Ok(())
    }
}
