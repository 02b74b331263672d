//! What is computed: one small scan of two bodies of water, by every method and so by every operation that methods use.

#![forbid(unsafe_code)]

use std::f64::consts::TAU;
use std::sync::Arc;

use glam::DVec3;

use crate::compute::counts::{BadPixel, Correction};
use crate::compute::slices::{SliceBatch, SliceLayout, WindowUnits};
use crate::compute::{Buffer, ComputeError, Left, Operations, Values, ValuesMut};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use crate::reconstruct::asd_pocs::{AsdPocs, AsdPocsPlan, AsdPocsSettings};
use crate::reconstruct::fdk::{FdkAccumulator, FdkPlan, FdkSettings};
use crate::reconstruct::optimise::{
    AugmentSettings, Budget, Method, NotRepaired, OptimiseError, OptimiseSettings, Recipe, Repairer,
};
use crate::reconstruct::os_sart::OsSartSettings;
use crate::reconstruct::{StopRules, Unobserved};
use crate::represent::field::FieldPlan;
use crate::represent::gaussians::GaussianPlan;
use crate::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};

/// One case.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Largest difference, of the norm of the CPU's result. Analytic and algebraic methods carry roundings on as they are, some 1e-6; steps of Adam make more of
    /// those of gradients that are next to nothing. The least that a kernel left out changes in what is optimised is three times the
    /// limit.
    pub(super) limit: f64,
    work: fn(&mut dyn Operations) -> Result<Vec<f32>, OptimiseError>,
}

impl Case {
    /// What a carrier makes of it.
    pub(super) fn run(&self, compute: &mut dyn Operations) -> Result<Vec<f32>, OptimiseError> {
        (self.work)(compute)
    }
}

pub(super) const CASES: [Case; 6] = [
    Case { name: "FDK", limit: 1e-4, work: fdk },
    Case { name: "FDK, rolled detector", limit: 1e-4, work: rolled },
    Case { name: "ASD-POCS", limit: 1e-4, work: asd_pocs },
    Case { name: "values as they are", limit: 0.0, work: exact },
    Case { name: "Gaussians", limit: 1e-3, work: gaussians },
    Case { name: "field", limit: 1e-3, work: field },
];

/// Sizes that fill no block of any kernel.
const VOXELS: [usize; 3] = [20, 18, 22];

fn grid() -> VolumeGrid {
    VolumeGrid::over_box(VOXELS, DVec3::splat(84.0), DVec3::ZERO)
}

fn scan(roll_rad: f64) -> ScanGeometry {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 600.0,
        detector: Detector { columns: 30, rows: 24 },
        pitch_u_mm: 5.0,
        pitch_v_mm: 6.0,
        roll_rad,
        ..CircularOrbit::default()
    };
    orbit.over_arc(8, 0.1, TAU)
}

/// Two bodies of water, one in the other.
fn phantom() -> EllipsoidPhantom {
    let body =
        |centre: [f64; 3], half: [f64; 3]| Ellipsoid::aligned(DVec3::from_array(centre), DVec3::from_array(half), 0.02);
    EllipsoidPhantom {
        ellipsoids: vec![body([0.0, 5.0, 0.0], [38.0, 30.0, 40.0]), body([10.0, -8.0, 6.0], [9.0, 12.0, 8.0])],
    }
}

fn line_integrals(geometry: &ScanGeometry) -> Vec<f32> {
    phantom().line_integrals(geometry).into_iter().collect()
}

fn start() -> Vec<f32> {
    phantom().voxelise(&grid(), 1).into_iter().collect()
}

/// In groups of views, and on top of that view by view with poses of their own, as frames come.
fn fdk_of(compute: &mut dyn Operations, geometry: &ScanGeometry) -> Result<Vec<f32>, OptimiseError> {
    let projections = line_integrals(geometry);
    let settings = FdkSettings { views_per_call: Some(3), ..FdkSettings::default() };
    let plan = Arc::new(FdkPlan::new(compute, geometry, &grid(), settings)?);
    compute.prepare(&plan.workload())?;
    let mut accumulator = FdkAccumulator::new(compute, plan)?;
    let pixels = geometry.detector.pixels();
    accumulator.add_views(compute, 0, &projections[..5 * pixels])?;
    for (view, part) in projections.chunks_exact(pixels).enumerate().skip(5) {
        accumulator.add_view(compute, view, Some(&geometry.views[view]), part)?;
    }
    Ok(accumulator.into_volume(compute)?)
}

