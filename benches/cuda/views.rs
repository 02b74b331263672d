//! Filtered back-projection, the projectors, and what is done with views.

use diffnr::compute::counts::{Correction, CountsCompute as _};
use diffnr::compute::cpu::ramp_filter::{RampFilter, Window};
use diffnr::compute::elements::ElementCompute as _;
use diffnr::compute::{Compute as _, ComputeError, Memory as _, ProjectionWeights, Values, Workload};
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use glam::DVec3;

use crate::measure::{Cost, Row, Settings, uneven};

/// A square detector that sees a box of 256 mm wholly, on the usual orbit.
pub(crate) fn scan(views: usize, pixels: usize) -> ScanGeometry {
    rolled_scan(views, pixels, 0.0)
}

/// The same with the detector turned about its normal, so that its rows are no longer level.
fn rolled_scan(views: usize, pixels: usize, roll_rad: f64) -> ScanGeometry {
    let pitch = 1.5 * 256.0 * 1.2 / pixels as f64;
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 1000.0,
        source_to_detector_mm: 1500.0,
        detector: Detector { columns: pixels, rows: pixels },
        pitch_u_mm: pitch,
        pitch_v_mm: pitch,
        roll_rad,
        ..CircularOrbit::default()
    };
    orbit.over_arc(views, 0.0, std::f64::consts::TAU)
}

pub(crate) fn grid(voxels: usize) -> VolumeGrid {
    VolumeGrid::over_box([voxels; 3], DVec3::splat(256.0), DVec3::ZERO)
}

pub(crate) fn workload(geometry: &ScanGeometry, grid: &VolumeGrid) -> Workload {
    let Detector { columns, rows } = geometry.detector;
    Workload { columns, rows, views_per_call: geometry.views.len(), voxels: grid.voxels }
}

/// Pixels at the isocentre along a voxel's edge.
fn pixels_a_voxel(geometry: &ScanGeometry, grid: &VolumeGrid) -> f64 {
    grid.voxel_mm.x / (geometry.views[0].column_step_mm.length() / 1.5)
}

/// Weights, filter and back-projection of one large scan.
pub(crate) fn fdk(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let (geometry, grid) = settings.size((scan(496, 512), grid(512)), (scan(6, 24), grid(16)));
    let (workload, detector) = (workload(&geometry, &grid), geometry.detector);
    let (pixels, voxels, views) = (geometry.projection_len(), grid.len(), geometry.views.len());
    let scratch = settings.adviser()?.scratch_bytes(&workload);
    let mut compute = settings.carrier(2 * pixels + detector.pixels() + voxels, scratch)?;
    compute.prepare(&workload)?;
    let (projections, image) = (uneven(&compute, pixels, 1.0)?, uneven(&compute, detector.pixels(), 1.0)?);
    let (mut weighted, mut volume) = (compute.buffer("weighted", pixels)?, compute.buffer("volume", voxels)?);
    let columns = vec![1.0; views * detector.columns];
    let weights = ProjectionWeights { detector, pad: [0, 0], image: image.values(), columns: &columns };
    // Weights of columns come from the host with every call; a launch waits for their copy.
    let cost = Cost { bytes: 8.0 * pixels as f64, launches: 2.0, ..Cost::default() };
    settings.time(rows, &compute, ("weight_projections", cost), || {
        compute.weight_projections(&weights, projections.values(), weighted.values_mut())
    })?;
    let filter = RampFilter::new(detector.columns, Window::RamLak, 1.0);
    let n = filter.transform_len() as f64;
    let lines = (views * detector.rows) as f64;
    let stages = 2.0 * (n.log2() / 2.0).ceil();
    let cost = Cost {
        bytes: 8.0 * pixels as f64,
        operations: lines * 5.0 * n * n.log2(),
        first_level_bytes: lines / 2.0 * 16.0 * n * stages,
        launches: 1.0,
        ..Cost::default()
    };
    settings.time(rows, &compute, ("filter_rows", cost), || compute.filter_rows(&filter, weighted.values_mut()))?;
    let updates = voxels as f64 * views as f64;
    let cost = Cost {
        bytes: 8.0 * voxels as f64 + 4.0 * pixels as f64,
        operations: 26.0 * updates,
        first_level_bytes: 16.0 * updates,
        updates,
        ..Cost::default()
    };
    settings.time(rows, &compute, ("back_project_fdk", cost), || {
        compute.back_project_fdk(&geometry, &grid, projections.values(), volume.values_mut())
    })
}

