//! How `kernels/loss_window.cuh` is launched: planes, and the blocks that they are cut into.

#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::{LaunchShape, count};

/// Columns beside those whose gradient a block gives out (`ssim::RIM` of the kernels).
const RIM: usize = 10;

/// Bands are cut until a launch has as many threads: two thirds of a large device's, so that the last blocks do not run alone for long. A
/// constant, not the device's: values hang on the sizes alone.
const THREADS: usize = 1 << 17;

/// Rows of the thinnest band; it reads ten rows beside its own at either end.
const BAND: usize = 32;

/// Planes to compare: how many, their rows and columns, each with the floats from one to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Orientation {
    pub(super) slices: [usize; 2],
    pub(super) rows: [usize; 2],
    pub(super) columns: [usize; 2],
}

/// Planes side by side in a block, and the columns of each that it reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) lanes: usize,
    pub(super) width: usize,
}

/// `ssim::Planes` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Planes {
    /// Floats from slice to slice, row to row, column to column.
    steps: [i64; 3],
    slices: i32,
    rows: i32,
    columns: i32,
    band: i32,
    scale: f32,
    weight: f32,
}

impl Orientation {
    fn across_and_along(&self, tile: Tile) -> [usize; 2] {
        let inner = self.columns[0].saturating_sub(2 * RIM).div_ceil(tile.width - 2 * RIM);
        [self.slices[0].div_ceil(tile.lanes), inner.max(1)]
    }

    /// Rows of a block.
    fn band(&self, tile: Tile) -> usize {
        let threads = self.across_and_along(tile).iter().product::<usize>() * tile.lanes * tile.width;
        let bands = THREADS.div_ceil(threads.max(1)).min(self.rows[0].div_ceil(BAND)).max(1);
        self.rows[0].div_ceil(bands).max(1)
    }

    /// Blocks of a launch.
    pub(super) fn blocks(&self, tile: Tile) -> usize {
        self.across_and_along(tile).iter().product::<usize>() * self.rows[0].div_ceil(self.band(tile))
    }

    /// The launch, and what the kernel is told: 1 over the data range, and the factor of the gradient.
    pub(super) fn launch(
        &self,
        operation: &'static str,
        tile: Tile,
        scale: f32,
        weight: f32,
    ) -> Result<(LaunchShape, Planes), ComputeError> {
        let [across, along] = self.across_and_along(tile);
        let (band, threads) = (self.band(tile), (tile.lanes * tile.width) as u32);
        let shape = LaunchShape::covering(operation, [across, along, self.rows[0]], [1, 1, band], [threads, 1, 1])?;
        let planes = Planes {
            steps: [self.slices[1] as i64, self.rows[1] as i64, self.columns[1] as i64],
            slices: count(operation, "slices", self.slices[0])?,
            rows: count(operation, "rows", self.rows[0])?,
            columns: count(operation, "columns", self.columns[0])?,
            band: count(operation, "rows", band)?,
            scale,
            weight,
        };
        Ok((shape, planes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_all_and_no_more_than_there_is_to_do() {
        let tile = Tile { lanes: 8, width: 64 };
        for columns in 0..400 {
            let plane = Orientation { slices: [9, 1], rows: [7, 1], columns: [columns, 1] };
            let [across, along] = plane.across_and_along(tile);
            assert_eq!(across, 2);
            // The last block reaches the end; the one before does not.
            let reached = |blocks: usize| (blocks - 1) * 44 + 64;
            assert!(reached(along) >= columns && (along == 1 || reached(along - 1) < columns));
        }
        // Two bands at 256^3; a small plane is not cut into slivers.
        let large = Orientation { slices: [256, 65536], rows: [256, 256], columns: [256, 1] };
        assert_eq!(
            (large.band(Tile { lanes: 1, width: 160 }), large.blocks(Tile { lanes: 1, width: 160 })),
            (128, 1024)
        );
        let small = Orientation { slices: [1, 1], rows: [65, 1], columns: [1, 1] };
        assert_eq!((small.band(tile), small.blocks(tile)), (22, 3));
    }
}