fn fdk(compute: &mut dyn Operations) -> Result<Vec<f32>, OptimiseError> {
    fdk_of(compute, &scan(0.0))
}

fn rolled(compute: &mut dyn Operations) -> Result<Vec<f32>, OptimiseError> {
    fdk_of(compute, &scan(0.02))
}

fn asd_pocs(compute: &mut dyn Operations) -> Result<Vec<f32>, OptimiseError> {
    let geometry = scan(0.0);
    let sart = OsSartSettings {
        stop: StopRules { held_back_views: 1, ..StopRules::iterations(3) },
        ..OsSartSettings::default()
    };
    let plan =
        AsdPocsPlan::without_scratch(&geometry, &grid(), AsdPocsSettings { sart, ..AsdPocsSettings::default() })?;
    compute.prepare(&plan.workload())?;
    let mut method = AsdPocs::new(Arc::new(plan), compute, &line_integrals(&geometry))?;
    method.run(compute, &mut Unobserved)?;
    Ok(method.into_volume(compute)?)
}

/// Gaussians begin with a volume that is the same on every carrier: which of them are drawn may hang on the last bit of a voxel.
fn gaussians(compute: &mut dyn Operations) -> Result<Vec<f32>, OptimiseError> {
    let method = Method::Gaussians(GaussianPlan::for_grid(&grid(), Some(900), 3));
    optimised(compute, method, Some(&start()))
}

fn field(compute: &mut dyn Operations) -> Result<Vec<f32>, OptimiseError> {
    let plan = FieldPlan { jitter: true, ..FieldPlan::for_grid(&grid(), 3) };
    optimised(compute, Method::Field(plan), None)
}

/// From `start`, with iterations that a device carries out as one; from nothing, with a rolled detector, for which the adjoint has another way, and with
/// rays held back, in which the host has a part.
fn optimised(compute: &mut dyn Operations, method: Method, start: Option<&[f32]>) -> Result<Vec<f32>, OptimiseError> {
    let (roll_rad, approach_iterations, hold_back_one_in) = if start.is_some() { (0.0, 0, 0) } else { (0.02, 2, 7) };
    let geometry = scan(roll_rad);
    let settings = OptimiseSettings {
        views_per_iteration: 4,
        approach_iterations,
        fit_iterations: 2,
        tv_mm: 1e-3,
        hold_back_one_in,
        augment: Some(AugmentSettings { first: 0.5, ..AugmentSettings::default() }),
        ..OptimiseSettings::default()
    };
    let recipe = Recipe::new(&geometry, &grid(), &settings, method)?;
    recipe.prepare(compute)?;
    compute.prepare_slices()?;
    let mut optimiser = recipe.optimiser(compute)?;
    optimiser.repair_with(Box::new(MeanOfPlanes::new(compute)?));
    optimiser.load(compute, &line_integrals(&geometry))?;
    optimiser.begin(compute, start, &Unobserved)?;
    let outcome = optimiser.run(compute, Budget::Iterations(6), &mut Unobserved)?;
    let repairs = optimiser.repairs().map_or(0, |repairs| repairs.done);
    let mut result = optimiser.into_volume(compute)?;
    result.extend([repairs as f32, outcome.residual as f32, outcome.held_back_residual.unwrap_or(0.0) as f32]);
    Ok(result)
}

/// Padding of slices.
const MULTIPLE: usize = 8;

/// Any window will do that the volume's values do not fill.
const UNITS: WindowUnits = WindowUnits { scale: 40.0, offset: -1.0 };

/// Stands in for a model: slices across each axis go through, somewhat smaller for each, and their mean with a tenth of what is unexplained and of
/// the planes' standard deviation is the reference.
struct MeanOfPlanes {
    slices: Buffer,
    squares: Buffer,
}

impl MeanOfPlanes {
    fn layouts() -> [SliceLayout; 3] {
        [0, 1, 2].map(|axis| SliceLayout::across(axis, VOXELS, MULTIPLE))
    }

    fn new(compute: &dyn Operations) -> Result<Self, ComputeError> {
        let most = Self::layouts().iter().map(|layout| layout.slices() * layout.pixels()).max().unwrap_or(0);
        Ok(Self { slices: compute.buffer("slices", most)?, squares: compute.buffer("squares", grid().len())? })
    }

