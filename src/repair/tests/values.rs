//! What comes out, against the graphs' formulas written down anew over `[x][y][z]` indices.

use super::*;

/// HU over the window's half width: window units of the tests' model.
fn unit(per_mm: f32) -> f64 {
    f64::from(per_mm) / MU_WATER_PER_MM - 1.0
}

/// The mean of the pixels of a cell, bounds included by `floor` and `ceil`.
fn cell(view: &Array2<f32>, row: usize, column: usize) -> f64 {
    let ((height, width), (rows, columns)) = (view.dim(), (4, 6));
    let (v0, v1) = (row * height / rows, ((row + 1) * height).div_ceil(rows));
    let (u0, u1) = (column * width / columns, ((column + 1) * width).div_ceil(columns));
    let pixels: Vec<f64> = (v0..v1).flat_map(|v| (u0..u1).map(move |u| (v, u))).map(|at| f64::from(view[at])).collect();
    pixels.iter().sum::<f64>() / pixels.len() as f64
}

fn mean(view: &Array2<f32>) -> f64 {
    (0..24).map(|n| cell(view, n / 6, n % 6)).sum::<f64>() / 24.0
}

/// The formula of `make.py` for one plane, in window units, at a voxel.
fn expected(plane: Plane, volume: &[f32], [nx, ny, nz]: [usize; 3], [x, y, z]: [usize; 3], token: f64) -> f64 {
    let at = |x: usize, y: usize, z: usize| unit(volume[(x.min(nx - 1) * ny + y.min(ny - 1)) * nz + z.min(nz - 1)]);
    let middle = at(x, y, z);
    let (below, above, next_row, next_column, index, height) = match plane {
        Plane::Axial => (
            at(x, y, z.saturating_sub(1)),
            at(x, y, z + 1),
            at(x, y + 1, z),
            at(x + 1, y, z),
            0.0,
            (z as f64 + 0.5) / nz as f64,
        ),
        Plane::Coronal => (
            at(x, y.saturating_sub(1), z),
            at(x, y + 1, z),
            at(x, y, z + 1),
            at(x + 1, y, z),
            1.0,
            (y as f64 + 0.5) / ny as f64,
        ),
        Plane::Sagittal => (
            at(x.saturating_sub(1), y, z),
            at(x + 1, y, z),
            at(x, y, z + 1),
            at(x, y + 1, z),
            2.0,
            (x as f64 + 0.5) / nx as f64,
        ),
    };
    middle
        + 0.1 * ((below + above) / 2.0 - middle)
        + 0.03 * (next_row - middle)
        + 0.05 * (next_column - middle)
        + 0.01 * index
        + 0.02 * height
        + 0.004 * token
}

