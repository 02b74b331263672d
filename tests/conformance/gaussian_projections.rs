//! 3D Gaussians in views: line integrals, and the gradients of those.

use std::array::from_fn;
use std::f64::consts::TAU;

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceGaussians, DeviceSlice, GaussianRoom, GaussianViews};
use diffnr::compute::gaussians::{GaussianCompute as _, GaussianWorkload};
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry};
use glam::{DQuat, DVec3};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::gaussian_scenes::{One, ROUND, Scene, channels, lend, refused, scene};
use crate::scans::{orbit, settings};
use crate::values::{assert_close, dot, download, signed, unwritten, upload};

/// Of the largest value. Forms are rounded from float64 as on the CPU; what is left is the exponential, and float32 positions on the steep sides of
/// thin Gaussians.
const PROJECTIONS: f32 = 4e-6;

/// Of a channel's largest gradient: sums of up to some thousand pixels in another order, of which many cancel.
const GRADIENT: f32 = 2e-5;

fn workload(gaussians: usize, geometry: &ScanGeometry) -> GaussianWorkload {
    let Detector { columns, rows } = geometry.detector;
    GaussianWorkload { gaussians, columns, rows, views_per_call: geometry.views.len(), voxels: [0; 3] }
}

fn cpu(n: usize, geometry: &ScanGeometry) -> CpuCompute {
    let mut cpu = CpuCompute::new(1).unwrap();
    cpu.prepare_gaussians(&workload(n, geometry)).unwrap();
    cpu
}

/// Projections and gradients by them on a carrier, in a room for `room` Gaussians; what is added to are 12 values, one a channel.
fn on(
    carrier: &Carrier,
    geometry: &ScanGeometry,
    scene: &Scene,
    by: &[f32],
    before: &[f32],
    room: usize,
) -> Vec<Vec<f32>> {
    carrier.run(|launcher| {
        let gaussians = scene.upload(launcher);
        let views = GaussianViews::upload(launcher, geometry).unwrap();
        let room = GaussianRoom::allocate(launcher, &workload(room, geometry)).unwrap();
        let (projections, by) = (unwritten(launcher, views.projection_len()), upload(launcher, by));
        let capacity = gaussians.capacity();
        let gradients = upload(launcher, &before.iter().flat_map(|&v| vec![v; capacity]).collect::<Vec<_>>());
        // One room for both: nothing of the other may stay in it.
        cuda::gaussian_project_backward(launcher, &views, &gaussians, by, gradients, &room).unwrap();
        cuda::gaussian_project(launcher, &views, &gaussians, projections, &room).unwrap();
        assert_eq!(room.unsound(launcher).unwrap(), None);
        vec![download(launcher, projections), download(launcher, gradients)]
    })
}

fn assert_as_on_the_cpu(carrier: &Carrier, what: &str, geometry: &ScanGeometry, gaussians: &[One], low_pass_mm: f32) {
    let scene = Scene::new(gaussians, low_pass_mm);
    let (n, by) = (scene.len(), signed(geometry.projection_len(), 5));
    let cpu = cpu(n, geometry);
    let mut projections = vec![f32::NAN; by.len()];
    cpu.gaussian_project(geometry, &scene.set(), &mut projections).unwrap();
    let mut gradients: [Vec<f32>; 12] = from_fn(|_| vec![0.0; n]);
    cpu.gaussian_project_backward(geometry, &scene.set(), &by, &mut lend(&mut gradients)).unwrap();
    // What is added to, beside the gradients neither too small to be seen nor so large that it hides them.
    let before: [f32; 12] =
        from_fn(|channel| 0.3 * gradients[channel].iter().fold(0.0f32, |largest, v| largest.max(v.abs())) + 1e-3);
    let given = on(carrier, geometry, &scene, &by, &before, n);
    assert_close(&format!("{what}: projections"), PROJECTIONS, &given[0], &projections);
    for (channel, (given, expected)) in channels(&given[1], n).iter().zip(&gradients).enumerate() {
        let expected: Vec<f32> = expected.iter().map(|gradient| gradient + before[channel]).collect();
        assert_close(&format!("{what}: gradient {channel}"), GRADIENT, given, &expected);
    }
    let behind = given[1].chunks(n + 5).zip(before).all(|(channel, before)| channel[n..].iter().all(|&v| v == before));
    assert!(behind, "{what}: beyond the last Gaussian");
}

/// A detector that is tilted, displaced and not square, of which `width_mm` and `height_mm` are seen.
fn tilted(columns: usize, rows: usize, [width_mm, height_mm]: [f64; 2]) -> CircularOrbit {
    CircularOrbit {
        pitch_v_mm: height_mm / rows as f64,
        offset_u_mm: 7.0,
        offset_v_mm: -5.0,
        roll_rad: 0.11,
        pitch_rad: -0.2,
        yaw_rad: 0.15,
        ..orbit(columns, rows, width_mm)
    }
}

