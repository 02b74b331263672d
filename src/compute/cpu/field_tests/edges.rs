//! Determinism, carriers, and everything that is empty, unseen or wrong.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::compute::ComputeError;

/// A field and a grid of more than one chunk of groups.
fn case() -> (VolumeGrid, Owned) {
    let grid = VolumeGrid { voxels: [41, 29, 35], voxel_mm: DVec3::new(0.7, 0.8, 1.1), ..odd() };
    let shape = FieldShape { levels: 7, width: 32, ..small() };
    (grid, Owned::new(&shape, &grid, 30))
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (grid, owned) = case();
    for simd in SimdLevel::available() {
        let of = |threads| {
            everything(&carrier(threads, simd, owned.layout.shape(), grid.voxels), &grid, &owned, JITTER, 1500)
        };
        let one = of(1);
        let all = one.volume.iter().chain(&one.integrals).chain(one.by_volume.iter().chain(&one.by_rays).flatten());
        assert!(all.clone().all(|x| x.is_finite()) && all.filter(|x| **x != 0.0).count() > 50_000);
        for threads in [1, 2, 3] {
            assert!(of(threads) == one, "{simd}, {threads} threads");
        }
    }
}

#[test]
fn simd_levels_agree_to_rounding() {
    let (grid, owned) = case();
    let of = |simd| everything(&carrier(2, simd, owned.layout.shape(), grid.voxels), &grid, &owned, JITTER, 1500);
    let plain = of(SimdLevel::Plain);
    let close = |name: &str, a: &[f32], b: &[f32], tolerance: f32| {
        let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / largest;
        println!("{name}: {worst:.1e}");
        assert!(worst < tolerance, "{name}: {worst:.1e} of {largest:.2e}");
    };
    for simd in SimdLevel::available().skip(1) {
        let wide = of(simd);
        close("volume", &plain.volume, &wide.volume, 3e-6);
        close("integrals", &plain.integrals, &wide.integrals, 3e-6);
        // Sums over up to 40,000 points in another order, and leaky units that rounding puts on the other side of their kink.
        close("tables by voxels", &plain.by_volume[0], &wide.by_volume[0], 1e-4);
        close("network by voxels", &plain.by_volume[1], &wide.by_volume[1], 1e-4);
        close("tables by rays", &plain.by_rays[0], &wide.by_rays[0], 1e-4);
        close("network by rays", &plain.by_rays[1], &wide.by_rays[1], 1e-4);
    }
}

#[test]
fn nothing_comes_of_no_rays_no_gradient_and_rays_that_miss() {
    let grid = odd();
    let owned = Owned::new(&small(), &grid, 31);
    let cpu = carrier(2, SimdLevel::detect(), &small(), grid.voxels);
    let (field, geometry) = (owned.parameters(), awkward(1));
    let mut tables = vec![0.0; owned.tables.len()];
    let mut network = vec![0.0; owned.network.len()];
    let mut gradients = HostFieldGradients { tables: &mut tables, network: &mut network };
    let none = FieldRays { geometry: &geometry, pixels: &[], samples: 8, jitter: None };
    cpu.field_project(&none, &field, &mut []).unwrap();
    cpu.field_project_backward(&none, &field, &[], &mut gradients).unwrap();
    // Rays that pass the box by, and a box behind the source.
    let all = pixels(&geometry, 1);
    let rays = FieldRays { geometry: &geometry, pixels: &all, samples: 1, jitter: None };
    let passing = (0..all.len()).filter(|&ray| ray_points(&owned.layout, &rays, ray).0.is_empty());
    let passing: Vec<RayPixel> = passing.map(|ray| all[ray]).collect();
    assert!(passing.len() > 20);
    let behind = ScanGeometry {
        detector: geometry.detector,
        views: vec![{
            let mut view = geometry.views[0];
            let away = 2.0 * (view.source_mm - owned.layout.low_mm() - 0.5 * owned.layout.size_mm());
            view.source_mm += away;
            view.detector_origin_mm = view.source_mm + away;
            view
        }],
    };
    for (geometry, pixels) in [(&geometry, &passing), (&behind, &all)] {
        let rays = FieldRays { geometry, pixels, samples: 8, jitter: JITTER };
        let mut integrals = vec![f32::NAN; pixels.len()];
        cpu.field_project(&rays, &field, &mut integrals).unwrap();
        assert!(integrals.iter().all(|&integral| integral == 0.0));
        cpu.field_project_backward(&rays, &field, &vec![1.0; pixels.len()], &mut gradients).unwrap();
    }
    cpu.field_voxelise_backward(&grid, &field, None, &vec![0.0; grid.len()], &mut gradients).unwrap();
    assert!(tables.iter().chain(&network).all(|&by| by == 0.0));
}

