//! Slices of a volume in window units, padded by repeating the edge, and back.
//!
//! **Bytes**: a voxel is read once for each image that it stands in, and an image written once; mean and squares are read and written once a plane.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::super::slices::{SliceBatch, SliceCompute, SliceLayout, WindowUnits, check, check_added};
use super::super::{ComputeError, Values, ValuesMut};
use super::CpuCompute;

/// Values of a task.
const TASK: usize = 1 << 16;

impl SliceCompute for CpuCompute {
    fn slice_scratch_bytes(&self) -> usize {
        0
    }

    fn prepare_slices(&mut self) -> Result<(), ComputeError> {
        Ok(())
    }

    fn farthest(&self, units: WindowUnits, values: Values<'_>) -> Result<f32, ComputeError> {
        let values = values.host("farthest")?;
        // Magnitudes are ordered as their bits, and what is no number comes last.
        let of_task = |values: &[f32]| values.iter().fold(0, |most, value| most.max(units.of(*value).abs().to_bits()));
        Ok(f32::from_bits(self.pool.install(|| values.par_chunks(TASK).map(of_task).max().unwrap_or(0))))
    }

    fn first_beyond(&self, limit: f32, values: Values<'_>) -> Result<Option<usize>, ComputeError> {
        let values = values.host("first_beyond")?;
        // Without a branch a value, so that the compiler uses whole registers.
        let any = |values: &[f32]| values.iter().fold(false, |any, value| any | beyond(limit, *value));
        let task = self.pool.install(|| values.par_chunks(TASK).position_first(any));
        Ok(task.and_then(|task| {
            let begin = task * TASK;
            values[begin..].iter().position(|value| beyond(limit, *value)).map(|at| begin + at)
        }))
    }

    fn gather_slices(
        &self,
        layout: &SliceLayout,
        batch: &SliceBatch,
        units: WindowUnits,
        volume: Values<'_>,
        out: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gather_slices";
        let (volume, out) = (volume.host(OPERATION)?, out.host(OPERATION)?);
        check(OPERATION, layout, batch.channels(), volume.len(), out.len())?;
        if volume.is_empty() {
            return Ok(());
        }
        let ([across, down, along], [rows, columns]) = (layout.strides(), layout.size());
        let (wide, around) = (layout.padded()[1], 2 * batch.neighbours + 1);
        let fill = |(image, out): (usize, &mut [f32])| {
            let (image, beside) = (image / around, image % around);
            let (of_batch, volume_of) = (image / batch.volumes, image % batch.volumes);
            if volume_of != batch.volume {
                return;
            }
            let slice = (batch.first + of_batch + beside).saturating_sub(batch.neighbours).min(layout.slices() - 1);
            for (row, line) in out.chunks_exact_mut(wide).enumerate() {
                let begin = slice * across + row.min(rows - 1) * down;
                for (column, value) in line.iter_mut().take(columns).enumerate() {
                    *value = units.of(volume[begin + column * along]);
                }
                let last = line[columns - 1];
                line[columns..].fill(last);
            }
        };
        self.pool.install(|| out.par_chunks_exact_mut(layout.pixels()).enumerate().for_each(fill));
        Ok(())
    }

    fn add_slices(
        &self,
        layout: &SliceLayout,
        first: usize,
        planes: usize,
        slices: Values<'_>,
        mean: ValuesMut<'_>,
        squares: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "add_slices";
        let (slices, mean, squares) = (slices.host(OPERATION)?, mean.host(OPERATION)?, squares.host(OPERATION)?);
        let count = check_added(OPERATION, layout, first, slices.len(), [mean.len(), squares.len()])?;
        if count == 0 || mean.is_empty() {
            return Ok(());
        }
        // Along x, y, z: the voxels that the slices hold, and how far apart these lie in them.
        let mut of_slices = [0; 3];
        for (axis, stride) in layout.axes().into_iter().zip([layout.pixels(), layout.padded()[1], 1]) {
            of_slices[axis] = stride;
        }
        let [nx, ny, nz] = layout.voxels();
        let held = |axis: usize, voxels: usize| {
            if axis == layout.axes()[0] { first..first + count } else { 0..voxels }
        };
        let (of_x, of_y, of_z) = (held(0, nx), held(1, ny), held(2, nz));
        let before = first * layout.pixels();
        let sheet = |(x, (mean, squares)): (usize, (&mut [f32], &mut [f32]))| {
            for y in of_y.clone() {
                for z in of_z.clone() {
                    let value = slices[x * of_slices[0] + y * of_slices[1] + z * of_slices[2] - before];
                    let at = y * nz + z;
                    take(value, planes, &mut mean[at], squares.get_mut(at));
                }
            }
        };
        let each = ny * nz;
        let (mean, held) = (&mut mean[of_x.start * each..of_x.end * each], of_x.clone());
        self.pool.install(|| {
            if squares.is_empty() {
                let sheets = mean.par_chunks_exact_mut(each).enumerate();
                sheets.for_each(|(x, mean)| sheet((held.start + x, (mean, &mut []))));
            } else {
                let squares = squares[held.start * each..held.end * each].par_chunks_exact_mut(each);
                let sheets = mean.par_chunks_exact_mut(each).zip(squares).enumerate();
                sheets.for_each(|(x, sheets)| sheet((held.start + x, sheets)));
            }
        });
        Ok(())
    }

    fn leave_window(&self, units: WindowUnits, values: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("leave_window", [], values, |[], values| {
            values.iter_mut().for_each(|value| *value = units.value(*value));
        })
    }

    fn deviations(&self, factor: f64, planes: usize, squares: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.each("deviations", [], squares, |[], squares| {
            for value in squares {
                *value = (factor * (f64::from(*value) / planes as f64).sqrt()) as f32;
            }
        })
    }
}

fn beyond(limit: f32, value: f32) -> bool {
    value.is_nan() | (value.abs() > limit)
}

/// One more plane's value of a voxel.
fn take(value: f32, planes: usize, mean: &mut f32, squares: Option<&mut f32>) {
    if planes == 0 {
        *mean = value;
        if let Some(squares) = squares {
            *squares = 0.0;
        }
        return;
    }
    let away = value - *mean;
    *mean += away / (planes + 1) as f32;
    if let Some(squares) = squares {
        *squares += away * (value - *mean);
    }
}