fn check(library: &Path, voxels: [usize; 3], planes: &[Plane], batch: usize) {
    let options = Options { planes: planes.to_vec(), batch, ..options(library.to_path_buf(), voxels) };
    let mut loaded = Loaded::new(&models(), &options).unwrap();
    let volume = volume(voxels);
    conditioned(&mut loaded.fixer, "thorax");
    let [first, second] = views();
    let token = mean(&first) + mean(&second) + 2.0;
    let [per_mm, disagreement_hu] = loaded.repair(&volume, None, &mut ()).unwrap();
    let [nx, ny, nz] = voxels;
    for at in 0..nx * ny * nz {
        let place = [at / (ny * nz), at / nz % ny, at % nz];
        let values: Vec<f64> = planes.iter().map(|plane| expected(*plane, &volume, voxels, place, token)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        // float32 of window units of size 1; a wrong axis, edge, height or plane differs by 1e-3 and more.
        let found = unit(per_mm[at]);
        assert!((found - mean).abs() < 3e-6, "{planes:?} {voxels:?} {place:?}: {found} {mean}");
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let wanted = 1000.0 * (squares / values.len() as f64).sqrt();
        let found = f64::from(disagreement_hu[at]);
        // As above, in HU; one plane agrees with itself.
        assert!((found - wanted).abs() < 5e-3, "{planes:?} {voxels:?} {place:?}: {found} {wanted}");
    }
}

#[test]
fn planes_axes_edges_heights_and_context_are_those_of_the_formula() {
    let Some(library) = onnx_runtime() else { return };
    // Odd sizes, sizes below and at the multiple of 8, a single voxel across; batches that divide and that do not, and larger than all.
    check(&library, [5, 13, 9], &[Plane::Axial], 3);
    check(&library, [5, 13, 9], &[Plane::Coronal], 4);
    check(&library, [5, 13, 9], &[Plane::Sagittal], 256);
    check(&library, [8, 16, 24], &[Plane::Axial, Plane::Sagittal], 1);
    check(&library, [1, 7, 17], &Plane::ALL, 5);
    check(&library, [11, 12, 10], &[Plane::Sagittal, Plane::Axial, Plane::Coronal], 4);
}

#[test]
fn the_context_is_the_scan_averaged_as_in_training() {
    let Some(library) = onnx_runtime() else { return };
    let mut fixer = Loaded::new(&models(), &options(library, [4; 3])).unwrap().fixer;
    assert!(fixer.context().iter().all(|value| *value == 0.0));
    let [first, second] = views();
    for (name, index) in [("thorax", 2.0), ("head", 1.0), ("no such part", 0.0), ("other", 0.0)] {
        conditioned(&mut fixer, name);
        let wanted = [mean(&first), mean(&second), index, cell(&first, 0, 0), cell(&first, 0, 1), cell(&first, 0, 2)];
        for (found, wanted) in fixer.context().iter().zip(wanted) {
            // float32 of values up to 10.
            assert!((f64::from(*found) - wanted).abs() < 1e-5, "{:?} {wanted:?}", fixer.context());
        }
    }
    // 9 columns on 6: cells of two columns each, 0..2, 1..3, 3..5: a border pixel counts in both.
    assert!((cell(&first, 0, 1) - (0.5 + 0.1 * (1.0 + 4.0) / 2.0)).abs() < 1e-6);
}

#[test]
fn the_same_bits_come_of_any_number_of_threads_and_any_run() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [17, 12, 21];
    let mut results = Vec::new();
    for threads in [1, 1, 2, 3] {
        let options = Options { threads, ..options(library.clone(), voxels) };
        let mut loaded = Loaded::new(&models(), &options).unwrap();
        conditioned(&mut loaded.fixer, "head");
        for _ in 0..2 {
            let repaired = loaded.repair(&volume(voxels), None, &mut ()).unwrap();
            results.push(repaired.map(|values| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()));
        }
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_scan_gives_its_two_views_at_right_angles() {
    let orbit = crate::geometry::CircularOrbit {
        detector: crate::geometry::Detector { columns: 3, rows: 2 },
        ..crate::geometry::CircularOrbit::default()
    };
    let geometry = orbit.over_arc(8, 0.0, std::f64::consts::TAU);
    let projections = ndarray::Array3::from_shape_fn((8, 2, 3), |(view, v, u)| (100 * view + 10 * v + u) as f32);
    let told = Conditioning::of_scan(&geometry, projections.view(), "head").unwrap();
    assert_eq!((told.views[0][[1, 2]], told.views[1][[1, 2]]), (12.0, 212.0));
    let refused = Conditioning::of_scan(&geometry, projections.slice(ndarray::s![..3, .., ..]), "head").unwrap_err();
    assert!(refused.to_string().contains("[3, 2, 3]: must be the geometry's, [8, 2, 3]"), "{refused}");
    let one = orbit.over_arc(1, 0.0, 1.0);
    let refused = Conditioning::of_scan(&one, projections.slice(ndarray::s![..1, .., ..]), "head").unwrap_err();
    assert!(refused.to_string().contains("two at least"), "{refused}");
}
