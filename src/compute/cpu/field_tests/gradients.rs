//! Gradients against finite differences of the float64 reference, for every kind of parameter.

#![allow(clippy::unwrap_used)]

use super::*;

/// Compares gradients with central differences of `reference.loss(points)`: some entries of each feature of each level, some weights and
/// biases of each layer. The largest error, in shares of the largest gradient of the same kind.
fn compare(owned: &Owned, [tables, network]: &[Vec<f32>; 2], points: &[(DVec3, f64)], tolerance: f64) {
    let mut kinds: Vec<(String, bool, Vec<usize>)> = Vec::new();
    let shape = owned.layout.shape();
    for (index, level) in owned.layout.levels().iter().enumerate() {
        // Some that have a gradient, some whatever they have (most entries of fine levels are no point's neighbour).
        let all = level.first..level.first + shape.features * level.entries;
        let touched: Vec<usize> = all.clone().filter(|&place| tables[place] != 0.0).collect();
        let mut places: Vec<usize> = touched.iter().copied().step_by((touched.len() / 12).max(1)).collect();
        places.extend(all.step_by((shape.features * level.entries / 8).max(1) | 1));
        kinds.push((format!("level {index}{}", if level.hashed { " (hashed)" } else { "" }), true, places));
    }
    for index in 0..=shape.hidden_layers {
        let layer = owned.layout.layer(index);
        let step = (layer.inputs * layer.outputs / 16).max(1) | 1;
        kinds.push((format!("weights {index}"), false, (layer.first..layer.biases()).step_by(step).collect()));
        let biases = layer.biases()..layer.biases() + layer.outputs;
        kinds.push((format!("biases {index}"), false, biases.step_by((layer.outputs / 8).max(1)).collect()));
    }
    let mut reference = owned.reference();
    for (name, of_tables, places) in kinds {
        let mut pairs = Vec::new();
        for place in places {
            // Small, so that no point crosses a unit's kink; float64 leaves 1e-9 of a loss of about 1.
            let h = 1e-7;
            let mut at = |sign: f64| {
                let parameter = if of_tables { &mut reference.tables[place] } else { &mut reference.network[place] };
                let before = *parameter;
                *parameter += sign * h;
                let loss = reference.loss(points);
                let parameter = if of_tables { &mut reference.tables[place] } else { &mut reference.network[place] };
                *parameter = before;
                loss
            };
            let difference = (at(1.0) - at(-1.0)) / (2.0 * h);
            pairs.push((f64::from(if of_tables { tables[place] } else { network[place] }), difference));
        }
        let scale = pairs.iter().fold(0.0f64, |a, b| a.max(b.1.abs()));
        let worst = pairs.iter().fold(0.0f64, |a, (x, y)| a.max((x - y).abs())) / scale;
        println!("{name:18} {:3} of them, largest {scale:.3e}, worst error {worst:.1e}", pairs.len());
        assert!(scale > 0.0 && worst < tolerance, "{name}: {worst:.2e} of {scale:.3e}");
    }
}

fn check(shape: &FieldShape, seed: u64) {
    let grid = VolumeGrid { voxels: [5, 4, 17], ..odd() };
    let owned = Owned::new(shape, &grid, seed);
    for (simd, jitter) in SimdLevel::available().zip([None, JITTER, JITTER]) {
        let cpu = carrier(2, simd, shape, grid.voxels);
        let results = everything(&cpu, &grid, &owned, jitter, 35);
        let points: Vec<_> =
            voxel_points(&grid, jitter).into_iter().enumerate().map(|(k, point)| (point, weight(k))).collect();
        // float32 sums over some hundred points of either sign; found: 3e-6.
        compare(&owned, &results.by_volume, &points, 2e-5);
        let geometry = awkward(3);
        let pixels = pixels(&geometry, STEP);
        let rays = FieldRays { geometry: &geometry, pixels: &pixels, samples: 35, jitter };
        let points: Vec<_> = (0..pixels.len())
            .flat_map(|ray| {
                let (points, step) = ray_points(&owned.layout, &rays, ray);
                points.into_iter().map(move |point| (point, step * weight(ray)))
            })
            .collect();
        compare(&owned, &results.by_rays, &points, 2e-5);
    }
}

#[test]
fn gradients_of_a_small_field() {
    check(&small(), 20);
}

#[test]
fn gradients_of_wide_layers_and_many_features() {
    check(&FieldShape { levels: 3, features: 8, width: 48, hidden_layers: 3, leak: 0.01, ..small() }, 21);
}

#[test]
fn gradients_of_one_hidden_layer_of_relu() {
    check(&FieldShape { levels: 4, features: 4, width: 32, hidden_layers: 1, leak: 0.0, ..small() }, 22);
}

#[test]
fn gradients_where_nodes_lie_closer_than_voxels() {
    // 8 to 200 cells: sparse lines at the last level (float32 positions leave 1e-5 of a cell: still within the tolerance).
    check(&FieldShape { levels: 4, coarsest_cells: 8, growth: 2.93, log2_table: 11, ..small() }, 23);
}

#[test]
fn gradients_are_added_and_levels_of_weight_zero_get_none() {
    let grid = odd();
    let mut owned = Owned::new(&small(), &grid, 24);
    owned.weights[1] = 0.0;
    owned.weights[4] = 0.0;
    let cpu = carrier(2, SimdLevel::detect(), &small(), grid.voxels);
    let results = everything(&cpu, &grid, &owned, JITTER, 35);
    let reference = owned.reference();
    let points = voxel_points(&grid, JITTER);
    let close = |(&x, &p): (&f32, &DVec3)| (f64::from(x) - reference.value_at(p)).abs() < 2e-7;
    assert!(results.volume.iter().zip(&points).all(close));
    for (index, level) in owned.layout.levels().iter().enumerate() {
        for of in [&results.by_volume, &results.by_rays] {
            let some = of[0][level.first..level.first + 2 * level.entries].iter().any(|&by| by != 0.0);
            assert_eq!(some, owned.weights[index] != 0.0, "level {index}");
        }
    }
    // A second call adds the same again.
    let [mut tables, mut network] = results.by_volume.clone();
    let weights: Vec<f32> = (0..grid.len()).map(|k| weight(k) as f32).collect();
    let mut gradients = HostFieldGradients { tables: &mut tables, network: &mut network };
    cpu.field_voxelise_backward(&grid, &owned.parameters(), JITTER, &weights, &mut gradients).unwrap();
    for (twice, once) in [(&tables, &results.by_volume[0]), (&network, &results.by_volume[1])] {
        let largest = once.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // float32 sums with another start.
        assert!(twice.iter().zip(once).all(|(a, b)| (a - 2.0 * b).abs() < 1e-5 * largest));
    }
    // All levels off: the network alone, everywhere the same.
    owned.weights.fill(0.0);
    let flat = everything(&cpu, &grid, &owned, None, 35);
    assert!(flat.volume.iter().all(|&x| x == flat.volume[0]) && flat.volume[0] > 0.0);
    assert!(flat.by_volume[0].iter().chain(&flat.by_rays[0]).all(|&by| by == 0.0));
}
