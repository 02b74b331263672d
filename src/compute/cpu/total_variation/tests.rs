#![allow(clippy::unwrap_used)]

use glam::DVec3;

use super::*;
use crate::geometry::VolumeGrid;

/// The definition, in double precision.
fn value_f64(variation: &TotalVariation, volume: &[f64]) -> f64 {
    let [nx, ny, nz] = variation.voxels;
    let at = |x: usize, y: usize, z: usize| volume[(x * ny + y) * nz + z];
    let mut sum = 0.0;
    for x in 0..nx {
        for y in 0..ny {
            for z in 0..nz {
                let here = at(x, y, z);
                let ahead =
                    [at((x + 1).min(nx - 1), y, z), at(x, (y + 1).min(ny - 1), z), at(x, y, (z + 1).min(nz - 1))];
                let squares =
                    ahead.iter().zip(variation.scale).map(|(ahead, scale)| (f64::from(scale) * (ahead - here)).powi(2));
                sum += (squares.sum::<f64>() + f64::from(variation.epsilon).powi(2)).sqrt();
            }
        }
    }
    sum
}

/// Steps, ramps and noise, with flat parts.
fn volume(voxels: [usize; 3]) -> Vec<f32> {
    let [nx, ny, nz] = voxels;
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let mut volume = Vec::new();
    for x in 0..nx {
        for y in 0..ny {
            for z in 0..nz {
                let step = if x > nx / 2 && z > nz / 3 { 0.02 } else { 0.0 };
                let rough = if y > ny / 2 { 0.003 * noise() } else { 0.0 };
                volume.push(step + rough + 1e-4 * z as f32);
            }
        }
    }
    volume
}

/// Odd, flat, thin, longer than a stretch, and anisotropic voxels.
fn cases() -> Vec<TotalVariation> {
    [[7, 6, 9], [1, 5, 17], [6, 1, 33], [5, 4, 1], [1, 1, 1], [1, 1, 2], [3, 3, STRETCH + 1], [2, 3, 2 * STRETCH + 5]]
        .into_iter()
        .flat_map(|voxels| {
            [DVec3::ONE, DVec3::new(0.8, 1.2, 3.0)]
                .map(|voxel_mm| TotalVariation::on(&VolumeGrid { voxels, voxel_mm, centre_mm: DVec3::ZERO }, 5e-4))
        })
        .collect()
}

#[test]
fn scales_are_those_of_the_gradient_per_smallest_voxel() {
    let grid = VolumeGrid { voxels: [4; 3], voxel_mm: DVec3::new(0.5, 1.0, 2.0), centre_mm: DVec3::ZERO };
    assert_eq!(TotalVariation::on(&grid, 1.0).scale, [1.0, 0.5, 0.25]);
}

#[test]
fn value_and_gradient_are_those_of_the_definition() {
    let cpu = CpuCompute::new(2).unwrap();
    for variation in cases() {
        let volume = volume(variation.voxels);
        let exact: Vec<f64> = volume.iter().map(|&v| f64::from(v)).collect();
        let expected = value_f64(&variation, &exact);
        let value = cpu.total_variation(&variation, &volume).unwrap();
        // Sums of 16 float lanes over rows of up to 1029 voxels.
        assert!((value / expected - 1.0).abs() < 1e-6, "{value} {expected} {variation:?}");

        let mut gradient = vec![0.25; volume.len()];
        let returned = cpu.add_total_variation_gradient(&variation, 2.0, &volume, &mut gradient).unwrap();
        assert_eq!(returned, value);
        let mut moved = exact.clone();
        for (index, &gradient) in gradient.iter().enumerate().step_by(1 + volume.len() / 211) {
            // Central differences: the third derivative is at most about 1 / epsilon^2, so the error of a step of 1e-6 stays below
            // 1e-12 / epsilon^2 = 4e-6; rounding of a sum below 20 in double precision adds 1e-15 * 20 / 1e-6.
            let step = 1e-6;
            moved[index] = exact[index] + step;
            let above = value_f64(&variation, &moved);
            moved[index] = exact[index] - step;
            let below = value_f64(&variation, &moved);
            moved[index] = exact[index];
            let expected = 0.25 + 2.0 * (above - below) / (2.0 * step);
            // Differences of floats near 0.1 carry 1e-8, over epsilon: 2e-5 relative to terms of size 1.
            let error = (f64::from(gradient) - expected).abs();
            assert!(error < 2e-4, "voxel {index}: {gradient} {expected} {variation:?}");
        }
    }
}

