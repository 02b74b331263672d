//! FDK (Feldkamp, Davis and Kress, *Practical cone-beam algorithm*, 1984): weight, ramp-filter, back-project.
//!
//! [`FdkPlan`] settles everything before the first view: coverage, weights, filter, sizes of all buffers. [`FdkAccumulator`] holds
//! the volume and takes views one by one as they arrive, or in groups; each voxel adds its views in the order in which they are
//! added, so that streaming and offline reconstruction give the same bits.
//!
//! A half-fan's filtered views reach beyond the detector: the ramp spreads each measured line over the whole row, and
//! voxels on the uncovered side need that part. So the views are widened by zero columns there before filtering, and the
//! back-projection sees the wider detector ([`FdkPlan::geometry`]).

mod accumulator;
mod weights;

pub use accumulator::{FdkAccumulator, reconstruct};
pub use weights::Redundancy;

use crate::compute::cpu::ramp_filter::{RampFilter, Window};
use crate::compute::{Compute, Workload};
use crate::geometry::{Coverage, Detector, ScanClass, ScanGeometry, ViewPose, VolumeGrid};

use super::ReconstructError;

/// What can be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FdkSettings {
    /// Window of the ramp filter.
    pub window: Window,
    /// The window's end as a share of the detector's highest frequency, in (0, 1].
    pub cutoff: f64,
    /// Views that are weighted, filtered and back-projected together: more need more memory and move the volume less often.
    /// 1 suits streaming; `None` takes as many as fit into 256 MiB of working memory.
    pub views_per_call: Option<usize>,
}

impl Default for FdkSettings {
    fn default() -> Self {
        Self { window: Window::RamLak, cutoff: 1.0, views_per_call: None }
    }
}

/// Working memory that `views_per_call: None` aims at.
const WORKING_BYTES: usize = 256 << 20;

/// Everything about a reconstruction that is known before its first view.
#[derive(Debug, Clone)]
pub struct FdkPlan {
    coverage: Coverage,
    /// As measured.
    detector: Detector,
    /// With the detector widened by `pad`.
    geometry: ScanGeometry,
    pad: [usize; 2],
    grid: VolumeGrid,
    filter: RampFilter,
    /// One image for all views, or none where each view has its own, which is then worked out when it comes.
    image: Option<Vec<f32>>,
    /// `[view][column]`.
    column_weights: Vec<f32>,
    views_per_call: usize,
}

impl FdkPlan {
    /// Works out coverage, weights and filter, and prepares `compute` for the workload.
    ///
    /// # Errors
    /// [`ReconstructError::Geometry`] where the scan cannot be reconstructed, [`ReconstructError::Setting`] for a cut-off outside
    /// (0, 1], [`ReconstructError::Compute`] where scratch is not to be had.
    pub fn new(
        compute: &mut dyn Compute,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: FdkSettings,
    ) -> Result<Self, ReconstructError> {
        let plan = Self::without_scratch(geometry, grid, settings)?;
        compute.prepare(&plan.workload())?;
        Ok(plan)
    }

    /// The plan alone: what it would need (`diffnr plan`), without a carrier.
    ///
    /// # Errors
    /// As [`FdkPlan::new`].
    pub fn without_scratch(
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: FdkSettings,
    ) -> Result<Self, ReconstructError> {
        let FdkSettings { window, cutoff, views_per_call } = settings;
        if cutoff.is_nan() || cutoff <= 0.0 || cutoff > 1.0 {
            return Err(ReconstructError::Setting {
                field: "cutoff",
                value: cutoff.to_string(),
                requirement: "must lie in (0, 1]: a share of the detector's highest frequency",
            });
        }
        if views_per_call == Some(0) {
            return Err(ReconstructError::Setting {
                field: "views_per_call",
                value: "0".into(),
                requirement: "must be at least 1",
            });
        }
        let coverage = Coverage::analyse(geometry, grid)?;
        let detector = geometry.detector;
        let pad = padding(&coverage, geometry);
        let wide = Detector { columns: detector.columns + pad[0] + pad[1], rows: detector.rows };
        let redundancy = Redundancy::of(&coverage);
        let mut column_weights = vec![0.0; geometry.views.len() * detector.columns];
        for ((view, pose), out) in
            geometry.views.iter().enumerate().zip(column_weights.chunks_exact_mut(detector.columns))
        {
            weights::fill_columns(&coverage, &redundancy, detector, view, pose, out);
        }
        let first = &geometry.views[0];
        let shared = geometry.views.iter().all(|pose| weights::same_image(first, pose));
        let image = shared.then(|| {
            let mut image = vec![0.0; detector.pixels()];
            weights::fill_image(detector, first, &mut image);
            image
        });
        // A widened view and its copy in the carrier's scratch.
        let view_bytes = 2 * wide.pixels() * size_of::<f32>();
        let views_per_call =
            views_per_call.unwrap_or((WORKING_BYTES / view_bytes).clamp(1, 64)).min(geometry.views.len());
        let views = geometry.views.iter().map(|pose| widen(pose, pad)).collect();
        Ok(Self {
            coverage,
            detector,
            geometry: ScanGeometry { detector: wide, views },
            pad,
            grid: *grid,
            filter: RampFilter::new(wide.columns, window, cutoff),
            image,
            column_weights,
            views_per_call,
        })
    }

