//! A subject made ready: the object, its grid, its reference, and its views at a geometry.

use std::f64::consts::TAU;

use glam::DVec3;
use ndarray::Array3;

use super::draw::{self, DetectorPlace, GeometryDraw};
use super::{CurateError, Options, Source, Subject, phantom};
use crate::compute::cpu::CpuCompute;
use crate::compute::{Compute, Workload};
use crate::formats::nifti;
use crate::geometry::{CircularOrbit, Coverage, Detector, FieldOfView, ScanGeometry, VolumeGrid};
use crate::simulate::acquire;
use crate::simulate::ct_object::CtObject;
use crate::simulate::error::SimulateError;
use crate::simulate::object::{Extent, Object};
use crate::simulate::orbit_design::{AngleLaw, OrbitDesign, OrbitRequest, volume_grid};
use crate::simulate::recipe::available_mib;
use crate::simulate::thorax::thorax;

/// Fewest voxels of a CT volume along an axis: fewer are a few slices, not a body.
const LEAST_VOXELS: usize = 16;

/// A subject that can be scanned.
pub(super) struct Body {
    object: Object,
    /// Where the object's own coordinates have their origin; moved with the grid from geometry to geometry.
    stands_at_mm: DVec3,
    /// Space that the object takes up about the isocenter.
    pub extent: Extent,
    /// The cube about the object, its centre at the isocenter.
    pub grid: VolumeGrid,
    /// `[z][y][x]`.
    pub reference_hu: Array3<i16>,
    detector: Detector,
    subpixels: usize,
}

/// A geometry worked out for a body.
pub(super) struct BodyGeometry {
    /// Orbit and detector.
    pub orbit: CircularOrbit,
    /// The cube where this geometry has it.
    pub grid: VolumeGrid,
    /// What its dense views measure.
    pub field_of_view: FieldOfView,
    /// As drawn.
    pub place: DetectorPlace,
    /// Number of dense views.
    dense: usize,
}

impl BodyGeometry {
    /// Angle of a dense view.
    pub(super) fn angle_rad(&self, view: usize) -> f64 {
        TAU * view as f64 / self.dense as f64
    }

    /// Some of the dense views.
    pub(super) fn at(&self, views: &[usize]) -> ScanGeometry {
        self.orbit.at_angles(&views.iter().map(|&view| self.angle_rad(view)).collect::<Vec<_>>())
    }
}

/// HU of an attenuation, rounded and kept within int16.
pub(super) fn hu(mu_per_mm: f32, mu_water_per_mm: f64) -> i16 {
    // `as` saturates.
    (1000.0 * (f64::from(mu_per_mm) / mu_water_per_mm - 1.0)).round() as i16
}

/// `[x][y][z]` in 1/mm to `[z][y][x]` in HU.
pub(super) fn slices_hu(mu_per_mm: ndarray::ArrayView3<'_, f32>, mu_water_per_mm: f64) -> Array3<i16> {
    mu_per_mm.reversed_axes().as_standard_layout().mapv(|mu| hu(mu, mu_water_per_mm))
}

/// A difference of attenuations `[x][y][z]` in 1/mm as `[z][y][x]` in HU: 1000 for water's.
pub(super) fn difference_hu(by_per_mm: ndarray::ArrayView3<'_, f32>, mu_water_per_mm: f64) -> Array3<i16> {
    // `as` saturates.
    let hu = |by: f32| (1000.0 * f64::from(by) / mu_water_per_mm).round() as i16;
    by_per_mm.reversed_axes().as_standard_layout().mapv(hu)
}

impl Body {
    /// Reads or makes the object and averages it over the grid's cells.
    pub(super) fn new(options: &Options, subject: &Subject, threads: usize) -> Result<Self, CurateError> {
        let mu_water = options.mu_water_per_mm;
        let name = &subject.name;
        let simulate = |error: SimulateError| CurateError::of_subject(name, error);
        let cube = |extent: &Extent| volume_grid([options.size; 3], None, extent).map(|(grid, _)| grid);
        let (object, extent, grid) = match &subject.source {
            Source::Ct(path, deformed) => {
                let shown = path.display().to_string();
                if nifti::holds_scene_values(path)? {
                    return Err(CurateError::subject(shown, "holds a scene's own values, not HU", "give a CT in HU"));
                }
                let volume = nifti::read_ct(path)?;
                let shape = volume.hu.dim();
                if [shape.0, shape.1, shape.2].into_iter().any(|n| n < LEAST_VOXELS) {
                    let problem = format!("{} x {} x {} voxels are too few", shape.0, shape.1, shape.2);
                    let advice = format!("a volume has at least {LEAST_VOXELS} along each axis");
                    return Err(CurateError::subject(shown, problem, advice));
                }
                let volume = match deformed {
                    Some(_) => draw::deformation(options, name).of(&volume),
                    None => volume,
                };
                let ct = CtObject::new(&shown, volume, mu_water).map_err(simulate)?;
                let extent = ct.extent();
                let grid = cube(&extent).map_err(simulate)?;
                let fine_grid = ct.fine_grid(&grid, options.oversample);
                check_memory(options, name, ct.voxels() + fine_grid.len())?;
                let (fine, _) = ct.resample(&fine_grid).into_raw_vec_and_offset();
                let compute = projector(options, &fine_grid, threads)?;
                (Object::Sampled { ct: Box::new(ct), grid: fine_grid, fine, compute }, extent, grid)
            }
            Source::Thorax(seed) => layered(thorax(*seed, mu_water).phantom, cube).map_err(simulate)?,
            Source::Ellipsoids(seed) => layered(phantom::ellipsoids(*seed, mu_water), cube).map_err(simulate)?,
        };
        let reference_hu = slices_hu(object.voxelise(&grid).view(), mu_water);
        let [rows, columns] = options.detector;
        Ok(Self {
            object,
            stands_at_mm: DVec3::ZERO,
            extent,
            grid,
            reference_hu,
            detector: Detector { columns, rows },
            subpixels: options.subpixels,
        })
    }

