use glam::{DAffine3, DMat3, DQuat, DVec3};
use ndarray::{Array3, Axis};

use crate::compute::Compute;
use crate::compute::cpu::CpuCompute;
use crate::formats::nifti::CtVolume;
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use crate::simulate::acquire::project;
use crate::simulate::ct_object::CtObject;
use crate::simulate::ellipsoids::EllipsoidPhantom;
use crate::simulate::object::Object;

const MU_WATER: f64 = 0.0193;

fn phantom() -> EllipsoidPhantom {
    EllipsoidPhantom::asymmetric(60.0, MU_WATER)
}

/// The phantom as a CT of `n`^3 voxels over 140 mm whose middle lies at `centre` in the world.
fn ct(n: usize, centre: DVec3) -> CtVolume {
    let grid = VolumeGrid::over_box([n; 3], DVec3::splat(140.0), DVec3::ZERO);
    let hu = phantom().voxelise(&grid, 4).mapv(|mu| (1000.0 * (f64::from(mu) / MU_WATER - 1.0)) as f32);
    let origin = grid.origin_mm() + centre;
    CtVolume { hu, voxel_to_world_mm: DAffine3 { matrix3: DMat3::from_diagonal(grid.voxel_mm), translation: origin } }
}

fn object(ct: CtVolume) -> CtObject {
    CtObject::new("test", ct, MU_WATER).unwrap()
}

fn sampled(ct: CtObject, reconstruction: &VolumeGrid) -> Object {
    let grid = ct.fine_grid(reconstruction, 1.37);
    let (fine, _) = ct.resample(&grid).into_raw_vec_and_offset();
    let mut compute = CpuCompute::new(0).unwrap();
    let workload = crate::compute::Workload { columns: 96, rows: 80, views_per_call: 64, voxels: grid.voxels };
    compute.prepare(&workload).unwrap();
    Object::Sampled { ct: Box::new(ct), grid, fine, compute: Box::new(compute) }
}

fn scan() -> ScanGeometry {
    CircularOrbit {
        source_to_isocenter_mm: 500.0,
        source_to_detector_mm: 800.0,
        detector: Detector { columns: 48, rows: 40 },
        pitch_u_mm: 4.5,
        pitch_v_mm: 5.0,
        offset_u_mm: 6.0,
        ..CircularOrbit::default()
    }
    .over_arc(6, 0.2, std::f64::consts::TAU)
}

fn reconstruction(n: usize) -> VolumeGrid {
    VolumeGrid::over_box([n; 3], DVec3::splat(130.0), DVec3::ZERO)
}

fn rms(a: &Array3<f32>, b: &Array3<f32>) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

/// Mean (u, v) of an image, in pixels.
fn centroid(image: ndarray::ArrayView2<'_, f32>) -> (f64, f64) {
    let mut sums = (0.0, 0.0, 0.0);
    for ((v, u), &p) in image.indexed_iter() {
        let p = f64::from(p);
        sums = (sums.0 + p, sums.1 + p * u as f64, sums.2 + p * v as f64);
    }
    (sums.1 / sums.0, sums.2 / sums.0)
}

#[test]
fn scans_of_a_voxelised_phantom_approach_its_exact_chords_without_a_shift() {
    let exact = project(&Object::Additive(phantom()), &scan(), 2, |_| ()).unwrap();
    let mut errors = Vec::new();
    for n in [35, 70, 140] {
        let got = project(&sampled(object(ct(n, DVec3::ZERO)), &reconstruction(n)), &scan(), 2, |_| ()).unwrap();
        errors.push(rms(&got, &exact));
        for view in 0..6 {
            let (a, b) = (centroid(got.index_axis(Axis(0), view)), centroid(exact.index_axis(Axis(0), view)));
            // A shift by half a fine voxel would be 0.13 pixel at 140 voxels; interpolation alone is symmetric.
            assert!((a.0 - b.0).abs() < 0.02 && (a.1 - b.1).abs() < 0.02, "{n}: {a:?} {b:?}");
        }
    }
    // Edges are blurred over a voxel: the error falls about in proportion (order 1 to 1.5), and is small beside the largest
    // line integral of 2.
    assert!(errors[1] < 0.55 * errors[0] && errors[2] < 0.55 * errors[1] && errors[2] < 0.01, "{errors:?}");
}