fn ball(n: usize, half_mm: f64, scales_mm: [f64; 2], seed: u64) -> Vec<One> {
    scene(n, DVec3::splat(half_mm), scales_mm, seed)
}

#[test]
fn projections_and_gradients_are_as_on_the_cpu() {
    on_each("gaussian_project", |carrier| {
        // A pixel, lines, about a warp's 8 pixels and a tile's 16.
        for (columns, rows) in [(1, 1), (1, 30), (30, 1), (8, 8), (9, 17), (16, 16), (33, 15), (61, 45)] {
            let geometry = tilted(columns, rows, [120.0, 110.0]).over_arc(2, 0.4, 5.0);
            assert_as_on_the_cpu(
                carrier,
                &format!("{columns} x {rows}"),
                &geometry,
                &ball(40, 30.0, [0.7, 4.0], 1),
                0.5,
            );
        }
        proptest!(settings(12), |(
            (columns, rows) in (1usize..60, 1usize..50), views in 1usize..4, size_mm in prop::array::uniform2(40.0f64..200.0),
            n in 1usize..120, small in 1.0f64..2.0, spread in 1.0f64..5.0,
            low_pass_mm in prop_oneof![Just(0.0f32), 0.3f32..2.0], seed: u64,
        )| {
            let geometry = tilted(columns, rows, size_mm).over_arc(views, 0.1, TAU);
            assert_as_on_the_cpu(carrier, "any", &geometry, &ball(n, 35.0, [small, small * spread], seed), low_pass_mm);
        });
    });
}

#[test]
fn every_kind_of_gaussian_is_seen_as_on_the_cpu() {
    on_each("gaussian_project, kinds", |carrier| {
        let geometry = tilted(61, 45, [128.0, 121.0]).over_arc(2, 0.4, 5.0);
        let check = |what, gaussians: &[One], low| assert_as_on_the_cpu(carrier, what, &geometry, gaussians, low);
        let mut needles = ball(12, 25.0, [1.0, 1.1], 2);
        for (i, one) in needles.iter_mut().enumerate() {
            one.scale = [DVec3::new(0.9, 25.0, 1.1), DVec3::new(20.0, 1.2, 0.8), DVec3::new(12.0, 12.0, 0.9)][i % 3];
        }
        check("needles and discs", &needles, 0.3);
        let pose = &geometry.views[0];
        let along = (pose.pixel_mm(22.0, 30.0) - pose.source_mm).normalize();
        let turned = |to: DVec3| {
            let turn = DQuat::from_rotation_arc(DVec3::X, to.normalize());
            [turn.w, turn.x, turn.y, turn.z]
        };
        let needle = One {
            position: pose.source_mm + 400.0 * along,
            scale: DVec3::new(30.0, 1.5, 1.2),
            rotation: turned(along),
            ..ROUND
        };
        check("along a ray", &[needle], 0.0);
        check("smaller than a pixel", &ball(60, 30.0, [1e-3, 0.5], 3), 0.9);
        // On the detector's rim and corners, partly or barely on it.
        let rim = [(-3.0, 20.0), (47.0, 30.0), (10.0, -4.0), (20.0, 66.0), (0.0, 0.0), (44.0, 60.0), (-9.0, -9.0)];
        let rim = rim.map(|(v, u)| One {
            position: pose.source_mm.lerp(pose.pixel_mm(v, u), 0.66),
            scale: DVec3::new(2.0, 3.0, 4.0),
            ..ROUND
        });
        check("about the rim", &rim, 0.4);
        // Behind a source, about it, close to it, so that its footprint is the whole detector.
        let near = |share: f64, scale| One {
            position: pose.source_mm * share,
            scale: DVec3::splat(scale),
            rotation: [1.0, 0.2, 0.3, 0.4],
            ..ROUND
        };
        check("about the source", &[near(1.3, 3.0), near(0.99, 30.0), near(0.8, 9.0), ROUND, near(0.5, 12.0)], 0.3);
        check("not seen", &[near(1.3, 3.0), One { position: DVec3::new(0.0, 0.0, 300.0), ..ROUND }], 0.3);
        // Long, but wholly before the source, however far beyond the detector.
        let far = |x: f64| One { scale: DVec3::new(x, 1.5, 2.0), rotation: turned(pose.column_step_mm), ..ROUND };
        check("beyond the detector", &[far(300.0), far(5e4)], 0.3);
        let dark = One { density: 0.0, scale: DVec3::splat(3.0), ..ROUND };
        let lit = ball(2, 20.0, [3.0, 5.0], 14);
        check("without density", &[dark, lit[0], lit[1], dark], 0.2);
    });
}