    fn mean(
        &mut self,
        compute: &dyn Operations,
        volume: Values<'_>,
        unexplained: Values<'_>,
        mut reference: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        let batch = SliceBatch { first: 0, neighbours: 0, volumes: 1, volume: 0 };
        for (planes, layout) in Self::layouts().iter().enumerate() {
            let len = layout.slices() * layout.pixels();
            compute.gather_slices(layout, &batch, UNITS, volume, self.slices.values_mut().part(0..len))?;
            // Else a plane that is left out would not show.
            compute.scale(1.0 - 0.1 * planes as f32, self.slices.values_mut().part(0..len))?;
            let slices = self.slices.values().part(0..len);
            compute.add_slices(layout, 0, planes, slices, reference.reborrow(), self.squares.values_mut())?;
        }
        compute.leave_window(UNITS, reference.reborrow())?;
        compute.deviations(0.5, 3, self.squares.values_mut())?;
        compute.add_scaled(0.1, self.squares.values(), reference.reborrow())?;
        compute.add_scaled(0.1, unexplained, reference)
    }
}

impl Repairer for MeanOfPlanes {
    fn sees_unexplained(&self) -> bool {
        true
    }

    fn repair(
        &mut self,
        compute: &dyn Operations,
        volume: Values<'_>,
        unexplained: Values<'_>,
        reference: ValuesMut<'_>,
        _: &dyn Fn() -> bool,
    ) -> Result<(), NotRepaired> {
        self.mean(compute, volume, unexplained, reference).map_err(|_| NotRepaired::Session)
    }
}

/// What is done to counts that come and to a volume that leaves, and what is asked of one before a repair; to the bit.
fn exact(compute: &mut dyn Operations) -> Result<Vec<f32>, OptimiseError> {
    compute.prepare_slices()?;
    let volume = compute.filled("volume", &start())?;
    let farthest = compute.farthest(UNITS, volume.values())?;
    let first = compute.first_beyond(0.01, volume.values())?.map_or(-1.0, |place| place as f32);
    let mut scaled = compute.buffer("scaled volume", volume.len())?;
    compute.copy_scaled(1.25, volume.values(), scaled.values_mut())?;
    let crc = compute.crc32c(scaled.values())?;
    let (line_integrals, clamped) = line_integrals_of_counts(compute)?;
    let mut result = compute.take(scaled)?;
    result.extend(line_integrals);
    // Halves, which float32 holds exactly.
    result.extend([farthest, first, clamped as f32, (crc >> 16) as f32, (crc & 0xffff) as f32]);
    Ok(result)
}

/// A frame's line integrals, and how many of its pixels met the clamp: counts from none to many, two pixels bad.
fn line_integrals_of_counts(compute: &mut dyn Operations) -> Result<(Vec<f32>, u64), ComputeError> {
    let pixels = 30 * 24 + 1;
    compute.prepare_counts(pixels)?;
    let counts: Vec<u16> = (0..pixels).map(|pixel| (7919 * pixel % 60_000) as u16).collect();
    let bad = |index, neighbours: [u32; 2]| {
        let mut pixel = BadPixel { index, count: 2, ..BadPixel::default() };
        pixel.neighbours[..2].copy_from_slice(&neighbours);
        pixel
    };
    let bad_pixels = compute.filled("bad pixels", BadPixel::floats(&[bad(0, [1, 30]), bad(400, [399, 401])]))?;
    let dark: Vec<f32> = (0..pixels).map(|pixel| 100.0 + (pixel % 30) as f32).collect();
    let gain: Vec<f32> = (0..pixels).map(|pixel| 1.0 / (50_000.0 + pixel as f32)).collect();
    let (dark, gain) = (compute.filled("dark image", &dark)?, compute.filled("gain", &gain)?);
    let correction = Correction {
        dark: dark.values(),
        gain: gain.values(),
        scale: 1.0 / 0.9,
        min_transmission: 0.01,
        bad_pixels: bad_pixels.values(),
    };
    let mut view = compute.buffer("line integrals", pixels)?;
    let clamped = match compute.line_integrals(&correction, &counts, view.values_mut())? {
        Left::AtHand(clamped) => clamped,
        Left::WithCarrier => compute.clamped_left()?,
    };
    Ok((compute.take(view)?, clamped))
}