#[test]
fn any_order_and_direction_of_axes_gives_the_same_object() {
    let n = 35;
    let straight = object(ct(n, DVec3::new(11.0, -32.0, 105.0)));
    assert!((straight.patient_offset_mm - DVec3::new(11.0, -32.0, 105.0)).length() < 1e-9);
    // Stored as (k reversed, i, j reversed), with the affine that says so.
    let source = ct(n, DVec3::new(11.0, -32.0, 105.0));
    let mut hu = source.hu.clone().permuted_axes([2, 0, 1]);
    hu.invert_axis(Axis(0));
    hu.invert_axis(Axis(2));
    let m = source.voxel_to_world_mm.matrix3;
    let last = (n - 1) as f64;
    let turned = object(CtVolume {
        hu: hu.as_standard_layout().to_owned(),
        voxel_to_world_mm: DAffine3 {
            matrix3: DMat3::from_cols(-m.z_axis, m.x_axis, -m.y_axis),
            translation: source.voxel_to_world_mm.translation + last * (m.z_axis + m.y_axis),
        },
    });
    let grid = VolumeGrid::over_box([21, 22, 23], DVec3::new(120.0, 125.0, 118.0), DVec3::new(1.0, 2.0, -3.0));
    // float32 rounding of the weights, of values up to 0.04.
    assert!(rms(&straight.voxelise(&grid), &turned.voxelise(&grid)) < 1e-9);
    let (a, b) = (straight.extent(), turned.extent());
    assert!((a.low_mm - b.low_mm).length() < 1e-9 && (a.radius_mm - b.radius_mm).abs() < 1e-9);
    let (a, b) = (sampled(straight, &reconstruction(30)), sampled(turned, &reconstruction(30)));
    let (a, b) = (project(&a, &scan(), 1, |_| ()).unwrap(), project(&b, &scan(), 1, |_| ()).unwrap());
    // float32 sums along rays of values up to 2.
    assert!(rms(&a, &b) < 1e-5, "{}", rms(&a, &b));
}

#[test]
fn an_oblique_affine_turns_the_object_back() {
    // The same body scanned in a gantry tilted by 0.35 rad: the volume is oblique, the world is not.
    let turn = DQuat::from_euler(glam::EulerRot::XYZ, 0.2, 0.15, 0.25);
    let n = 90;
    let grid = VolumeGrid::over_box([n; 3], DVec3::splat(150.0), DVec3::ZERO);
    let body = phantom();
    let hu = Array3::from_shape_fn([n; 3], |(i, j, k)| {
        (1000.0 * (body.value_at(turn * grid.voxel_centre_mm(i, j, k)) / MU_WATER - 1.0)) as f32
    });
    let matrix3 = DMat3::from_quat(turn) * DMat3::from_diagonal(grid.voxel_mm);
    let oblique =
        object(CtVolume { hu, voxel_to_world_mm: DAffine3 { matrix3, translation: turn * grid.origin_mm() } });
    let got = project(&sampled(oblique, &reconstruction(64)), &scan(), 2, |_| ()).unwrap();
    let exact = project(&Object::Additive(body), &scan(), 2, |_| ()).unwrap();
    // Point samples of sharp edges in 1.7 mm voxels; a missing or reversed turn gives 0.2.
    assert!(rms(&got, &exact) < 0.02, "{}", rms(&got, &exact));
}

#[test]
fn the_fine_grid_holds_the_volume_is_finer_and_off_both_grids() {
    let object = object(ct(40, DVec3::ZERO));
    for n in [20, 40, 90] {
        let scan_grid = reconstruction(n);
        let fine = object.fine_grid(&scan_grid, 1.37);
        assert!((fine.voxel_mm - scan_grid.voxel_mm / 1.37).max_element() < 1e-9, "finer than the scan's");
        assert!((fine.voxel_mm - DVec3::splat(140.0 / 40.0)).max_element() < 1e-9, "no coarser than the volume's");
        let half = 0.5 * fine.size_mm();
        assert!((fine.centre_mm + half).min_element() >= 70.0 && (fine.centre_mm - half).max_element() <= -70.0);
    }
    // Where the volume's own spacing rules, rows of centres must not coincide with the volume's.
    let fine = object.fine_grid(&reconstruction(20), 1.37);
    let own = VolumeGrid::over_box([40; 3], DVec3::splat(140.0), DVec3::ZERO);
    let shift = (fine.origin_mm() - own.origin_mm()) / own.voxel_mm;
    assert!((shift - shift.round()).abs().min_element() > 0.1, "{shift}");
}