/// So large that a block's warps share them, beside others.
#[test]
fn gaussians_over_the_whole_detector_are_as_on_the_cpu() {
    on_each("gaussian_project, large", |carrier| {
        // 400 groups of rows and four of columns.
        let geometry = tilted(110, 400, [100.0, 380.0]).over_arc(1, 0.4, 5.0);
        let mut gaussians = ball(11, 25.0, [2.0, 4.0], 4);
        gaussians[3].scale = DVec3::new(30.0, 35.0, 40.0);
        gaussians[9].scale = DVec3::splat(45.0);
        assert_as_on_the_cpu(carrier, "large", &geometry, &gaussians, 0.2);
    });
}

/// More entries than the lists of all passes hold: the rest is tried one by one. A larger room takes all in one pass, to the same bits.
#[test]
fn room_changes_no_bit_of_a_projection() {
    on_each("gaussian_project, room", |carrier| {
        // 30 tiles: those of 30 mm touch all of them, those of 5 mm some.
        let geometry = tilted(80, 96, [100.0, 120.0]).over_arc(1, 0.4, 5.0);
        let (by, before) = (vec![0.0; geometry.projection_len()], [0.0; 12]);
        for (scales, n) in [([25.0, 30.0], 250), ([4.0, 12.0], 200)] {
            let scene = Scene::new(&ball(n, 20.0, scales, 6), 0.1);
            let small = on(carrier, &geometry, &scene, &by, &before, n);
            let large = on(carrier, &geometry, &scene, &by, &before, 30 * n);
            assert!(small[0].iter().map(|v| v.to_bits()).eq(large[0].iter().map(|v| v.to_bits())));
            let mut projections = vec![f32::NAN; by.len()];
            cpu(n, &geometry).gaussian_project(&geometry, &scene.set(), &mut projections).unwrap();
            assert_close("room", PROJECTIONS, &small[0], &projections);
        }
    });
}

/// The gradient is that of the projections which the kernels themselves give.
#[test]
fn gradients_are_differences_of_the_projections() {
    on_each("gaussian_project, differences", |carrier| {
        let geometry = tilted(41, 35, [128.0, 121.0]).over_arc(2, 0.4, 5.0);
        let mut scene = Scene::new(&ball(3, 20.0, [4.0, 9.0], 8), 0.4);
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let n = geometry.projection_len();
        // Smooth, so that pixels which cross the cut-off do not outweigh what the others' signs cancel.
        let weights: Vec<f32> = (0..n).map(|k| (k as f32 * 0.0031).sin() + ((k % 41) as f32 * 0.11).cos()).collect();
        let views = GaussianViews::upload(l, &geometry).unwrap();
        let room = GaussianRoom::allocate(l, &workload(3, &geometry)).unwrap();
        let (projections, by) = (unwritten(l, n), upload(l, &weights));
        let gradients = upload(l, &[0.0; 12 * 8]);
        cuda::gaussian_project_backward(l, &views, &scene.upload(l), by, gradients, &room).unwrap();
        let gradients = channels(&download(l, gradients), 3);
        let loss = |scene: &Scene| {
            cuda::gaussian_project(l, &views, &scene.upload(l), projections, &room).unwrap();
            dot(&weights, &download(l, projections))
        };
        for (channel, gradient) in gradients[..11].iter().enumerate() {
            // Large beside what float32 leaves of the sum, small beside the Gaussians.
            let step = [1e-3, 3e-2, 3e-2, 3e-2, 1e-2, 1e-2, 1e-2, 4e-3, 4e-3, 4e-3, 4e-3][channel];
            let differences: Vec<f32> = (0..3)
                .map(|i| {
                    let value = scene.arrays[channel][i];
                    let [above, below] = [step, -step].map(|step| {
                        scene.arrays[channel][i] = value + step;
                        loss(&scene)
                    });
                    scene.arrays[channel][i] = value;
                    ((above - below) / (2.0 * f64::from(step))) as f32
                })
                .collect();
            assert_close(&format!("differences, channel {channel}"), 3e-3, gradient, &differences);
        }
    });
}

