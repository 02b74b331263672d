#![allow(clippy::unwrap_used)]

use glam::DVec3;

use super::draw::draw_rays;
use super::*;
use crate::compute::Memory as _;
use crate::compute::cpu::CpuCompute;
use crate::compute::field::{FieldCompute, FieldJitter, FieldRays, FieldWorkload, RayPixel};
use crate::geometry::{CircularOrbit, Detector};

/// For gradients of few random rays, which are noisy.
const RATES: FieldRates = FieldRates { tables: 1e-2, network: 2e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-15 };

fn shape() -> FieldShape {
    FieldShape {
        levels: 5,
        features: 2,
        coarsest_cells: 4,
        growth: FieldShape::growth_to(4, 24, 5),
        log2_table: 12,
        width: 16,
        hidden_layers: 2,
        leak: 0.01,
        density_unit_per_mm: 0.02,
    }
}

fn grid() -> VolumeGrid {
    VolumeGrid::over_box([24, 22, 25], DVec3::new(48.0, 44.0, 50.0), DVec3::new(1.0, -2.0, 3.0))
}

/// Two smooth bodies in air, one of them denser.
fn density_at(point: DVec3) -> f64 {
    let body = |centre: DVec3, radius: f64, value: f64| {
        let depth = radius - (point - centre).length();
        value / (1.0 + (-depth / 1.0).exp())
    };
    body(DVec3::new(2.0, -3.0, 4.0), 15.0, 0.02) + body(DVec3::new(6.0, -6.0, 2.0), 5.0, 0.02)
}

fn phantom(grid: &VolumeGrid) -> Vec<f32> {
    let [nx, ny, nz] = grid.voxels;
    let all = (0..nx).flat_map(|x| (0..ny).flat_map(move |y| (0..nz).map(move |z| (x, y, z))));
    all.map(|(x, y, z)| density_at(grid.voxel_centre_mm(x, y, z)) as f32).collect()
}

fn carrier(threads: usize, voxels: [usize; 3]) -> CpuCompute {
    let mut cpu = CpuCompute::new(threads).unwrap();
    cpu.prepare_field(&FieldWorkload { shape: shape(), voxels, box_mm: [1.0; 3], rays: 0 }).unwrap();
    cpu
}

/// A field of a carrier whose memory is the host's.
fn host(field: &Field) -> FieldParameters<'_> {
    let FieldParameters { layout, tables, network, level_weights } = field.parameters();
    let (tables, network) = (tables.host("test").unwrap(), network.host("test").unwrap());
    FieldParameters { layout, tables, network, level_weights }
}

/// All parameters of one.
fn parameters(field: &Field) -> &[f32] {
    field.parameters.values().host("test").unwrap()
}

/// Steps towards the least mean square difference from `volume`; the root of that before the last step.
fn fit(cpu: &CpuCompute, field: &mut Field, grid: &VolumeGrid, volume: &[f32], steps: u32) -> f64 {
    let mut work = vec![0.0; grid.len()];
    let mut last = 0.0;
    for step in 1..=steps {
        field.begin_step(cpu).unwrap();
        cpu.field_voxelise(grid, &host(field), None, &mut work).unwrap();
        last = rms(&work, volume);
        work.iter_mut().zip(volume).for_each(|(value, target)| *value = 2.0 / volume.len() as f32 * (*value - target));
        let (parameters, gradients) = field.parameters_and_gradients();
        FieldCompute::field_voxelise_backward(cpu, grid, &parameters, None, (&work).into(), gradients).unwrap();
        let decay = 0.3f32.powf(step as f32 / steps as f32);
        let FieldRates { tables, network, .. } = FieldRates::default();
        let rates = FieldRates { tables: tables * decay, network: network * decay, ..FieldRates::default() };
        field.step(cpu, &rates, step).unwrap();
    }
    last
}

