//! Slices of a volume as a model sees them, and what it makes of them back as a volume: how they lie, and the operations.

use super::cpu::check_len;
use super::{ComputeError, Values, ValuesMut};

/// How the slices across an axis lie in a volume `[x][y][z]`, and how they are padded.
///
/// Columns run along x and rows along y, or along z where one of these is the axis that the slices stand across: rows along z, and across x columns
/// along y.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceLayout {
    voxels: [usize; 3],
    axes: [usize; 3],
    padded: [usize; 2],
}

impl SliceLayout {
    /// Slices across `axis` (0: x, 1: y, 2: z) of so many voxels, rows and columns padded to multiples of `multiple`.
    ///
    /// # Panics
    /// For another axis.
    #[must_use]
    pub fn across(axis: usize, voxels: [usize; 3], multiple: usize) -> Self {
        let axes = [[0, 2, 1], [1, 2, 0], [2, 1, 0]][axis];
        let [_, rows, columns] = axes.map(|axis| voxels[axis]);
        Self { voxels, axes, padded: [rows.next_multiple_of(multiple), columns.next_multiple_of(multiple)] }
    }

    /// Voxels of the volume.
    #[must_use]
    pub fn voxels(&self) -> [usize; 3] {
        self.voxels
    }

    /// Along which of the volume's axes slices follow each other, rows and columns.
    #[must_use]
    pub fn axes(&self) -> [usize; 3] {
        self.axes
    }

    /// How many slices there are.
    #[must_use]
    pub fn slices(&self) -> usize {
        self.voxels[self.axes[0]]
    }

    /// Rows and columns without the padding.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        [self.voxels[self.axes[1]], self.voxels[self.axes[2]]]
    }

    /// Rows and columns with the padding.
    #[must_use]
    pub fn padded(&self) -> [usize; 2] {
        self.padded
    }

    /// Pixels of a padded slice.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.padded[0] * self.padded[1]
    }

    /// Where a slice stands along the axis, 0 to 1.
    #[must_use]
    pub fn height(&self, slice: usize) -> f32 {
        ((slice as f64 + 0.5) / self.slices() as f64) as f32
    }

    /// How far apart in the volume slices, rows and columns are.
    #[must_use]
    pub fn strides(&self) -> [usize; 3] {
        let [_, ny, nz] = self.voxels;
        self.axes.map(|axis| [ny * nz, nz, 1][axis])
    }
}

/// Which images of a batch [`SliceCompute::gather_slices`] fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceBatch {
    /// The batch's first slice.
    pub first: usize,
    /// Slices on either side that go with each.
    pub neighbours: usize,
    /// Volumes of which a slice's images are, and the place among them of the one that is gathered.
    pub volumes: usize,
    /// See `volumes`.
    pub volume: usize,
}

impl SliceBatch {
    /// Images of each slice of the batch.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.volumes * (2 * self.neighbours + 1)
    }
}

/// How window units come of attenuations: `scale * value + offset`, in float64, rounded to float32 at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowUnits {
    /// Window units in 1/mm.
    pub scale: f64,
    /// Window units at 0.
    pub offset: f64,
}

impl WindowUnits {
    /// A value in window units.
    #[must_use]
    pub fn of(&self, value: f32) -> f32 {
        (self.scale * f64::from(value) + self.offset) as f32
    }

    /// The value of window units.
    #[must_use]
    pub fn value(&self, unit: f32) -> f32 {
        ((f64::from(unit) - self.offset) / self.scale) as f32
    }
}

/// The operations of repairs. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// Nothing is allocated after [`SliceCompute::prepare_slices`], and every result is bit-identical for any number of threads and on every carrier.
pub trait SliceCompute: Send + Sync {
    /// Bytes of scratch; `plan` lists them.
    fn slice_scratch_bytes(&self) -> usize;

    /// Allocates that scratch.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    fn prepare_slices(&mut self) -> Result<(), ComputeError>;

    /// The largest magnitude of the values in window units; not finite only where a value or its unit is not.
    ///
    /// # Errors
    /// [`ComputeError::Scratch`] before [`SliceCompute::prepare_slices`], [`ComputeError::Device`] where the device refuses.
    fn farthest(&self, units: WindowUnits, values: Values<'_>) -> Result<f32, ComputeError>;

    /// Place of the first value that is no number or of a magnitude above `limit`.
    ///
    /// # Errors
    /// As [`SliceCompute::farthest`].
    fn first_beyond(&self, limit: f32, values: Values<'_>) -> Result<Option<usize>, ComputeError>;

    /// Fills a volume's images of `out`, `[slice of the batch][volume][neighbour][row][column]`, padded, with its slices from `batch.first` on and their
    /// neighbours in window units. Beyond the ends of the volume the last slice, row or column is repeated, so that a batch may run past the end.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit, or `out` holds no whole slices of a batch.
    fn gather_slices(
        &self,
        layout: &SliceLayout,
        batch: &SliceBatch,
        units: WindowUnits,
        volume: Values<'_>,
        out: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Takes slices of one more plane into the mean over planes and, where it is asked for (it is not empty), the sum of squared deviations; `slices` holds
    /// padded slices, the first of which is `first`, and `planes` is how many planes were taken before: where none was, what stood in `mean` and `squares` is
    /// overwritten. By Welford's method: nothing large is subtracted from anything large.
    ///
    /// # Errors
    /// As [`SliceCompute::gather_slices`].
    fn add_slices(
        &self,
        layout: &SliceLayout,
        first: usize,
        planes: usize,
        slices: Values<'_>,
        mean: ValuesMut<'_>,
        squares: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Window units become values again.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the device refuses.
    fn leave_window(&self, units: WindowUnits, values: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// Sums of squared deviations over `planes` planes become standard deviations, times `factor`.
    ///
    /// # Errors
    /// As [`SliceCompute::leave_window`].
    fn deviations(&self, factor: f64, planes: usize, squares: ValuesMut<'_>) -> Result<(), ComputeError>;
}

/// Refuses buffers that do not fit: the volume, and whole slices of `images` padded images each; how many slices these are.
pub(super) fn check(
    operation: &'static str,
    layout: &SliceLayout,
    images: usize,
    volume: usize,
    slices: usize,
) -> Result<usize, ComputeError> {
    check_len(operation, "volume", volume, layout.voxels.iter().product())?;
    let of_each = images * layout.pixels();
    let count = slices.checked_div(of_each).unwrap_or(0);
    check_len(operation, "slices", slices, count * of_each)?;
    Ok(count)
}

/// The same of slices that are added to `mean` and `squares` from slice `first` on.
pub(super) fn check_added(
    operation: &'static str,
    layout: &SliceLayout,
    first: usize,
    slices: usize,
    [mean, squares]: [usize; 2],
) -> Result<usize, ComputeError> {
    let count = check(operation, layout, 1, mean, slices)?;
    if squares > 0 {
        check_len(operation, "squares", squares, mean)?;
    }
    let (given, needed) = (first + count, layout.slices());
    if given > needed {
        return Err(ComputeError::Shape { operation, buffer: "slices", given, needed });
    }
    Ok(count)
}