#[test]
fn gaussians_that_are_not_sound_are_not_seen() {
    on_each("gaussian_project, not sound", |carrier| {
        let geometry = tilted(20, 19, [60.0, 55.0]).over_arc(2, 0.4, 5.0);
        let by = signed(geometry.projection_len(), 11);
        let mut with = Scene::new(&ball(40, 20.0, [1.5, 4.0], 10), 0.2);
        let mut without = with.clone();
        for (i, array, value) in [(33, 0, f32::NAN), (12, 2, f32::INFINITY), (21, 6, 26.0), (30, 9, f32::NAN)] {
            with.arrays[array][i] = value;
            without.arrays[0][i] = 0.0;
        }
        let mut projections = vec![f32::NAN; by.len()];
        cpu(40, &geometry).gaussian_project(&geometry, &without.set(), &mut projections).unwrap();
        let given = carrier.run(|launcher| {
            let gaussians = with.upload(launcher);
            let views = GaussianViews::upload(launcher, &geometry).unwrap();
            let room = GaussianRoom::allocate(launcher, &workload(40, &geometry)).unwrap();
            let (image, by) = (unwritten(launcher, by.len()), upload(launcher, &by));
            let gradients = upload(launcher, &[1.0; 12 * 45]);
            cuda::gaussian_project(launcher, &views, &gaussians, image, &room).unwrap();
            assert_eq!(room.unsound(launcher).unwrap(), Some(12));
            let image = download(launcher, image);
            cuda::gaussian_project(launcher, &views, &without.upload(launcher), by, &room).unwrap();
            assert_eq!(room.unsound(launcher).unwrap(), None);
            cuda::gaussian_project_backward(launcher, &views, &gaussians, by, gradients, &room).unwrap();
            assert_eq!(room.unsound(launcher).unwrap(), Some(12));
            vec![image, download(launcher, gradients)]
        });
        assert_close("not sound", PROJECTIONS, &given[0], &projections);
        for gradients in channels(&given[1], 40) {
            assert!((0..40).all(|i| gradients[i].is_finite() && (without.arrays[0][i] != 0.0 || gradients[i] == 1.0)));
        }
    });
}

#[test]
fn projections_of_nothing() {
    on_each("gaussian_project of nothing", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let some = tilted(5, 4, [60.0, 55.0]).over_arc(3, 0.4, 5.0);
        let empty = ScanGeometry { detector: some.detector, views: vec![] };
        let room = GaussianRoom::allocate(l, &workload(4, &some)).unwrap();
        let [some, empty] = [&some, &empty].map(|geometry| GaussianViews::upload(l, geometry).unwrap());
        let (none, one) = (Scene::new(&[], 0.0).upload(l), Scene::new(&[ROUND], 0.0).upload(l));
        let (nothing, projections) = (upload(l, &[]), unwritten(l, 60));
        cuda::gaussian_project(l, &empty, &one, nothing, &room).unwrap();
        cuda::gaussian_project(l, &some, &none, projections, &room).unwrap();
        assert_eq!(download(l, projections), [0.0; 60]);
        let gradients = upload(l, &[7.0; 12 * 6]);
        cuda::gaussian_project_backward(l, &empty, &one, nothing, gradients, &room).unwrap();
        cuda::gaussian_project_backward(l, &some, &none, projections, upload(l, &[0.0; 12 * 5]), &room).unwrap();
        assert_eq!(download(l, gradients), [7.0; 72]);
    });
}

#[test]
fn wrong_lengths_of_projections_are_refused() {
    on_each("refusals of the Gaussians' projector", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let geometry = tilted(17, 4, [60.0, 55.0]).over_arc(2, 0.4, 5.0);
        let views = GaussianViews::upload(l, &geometry).unwrap();
        let (projections, short) = (unwritten(l, 136), unwritten(l, 135));
        let gradients = upload(l, &[0.0; 12 * 7]);
        let good = Scene::new(&[ROUND, ROUND], 0.0).upload(l);
        let room = GaussianRoom::allocate(l, &workload(2, &geometry)).unwrap();
        let forward = |gaussians: &DeviceGaussians, projections: DeviceSlice<f32>, room: &GaussianRoom| {
            cuda::gaussian_project(l, &views, gaussians, projections, room)
        };
        let backward = |gaussians: &DeviceGaussians, by, gradients, room: &GaussianRoom| {
            cuda::gaussian_project_backward(l, &views, gaussians, by, gradients, room)
        };
        forward(&good, projections, &room).unwrap();
        backward(&good, projections, gradients, &room).unwrap();
        refused(forward(&good, short, &room), "projections");
        refused(backward(&good, short, gradients, &room), "by_projections");
        refused(backward(&good, projections, short, &room), "gradients");
        let few = GaussianRoom::allocate(l, &workload(1, &geometry)).unwrap();
        refused(forward(&good, projections, &few), "room (Gaussians)");
        refused(backward(&good, projections, gradients, &few), "room (Gaussians)");
        let narrow = GaussianRoom::allocate(l, &GaussianWorkload { columns: 16, ..workload(2, &geometry) }).unwrap();
        refused(forward(&good, projections, &narrow), "room (tiles)");
        refused(backward(&good, projections, gradients, &narrow), "room (pixels)");
        refused(forward(&DeviceGaussians { low_pass_mm: -1.0, ..good }, projections, &room), "low_pass_mm");
        assert!(backward(&good, gradients, gradients, &room).is_err());
    });
}