    /// What the scan covers, and warnings to show.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// The poses with the detector as it is filtered and back-projected: a half-fan's is widened.
    #[must_use]
    pub fn geometry(&self) -> &ScanGeometry {
        &self.geometry
    }

    /// The detector as measured.
    #[must_use]
    pub fn detector(&self) -> Detector {
        self.detector
    }

    /// The volume's grid.
    #[must_use]
    pub fn grid(&self) -> &VolumeGrid {
        &self.grid
    }

    /// Views that one call works on at most.
    #[must_use]
    pub fn views_per_call(&self) -> usize {
        self.views_per_call
    }

    /// What a carrier must be prepared for.
    #[must_use]
    pub fn workload(&self) -> Workload {
        Workload {
            columns: self.geometry.detector.columns,
            rows: self.geometry.detector.rows,
            views_per_call: self.views_per_call,
            voxels: self.grid.voxels,
        }
    }

    /// Every buffer of plan and accumulator in bytes; the carrier's scratch ([`Compute::scratch_bytes`]) comes on top.
    #[must_use]
    pub fn buffers(&self) -> Vec<(&'static str, usize)> {
        let floats = |n: usize| n * size_of::<f32>();
        vec![
            ("fdk volume", floats(self.grid.len())),
            ("fdk filtered views", floats(self.views_per_call * self.geometry.detector.pixels())),
            ("fdk pixel weights", floats(self.image_floats())),
            ("fdk column weights", floats(self.column_weights.len() + self.views_per_call * self.detector.columns)),
            ("fdk ramp filter", self.filter.bytes()),
            ("fdk poses", (self.geometry.views.len() + self.views_per_call) * size_of::<ViewPose>()),
        ]
    }

    /// Every buffer of plan and accumulator on the host, where the others lie on a device.
    #[must_use]
    pub fn host_buffers(&self) -> Vec<(&'static str, usize)> {
        let on_device = ["fdk volume", "fdk filtered views"];
        self.buffers().into_iter().filter(|(name, _)| !on_device.contains(name)).collect()
    }

    fn image_floats(&self) -> usize {
        self.detector.pixels() * if self.image.is_some() { 1 } else { self.views_per_call }
    }
}

/// Zero columns to add on both sides: a half-fan is made symmetric about the central ray.
fn padding(coverage: &Coverage, geometry: &ScanGeometry) -> [usize; 2] {
    if coverage.class != ScanClass::DisplacedDetector {
        return [0, 0];
    }
    let columns = geometry.detector.columns as f64;
    let pose = &geometry.views[0];
    // Column under the central ray.
    let axis = pose.source_mm * glam::DVec3::new(0.0, 0.0, 1.0);
    let Some((centre, _, _)) = pose.project(axis) else { return [0, 0] };
    let (left, right) = (centre + 0.5, columns - 0.5 - centre);
    let missing = (left - right).abs().ceil() as usize;
    if left < right { [missing, 0] } else { [0, missing] }
}

/// The pose with `pad[0]` more columns before its first.
fn widen(pose: &ViewPose, pad: [usize; 2]) -> ViewPose {
    ViewPose { detector_origin_mm: pose.detector_origin_mm - pad[0] as f64 * pose.column_step_mm, ..*pose }
}

#[cfg(test)]
mod tests;
