//! Launches the kernels of `kernels/loss_image.cu`. Sums stay on the device, in [`ImageLossSums`].

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::losses::{ImageLoss, ImageLossValue};
use super::loss_window::{Orientation, Tile};
use super::{Arguments, DeviceSlice, DeviceSum, LaunchShape, Launcher, check_len};
use crate::geometry::Detector;

const OPERATION: &str = "image_loss";

/// Pixels of a block of `compare_images` (`image_loss::TILE` of the kernels).
const POINTS: usize = 4096;

/// A block of the similarity (`image_loss::WIDTH` of the kernels).
const TILE: Tile = Tile { lanes: 1, width: 160 };

/// `image_loss::Points` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Points {
    huber: f32,
    sharpness: f32,
    l1: f32,
    squares: f32,
    weighted: i32,
}

fn orientation(detector: Detector, views: usize) -> Orientation {
    Orientation {
        slices: [views, detector.pixels()],
        rows: [detector.rows, detector.columns],
        columns: [detector.columns, 1],
    }
}

/// Blocks of both launches.
fn blocks(detector: Detector, views: usize) -> [usize; 2] {
    [(views * detector.pixels()).div_ceil(POINTS).max(1), orientation(detector, views).blocks(TILE).max(1)]
}

/// Room for the sums of [`image_loss`], over up to so many pixels and blocks as it was made for.
#[derive(Debug, Clone, Copy)]
pub struct ImageLossSums {
    /// Those of the three sums, in their order: read by one copy.
    totals: DeviceSlice<f64>,
    moduli: DeviceSum,
    squares: DeviceSum,
    dissimilarities: DeviceSum,
}

impl ImageLossSums {
    /// Bytes of the room for so many views.
    #[must_use]
    pub fn bytes(detector: Detector, views: usize) -> usize {
        let [points, similarity] = blocks(detector, views);
        2 * DeviceSum::bytes(points) + DeviceSum::bytes(similarity)
    }

    /// Room for so many views.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn allocate(launcher: &dyn Launcher, detector: Detector, views: usize) -> Result<Self, ComputeError> {
        let [points, similarity] = blocks(detector, views);
        let totals = DeviceSlice::allocate(launcher, 3)?;
        let sum = |index: usize, blocks| {
            DeviceSum::left_at(launcher, blocks, totals.part(index..index + 1).unwrap_or(totals))
        };
        Ok(Self { totals, moduli: sum(0, points)?, squares: sum(1, points)?, dissimilarities: sum(2, similarity)? })
    }

    /// The value that the last [`image_loss`], which had these settings and so many pixels, left.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed before.
    pub fn read(
        &self,
        launcher: &dyn Launcher,
        settings: &ImageLoss,
        pixels: usize,
    ) -> Result<ImageLossValue, ComputeError> {
        if pixels == 0 {
            return Ok(ImageLossValue::default());
        }
        let mut totals = [0.0; 3];
        self.totals.copy_to(launcher, &mut totals)?;
        if settings.dissimilarity <= 0.0 {
            // Nobody has written it.
            totals[2] = 0.0;
        }
        Ok(settings.value(pixels, totals))
    }
}

/// See [`crate::compute::losses::LossCompute::image_loss`]; the value is left in `sums`. Values and weights are not looked at: what is not a
/// number shows in the value.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit or `sums` has no room, [`ComputeError::Value`] for a setting that is refused,
/// [`ComputeError::Device`] where the device refuses.
#[allow(clippy::too_many_arguments)]
pub fn image_loss(
    launcher: &dyn Launcher,
    detector: Detector,
    settings: &ImageLoss,
    projections: DeviceSlice<f32>,
    measured: DeviceSlice<f32>,
    weights: Option<DeviceSlice<f32>>,
    by_projections: DeviceSlice<f32>,
    sums: &ImageLossSums,
) -> Result<(), ComputeError> {
    let n = projections.len();
    let views = n.checked_div(detector.pixels()).unwrap_or(0);
    check_len(OPERATION, "projections", n, views * detector.pixels())?;
    check_len(OPERATION, "measured", measured.len(), n)?;
    check_len(OPERATION, "weights", weights.map_or(n, |weights| weights.len()), n)?;
    check_len(OPERATION, "by_projections", by_projections.len(), n)?;
    settings.check(OPERATION)?;
    if n == 0 {
        return Ok(());
    }
    let [points, similarity] = blocks(detector, views);
    let [moduli, squares] = [sums.moduli.partials(OPERATION, points)?, sums.squares.partials(OPERATION, points)?];
    let dissimilarities = sums.dissimilarities.partials(OPERATION, similarity)?;

    let slopes = settings.slopes(n);
    let argument = Points {
        huber: settings.huber,
        sharpness: slopes.sharpness,
        l1: slopes.l1,
        squares: slopes.squares,
        weighted: i32::from(weights.is_some()),
    };
    let shape = LaunchShape::covering(OPERATION, [n, 1, 1], [POINTS, 1, 1], [256, 1, 1])?;
    let arguments = Arguments::new()
        .value(argument)
        .read(projections)
        .read(measured)
        .read(weights.unwrap_or(measured))
        .write(by_projections)
        .value(n as i64)
        .write(moduli)
        .write(squares);
    // SAFETY: the arguments of the kernel; it stays within `n` values of each, and a partial sum a block.
    unsafe { launcher.launch("compare_images", shape, &arguments) }?;
    sums.moduli.add_up(launcher, points)?;
    sums.squares.add_up(launcher, points)?;
    if settings.dissimilarity > 0.0 {
        let (scale, weight) = (1.0 / settings.data_range, settings.similarity_slope(n));
        let (shape, planes) = orientation(detector, views).launch(OPERATION, TILE, scale, weight)?;
        let arguments = Arguments::new()
            .value(planes)
            .read(projections)
            .read(measured)
            .write(by_projections)
            .write(dissimilarities);
        // SAFETY: the arguments of the kernel; it stays within the planes, which are `n` values, and a partial sum a block.
        unsafe { launcher.launch("add_image_similarity", shape, &arguments) }?;
        sums.dissimilarities.add_up(launcher, similarity)?;
    }
    Ok(())
}