/// The projector and its adjoint, and the back-projection of a scan of few views.
pub(crate) fn projectors(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let (geometry, grid) = settings.size((scan(50, 512), grid(256)), (scan(4, 24), grid(16)));
    let workload = workload(&geometry, &grid);
    let (pixels, voxels, views) = (geometry.projection_len(), grid.len(), geometry.views.len());
    let scratch = settings.adviser()?.scratch_bytes(&workload);
    let mut compute = settings.carrier(pixels + voxels, scratch)?;
    compute.prepare(&workload)?;
    let (mut projections, mut volume) = (compute.buffer("projections", pixels)?, uneven(&compute, voxels, 0.02)?);
    let bytes = 4.0 * (pixels + voxels) as f64;
    // Rays whose way through the box is less than the whole take fewer samples: of this scan's, which is a fifth larger than the box, about 0.6.
    let samples = 0.6 * (pixels * grid.voxels[0]) as f64;
    let cost = Cost { bytes, operations: 32.0 * samples, first_level_bytes: 16.0 * samples, ..Cost::default() };
    settings.time(rows, &compute, ("forward_project", cost), || {
        compute.forward_project(&geometry, &grid, volume.values(), projections.values_mut())
    })?;
    let updates = voxels as f64 * views as f64;
    // So many columns a voxel, each shared by two voxels, and twice as many rows of each.
    let fine = pixels_a_voxel(&geometry, &grid);
    let columns = 1.13 * fine;
    let cost = Cost {
        bytes,
        operations: updates * (20.0 + columns * (46.0 + 14.0 * fine)),
        // Out of shared memory, which is as fast; lanes that read every second pixel meet in its banks.
        first_level_bytes: updates * columns * 4.0 * (2.0 * fine + 1.0) * fine,
        updates,
        ..Cost::default()
    };
    settings.time(rows, &compute, ("back_project_matched", cost), || {
        compute.back_project_matched(&geometry, &grid, projections.values(), volume.values_mut())
    })?;
    let cost = Cost {
        bytes: bytes + 4.0 * voxels as f64,
        operations: 26.0 * updates,
        first_level_bytes: 16.0 * updates,
        updates,
        ..Cost::default()
    };
    settings.time(rows, &compute, ("back_project_fdk", cost), || {
        compute.back_project_fdk(&geometry, &grid, projections.values(), volume.values_mut())
    })
}

/// The projectors of a scan whose detector is a degree from level: the adjoint has another kernel then.
pub(crate) fn rolled(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let of = |views, pixels| rolled_scan(views, pixels, 1.0_f64.to_radians());
    let (geometry, grid) = settings.size((of(50, 512), grid(256)), (of(4, 24), grid(16)));
    let workload = workload(&geometry, &grid);
    let (pixels, voxels) = (geometry.projection_len(), grid.len());
    let scratch = settings.adviser()?.scratch_bytes(&workload);
    let mut compute = settings.carrier(pixels + voxels, scratch)?;
    compute.prepare(&workload)?;
    let (projections, mut volume) = (uneven(&compute, pixels, 1.0)?, compute.buffer("volume", voxels)?);
    let updates = voxels as f64 * geometry.views.len() as f64;
    let fine = pixels_a_voxel(&geometry, &grid);
    // Four voxels along z look at the pixels of one window.
    let window = (2.0 * fine + 1.0) * (5.0 * fine + 1.0);
    let cost = Cost {
        bytes: 4.0 * (pixels + voxels) as f64,
        operations: updates * (200.0 + 90.0 * window) / 4.0,
        updates,
        ..Cost::default()
    };
    settings.time(rows, &compute, ("back_project_matched, not level", cost), || {
        compute.back_project_matched(&geometry, &grid, projections.values(), volume.values_mut())
    })
}

/// What is done with views, pixel by pixel: counts corrected, and what the optimisation does.
pub(crate) fn elements(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let geometry = settings.size(scan(50, 512), scan(3, 24));
    let workload = workload(&geometry, &grid(1));
    let n = geometry.projection_len();
    let adviser = settings.adviser()?;
    let mut compute = settings.carrier(4 * n, adviser.scratch_bytes(&workload) + adviser.counts_scratch_bytes(n))?;
    compute.prepare(&workload)?;
    compute.prepare_counts(n)?;
    let (first, second) = (uneven(&compute, n, 1.0)?, uneven(&compute, n, 2.0)?);
    let (weights, mut out) = (uneven(&compute, n, 1.0)?, compute.buffer("out", n)?);
    let (a, b, w) = (first.values(), second.values(), weights.values());
    // One large frame. Its counts come from the host with every call, over a link of which no floor tells: as many bytes alone stand beside it.
    let counts: Vec<u16> = (0..n).map(|i| (i % 60_000) as u16).collect();
    let correction =
        Correction { dark: a, gain: b, scale: 1e-4, min_transmission: 1e-5, bad_pixels: Values::Host(&[]) };
    let cost = Cost { bytes: 14.0 * n as f64, launches: 2.0, ..Cost::default() };
    settings.time(rows, &compute, ("counts in, line_integrals", cost), || {
        compute.line_integrals(&correction, &counts, out.values_mut()).map(drop)
    })?;
    let halves = vec![0.0; n / 2];
    settings.time(rows, &compute, ("as many bytes in", Cost::bytes(n, 2.0)), || {
        compute.write(&halves, out.values_mut().part(0..n / 2))
    })?;
    settings.time(rows, &compute, ("take_aperture", Cost::bytes(n, 8.0)), || {
        compute.take_aperture(geometry.detector, [0.1, 0.1], a, out.values_mut())
    })?;
    settings.time(rows, &compute, ("whiten", Cost::bytes(n, 12.0)), || compute.whiten(w, a, out.values_mut()))?;
    settings.time(rows, &compute, ("mix_sharpened", Cost::bytes(n, 16.0)), || {
        compute.mix_sharpened(0.5, 0.5, w, a, out.values_mut())
    })?;
    settings
        .time(rows, &compute, ("times_root", Cost::bytes(n, 12.0)), || compute.times_root(w, a, out.values_mut()))?;
    settings.time(rows, &compute, ("held_back_squares", Cost::sum(n, 12.0)), || {
        compute.held_back_squares(a, b, w).map(drop)
    })
}