    /// Works out a geometry from what was drawn and the object's size: the object is seen whole (by a half-fan over the whole turn).
    pub(super) fn geometry(
        &self,
        options: &Options,
        name: &str,
        draw: &GeometryDraw,
    ) -> Result<BodyGeometry, CurateError> {
        let shift_mm = DVec3::from_array(draw.shift) * self.grid.size_mm();
        let grid = VolumeGrid { centre_mm: self.grid.centre_mm + shift_mm, ..self.grid };
        let extent = Extent {
            radius_mm: self.extent.radius_mm + shift_mm.truncate().length(),
            low_mm: self.extent.low_mm + shift_mm,
            high_mm: self.extent.high_mm + shift_mm,
        };
        // The source stays clear of the cube's corners.
        let corner_mm = 0.5 * grid.size_mm().truncate().length() + shift_mm.length();
        let dso = draw.source_to_isocenter_mm.max(2.2 * extent.radius_mm).max(1.3 * corner_mm);
        let dsd = draw.magnification * dso;
        let half_shadow_mm = dsd * (extent.radius_mm / dso).asin().tan();
        let request = OrbitRequest {
            views: options.views_dense,
            start_rad: 0.0,
            arc_rad: Some(TAU),
            clockwise: false,
            angles: AngleLaw::Uniform,
            source_to_isocenter_mm: dso,
            source_to_detector_mm: dsd,
            detector: self.detector,
            pitch_mm: None,
            offset_u_mm: (draw.place == DetectorPlace::Offset).then_some(draw.offset[0] * half_shadow_mm),
            offset_v_mm: draw.offset[1] * half_shadow_mm,
            tilt_rad: [0.0; 3],
            half_fan: draw.place == DetectorPlace::HalfFan,
            short_scan: false,
        };
        let design = OrbitDesign::new(&request, &extent).map_err(|error| CurateError::of_subject(name, error))?;
        let coverage =
            Coverage::analyse(&design.geometry(), &grid).map_err(|error| CurateError::of_geometry(name, error))?;
        Ok(BodyGeometry {
            orbit: design.orbit,
            grid,
            field_of_view: coverage.field_of_view,
            place: draw.place,
            dense: options.views_dense,
        })
    }

    /// Noise-free line integrals of some of a geometry's dense views, `[view][row v][column u]`; each depends on its own view alone.
    pub(super) fn project(
        &mut self,
        name: &str,
        geometry: &BodyGeometry,
        views: &[usize],
    ) -> Result<Array3<f32>, CurateError> {
        self.stand_at(geometry.grid.centre_mm - self.grid.centre_mm);
        acquire::project(&self.object, &geometry.at(views), self.subpixels, |_| ())
            .map_err(|error| CurateError::of_subject(name, error))
    }

    /// Moves the object.
    fn stand_at(&mut self, place_mm: DVec3) {
        let by = place_mm - self.stands_at_mm;
        match &mut self.object {
            Object::Sampled { grid, .. } => grid.centre_mm += by,
            Object::Layered(phantom) => phantom.layers.iter_mut().for_each(|layer| layer.centre_mm += by),
            Object::Additive(phantom) => phantom.ellipsoids.iter_mut().for_each(|part| part.centre_mm += by),
        }
        self.stands_at_mm = place_mm;
    }
}

type Made = (Object, Extent, VolumeGrid);

fn layered(
    phantom: crate::simulate::layered::LayeredPhantom,
    cube: impl Fn(&Extent) -> Result<VolumeGrid, SimulateError>,
) -> Result<Made, SimulateError> {
    let extent = Extent::of(&phantom.layers);
    let grid = cube(&extent)?;
    Ok((Object::Layered(phantom), extent, grid))
}

fn projector(options: &Options, grid: &VolumeGrid, threads: usize) -> Result<Box<CpuCompute>, CurateError> {
    let [rows, columns] = options.detector;
    let mut compute = CpuCompute::new(threads)?;
    compute.prepare(&Workload {
        columns: columns * options.subpixels,
        rows: rows * options.subpixels,
        views_per_call: acquire::views_per_chunk(Detector { columns, rows }, options.subpixels),
        voxels: grid.voxels,
    })?;
    Ok(Box::new(compute))
}

/// Object, views, and a dozen volumes of the methods.
fn check_memory(options: &Options, subject: &str, object_voxels: usize) -> Result<(), CurateError> {
    let views = options.views_dense * options.detector[0] * options.detector[1];
    let needed_mib = (4 * (object_voxels + 2 * views + 16 * options.size.pow(3))) >> 20;
    match available_mib() {
        Some(available_mib) if needed_mib > available_mib => {
            Err(CurateError::Memory { subject: subject.into(), needed_mib, available_mib })
        }
        _ => Ok(()),
    }
}
