//! The scale at which a volume is optimised where the scan does not state its own.
//!
//! Learned prior, total variation and representations count attenuation in what bodies have (water 0.0193/mm). R2-Gaussian's folders hold values
//! normalised to [0, 1] and a volume 2 units wide: read as 1/mm and mm, everything is fifty times denser than water. Lengths are therefore
//! stretched, and attenuations shrunk, by the same factor: line integrals, and with them the data, stay what they are. The volume goes back
//! to the scene's scale when it is done, so nothing of this is seen in what is written.

use crate::formats::Scan;
use crate::geometry::{ScanGeometry, VolumeGrid};

/// What lengths are multiplied with, and attenuations divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct WorkingScale(f64);

impl WorkingScale {
    /// The factor for a scan.
    ///
    /// 1 where the scale is stated, and where the values may be attenuations in 1/mm after all: where no ray has more than bone (twice water)
    /// all along the widest side of the volume. Else the values count as normalised, and 1 as bone, as in the scenes that `diffnr simulate` makes.
    pub(super) fn of(scan: &Scan) -> Self {
        let bone_per_mm = 2.0 * scan.scale.mu_water_per_mm;
        let largest = scan.projections.iter().fold(0.0_f32, |most, &p| most.max(p));
        let along_per_mm = f64::from(largest) / scan.grid.size_mm().max_element();
        let stated = scan.scale.is_absolute || !along_per_mm.is_finite() || along_per_mm <= bone_per_mm;
        Self(if stated { 1.0 } else { scan.scale.mu_per_value_per_mm / bone_per_mm })
    }

    /// The factor itself.
    pub(super) fn factor(self) -> f64 {
        self.0
    }

    /// The views, stretched.
    pub(super) fn geometry(self, geometry: &ScanGeometry) -> ScanGeometry {
        let mut geometry = geometry.clone();
        for pose in &mut geometry.views {
            pose.source_mm *= self.0;
            pose.detector_origin_mm *= self.0;
            pose.column_step_mm *= self.0;
            pose.row_step_mm *= self.0;
        }
        geometry
    }

    /// The volume's grid, stretched.
    pub(super) fn grid(self, grid: &VolumeGrid) -> VolumeGrid {
        VolumeGrid { voxels: grid.voxels, voxel_mm: self.0 * grid.voxel_mm, centre_mm: self.0 * grid.centre_mm }
    }

    /// Attenuations back to the scan's own scale.
    pub(super) fn give_back(self, volume: &mut [f32]) {
        if self.0 != 1.0 {
            volume.iter_mut().for_each(|value| *value *= self.0 as f32);
        }
    }
}