#[test]
fn a_source_within_the_box_sees_what_lies_before_it() {
    let grid = odd();
    let owned = Owned::new(&small(), &grid, 32);
    let cpu = carrier(1, SimdLevel::detect(), &small(), [1; 3]);
    let mut geometry = awkward(1);
    geometry.views[0].source_mm = grid.centre_mm;
    let pixel = [RayPixel { view: 0, row: 8, column: 10 }];
    let rays = FieldRays { geometry: &geometry, pixels: &pixel, samples: 64, jitter: None };
    let mut integral = [0.0];
    cpu.field_project(&rays, &owned.parameters(), &mut integral).unwrap();
    let (points, step) = ray_points(&owned.layout, &rays, 0);
    let expected: f64 = step * points.iter().map(|&point| owned.reference().value_at(point)).sum::<f64>();
    assert!(expected > 0.0 && (f64::from(integral[0]) / expected - 1.0).abs() < 1e-5);
}

#[test]
fn values_that_no_result_can_come_from_are_refused_by_name() {
    let grid = odd();
    let good = Owned::new(&small(), &grid, 33);
    let cpu = carrier(2, SimdLevel::detect(), &small(), grid.voxels);
    let geometry = awkward(1);
    let volume_of = |owned: &Owned| {
        let mut volume = vec![0.0; grid.len()];
        cpu.field_voxelise(&grid, &owned.parameters(), None, &mut volume).unwrap_err().to_string()
    };
    let mut bad = good.clone();
    bad.tables[70] = f32::NAN;
    assert!(volume_of(&bad).contains("`tables` of element 70 is NaN"), "{}", volume_of(&bad));
    let mut bad = good.clone();
    bad.network[7] = f32::INFINITY;
    assert!(volume_of(&bad).contains("`network` of element 7 is inf"));
    let mut bad = good.clone();
    bad.weights[2] = f32::NAN;
    assert!(volume_of(&bad).contains("`level_weights` of element 2 is NaN"));
    let mut bad = good.clone();
    bad.tables.pop();
    assert!(volume_of(&bad).contains("`tables`"));

    let field = good.parameters();
    let mut tables = vec![0.0; good.tables.len()];
    let mut network = vec![0.0; good.network.len()];
    let mut gradients = HostFieldGradients { tables: &mut tables, network: &mut network };
    let mut by_volume = vec![0.0; grid.len()];
    by_volume[11] = f32::NEG_INFINITY;
    let error = cpu.field_voxelise_backward(&grid, &field, None, &by_volume, &mut gradients).unwrap_err();
    assert!(error.to_string().contains("`by_volume` of element 11 is -inf"), "{error}");
    let pixels = [RayPixel { view: 0, row: 3, column: 4 }, RayPixel { view: 0, row: 17, column: 4 }];
    let rays = |pixels, samples| FieldRays { geometry: &geometry, pixels, samples, jitter: None };
    let error = cpu.field_project(&rays(&pixels, 8), &field, &mut [0.0; 2]).unwrap_err().to_string();
    assert!(error.contains("`pixels.row` of element 1 is 17"), "{error}");
    let error = cpu.field_project(&rays(&pixels[..1], 0), &field, &mut [0.0; 1]).unwrap_err().to_string();
    assert!(error.contains("samples = 0"), "{error}");
    let error = cpu.field_project(&rays(&pixels[..1], 8), &field, &mut [0.0; 2]).unwrap_err().to_string();
    assert!(error.contains("`integrals`"), "{error}");
    let error = cpu.field_project_backward(&rays(&pixels[..1], 8), &field, &[f32::NAN], &mut gradients).unwrap_err();
    assert!(error.to_string().contains("`by_integrals` of element 0 is NaN"), "{error}");
    assert!(gradients.tables.iter().all(|&by| by == 0.0));

    // More than was prepared.
    let larger = VolumeGrid { voxels: [1, 1, 400], ..grid };
    let error = cpu.field_voxelise(&larger, &field, None, &mut vec![0.0; 400]).unwrap_err();
    assert!(matches!(error, ComputeError::Scratch { .. }), "{error}");
}

