//! SliceFixer ([`crate::repair`]) as what repairs a run's volumes.

use std::time::{Duration, Instant};

use super::augment::{NotRepaired, Repairer};
use crate::compute::{Operations, Values, ValuesMut};
use crate::repair::{Conditioning, Given, Repair, RepairError, Repaired, SliceFixer, Watch};

/// A model that is conditioned on the scan, on the carrier of the optimisation.
#[derive(Debug)]
pub struct SliceFixing {
    fixer: SliceFixer,
    repair: Repair,
    limit: Option<Duration>,
    until: Option<Instant>,
}

impl SliceFixing {
    /// Repairs volumes whose water is `mu_water_per_mm` with `fixer`.
    ///
    /// # Errors
    /// [`RepairError::Input`] for an attenuation of water that is none.
    pub fn new(fixer: SliceFixer, mu_water_per_mm: f64) -> Result<Self, RepairError> {
        Ok(Self { fixer, repair: Repair::new(mu_water_per_mm)?, limit: None, until: None })
    }

    /// The model.
    #[must_use]
    pub fn fixer(&self) -> &SliceFixer {
        &self.fixer
    }

    /// Tells the model of another scan. Where that fails, repairs fail until it is told of one; allocates nothing.
    ///
    /// # Errors
    /// As [`SliceFixer::condition`].
    pub fn condition(&mut self, scan: &Conditioning<'_>) -> Result<(), RepairError> {
        self.fixer.condition(scan)
    }

    /// The model forgets the scan: repairs fail until it is told of one.
    pub fn forget(&mut self) {
        self.fixer.forget();
    }

    /// How long a repair may take, and until when all must be done; what takes longer is late. `None`: as long as it likes.
    pub fn allow(&mut self, limit: Option<Duration>, until: Option<Instant>) {
        (self.limit, self.until) = (limit, until);
    }

    /// Bytes of the buffers; what ONNX Runtime takes for itself comes on top.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.fixer.buffer_bytes()
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
    fn sees_unexplained(&self) -> bool {
        self.fixer.manifest().unexplained
    }

    fn repair(
        &mut self,
        compute: &dyn Operations,
        volume: Values<'_>,
        unexplained: Values<'_>,
        reference: ValuesMut<'_>,
        interrupts: &dyn Fn() -> bool,
    ) -> Result<(), NotRepaired> {
        let limit = self.limit.and_then(|limit| Instant::now().checked_add(limit));
        let deadline = limit.into_iter().chain(self.until).min();
        let (given, asked) = (Given { volume, unexplained }, &mut Asked(interrupts));
        let repaired = Repaired { per_mm: reference, disagreement_hu: ValuesMut::Host(&mut []) };
        self.repair.run(compute, &mut self.fixer, given, repaired, deadline, asked).map_err(|error| match error {
            RepairError::Output { .. } => NotRepaired::Output,
            RepairError::Late { .. } => NotRepaired::Late,
            RepairError::Interrupted => NotRepaired::Interrupted,
            error => {
                // The reason is ONNX Runtime's own; nobody else keeps it.
                tracing::warn!("{error}");
                NotRepaired::Session
            }
        })
    }
}
