//! Slices of a volume `[x][y][z]` in window units, padded by repeating the edge, and back.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::Plane;

/// How the slices of a plane lie in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Slices, rows, columns.
    pub(super) size: [usize; 3],
    /// Distance in memory from one to the next of each.
    stride: [usize; 3],
    /// Rows and columns with the padding.
    pub(super) padded: [usize; 2],
}

impl Layout {
    pub(super) fn of(plane: Plane, voxels: [usize; 3], multiple: usize) -> Self {
        let strides = [voxels[1] * voxels[2], voxels[2], 1];
        let axes = plane.axes();
        let size = axes.map(|axis| voxels[axis]);
        Self {
            size,
            stride: axes.map(|axis| strides[axis]),
            padded: [size[1].next_multiple_of(multiple), size[2].next_multiple_of(multiple)],
        }
    }

    /// Where the slice stands along its plane's normal, 0 to 1.
    pub(super) fn height(&self, slice: usize) -> f32 {
        ((slice as f64 + 0.5) / self.size[0] as f64) as f32
    }

    /// Fills `out` (`[slice of the batch][volume][neighbour][row][column]`, padded) with the slices from `first` on and their neighbours in window
    /// units: `scale * value + offset` of each volume; beyond the ends of a volume the last slice is repeated, so that a batch may run past the end.
    pub(super) fn gather(&self, volumes: &[(&[f32], [f64; 2])], first: usize, neighbours: usize, out: &mut [f32]) {
        let [rows, columns] = self.padded;
        let around = 2 * neighbours + 1;
        out.par_chunks_exact_mut(rows * columns).enumerate().for_each(|(image, out)| {
            let (image, beside) = (image / around, image % around);
            let (volume, [scale, offset]) = volumes[image % volumes.len()];
            let slice = (first + image / volumes.len() + beside).saturating_sub(neighbours).min(self.size[0] - 1);
            for (row, line) in out.chunks_exact_mut(columns).enumerate() {
                let begin = slice * self.stride[0] + row.min(self.size[1] - 1) * self.stride[1];
                for (column, value) in line.iter_mut().take(self.size[2]).enumerate() {
                    let mu = f64::from(volume[begin + column * self.stride[2]]);
                    *value = (scale * mu + offset) as f32;
                }
                let last = line[self.size[2] - 1];
                line[self.size[2]..].fill(last);
            }
        });
    }

    /// Hands each voxel's place in the volume and its repaired value in window units to `take`; `repaired` holds `count` padded slices, the
    /// first of which is `first`.
    pub(super) fn scatter(&self, repaired: &[f32], first: usize, count: usize, mut take: impl FnMut(usize, f32)) {
        let [rows, columns] = self.padded;
        for (slice, image) in repaired.chunks_exact(rows * columns).take(count).enumerate() {
            for (row, line) in image.chunks_exact(columns).take(self.size[1]).enumerate() {
                let begin = (first + slice) * self.stride[0] + row * self.stride[1];
                for (column, &value) in line.iter().take(self.size[2]).enumerate() {
                    take(begin + column * self.stride[2], value);
                }
            }
        }
    }
}