#[test]
fn shapes_that_cannot_work_are_refused_by_name() {
    let grid = odd();
    let cases: [(&str, FieldShape); 12] = [
        ("levels = 0", FieldShape { levels: 0, ..small() }),
        ("levels = 33", FieldShape { levels: 33, ..small() }),
        ("features = 3", FieldShape { features: 3, ..small() }),
        ("levels * features = 136", FieldShape { levels: 17, features: 8, growth: 1.0, ..small() }),
        ("coarsest_cells = 0", FieldShape { coarsest_cells: 0, ..small() }),
        ("growth = NaN", FieldShape { growth: f64::NAN, ..small() }),
        ("growth^(levels - 1)", FieldShape { levels: 30, growth: 3.0, ..small() }),
        ("log2_table = 40", FieldShape { log2_table: 40, ..small() }),
        ("width = 24", FieldShape { width: 24, ..small() }),
        ("hidden_layers = 0", FieldShape { hidden_layers: 0, ..small() }),
        ("leak = 1", FieldShape { leak: 1.0, ..small() }),
        ("density_unit_per_mm = NaN", FieldShape { density_unit_per_mm: f32::NAN, ..small() }),
    ];
    for (message, shape) in cases {
        let error = FieldLayout::new(&shape, &grid).unwrap_err().to_string();
        assert!(error.contains(message), "{error}, not {message}");
    }
    let endless = VolumeGrid { voxel_mm: DVec3::new(1.0, f64::INFINITY, 1.0), ..grid };
    assert!(FieldLayout::new(&small(), &endless).unwrap_err().to_string().contains("box along y"));
}

#[test]
fn layouts_count_as_their_definition_says() {
    let grid = VolumeGrid::over_box([10, 20, 40], DVec3::new(10.0, 20.0, 40.0), DVec3::ZERO);
    let shape = FieldShape { levels: 4, coarsest_cells: 4, growth: 2.0, log2_table: 12, ..small() };
    let layout = FieldLayout::new(&shape, &grid).unwrap();
    let nodes: Vec<_> = layout.levels().iter().map(|level| (level.nodes, level.hashed)).collect();
    // 4, 8, 16 and 32 cells along z; cells are cubes.
    let expected = [([2, 3, 5], false), ([3, 5, 9], false), ([5, 9, 17], false), ([9, 17, 33], true)];
    assert_eq!(nodes, expected);
    assert_eq!(layout.tables_len(), 2 * (30 + 135 + 765 + 4096));
    assert_eq!(layout.network_len(), (8 + 1) * 16 + 17 * 16 + 17);
    // A growth worked out from the finest level reaches it.
    let growth = FieldShape::growth_to(8, 129, 7);
    assert_eq!(FieldShape { levels: 7, coarsest_cells: 8, growth, ..small() }.cells(6), 129);
}
