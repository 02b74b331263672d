//! Frame headers: sealing them, and refusing hostile ones.

use super::segment::RingGeometry;
use crate::crc::crc32c;
use crate::error::FrameError;
use crate::layout::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, SEQUENCE_LIMIT, VERSION_MAJOR, VERSION_MINOR};
use core::mem::offset_of;

/// Coordinates beyond this (1 km) are nonsense: metres or pixels mistaken for mm, or rubbish.
const LARGEST_COORDINATE_MM: f64 = 1e6;

impl FrameHeader {
    /// Fills in version, size and header CRC. Everything else must be set before.
    pub fn seal(&mut self) {
        self.version_major = VERSION_MAJOR;
        self.version_minor = VERSION_MINOR;
        self.header_bytes = FRAME_HEADER_BYTES as u32;
        self.header_crc32c = self.computed_header_crc32c();
    }

    /// CRC32C of the bytes before `header_crc32c`.
    pub fn computed_header_crc32c(&self) -> u32 {
        crc32c(&bytemuck::bytes_of(self)[..offset_of!(FrameHeader, header_crc32c)])
    }

    /// The kind of its pixels, if it is a known one.
    pub fn frame_kind(&self) -> Option<FrameKind> {
        FrameKind::from_number(self.kind)
    }

    /// Whether all bits of `flags` are set.
    pub fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }

    /// Checks CRC, version and every field against the ring's geometry. The payload is not looked at.
    pub fn validate(&self, geometry: &RingGeometry) -> Result<FrameKind, FrameError> {
        let computed = self.computed_header_crc32c();
        if self.header_crc32c != computed {
            return Err(FrameError::HeaderCrc { found: self.header_crc32c, computed });
        }
        if self.version_major != VERSION_MAJOR {
            return Err(FrameError::Version { found: self.version_major, expected: VERSION_MAJOR });
        }
        let bad = |field, value, wanted| Err(FrameError::Integer { field, value, wanted });
        if self.header_bytes as usize != FRAME_HEADER_BYTES {
            return bad("header_bytes", self.header_bytes.into(), "must be 256");
        }
        let Some(kind) = self.frame_kind() else {
            return bad("kind", self.kind.into(), "must be 1 (counts), 2 (line integrals), 3 (dark) or 4 (flat)");
        };
        if self.sequence >= SEQUENCE_LIMIT {
            return bad("sequence", self.sequence, "must be below 2^48");
        }
        if !(1..=geometry.max_columns).contains(&self.columns) {
            return bad("columns", self.columns.into(), "must be 1 to the ring's max_columns");
        }
        if !(1..=geometry.max_rows).contains(&self.rows) {
            return bad("rows", self.rows.into(), "must be 1 to the ring's max_rows");
        }
        // No overflow: both factors are at most 65536.
        if self.payload_bytes != u64::from(self.columns) * u64::from(self.rows) * kind.bytes_per_pixel() {
            return bad("payload_bytes", self.payload_bytes, "must be columns x rows x bytes of a pixel");
        }
        if self.payload_bytes > geometry.payload_capacity {
            return bad("payload_bytes", self.payload_bytes, "must not exceed the ring's payload_capacity");
        }
        if kind.is_projection() {
            if self.total_views != 0 && self.view_index >= self.total_views {
                return bad("view_index", self.view_index.into(), "must be below total_views");
            }
            self.validate_pose()?;
        }
        let bad = |field, value: f32, wanted| Err(FrameError::Real { field, value: value.into(), wanted });
        let exposed = self.relative_exposure > 0.0 || kind == FrameKind::DarkU16 && self.relative_exposure == 0.0;
        if !(self.relative_exposure.is_finite() && exposed) {
            let wanted = "must be finite and above 0 (1 = as the flat frames; dark frames may say 0)";
            return bad("relative_exposure", self.relative_exposure, wanted);
        }
        if !(self.i0_counts.is_finite() && self.i0_counts >= 0.0) {
            return bad("i0_counts", self.i0_counts, "must be finite and at least 0 (0 = not known)");
        }
        Ok(kind)
    }

    fn validate_pose(&self) -> Result<(), FrameError> {
        for (field, vector) in [
            ("source_mm", &self.source_mm),
            ("detector_origin_mm", &self.detector_origin_mm),
            ("column_step_mm", &self.column_step_mm),
            ("row_step_mm", &self.row_step_mm),
        ] {
            for &value in vector {
                if value.is_nan() || value.abs() > LARGEST_COORDINATE_MM {
                    return Err(FrameError::Real { field, value, wanted: "must be finite and within 1e6 mm" });
                }
            }
        }
        for (field, step) in [("column_step_mm", &self.column_step_mm), ("row_step_mm", &self.row_step_mm)] {
            let length_squared = step.iter().map(|value| value * value).sum::<f64>();
            if length_squared == 0.0 {
                return Err(FrameError::Real { field, value: 0.0, wanted: "must not be the zero vector" });
            }
        }
        Ok(())
    }
}