#[test]
fn the_ground_truth_keeps_the_mass() {
    let object = object(ct(70, DVec3::ZERO));
    for n in [16, 33, 100] {
        let grid = VolumeGrid::over_box([n; 3], DVec3::splat(150.0), DVec3::ZERO);
        let volume = object.voxelise(&grid);
        let mass: f64 = volume.iter().map(|&v| f64::from(v)).sum::<f64>() * grid.voxel_mm.element_product();
        // Cell averages by 2 to 4 points an own voxel: edges leave some 1e-4.
        assert!((mass / phantom().mass_mm2() - 1.0).abs() < 2e-3, "{n}: {mass} {}", phantom().mass_mm2());
    }
}

#[test]
fn the_extent_is_that_of_the_body() {
    let extent = object(ct(70, DVec3::new(5.0, 6.0, 7.0))).extent();
    let exact = crate::simulate::object::Extent::of(&phantom().ellipsoids);
    // Within two voxels of 2 mm (partial voxels above -900 HU count whole).
    assert!((extent.low_mm - exact.low_mm).abs().max_element() < 4.0, "{extent:?} {exact:?}");
    assert!((extent.high_mm - exact.high_mm).abs().max_element() < 4.0);
    assert!((extent.radius_mm - exact.radius_mm).abs() < 5.0);
}

#[test]
fn volumes_that_are_no_ct_are_refused_with_advice() {
    let fails = |value: f32, words: &str| {
        let hu = Array3::from_elem((3, 4, 5), value);
        let volume = CtVolume { hu, voxel_to_world_mm: DAffine3::IDENTITY };
        let message = CtObject::new("mask.nii.gz", volume, MU_WATER).unwrap_err().to_string();
        assert!(message.contains(words) && message.contains("mask.nii.gz"), "{message}");
    };
    fails(-1000.0, "all air");
    fails(1.0, "mask");
    fails(1e6, "not Hounsfield units");
    fails(f32::NAN, "finite");
}

#[test]
fn averages_along_the_axes_agree_with_dense_sampling() {
    let n = 30;
    let mut source = ct(n, DVec3::ZERO);
    // Reversed and exchanged axes, unequal spacings, cells that reach beyond the volume.
    source.hu.invert_axis(Axis(1));
    source.hu = source.hu.permuted_axes([1, 0, 2]).as_standard_layout().to_owned();
    let m = DMat3::from_cols(DVec3::new(0.0, -4.0, 0.0), DVec3::new(5.0, 0.0, 0.0), DVec3::new(0.0, 0.0, 3.0));
    source.voxel_to_world_mm = DAffine3 { matrix3: m, translation: DVec3::new(-70.0, 60.0, -44.0) };
    let object = object(source);
    let grid = VolumeGrid::over_box([13, 24, 9], DVec3::new(170.0, 110.0, 80.0), DVec3::new(2.0, -3.0, 6.0));
    let (got, points) =
        (object.voxelise(&grid), object.resample(&VolumeGrid::over_box([60, 61, 62], grid.size_mm(), grid.centre_mm)));
    let fine = 24;
    let at = |i: usize| (i as f64 + 0.5) / fine as f64 - 0.5;
    for (ix, iy, iz) in (0..grid.len()).step_by(31).map(|i| (i / (24 * 9), i / 9 % 24, i % 9)) {
        let mut sum = 0.0;
        for k in 0..fine * fine * fine {
            let offset = DVec3::new(at(k / (fine * fine)), at(k / fine % fine), at(k % fine));
            sum += object.value_at(grid.voxel_centre_mm(ix, iy, iz) + grid.voxel_mm * offset);
        }
        let expected = sum / (fine * fine * fine) as f64;
        // The midpoint rule in 24 steps on kinks and, at the volume's faces, on a jump of up to 0.04: half a step in 24.
        assert!((f64::from(got[[ix, iy, iz]]) - expected).abs() < 1e-3, "{ix} {iy} {iz}: {expected}");
    }
    let centre = VolumeGrid::over_box([60, 61, 62], grid.size_mm(), grid.centre_mm);
    for (ix, iy, iz) in [(30, 30, 30), (20, 40, 25), (41, 22, 33), (0, 0, 0)] {
        let expected = object.value_at(centre.voxel_centre_mm(ix, iy, iz));
        assert!((f64::from(points[[ix, iy, iz]]) - expected).abs() < 1e-8);
    }
}
