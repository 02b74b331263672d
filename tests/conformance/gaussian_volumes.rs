//! 3D Gaussians on the voxel grid, and the gradients of that.

use std::array::from_fn;

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceGaussians, DeviceSlice, GaussianRoom};
use diffnr::compute::gaussians::{GaussianCompute as _, GaussianWorkload};
use diffnr::geometry::VolumeGrid;
use glam::DVec3;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::gaussian_scenes::{One, ROUND, Scene, channels, lend, refused, scene};
use crate::scans::settings;
use crate::values::{assert_close, dot, download, signed, unwritten, upload};

/// Of the largest value. Positions and factors are rounded from float64 as on the CPU; what is left is the exponential and the steep sides of thin
/// Gaussians, some float32 roundings of the exponent (up to 10).
const VOLUME: f32 = 3e-6;

/// Of a channel's largest gradient: sums of up to some thousand voxels in another order, of which many cancel.
const GRADIENT: f32 = 2e-5;

fn workload(gaussians: usize, voxels: [usize; 3]) -> GaussianWorkload {
    GaussianWorkload { gaussians, columns: 0, rows: 0, views_per_call: 0, voxels }
}

/// A volume and gradients by it on a carrier, in a room for `room` Gaussians: `[volume, gradients]`; what is added to are 12 values, one a channel.
fn on(
    carrier: &Carrier,
    grid: &VolumeGrid,
    scene: &Scene,
    by_volume: &[f32],
    before: &[f32],
    room: usize,
) -> Vec<Vec<f32>> {
    carrier.run(|launcher| {
        let gaussians = scene.upload(launcher);
        let room = GaussianRoom::allocate(launcher, &workload(room, grid.voxels)).unwrap();
        let (volume, by) = (unwritten(launcher, grid.len()), upload(launcher, by_volume));
        let capacity = gaussians.capacity();
        let gradients = upload(launcher, &before.iter().flat_map(|&v| vec![v; capacity]).collect::<Vec<_>>());
        // One room for all: nothing of the other may stay in it.
        cuda::gaussian_voxelise_backward(launcher, grid, &gaussians, by, gradients, &room).unwrap();
        cuda::gaussian_voxelise(launcher, grid, &gaussians, volume, &room).unwrap();
        assert_eq!(room.unsound(launcher).unwrap(), None);
        let first = download(launcher, volume);
        cuda::gaussian_voxelise(launcher, grid, &gaussians, volume, &room).unwrap();
        assert!(first == download(launcher, volume) || first.iter().any(|v| v.is_nan()));
        vec![first, download(launcher, gradients)]
    })
}

fn cpu(n: usize, voxels: [usize; 3]) -> CpuCompute {
    let mut cpu = CpuCompute::new(1).unwrap();
    cpu.prepare_gaussians(&workload(n, voxels)).unwrap();
    cpu
}

fn assert_as_on_the_cpu(carrier: &Carrier, what: &str, grid: &VolumeGrid, gaussians: &[One], low_pass_mm: f32) {
    let scene = Scene::new(gaussians, low_pass_mm);
    let (n, by_volume) = (scene.len(), signed(grid.len(), 5));
    let cpu = cpu(n, grid.voxels);
    let mut volume = vec![f32::NAN; grid.len()];
    cpu.gaussian_voxelise(grid, &scene.set(), &mut volume).unwrap();
    let mut gradients: [Vec<f32>; 12] = from_fn(|_| vec![0.0; n]);
    cpu.gaussian_voxelise_backward(grid, &scene.set(), &by_volume, &mut lend(&mut gradients)).unwrap();
    // What is added to, beside the gradients neither too small to be seen nor so large that it hides them.
    let before: [f32; 12] =
        from_fn(|channel| 0.3 * gradients[channel].iter().fold(0.0f32, |largest, v| largest.max(v.abs())) + 1e-3);
    let given = on(carrier, grid, &scene, &by_volume, &before, n);
    assert_close(&format!("{what}: volume"), VOLUME, &given[0], &volume);
    for (channel, (given, expected)) in channels(&given[1], n).iter().zip(&gradients).enumerate() {
        let expected: Vec<f32> = expected.iter().map(|gradient| gradient + before[channel]).collect();
        if channel == 11 {
            assert_eq!(given, &expected, "{what}: the views' norms");
        } else {
            assert_close(&format!("{what}: gradient {channel}"), GRADIENT, given, &expected);
        }
    }
    let behind = given[1].chunks(n + 5).zip(before).all(|(channel, before)| channel[n..].iter().all(|&v| v == before));
    assert!(behind, "{what}: beyond the last Gaussian");
}

