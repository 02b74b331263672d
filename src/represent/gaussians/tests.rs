#![allow(clippy::unwrap_used)]

use glam::DVec3;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::adapt::AdaptiveControl;
use super::initialise::Initialisation;
use super::*;
use crate::compute::cpu::CpuCompute;
use crate::compute::gaussians::{GaussianCompute, GaussianSet, GaussianWorkload};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};

fn limits(capacity: usize) -> GaussianLimits {
    GaussianLimits {
        capacity,
        density_unit_per_mm: 0.02,
        smallest_scale_mm: 0.2,
        largest_scale_mm: 50.0,
        low_pass_mm: 0.4,
    }
}

fn grid(n: usize) -> VolumeGrid {
    VolumeGrid::over_box([n, n + 1, n + 2], DVec3::new(40.0, 41.0, 42.0), DVec3::new(2.0, -1.0, 3.0))
}

/// An uneven object: the half of the box with `x > y`, denser along z.
fn volume(grid: &VolumeGrid) -> Vec<f32> {
    let [nx, ny, nz] = grid.voxels;
    let all = (0..nx).flat_map(|x| (0..ny).flat_map(move |y| (0..nz).map(move |z| (x, y, z))));
    all.map(|(x, y, z)| if x > y { 0.01 + 0.0005 * z as f32 } else { 0.0 }).collect()
}

/// The Gaussians of a carrier whose memory is the host's.
fn host(gaussians: &Gaussians) -> GaussianSet<'_> {
    let (parameters, len) = (parameters(gaussians), gaussians.len());
    let channel = |k: usize| &parameters[k * gaussians.limits.capacity..][..len];
    GaussianSet {
        density_per_mm: &gaussians.density_per_mm.values().host("test").unwrap()[..len],
        position_mm: [channel(1), channel(2), channel(3)],
        log_scale: [channel(4), channel(5), channel(6)],
        rotation: [channel(7), channel(8), channel(9), channel(10)],
        low_pass_mm: gaussians.limits.low_pass_mm,
    }
}

/// All parameters of these.
fn parameters(gaussians: &Gaussians) -> &[f32] {
    gaussians.parameters.values().host("test").unwrap()
}

/// Sets Gaussians one by one.
fn put_all(cpu: &CpuCompute, gaussians: &mut Gaussians, all: &[[f32; CHANNELS]]) {
    let put = |table: &mut Table| all.iter().enumerate().for_each(|(i, values)| table.put(i, values));
    gaussians.edit(cpu, put).unwrap();
    gaussians.len = all.len();
    gaussians.settle(cpu).unwrap();
}

#[test]
fn softplus_and_its_inverse() {
    for value in [1e-8f32, 1e-3, 0.5, 1.0, 20.0, 300.0] {
        // float32 of the logarithm.
        assert!((softplus(raw_of(value)) / value - 1.0).abs() < 5e-6, "{value}");
    }
    assert!(softplus(-200.0) >= 0.0 && softplus(200.0) == 200.0);
}

#[test]
fn first_gaussians_stand_at_voxel_centres_and_reach_their_neighbours() {
    let grid = grid(20);
    let (volume, cpu) = (volume(&grid), CpuCompute::new(2).unwrap());
    let mut gaussians = Gaussians::new(&cpu, &limits(3000)).unwrap();
    let settings = Initialisation { gaussians: 900, threshold_per_mm: 0.005, seed: 5, ..Initialisation::default() };
    assert_eq!(gaussians.initialise_from_volume(&cpu, &grid, &volume, &settings).unwrap(), 900);
    let set = host(&gaussians);
    let place = |i: usize| DVec3::from_array(set.position_mm.map(|c| f64::from(c[i])));
    for i in 0..900 {
        let index = (place(i) - grid.origin_mm()) / grid.voxel_mm;
        // float32 positions of some 20 mm.
        assert!((index - index.round()).abs().max_element() < 1e-5, "{index}");
        let [x, y, z] = index.round().to_array().map(|c| c as usize);
        let expected = 0.15 * volume[grid.index(x, y, z)];
        assert!((set.density_per_mm[i] / expected - 1.0).abs() < 1e-5);
        let mut squares: Vec<f64> =
            (0..900).filter(|&j| j != i).map(|j| (place(i) - place(j)).length_squared()).collect();
        squares.sort_by(f64::total_cmp);
        let scale = (squares[..3].iter().sum::<f64>() / 3.0).sqrt();
        assert!((f64::from(set.log_scale[0][i]).exp() / scale - 1.0).abs() < 1e-4);
    }
    // Spread over the object: the mean of those drawn is that of all within four standard errors (12 mm / sqrt(900) each).
    let mean = (0..900).map(place).sum::<DVec3>() / 900.0;
    let inside: Vec<DVec3> = (0..grid.len())
        .filter(|&k| volume[k] > 0.0)
        .map(|k| grid.voxel_centre_mm(k / (21 * 22), k / 22 % 21, k % 22))
        .collect();
    let of_all = inside.iter().copied().sum::<DVec3>() / inside.len() as f64;
    assert!((mean - of_all).length() < 1.6, "{mean} {of_all}");

    let mut again = Gaussians::new(&cpu, &limits(3000)).unwrap();
    again.initialise_from_volume(&cpu, &grid, &volume, &settings).unwrap();
    assert_eq!(parameters(&again), parameters(&gaussians));
    again.initialise_from_volume(&cpu, &grid, &volume, &Initialisation { seed: 6, ..settings }).unwrap();
    assert_ne!(parameters(&again), parameters(&gaussians));
}