/// Root of the mean square difference.
fn rms(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

#[test]
fn a_new_field_is_even_and_the_same_for_the_same_seed() {
    let (grid, cpu) = (grid(), carrier(2, grid().voxels));
    let mut field = Field::new(&cpu, &shape(), &grid).unwrap();
    assert_eq!(Field::bytes(&shape(), &grid).unwrap(), 16 * field.parameters.len() + 4 * 5);
    let mut volume = vec![0.0; grid.len()];
    for density in [0.002f32, 0.05, 1e-6] {
        field.reset(&cpu, 4, density).unwrap();
        cpu.field_voxelise(&grid, &host(&field), None, &mut volume).unwrap();
        // Features of 1e-4 leave about that much, relative to the density where softplus is exponential.
        assert!(volume.iter().all(|value| (value / density - 1.0).abs() < 3e-3), "{density}");
    }
    let mut again = Field::new(&cpu, &shape(), &grid).unwrap();
    again.reset(&cpu, 4, 1e-6).unwrap();
    assert_eq!(parameters(&again), parameters(&field));
    again.reset(&cpu, 5, 1e-6).unwrap();
    assert_ne!(parameters(&again), parameters(&field));
    assert!(parameters(&field)[..field.tables].iter().all(|feature| feature.abs() <= 1e-4));
    let error = again.reset(&cpu, 5, f32::NAN).unwrap_err().to_string();
    assert!(error.contains("density_per_mm = NaN"), "{error}");
}

#[test]
fn the_usual_field_has_a_cell_a_voxel_and_an_entry_a_node_while_tables_may_be_that_large() {
    for (voxels, size_mm) in
        [([128; 3], [256.0; 3]), ([24, 100, 61], [24.0, 100.0, 61.0]), ([1; 3], [5.0; 3]), ([300; 3], [3.0; 3])]
    {
        let grid = VolumeGrid::over_box(voxels, DVec3::from_array(size_mm), DVec3::ZERO);
        let plan = FieldPlan::for_grid(&grid, 0);
        let layout = FieldLayout::new(&plan.shape, &grid).unwrap();
        let finest = layout.levels().last().unwrap();
        // A grid of fewer than 8 voxels has 8 cells all the same.
        let cells = voxels.into_iter().max().unwrap().max(8);
        let longest_mm = size_mm.into_iter().fold(0.0, f64::max);
        assert!((finest.cell_mm * cells as f64 / longest_mm - 1.0).abs() < 1e-9, "{voxels:?}");
        // 301^3 nodes are more than the 2^24 entries of the largest table.
        assert!(layout.levels().iter().all(|level| level.hashed == (level.nodes[0] > 254)), "{voxels:?}");
        let needed = finest.nodes.iter().product::<usize>().min(1 << 24);
        assert_eq!(1 << plan.shape.log2_table, needed.next_power_of_two(), "{voxels:?}");
        let [(_, bytes)] = plan.buffers(&grid)[..] else { panic!("one buffer") };
        assert_eq!(bytes, Field::bytes(&plan.shape, &grid).unwrap());
    }
}

#[test]
fn a_new_fields_network_is_linear_in_its_features() {
    let (grid, cpu) = (grid(), carrier(2, grid().voxels));
    let mut field = Field::new(&cpu, &shape(), &grid).unwrap();
    let unit = shape().density_unit_per_mm;
    field.reset(&cpu, 9, unit).unwrap();
    let tables = field.tables;
    let features = |field: &mut Field, sign: f32| {
        let features: Vec<f32> = (0..tables).map(|k| sign * (k as f32 * 0.7).sin()).collect();
        cpu.write(&features, field.parameters.values_mut().part(0..tables)).unwrap();
    };
    features(&mut field, 1.0);
    // What softplus was given.
    let logits = |field: &Field| {
        let mut volume = vec![0.0; grid.len()];
        cpu.field_voxelise(&grid, &host(field), None, &mut volume).unwrap();
        volume.into_iter().map(|value| f64::from(value / unit).exp_m1().ln()).collect::<Vec<_>>()
    };
    let with = logits(&field);
    features(&mut field, -1.0);
    let against = logits(&field);
    // Softplus of this is 1.
    let bias = 1f64.exp_m1().ln();
    let spread = with.iter().map(|logit| (logit - bias).abs()).fold(0.0, f64::max);
    let bend = with.iter().zip(&against).map(|(a, b)| (a + b - 2.0 * bias).abs()).fold(0.0, f64::max);
    // Units above and below zero take turns, but what one of a pair loses by its leak the other has.
    assert!(spread > 0.3 && bend < 1e-4 * spread.max(1.0), "{spread} {bend}");
}

#[test]
fn a_field_fits_a_volume_and_its_fit_is_the_same_for_any_number_of_threads() {
    let grid = grid();
    let volume = phantom(&grid);
    let of = |threads| {
        let cpu = carrier(threads, grid.voxels);
        let mut field = Field::new(&cpu, &shape(), &grid).unwrap();
        let mut work = vec![0.0; grid.len()];
        let last = fit(&cpu, &mut field, &grid, &volume, 120);
        cpu.field_voxelise(&grid, &host(&field), None, &mut work).unwrap();
        (last, work, parameters(&field).to_vec())
    };
    let (last, found, parameters) = of(1);
    let error = rms(&found, &volume);
    println!("rms {error:.2e}, before the last step {last:.2e}");
    // 0.5 % of the denser body, found 0.1 %: the finest level has nearly a cell a voxel. A step of Adam may still be a few times that.
    assert!(error < 2e-4 && last > 0.5 * error && last < 5e-4, "{error} {last}");
    let three = of(3);
    assert!(three.1 == found && three.2 == parameters);
}

#[test]
fn a_field_fits_line_integrals_by_random_rays() {
    let grid = grid();
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 150.0,
        source_to_detector_mm: 220.0,
        detector: Detector { columns: 40, rows: 40 },
        pitch_u_mm: 2.6,
        pitch_v_mm: 2.6,
        ..CircularOrbit::default()
    };
    let geometry = orbit.over_arc(24, 0.0, std::f64::consts::TAU);
    // Line integrals of the bodies themselves by the midpoint rule.
    let measured = |pixel: &RayPixel| {
        let pose = &geometry.views[pixel.view as usize];
        let to = pose.pixel_mm(f64::from(pixel.row), f64::from(pixel.column));
        let direction = (to - pose.source_mm).normalize();
        let at = |k: i32| pose.source_mm + direction * (100.0 + 0.5 * (f64::from(k) + 0.5));
        ((0..200).map(|k| density_at(at(k))).sum::<f64>() * 0.5) as f32
    };
    let cpu = carrier(2, grid.voxels);
    let mut field = Field::new(&cpu, &shape(), &grid).unwrap();
    let views: Vec<usize> = (0..24).collect();
    let mut pixels = vec![RayPixel::default(); 512];
    let mut integrals = vec![0.0; pixels.len()];
    for step in 0..200 {
        let jitter = FieldJitter { seed: 1, iteration: u64::from(step) };
        draw_rays(&geometry, &views, jitter, &mut pixels);
        let rays = FieldRays { geometry: &geometry, pixels: &pixels, samples: 32, jitter: Some(jitter) };
        cpu.field_project(&rays, &host(&field), &mut integrals).unwrap();
        for (integral, pixel) in integrals.iter_mut().zip(&pixels) {
            *integral = (*integral - measured(pixel)) / 512.0;
        }
        field.begin_step(&cpu).unwrap();
        let (parameters, gradients) = field.parameters_and_gradients();
        FieldCompute::field_project_backward(&cpu, &rays, &parameters, (&integrals).into(), gradients).unwrap();
        field.step(&cpu, &RATES, step + 1).unwrap();
    }
    let mut found = vec![0.0; grid.len()];
    cpu.field_voxelise(&grid, &host(&field), None, &mut found).unwrap();
    let volume = phantom(&grid);
    let (error, start) = (rms(&found, &volume), rms(&vec![0.002; volume.len()], &volume));
    println!("rms {error:.2e} from {start:.2e}");
    assert!(error < 0.2 * start, "{error} {start}");
}

