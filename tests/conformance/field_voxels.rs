//! A neural field on voxels, and its adjoint.

use diffnr::compute::cuda;
use diffnr::compute::field::{FieldCompute as _, FieldJitter, FieldShape};
use diffnr::geometry::VolumeGrid;
use glam::DVec3;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::fields::{JITTER, Owned, any_shape, driven, largest, odd, shapes, small};
use crate::scans::settings;
use crate::values::{assert_close, download, unwritten};

/// Of the largest value. Positions are float32 on both sides, from the same float64 numbers: what differs is the order of a few hundred
/// products, and the exponential.
const VALUES: f32 = 5e-6;

/// Cells of 1/4000 of the box: float32 leaves 2.4e-4 of a cell, times the slope of random features.
const VALUES_OF_TINY_CELLS: f32 = 1e-3;

fn values_share(shape: &FieldShape) -> f32 {
    if shape.cells(shape.levels - 1) > 1000 { VALUES_OF_TINY_CELLS } else { VALUES }
}

fn assert_values(carrier: &Carrier, what: &str, owned: &Owned, grid: &VolumeGrid, jitter: Option<FieldJitter>) {
    let given = carrier.run(|launcher| {
        let table = owned.table(launcher);
        let volume = unwritten(launcher, grid.len());
        cuda::field_voxelise(launcher, grid, &owned.upload(launcher, &table), jitter, volume).unwrap();
        vec![download(launcher, volume)]
    });
    let mut expected = vec![f32::NAN; grid.len()];
    owned.cpu(grid.voxels).field_voxelise(grid, &owned.parameters(), jitter, &mut expected).unwrap();
    assert_close(&format!("{what}, values"), values_share(owned.layout.shape()), &given[0], &expected);
    for (i, (given, expected)) in given[0].iter().zip(&expected).enumerate() {
        assert_eq!(*given == 0.0, *expected == 0.0, "{what}: in the box or not, at {i}");
    }
}

#[test]
fn voxels_of_all_shapes_are_as_on_the_cpu() {
    on_each("field_voxelise", |carrier| {
        let grid = odd([5, 4, 37]);
        for (what, shape) in shapes().into_iter().chain([("the largest network", largest())]) {
            let owned = Owned::new(&shape, &grid, 1);
            for jitter in [None, JITTER] {
                assert_values(carrier, what, &owned, &grid, jitter);
            }
        }
    });
}