#[test]
fn a_step_along_the_gradient_goes_down_by_its_square() {
    let cpu = CpuCompute::new(2).unwrap();
    let grid = VolumeGrid { voxels: [17, 18, 19], voxel_mm: DVec3::splat(2.0), centre_mm: DVec3::ZERO };
    let variation = TotalVariation::on(&grid, 1e-3);
    let volume = volume(variation.voxels);
    let mut gradient = vec![0.0; volume.len()];
    let before = cpu.add_total_variation_gradient(&variation, 1.0, &volume, &mut gradient).unwrap();
    let square: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
    let step = 1e-6;
    let moved: Vec<f32> = volume.iter().zip(&gradient).map(|(v, g)| v - step * g).collect();
    let gained = before - cpu.total_variation(&variation, &moved).unwrap();
    // Second order: the step of 1e-6 is a thousandth of epsilon, curvature up to 12 / epsilon; and the rounding of the moved volume.
    assert!((gained / (f64::from(step) * square) - 1.0).abs() < 0.02, "{gained} {square}");
}

#[test]
fn bits_do_not_depend_on_threads_or_simd_level() {
    for variation in
        cases().into_iter().chain([TotalVariation { voxels: [33, 20, 70], scale: [1.0, 0.7, 0.3], epsilon: 1e-5 }])
    {
        let volume = volume(variation.voxels);
        let mut first: Option<(u64, Vec<u32>)> = None;
        for simd in SimdLevel::available() {
            for threads in 1..=3 {
                let cpu = CpuCompute::with_simd(threads, simd).unwrap();
                let mut gradient = vec![0.5; volume.len()];
                let value = cpu.add_total_variation_gradient(&variation, 0.3, &volume, &mut gradient).unwrap();
                assert_eq!(value, cpu.total_variation(&variation, &volume).unwrap());
                let bits = (value.to_bits(), gradient.iter().map(|g| g.to_bits()).collect());
                match &first {
                    None => first = Some(bits),
                    Some(first) => assert!(*first == bits, "{simd}, {threads} threads, {variation:?}"),
                }
            }
        }
    }
}

#[test]
fn a_constant_has_the_least_variation_and_no_gradient() {
    let cpu = CpuCompute::new(1).unwrap();
    let variation = TotalVariation { voxels: [5, 6, 7], scale: [1.0; 3], epsilon: 0.5 };
    let mut gradient = vec![0.0; 210];
    let value = cpu.add_total_variation_gradient(&variation, 1.0, &[3.0; 210], &mut gradient).unwrap();
    assert_eq!(value, 105.0);
    assert!(gradient.iter().all(|&g| g == 0.0));
    let empty = TotalVariation { voxels: [0, 4, 4], ..variation };
    assert_eq!(cpu.total_variation(&empty, &[]).unwrap(), 0.0);
    assert_eq!(cpu.add_total_variation_gradient(&empty, 1.0, &[], &mut []).unwrap(), 0.0);
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let cpu = CpuCompute::new(1).unwrap();
    let variation = TotalVariation { voxels: [2; 3], scale: [1.0; 3], epsilon: 0.1 };
    let says = |variation: TotalVariation, voxels: usize| {
        cpu.total_variation(&variation, &vec![0.0; voxels]).unwrap_err().to_string()
    };
    assert!(says(variation, 7).contains("`volume` holds 7 values"));
    for epsilon in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-30] {
        assert!(says(TotalVariation { epsilon, ..variation }, 8).contains("`epsilon`"), "{epsilon}");
    }
    assert!(says(TotalVariation { scale: [1.0, 0.0, 1.0], ..variation }, 8).contains("`scale` of element 1 is 0"));
    let wrong = cpu.add_total_variation_gradient(&variation, 1.0, &[0.0; 8], &mut [0.0; 9]).unwrap_err();
    assert!(wrong.to_string().contains("`gradient` holds 9 values"), "{wrong}");
}