#[test]
fn initialisation_takes_few_voxels_and_refuses_none() {
    let grid = VolumeGrid::over_box([3; 3], DVec3::splat(3.0), DVec3::ZERO);
    let cpu = CpuCompute::new(1).unwrap();
    let mut gaussians = Gaussians::new(&cpu, &limits(10)).unwrap();
    let mut volume = vec![0.0; 27];
    let settings = Initialisation::default();
    assert!(
        gaussians.initialise_from_volume(&cpu, &grid, &volume, &settings).unwrap_err().to_string().contains("no voxel")
    );
    volume[3] = f32::NAN;
    volume[5] = f32::INFINITY;
    assert!(matches!(
        gaussians.initialise_from_volume(&cpu, &grid, &volume, &settings),
        Err(GaussianError::Empty { .. })
    ));
    volume[13] = 0.02;
    assert_eq!(gaussians.initialise_from_volume(&cpu, &grid, &volume, &settings).unwrap(), 1);
    assert_eq!(host(&gaussians).position_mm.map(|c| c[0]), [0.0; 3]);
    volume.fill(0.02);
    assert_eq!(gaussians.initialise_from_volume(&cpu, &grid, &volume, &settings).unwrap(), 10);
    assert!(matches!(
        gaussians.initialise_from_volume(&cpu, &grid, &volume[1..], &settings),
        Err(GaussianError::Volume { given: 26, needed: 27 })
    ));
    for broken in [GaussianLimits { capacity: 0, ..limits(1) }, GaussianLimits { low_pass_mm: f32::NAN, ..limits(1) }] {
        assert!(matches!(Gaussians::new(&cpu, &broken), Err(GaussianError::Setting { .. })));
    }
}

/// Voxels of the Gaussians.
fn voxels(cpu: &CpuCompute, gaussians: &Gaussians, grid: &VolumeGrid) -> Vec<f32> {
    let mut volume = vec![0.0; grid.len()];
    cpu.gaussian_voxelise(grid, &host(gaussians), &mut volume).unwrap();
    volume
}

fn carrier(capacity: usize, geometry: &ScanGeometry, grid: &VolumeGrid) -> CpuCompute {
    let mut cpu = CpuCompute::new(2).unwrap();
    cpu.prepare_gaussians(&GaussianWorkload {
        gaussians: capacity,
        columns: geometry.detector.columns,
        rows: geometry.detector.rows,
        views_per_call: geometry.views.len(),
        voxels: grid.voxels,
    })
    .unwrap();
    cpu
}

#[test]
fn splits_and_clones_keep_the_mass_and_stay_within_the_capacity() {
    let grid = grid(40);
    let cpu = carrier(40, &CircularOrbit::default().over_arc(1, 0.0, 1.0), &grid);
    let mut gaussians = Gaussians::new(&cpu, &limits(40)).unwrap();
    // Well within the box: small ones to clone, large ones to split, one too thin, one outside.
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let of = |i: usize| {
        let scale = if i.is_multiple_of(2) { 1.2f32 } else { 2.0 };
        let mut values = [0.0; CHANNELS];
        values[0] = if i == 7 { -30.0 } else { random.random_range(-2.0..1.0) };
        for v in &mut values[1..4] {
            *v = random.random_range(-8.0..8.0);
        }
        values[4..7].copy_from_slice(&[scale.ln(), (0.8 * scale).ln(), (0.9 * scale).ln()]);
        for v in &mut values[7..] {
            *v = random.random_range(-1.0..1.0);
        }
        if i == 11 {
            values[2] = 30.0;
        }
        values
    };
    let all: Vec<_> = (0..30).map(of).collect();
    put_all(&cpu, &mut gaussians, &all);
    let rules =
        AdaptiveControl { gradient_threshold: 1.0, clone_up_to_mm: 1.5, prune_below_per_mm: 1e-5, seed: 1, round: 0 };
    gaussians.begin_step(&cpu, 4).unwrap();
    let quiet = gaussians.adapt(&cpu, &grid, &rules).unwrap();
    assert_eq!((quiet.pruned, quiet.cloned, quiet.split, gaussians.len()), (2, 0, 0, 28));
    let before = voxels(&cpu, &gaussians, &grid);

    let mut twin = Gaussians::new(&cpu, &limits(40)).unwrap();
    cpu.write(parameters(&gaussians), twin.parameters.values_mut()).unwrap();
    cpu.copy(gaussians.density_per_mm.values(), twin.density_per_mm.values_mut()).unwrap();
    twin.len = 28;
    for set in [&mut gaussians, &mut twin] {
        set.begin_step(&cpu, 4).unwrap();
        let norms = &mut set.gradients.values_mut().host("test").unwrap()[CHANNELS * 40..][..28];
        // 20 are pulled at, 12 have room; the last are pulled hardest.
        norms.iter_mut().enumerate().for_each(|(i, norm)| *norm = if i < 8 { 3.0 } else { 5.0 + i as f32 });
    }
    let adapted = gaussians.adapt(&cpu, &grid, &rules).unwrap();
    assert_eq!((adapted.pruned, adapted.cloned + adapted.split, adapted.without_room), (0, 12, 8));
    assert!(adapted.cloned > 0 && adapted.split > 0 && gaussians.len() == 40);
    assert_eq!(twin.adapt(&cpu, &grid, &rules).unwrap(), adapted);
    assert_eq!(parameters(&twin), parameters(&gaussians));

    let after = voxels(&cpu, &gaussians, &grid);
    let mass = |v: &[f32]| v.iter().map(|&x| f64::from(x)).sum::<f64>();
    // A split keeps the mass but for what the low pass does to unequal scales; a clone exactly.
    assert!((mass(&after) / mass(&before) - 1.0).abs() < 1e-3, "{} {}", mass(&before), mass(&after));
    let square: f64 = after.iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let relative = (square / before.iter().map(|b| f64::from(b * b)).sum::<f64>()).sqrt();
    println!("adaptive control changes the volume by {relative:.3} (relative RMS)");
    // A clone's half is moved by up to a third of its scales, a half of a split one by 0.8: neither keeps the shape quite.
    assert!(relative < 0.15, "{relative}");
}

