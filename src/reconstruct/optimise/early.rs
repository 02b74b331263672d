//! A start before the last frame: iterations from the first views of a scan, done while the rest of them still comes.
//!
//! The whole scan then goes on from the representation as it stands, and less is left to do after its last frame. What that saves at which
//! price stands in docs/methods.md: from three quarters of the views the representation is near enough that half of the iterations are left;
//! from half of them it has learnt what the other half of the circle has to undo.

/// Iterations from the first views of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyStart {
    /// So many views, the first of the scan.
    pub views: usize,
    /// So many iterations, counted among those of the whole run.
    pub iterations: usize,
}

impl EarlyStart {
    /// Fewer iterations than this are not worth a beginning.
    pub const LEAST: usize = 10;

    /// How many of `planned` views are waited for.
    #[must_use]
    pub fn usual_views(planned: usize) -> usize {
        (3 * planned).div_ceil(4)
    }

    /// How many of a run's iterations may come early: the rest has the whole scan to learn.
    #[must_use]
    pub fn most(iterations: usize) -> usize {
        iterations / 2
    }

    /// Which of `planned` views these are, for [`super::ScanViews::present`].
    #[must_use]
    pub fn present(&self, planned: usize) -> Vec<bool> {
        (0..planned).map(|view| view < self.views).collect()
    }
}
