//! Line integrals through a neural field, and their adjoint.

use std::f64::consts::TAU;

use diffnr::compute::ComputeError;
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceFieldGradients, DeviceRays, DeviceSlice, FieldGradientRoom, Launcher, RayTable};
use diffnr::compute::field::{FieldJitter, FieldRays, FieldShape, HostFieldGradients, RayPixel};
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use glam::DVec3;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::fields::{JITTER, Owned, any_shape, assert_gradients, driven, largest, odd, shapes, small, start};
use crate::scans::{orbit, settings};
use crate::values::{assert_close, download, signed, unwritten, upload};

/// Of the largest integral: as a voxel's value, and float32 sums of up to 4096 samples, which the CPU adds one after the other. Found: 6e-7, and
/// 2.4e-6 with 4096 samples.
const INTEGRALS: f32 = 1e-5;

/// Tilted, displaced detector with odd sizes.
fn awkward(views: usize) -> ScanGeometry {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 100.0,
        source_to_detector_mm: 150.0,
        detector: Detector { columns: 21, rows: 17 },
        pitch_u_mm: 3.1,
        pitch_v_mm: 4.7,
        offset_u_mm: 5.0,
        offset_v_mm: -3.0,
        roll_rad: 0.11,
        pitch_rad: -0.2,
        yaw_rad: 0.15,
    };
    orbit.over_arc(views, 0.4, 5.0)
}

/// Every `step`-th pixel of all views.
fn pixels(geometry: &ScanGeometry, step: usize) -> Vec<RayPixel> {
    let Detector { columns, rows } = geometry.detector;
    let of = |k: usize| RayPixel {
        view: (k / (rows * columns)) as u32,
        row: (k / columns % rows) as u32,
        column: (k % columns) as u32,
    };
    (0..geometry.projection_len()).step_by(step).map(of).collect()
}

/// The rays on a launcher, handed to `work` with the field.
fn with_rays<R>(
    launcher: &dyn Launcher,
    owned: &Owned,
    rays: &FieldRays<'_>,
    work: impl FnOnce(&DeviceRays<'_>, &cuda::DeviceField<'_>) -> R,
) -> R {
    let table = owned.table(launcher);
    let views = RayTable::upload(launcher, rays.geometry, &owned.layout).unwrap();
    let pixels: Vec<cuda::PixelRecord> = rays.pixels.iter().map(|&pixel| pixel.into()).collect();
    let pixels = DeviceSlice::upload(launcher, &pixels).unwrap();
    let FieldRays { samples, jitter, .. } = *rays;
    work(&DeviceRays { table: &views, pixels, samples, jitter }, &owned.upload(launcher, &table))
}

fn project(launcher: &dyn Launcher, owned: &Owned, rays: &FieldRays<'_>) -> Vec<Vec<f32>> {
    let integrals = unwritten(launcher, rays.pixels.len());
    with_rays(launcher, owned, rays, |rays, field| {
        cuda::field_project(launcher, rays, field, integrals).unwrap();
    });
    vec![download(launcher, integrals)]
}

fn backward(
    launcher: &dyn Launcher,
    owned: &Owned,
    rays: &FieldRays<'_>,
    by: &[f32],
    start: &[Vec<f32>; 2],
) -> Vec<Vec<f32>> {
    let [tables, network] = [&start[0], &start[1]].map(|values| upload(launcher, values));
    let gradients = DeviceFieldGradients { tables, network };
    let room = FieldGradientRoom::allocate(launcher, &owned.layout, [0; 3], rays.pixels.len()).unwrap();
    with_rays(launcher, owned, rays, |rays, field| {
        cuda::field_project_backward(launcher, rays, field, upload(launcher, by), &gradients, &room).unwrap();
    });
    vec![download(launcher, tables), download(launcher, network)]
}

/// Integrals and gradients are the CPU's; gives the integrals.
fn assert_rays(carrier: &Carrier, what: &str, owned: &Owned, rays: &FieldRays<'_>) -> Vec<f32> {
    let cpu = owned.cpu([1; 3]);
    let given = carrier.run(|launcher| project(launcher, owned, rays)).swap_remove(0);
    let mut expected = vec![f32::NAN; rays.pixels.len()];
    cpu.field_project(rays, &owned.parameters(), &mut expected).unwrap();
    assert_close(&format!("{what}, integrals"), INTEGRALS, &given, &expected);
    for (i, (given, expected)) in given.iter().zip(&expected).enumerate() {
        assert_eq!(*given == 0.0, *expected == 0.0, "{what}: meets the box or not, at {i}");
    }

    let by = signed(rays.pixels.len(), 7);
    let start = start(owned);
    let found = carrier.run(|launcher| backward(launcher, owned, rays, &by, &start));
    let mut expected = start.clone();
    let [tables, network] = &mut expected;
    let mut gradients = HostFieldGradients { tables, network };
    cpu.field_project_backward(rays, &owned.parameters(), &by, &mut gradients).unwrap();
    assert_gradients(what, owned, &start, &found, &expected);
    given
}