fn grid(voxels: [usize; 3], voxel_mm: [f64; 3]) -> VolumeGrid {
    VolumeGrid { voxels, voxel_mm: DVec3::from_array(voxel_mm), centre_mm: DVec3::new(3.0, -2.0, 1.0) }
}

/// Gaussians about the middle of a grid.
fn within(grid: &VolumeGrid, n: usize, scales_mm: [f64; 2], seed: u64) -> Vec<One> {
    let half = 0.5 * grid.voxel_mm * DVec3::from_array(grid.voxels.map(|count| count as f64));
    let mut all = scene(n, half, scales_mm, seed);
    all.iter_mut().for_each(|one| one.position += grid.centre_mm);
    all
}

#[test]
fn voxels_and_gradients_are_as_on_the_cpu() {
    on_each("gaussian_voxelise", |carrier| {
        // A voxel, lines, a tile and one more, several tiles.
        for voxels in [[1, 1, 1], [1, 1, 40], [1, 30, 1], [30, 1, 1], [8, 8, 16], [9, 9, 17], [17, 15, 33], [7, 25, 5]]
        {
            let grid = grid(voxels, [1.0, 1.3, 0.8]);
            assert_as_on_the_cpu(carrier, &format!("{voxels:?}"), &grid, &within(&grid, 40, [0.5, 3.0], 1), 0.3);
        }
        proptest!(settings(12), |(
            voxels in (1usize..26, 1usize..26, 1usize..40), voxel_mm in prop::array::uniform3(0.4f64..2.0), n in 1usize..150,
            small in 0.3f64..1.0, spread in 1.0f64..5.0, low_pass_mm in prop_oneof![Just(0.0f32), 0.1f32..0.8], seed: u64,
        )| {
            let grid = grid(voxels.into(), voxel_mm);
            let gaussians = within(&grid, n, [small, small * spread], seed);
            assert_as_on_the_cpu(carrier, "any", &grid, &gaussians, low_pass_mm);
        });
    });
}

#[test]
fn every_kind_of_gaussian_is_as_on_the_cpu() {
    on_each("gaussian_voxelise, kinds", |carrier| {
        let grid = grid([20, 19, 37], [1.0, 1.3, 0.8]);
        let check = |what, gaussians: &[One], low_pass| assert_as_on_the_cpu(carrier, what, &grid, gaussians, low_pass);
        let mut needles = within(&grid, 12, [1.0, 1.1], 2);
        for (i, one) in needles.iter_mut().enumerate() {
            one.scale = [DVec3::new(0.5, 25.0, 0.7), DVec3::new(9.0, 0.4, 0.3), DVec3::new(8.0, 8.0, 0.5)][i % 3];
        }
        check("needles and discs", &needles, 0.1);
        // Along the axes, where shears are zero or change sign.
        let upright = [DVec3::new(8.0, 0.6, 0.6), DVec3::new(0.6, 8.0, 0.6), DVec3::new(0.6, 0.6, 8.0)];
        check("along the axes", &upright.map(|scale| One { scale, position: grid.centre_mm, ..ROUND }), 0.0);
        check("smaller than a voxel", &within(&grid, 60, [1e-3, 0.3], 3), 0.5);
        // Beyond the grid by less and by more than they reach; far off; none of them in it.
        let at = |x, y, z| One { position: DVec3::new(x, y, z), ..ROUND };
        check(
            "about the rim",
            &[at(-9.0, -16.0, 18.0), at(16.0, -2.0, 1.0), at(3.0, 13.0, 16.0), at(3.0, -2.0, -17.0)],
            0.2,
        );
        check("none within", &[at(60.0, 0.0, 0.0), at(0.0, -40.0, 0.0), at(1e8, 0.0, 0.0)], 0.2);
        let dark = One { density: 0.0, ..ROUND };
        let lit = within(&grid, 2, [1.5, 3.0], 14);
        check("without density", &[dark, lit[0], lit[1], One { position: grid.centre_mm, ..dark }], 0.2);
        // Far larger than any grid, along and across it.
        let vast = |x, y, z| One { scale: DVec3::new(x, y, z), rotation: [0.9, 0.3, -0.5, 0.2], ..ROUND };
        check("vast", &[vast(1e9, 1e7, 1e6), vast(1e3, 1e10, 2e4), vast(2e9, 40.0, 30.0)], 0.0);
        let long = One { rotation: [3.0, -40.0, 20.0, 5.0], scale: DVec3::new(1.0, 2.0, 3.0), ..ROUND };
        let short = One { rotation: [1e-4, -2e-4, 3e-4, 1e-4], ..long };
        check("quaternions of any length", &[long, short], 0.0);
    });
}

