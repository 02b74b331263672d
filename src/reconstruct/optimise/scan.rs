//! The measurements of a scan, as a run takes them.

use crate::geometry::ViewPose;

/// The views of a scan: all of them, or those that came.
#[derive(Debug, Clone, Copy)]
pub struct ScanViews<'a> {
    /// `[view][row v][column u]` of every planned view, dimensionless; those of views that are not there are not looked at.
    pub line_integrals: &'a [f32],
    /// Poses that the gantry reported, one a planned view; `None`: the planned ones.
    pub poses: Option<&'a [ViewPose]>,
    /// Which views are there; `None`: all.
    pub present: Option<&'a [bool]>,
}

impl<'a> ScanViews<'a> {
    /// All views, at their planned poses.
    #[must_use]
    pub fn whole(line_integrals: &'a [f32]) -> Self {
        Self { line_integrals, poses: None, present: None }
    }

    /// Whether the view is there.
    #[must_use]
    pub fn has(&self, view: usize) -> bool {
        self.present.is_none_or(|present| present.get(view).copied().unwrap_or(false))
    }

    /// The pose of a view, where another than the planned one was reported.
    pub(super) fn pose(&self, view: usize) -> Option<ViewPose> {
        self.poses.and_then(|poses| poses.get(view)).copied()
    }
}