#[test]
fn rays_are_drawn_from_all_pixels_of_the_views_named_and_anew_each_time() {
    let orbit = CircularOrbit { detector: Detector { columns: 5, rows: 3 }, ..CircularOrbit::default() };
    let geometry = orbit.over_arc(7, 0.0, 6.0);
    let mut pixels = vec![RayPixel::default(); 3000];
    let jitter = FieldJitter { seed: 2, iteration: 0 };
    draw_rays(&geometry, &[1, 4], jitter, &mut pixels);
    let mut counts = std::collections::BTreeMap::new();
    pixels.iter().for_each(|p| *counts.entry((p.view, p.row, p.column)).or_insert(0) += 1);
    assert_eq!(counts.len(), 30);
    // 100 each on average, standard deviation 10.
    assert!(counts.iter().all(|(pixel, &n)| (pixel.0 == 1 || pixel.0 == 4) && (50..150).contains(&n)), "{counts:?}");
    let mut again = vec![RayPixel::default(); 3000];
    draw_rays(&geometry, &[1, 4], jitter, &mut again);
    assert_eq!(pixels, again);
    draw_rays(&geometry, &[1, 4], FieldJitter { iteration: 1, ..jitter }, &mut again);
    assert_ne!(pixels, again);
    draw_rays(&geometry, &[], jitter, &mut again);
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let grid = grid();
    let cpu = carrier(1, grid.voxels);
    let mut field = Field::new(&cpu, &shape(), &grid).unwrap();
    assert!(field.set_level_weights(&[1.0; 4]).unwrap_err().to_string().contains("`level weights` holds 4"));
    let error = field.set_level_weights(&[1.0, 1.0, f32::NAN, 1.0, 1.0]).unwrap_err().to_string();
    assert!(error.contains("level weight = NaN"), "{error}");
    let error = Field::new(&cpu, &FieldShape { width: 17, ..shape() }, &grid).unwrap_err().to_string();
    assert!(error.contains("width = 17"), "{error}");
}