#[test]
fn known_gaussians_are_recovered_from_their_projections() {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 300.0,
        source_to_detector_mm: 450.0,
        detector: Detector { columns: 33, rows: 31 },
        pitch_u_mm: 2.0,
        pitch_v_mm: 2.0,
        offset_u_mm: 3.0,
        ..CircularOrbit::default()
    };
    let geometry = orbit.over_arc(8, 0.2, std::f64::consts::TAU);
    let grid = grid(20);
    let cpu = carrier(6, &geometry, &grid);
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut truth = Gaussians::new(&cpu, &limits(6)).unwrap();
    let mut start = Gaussians::new(&cpu, &limits(6)).unwrap();
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let mut values = [0.0; CHANNELS];
        values[0] = random.random_range(-0.5..1.0);
        for v in &mut values[1..4] {
            *v = random.random_range(-12.0f32..12.0);
        }
        values[4..7].copy_from_slice(&[1.3, 1.0, 0.6]);
        for v in &mut values[7..] {
            *v = random.random_range(-1.0..1.0);
        }
        right.push(values);
        for (channel, v) in values.iter_mut().enumerate() {
            let by = [0.5, 1.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.15, 0.15, 0.15, 0.15][channel];
            *v += random.random_range(-by..by);
        }
        wrong.push(values);
    }
    put_all(&cpu, &mut truth, &right);
    put_all(&cpu, &mut start, &wrong);
    let mut measured = vec![0.0; geometry.projection_len()];
    cpu.gaussian_project(&geometry, &host(&truth), &mut measured).unwrap();
    let mut projections = vec![0.0; measured.len()];
    let error = |gaussians: &Gaussians, projections: &mut [f32]| {
        cpu.gaussian_project(&geometry, &host(gaussians), projections).unwrap();
        let mut square = 0.0;
        for (p, m) in projections.iter_mut().zip(&measured) {
            *p -= m;
            square += f64::from(*p * *p);
        }
        (square / measured.iter().map(|m| f64::from(m * m)).sum::<f64>()).sqrt()
    };
    let first = error(&start, &mut projections);
    let steps = 800;
    for step in 1..=steps {
        start.begin_step(&cpu, geometry.views.len()).unwrap();
        let (gaussians, gradients) = start.arrays_and_gradients();
        GaussianCompute::gaussian_project_backward(&cpu, &geometry, &gaussians, (&projections).into(), gradients)
            .unwrap();
        let decay = 0.001f32.powf(step as f32 / steps as f32);
        let rates = GaussianRates {
            density: 0.1 * decay,
            position_mm: 0.3 * decay,
            log_scale: 0.1 * decay,
            rotation: 0.1 * decay,
            beta1: 0.9,
            beta2: 0.999,
        };
        start.step(&cpu, &rates, step).unwrap();
        error(&start, &mut projections);
    }
    let last = error(&start, &mut projections);
    println!("relative error of the projections: {first:.3} at first, {last:.1e} after {steps} steps");
    assert!(first > 0.1 && last < 1e-3, "{first} {last}");
    let worst = (0..6 * 3).fold(0.0f32, |worst, k| {
        let at = (1 + k / 6) * 6 + k % 6;
        worst.max((parameters(&truth)[at] - parameters(&start)[at]).abs())
    });
    // From up to 1 mm off; what is left is the end of Adam's steps.
    assert!(worst < 0.02, "{worst} mm");
}