/// So large that a block's warps share them, beside others.
#[test]
fn gaussians_over_the_whole_grid_are_as_on_the_cpu() {
    on_each("gaussian_voxelise, large", |carrier| {
        let grid = grid([40, 37, 43], [1.0, 1.1, 0.9]);
        let mut gaussians = within(&grid, 21, [0.7, 2.0], 4);
        for one in gaussians.iter_mut().skip(3).step_by(5) {
            one.scale *= 9.0;
        }
        gaussians[8].scale = DVec3::splat(1e4);
        assert_as_on_the_cpu(carrier, "large", &grid, &gaussians, 0.2);
    });
}

/// More entries than the lists of all passes hold: the rest is tried one by one. A larger room takes all in one pass, to the same bits.
#[test]
fn room_changes_no_bit() {
    on_each("gaussian_voxelise, room", |carrier| {
        let grid = grid([20, 20, 40], [1.0; 3]);
        let (by, before) = (vec![0.0; grid.len()], [0.0; 12]);
        // 27 tiles: those of 10 mm touch all of them, those of 2 mm some.
        for (scales, n) in [([9.0, 10.0], 250), ([1.5, 4.0], 300)] {
            let scene = Scene::new(&within(&grid, n, scales, 6), 0.1);
            let small = on(carrier, &grid, &scene, &by, &before, n);
            let large = on(carrier, &grid, &scene, &by, &before, 30 * n);
            assert!(small[0].iter().map(|v| v.to_bits()).eq(large[0].iter().map(|v| v.to_bits())));
            let mut volume = vec![f32::NAN; grid.len()];
            cpu(n, grid.voxels).gaussian_voxelise(&grid, &scene.set(), &mut volume).unwrap();
            assert_close("room", VOLUME, &small[0], &volume);
        }
    });
}

/// More Gaussians in a tile than are sorted in shared memory.
#[test]
fn crowded_tiles_are_as_on_the_cpu() {
    on_each("gaussian_voxelise, crowded", |carrier| {
        let grid = grid([8, 8, 16], [1.0; 3]);
        let scene = Scene::new(&within(&grid, 4500, [0.2, 0.3], 7), 0.0);
        let given = on(carrier, &grid, &scene, &vec![0.0; grid.len()], &[0.0; 12], 4500);
        let mut volume = vec![f32::NAN; grid.len()];
        cpu(4500, grid.voxels).gaussian_voxelise(&grid, &scene.set(), &mut volume).unwrap();
        assert_close("crowded", VOLUME, &given[0], &volume);
    });
}

/// More tiles, and more chunks of Gaussians, than the block that sums them up has threads.
#[test]
fn many_tiles_and_chunks_are_as_on_the_cpu() {
    on_each("gaussian_voxelise, many tiles", |carrier| {
        let grid = grid([1, 1, 16 * 1100], [1.0; 3]);
        let scene = Scene::new(&within(&grid, 32 * 1060 + 5, [0.3, 0.6], 12), 0.0);
        let given = carrier.run(|launcher| {
            let gaussians = scene.upload(launcher);
            let room = GaussianRoom::allocate(launcher, &workload(scene.len(), grid.voxels)).unwrap();
            let volume = unwritten(launcher, grid.len());
            cuda::gaussian_voxelise(launcher, &grid, &gaussians, volume, &room).unwrap();
            vec![download(launcher, volume)]
        });
        let mut volume = vec![f32::NAN; grid.len()];
        cpu(scene.len(), grid.voxels).gaussian_voxelise(&grid, &scene.set(), &mut volume).unwrap();
        assert_close("many tiles", VOLUME, &given[0], &volume);
    });
}

