//! A scene as the frames that a gantry would send.

use bytemuck::Zeroable;
use firmware_bridge::layout::{FRAME_FIRST, FRAME_LAST, FRAME_PAYLOAD_CRC, FrameHeader, FrameKind};

use crate::formats::scene::{RawCounts, Scene};
use crate::geometry::{ScanGeometry, ViewPose};

/// Frames of one scan, calibration first; [`Frames::frame`] numbers them from 0.
pub(super) struct Frames {
    geometry: ScanGeometry,
    scan_id: u64,
    pixels: Pixels,
}

enum Pixels {
    LineIntegrals(Vec<f32>),
    Counts { dark: Vec<u16>, flat: Vec<u16>, counts: Vec<u16> },
}

/// Mean images have fractions; frames do not.
fn whole_counts(image: &ndarray::Array2<f32>) -> Vec<u16> {
    // `as` saturates, and turns what is not a number into 0.
    image.iter().map(|value| value.round() as u16).collect()
}

impl Frames {
    /// Frames of `scene`: line integrals, or with `raw` dark, flat and counts.
    pub(super) fn new(scene: Scene, raw: bool, scan_id: u64) -> Result<Self, String> {
        let geometry = scene.scan.geometry;
        let pixels = if raw {
            let RawCounts { counts, dark, flat, .. } = scene
                .raw
                .ok_or("the scene has no raw counts (key diffnr.raw): simulate it with them, or leave --raw out")?;
            Pixels::Counts {
                dark: whole_counts(&dark),
                flat: whole_counts(&flat),
                counts: counts.into_iter().collect(),
            }
        } else {
            Pixels::LineIntegrals(scene.scan.projections.into_iter().collect())
        };
        Ok(Self { geometry, scan_id, pixels })
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> [u32; 2] {
        [self.geometry.detector.columns as u32, self.geometry.detector.rows as u32]
    }

    fn calibration_frames(&self) -> usize {
        match self.pixels {
            Pixels::LineIntegrals(_) => 0,
            Pixels::Counts { .. } => 2,
        }
    }

    /// How many frames.
    pub(super) fn len(&self) -> usize {
        self.geometry.views.len() + self.calibration_frames()
    }

    /// Header (without time stamp) and payload of frame `index`.
    pub(super) fn frame(&self, index: usize) -> (FrameHeader, &[u8]) {
        let pixels = self.geometry.detector.pixels();
        let header = |kind: FrameKind, view: usize, pose: &ViewPose| FrameHeader {
            sequence: index as u64,
            kind: kind as u32,
            flags: FRAME_PAYLOAD_CRC,
            view_index: view as u32,
            total_views: self.geometry.views.len() as u32,
            columns: self.size()[0],
            rows: self.size()[1],
            relative_exposure: 1.0,
            source_mm: pose.source_mm.to_array(),
            detector_origin_mm: pose.detector_origin_mm.to_array(),
            column_step_mm: pose.column_step_mm.to_array(),
            row_step_mm: pose.row_step_mm.to_array(),
            scan_id: self.scan_id,
            ..FrameHeader::zeroed()
        };
        let first_pose = &self.geometry.views[0];
        match (&self.pixels, index) {
            (Pixels::Counts { dark, .. }, 0) => (header(FrameKind::DarkU16, 0, first_pose), bytemuck::cast_slice(dark)),
            (Pixels::Counts { flat, .. }, 1) => (header(FrameKind::FlatU16, 0, first_pose), bytemuck::cast_slice(flat)),
            _ => {
                let view = index - self.calibration_frames();
                let range = view * pixels..(view + 1) * pixels;
                let (kind, payload) = match &self.pixels {
                    Pixels::LineIntegrals(values) => {
                        (FrameKind::LineIntegralsF32, bytemuck::cast_slice(&values[range]))
                    }
                    Pixels::Counts { counts, .. } => (FrameKind::CountsU16, bytemuck::cast_slice(&counts[range])),
                };
                let mut header = header(kind, view, &self.geometry.views[view]);
                if view == 0 {
                    header.flags |= FRAME_FIRST;
                }
                if view + 1 == self.geometry.views.len() {
                    header.flags |= FRAME_LAST;
                }
                (header, payload)
            }
        }
    }
}