#[test]
fn rays_through_all_shapes_are_as_on_the_cpu() {
    on_each("field_project", |carrier| {
        let (grid, geometry) = (odd([13, 9, 37]), awkward(2));
        let few = pixels(&geometry, 97);
        for (what, shape) in shapes() {
            let owned = Owned::new(&shape, &grid, 1);
            for jitter in [None, JITTER] {
                let rays = FieldRays { geometry: &geometry, pixels: &few, samples: 37, jitter };
                assert_rays(carrier, what, &owned, &rays);
            }
        }
        let rays = FieldRays { geometry: &geometry, pixels: &few[2..5], samples: 33, jitter: JITTER };
        assert_rays(carrier, "the largest network", &Owned::new(&largest(), &grid, 1), &rays);
    });
}

#[test]
fn any_number_of_samples_and_rays() {
    on_each("field_project, numbers", |carrier| {
        let (grid, geometry) = (odd([13, 9, 37]), awkward(2));
        let owned = Owned::new(&driven(37), &grid, 2);
        let all = pixels(&geometry, 5);
        for (samples, count) in [(1, 5), (31, 3), (32, 4), (33, 1), (4096, 2), (64, 0)] {
            for jitter in [None, JITTER] {
                let pixels = &all[40..40 + count];
                let rays = FieldRays { geometry: &geometry, pixels, samples, jitter };
                assert_rays(carrier, &format!("{samples} samples, {count} rays"), &owned, &rays);
            }
        }
    });
}

/// Whole views: rays that pass the box by, and more batches than a launch has blocks.
#[test]
fn whole_views() {
    on_each("field_project, whole views", |carrier| {
        let (grid, geometry) = (odd([13, 9, 37]), awkward(13));
        let owned = Owned::new(&FieldShape { levels: 1, ..driven(12) }, &grid, 3);
        let all = pixels(&geometry, 1);
        let rays = FieldRays { geometry: &geometry, pixels: &all, samples: 2, jitter: None };
        let integrals = assert_rays(carrier, "whole views", &owned, &rays);
        let missing = integrals.iter().filter(|&&integral| integral == 0.0).count();
        assert!(missing > 50 && missing < integrals.len() - 50, "{missing} of {}", integrals.len());
    });
}

/// Rays along axes: within the box, along a face, and beside it. Half of them run along the axis towards lower coordinates.
#[test]
fn rays_along_axes() {
    on_each("field_project, along axes", |carrier| {
        // Faces at whole numbers, so that rounding has no say in what lies on them.
        let grid = VolumeGrid::over_box([6; 3], DVec3::splat(12.0), DVec3::ZERO);
        let owned = Owned::new(&small(), &grid, 4);
        let (low, size) = (owned.layout.low_mm(), owned.layout.size_mm());
        let mut view = awkward(1).views[0];
        let mut views = Vec::new();
        for axis in 0..3 {
            for beside in [0.3, 0.0, 1.0, 1.1, -0.1] {
                for sign in [1.0, -1.0] {
                    let mut along = DVec3::ZERO;
                    along[axis] = sign * 100.0;
                    let mut middle = low + 0.4 * size;
                    middle[(axis + 1) % 3] = low[(axis + 1) % 3] + beside * size[(axis + 1) % 3];
                    view.source_mm = middle - along;
                    view.detector_origin_mm = middle + along;
                    views.push(view);
                }
            }
        }
        let geometry = ScanGeometry { detector: Detector { columns: 1, rows: 1 }, views };
        let all = pixels(&geometry, 1);
        let rays = FieldRays { geometry: &geometry, pixels: &all, samples: 40, jitter: JITTER };
        let integrals = assert_rays(carrier, "along axes", &owned, &rays);
        assert_eq!(integrals.iter().filter(|&&integral| integral > 0.0).count(), 18);
    });
}

/// A source within the box sees what lies before it, and none what lies behind it.
#[test]
fn sources_within_and_beyond_the_box() {
    on_each("field_project, sources", |carrier| {
        let grid = odd([13, 9, 37]);
        let owned = Owned::new(&small(), &grid, 5);
        let mut within = awkward(1);
        within.views[0].source_mm = grid.centre_mm;
        let mut beyond = awkward(1);
        let view = &mut beyond.views[0];
        let away = 2.0 * (view.source_mm - grid.centre_mm);
        view.source_mm += away;
        view.detector_origin_mm = view.source_mm + away;
        for (what, geometry, seen) in [("within", within, true), ("beyond", beyond, false)] {
            let few = pixels(&geometry, 41);
            let rays = FieldRays { geometry: &geometry, pixels: &few, samples: 50, jitter: None };
            let integrals = assert_rays(carrier, what, &owned, &rays);
            assert!(integrals.iter().all(|&integral| (integral > 0.0) == seen), "{what}");
        }
    });
}