/// The gradient is that of the volume which the kernels themselves give.
#[test]
fn gradients_are_differences_of_the_volume() {
    on_each("gaussian_voxelise, differences", |carrier| {
        let grid = grid([13, 11, 18], [1.0, 1.2, 0.9]);
        let mut scene = Scene::new(&within(&grid, 3, [1.2, 2.5], 8), 0.4);
        let launcher = carrier.launcher();
        // Smooth, so that voxels which cross the cut-off do not outweigh what the others' signs cancel.
        let weights: Vec<f32> =
            (0..grid.len()).map(|k| (k as f32 * 0.0041).sin() + ((k % 18) as f32 * 0.17).cos()).collect();
        let l = launcher.as_ref();
        let room = GaussianRoom::allocate(l, &workload(3, grid.voxels)).unwrap();
        let (volume, by) = (unwritten(l, grid.len()), upload(l, &weights));
        let gradients = upload(l, &[0.0; 12 * 8]);
        cuda::gaussian_voxelise_backward(l, &grid, &scene.upload(l), by, gradients, &room).unwrap();
        let gradients = channels(&download(l, gradients), 3);
        let loss = |scene: &Scene| {
            cuda::gaussian_voxelise(l, &grid, &scene.upload(l), volume, &room).unwrap();
            dot(&weights, &download(l, volume))
        };
        for (channel, gradient) in gradients[..11].iter().enumerate() {
            // Large beside what float32 leaves of the sum, small beside the Gaussians.
            let step = if channel == 0 { 1e-3 } else { 1e-2 };
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
fn gaussians_that_are_not_sound_are_left_out_and_named() {
    on_each("gaussian_voxelise, not sound", |carrier| {
        let grid = grid([9, 9, 17], [1.0; 3]);
        let (sound, by) = (within(&grid, 40, [0.7, 2.0], 10), signed(grid.len(), 11));
        let zero = f32::from_bits(1);
        let bad = [
            (0, f32::NAN),
            (0, f32::INFINITY),
            (2, f32::NAN),
            (3, 2e9),
            (5, 26.0),
            (6, f32::NAN),
            (8, 2e6),
            (10, f32::NAN),
        ];
        let mut with = Scene::new(&sound, 0.2);
        let mut without = with.clone();
        for (k, (array, value)) in bad.into_iter().chain([(7, zero)]).enumerate() {
            let i = 39 - 4 * k;
            with.arrays[array][i] = value;
            if array == 7 {
                (8..11).for_each(|array| with.arrays[array][i] = zero);
            }
            without.arrays[0][i] = 0.0;
        }
        let mut volume = vec![f32::NAN; grid.len()];
        cpu(40, grid.voxels).gaussian_voxelise(&grid, &without.set(), &mut volume).unwrap();
        let given = carrier.run(|launcher| {
            let (gaussians, room) =
                (with.upload(launcher), GaussianRoom::allocate(launcher, &workload(40, grid.voxels)).unwrap());
            assert_eq!(room.unsound(launcher).unwrap(), None);
            let (volume, by) = (unwritten(launcher, grid.len()), upload(launcher, &by));
            let gradients = upload(launcher, &[1.0; 12 * 45]);
            cuda::gaussian_voxelise(launcher, &grid, &gaussians, volume, &room).unwrap();
            assert_eq!(room.unsound(launcher).unwrap(), Some(7));
            cuda::gaussian_voxelise_backward(launcher, &grid, &gaussians, by, gradients, &room).unwrap();
            assert_eq!(room.unsound(launcher).unwrap(), Some(7));
            cuda::gaussian_voxelise(launcher, &grid, &without.upload(launcher), by, &room).unwrap();
            assert_eq!(room.unsound(launcher).unwrap(), None);
            vec![download(launcher, volume), download(launcher, gradients)]
        });
        assert_close("not sound", VOLUME, &given[0], &volume);
        for (channel, gradients) in channels(&given[1], 40).iter().enumerate() {
            for (i, &gradient) in gradients.iter().enumerate() {
                assert!(gradient.is_finite() && (without.arrays[0][i] != 0.0 || gradient == 1.0), "{channel}, {i}");
            }
        }
    });
}

#[test]
fn what_is_not_a_number_in_the_gradient_stays_its_own() {
    on_each("gaussian_voxelise_backward, not a number", |carrier| {
        let grid = grid([16, 16, 16], [1.0; 3]);
        let at = |x: f64| One { position: grid.centre_mm + DVec3::new(x, 0.0, 0.0), scale: DVec3::splat(0.5), ..ROUND };
        let scene = Scene::new(&[at(-5.0), at(5.0)], 0.0);
        let mut by = vec![1.0; grid.len()];
        by[grid.index(12, 8, 8)] = f32::NAN;
        let given = on(carrier, &grid, &scene, &by, &[0.0; 12], 2);
        let density = &channels(&given[1], 2)[0];
        assert!(density[0].is_finite() && density[1].is_nan());
    });
}

#[test]
fn gaussians_of_nothing() {
    on_each("gaussian_voxelise of nothing", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let (empty, some) = (grid([3, 0, 4], [1.0; 3]), grid([3, 4, 5], [1.0; 3]));
        let room = GaussianRoom::allocate(l, &workload(4, [3, 4, 5])).unwrap();
        let (none, one) = (Scene::new(&[], 0.0).upload(l), Scene::new(&[ROUND], 0.0).upload(l));
        let (nothing, volume) = (upload(l, &[]), unwritten(l, 60));
        cuda::gaussian_voxelise(l, &empty, &one, nothing, &room).unwrap();
        cuda::gaussian_voxelise(l, &some, &none, volume, &room).unwrap();
        assert_eq!(download(l, volume), [0.0; 60]);
        let gradients = upload(l, &[7.0; 12 * 6]);
        cuda::gaussian_voxelise_backward(l, &empty, &one, nothing, gradients, &room).unwrap();
        cuda::gaussian_voxelise_backward(l, &some, &none, volume, upload(l, &[0.0; 12 * 5]), &room).unwrap();
        assert_eq!(download(l, gradients), [7.0; 72]);
        // At 256^3 and 2.3 million Gaussians less than the four copies of parameters, gradients and moments (180 bytes a Gaussian).
        assert!(GaussianRoom::bytes(&workload(2_300_000, [256; 3])) < 120 * 2_300_000);
        GaussianRoom::allocate(l, &workload(0, [0; 3])).unwrap();
    });
}

#[test]
fn wrong_lengths_of_gaussians_are_refused() {
    on_each("refusals of the Gaussians", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let grid = grid([9, 4, 5], [1.0; 3]);
        let (volume, short) = (unwritten(l, 180), unwritten(l, 179));
        let gradients = upload(l, &[0.0; 12 * 7]);
        let good = Scene::new(&[ROUND, ROUND], 0.0).upload(l);
        let room = GaussianRoom::allocate(l, &workload(2, grid.voxels)).unwrap();
        let forward = |gaussians: &DeviceGaussians, volume: DeviceSlice<f32>, room: &GaussianRoom| {
            cuda::gaussian_voxelise(l, &grid, gaussians, volume, room)
        };
        let backward = |gaussians: &DeviceGaussians, by, gradients, room: &GaussianRoom| {
            cuda::gaussian_voxelise_backward(l, &grid, gaussians, by, gradients, room)
        };
        forward(&good, volume, &room).unwrap();
        backward(&good, volume, gradients, &room).unwrap();
        refused(forward(&good, short, &room), "volume");
        refused(backward(&good, short, gradients, &room), "by_volume");
        refused(backward(&good, volume, short, &room), "gradients");
        let few = GaussianRoom::allocate(l, &workload(1, grid.voxels)).unwrap();
        refused(forward(&good, volume, &few), "room (Gaussians)");
        refused(backward(&good, volume, gradients, &few), "room (Gaussians)");
        let narrow = GaussianRoom::allocate(l, &workload(2, [8, 4, 5])).unwrap();
        refused(forward(&good, volume, &narrow), "room (tiles)");
        refused(forward(&DeviceGaussians { parameters: short, ..good }, volume, &room), "parameters");
        refused(forward(&DeviceGaussians { len: 8, ..good }, volume, &room), "gaussians");
        refused(forward(&DeviceGaussians { low_pass_mm: -1.0, ..good }, volume, &room), "low_pass_mm");
        refused(backward(&DeviceGaussians { low_pass_mm: f32::NAN, ..good }, volume, gradients, &room), "low_pass_mm");
        assert!(backward(&good, gradients, gradients, &room).is_err(), "overlapping buffers");
    });
}