#[test]
fn any_field_and_rays() {
    on_each("field_project, any", |carrier| {
        let poses = (1usize..4, 0.0..TAU, 20.0..200.0f64, prop::array::uniform3(-0.4..0.4f64));
        let cases = (any_shape(), poses, 0u64..1000, 1usize..80, any::<bool>());
        proptest!(settings(16), |((shape, (views, start, width, tilt), seed, samples, random) in cases)| {
            let grid = odd([9, 7, 21]);
            let owned = Owned::new(&shape, &grid, seed);
            let [roll_rad, pitch_rad, yaw_rad] = tilt;
            let geometry =
                CircularOrbit { roll_rad, pitch_rad, yaw_rad, ..orbit(7, 5, width) }.over_arc(views, start, TAU);
            let few = pixels(&geometry, 4);
            let jitter = random.then_some(FieldJitter { seed, iteration: seed << 30 });
            let rays = FieldRays { geometry: &geometry, pixels: &few, samples, jitter };
            assert_rays(carrier, "any", &owned, &rays);
        });
    });
}

#[test]
fn levels_of_weight_zero_take_no_part() {
    on_each("field_project, levels left out", |carrier| {
        let (grid, geometry) = (odd([9, 7, 21]), awkward(2));
        let mut owned = Owned::new(&small(), &grid, 6);
        let few = pixels(&geometry, 77);
        let rays = FieldRays { geometry: &geometry, pixels: &few, samples: 40, jitter: JITTER };
        for out in [vec![1, 4], vec![0, 1, 2, 3, 4]] {
            for &level in &out {
                owned.weights[level] = 0.0;
                let level = owned.layout.levels()[level];
                // What is not read may be anything.
                owned.tables[level.first..level.first + 2 * level.entries].fill(1e30);
            }
            assert_rays(carrier, "levels left out", &owned, &rays);
        }
    });
}

#[test]
fn pixels_that_are_not_there_and_what_is_not_a_number_show() {
    on_each("field_project, not a number", |carrier| {
        let (grid, geometry) = (odd([9, 7, 21]), awkward(2));
        let owned = Owned::new(&small(), &grid, 7);
        let good = RayPixel { view: 1, row: 8, column: 10 };
        let all = [
            good,
            RayPixel { view: 2, ..good },
            RayPixel { row: 17, ..good },
            RayPixel { column: 21, ..good },
            RayPixel { column: u32::MAX, ..good },
            good,
        ];
        let rays = FieldRays { geometry: &geometry, pixels: &all, samples: 40, jitter: None };
        let given = carrier.run(|launcher| project(launcher, &owned, &rays)).swap_remove(0);
        assert!(given[0] > 0.0 && given[0] == given[5] && given[1..5].iter().all(|integral| integral.is_nan()));
        let start = [vec![0.0; owned.tables.len()], vec![0.0; owned.network.len()]];
        let by = [1.0, 9.0, 9.0, 9.0, 9.0, 1.0];
        let given = carrier.run(|launcher| backward(launcher, &owned, &rays, &by, &start));
        let two = FieldRays { pixels: &[good, good], ..rays };
        let expected = carrier.run(|launcher| backward(launcher, &owned, &two, &[1.0, 1.0], &start));
        // Other units of the fixed-point sums.
        let largest = expected[0].iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(given[0].iter().zip(&expected[0]).all(|(a, b)| (a - b).abs() <= 1e-6 * largest) && largest > 0.0);
        let spoilt = carrier.run(|launcher| backward(launcher, &owned, &two, &[1.0, f32::NAN], &start));
        assert!(spoilt[0].iter().all(|by| by.is_nan()));
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each("field_project, refusals", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let (grid, geometry) = (odd([9, 7, 21]), awkward(1));
        let owned = Owned::new(&small(), &grid, 8);
        let few = pixels(&geometry, 50);
        let rays = FieldRays { geometry: &geometry, pixels: &few, samples: 8, jitter: None };
        let (integrals, short) = (unwritten(l, few.len()), unwritten(l, few.len() - 1));
        let elsewhere = Owned::new(&small(), &odd([9, 7, 22]), 8);
        with_rays(l, &owned, &rays, |rays, field| {
            let refused = |result: Result<(), ComputeError>, part: &str| {
                let error = result.unwrap_err().to_string();
                assert!(error.contains(part), "{error}");
            };
            cuda::field_project(l, rays, field, integrals).unwrap();
            refused(cuda::field_project(l, rays, field, short), "`integrals`");
            for samples in [0, 4097] {
                refused(cuda::field_project(l, &DeviceRays { samples, ..*rays }, field, integrals), "samples = ");
            }
            let table = RayTable::upload(l, &geometry, &elsewhere.layout).unwrap();
            refused(cuda::field_project(l, &DeviceRays { table: &table, ..*rays }, field, integrals), "another box");
            let room = FieldGradientRoom::allocate(l, &owned.layout, [0; 3], 1).unwrap();
            let tables = unwritten(l, owned.tables.len());
            let gradients = DeviceFieldGradients { tables, network: unwritten(l, owned.network.len()) };
            let backward = |by| cuda::field_project_backward(l, rays, field, by, &gradients, &room);
            refused(backward(short), "`by_integrals`");
            refused(backward(integrals), "`room.partials`");
        });
    });
}
