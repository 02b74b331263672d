//! A neural field on voxels, and its adjoint.

use diffnr::compute::ComputeError;
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceFieldGradients, DeviceSlice, FieldGradientRoom, Launcher};
use diffnr::compute::field::{FieldJitter, FieldShape, HostFieldGradients};
use diffnr::geometry::VolumeGrid;
use glam::DVec3;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::fields::{JITTER, Owned, any_shape, assert_gradients, driven, largest, odd, shapes, small, start};
use crate::scans::settings;
use crate::values::{assert_close, download, random, signed, unwritten, upload};

/// Of the largest value. Positions are float32 on both sides, from the same float64 numbers: what differs is the order of a few hundred
/// products, and the exponential. Found: 4e-7.
const VALUES: f32 = 2e-6;

/// The draw on the device.
fn key(launcher: &dyn Launcher, jitter: Option<FieldJitter>) -> Option<DeviceSlice<u32>> {
    jitter.map(|_| DeviceSlice::upload(launcher, &cuda::jitter_key(jitter)).unwrap())
}

/// The values, and whether voxels count as within the box, are the CPU's.
fn assert_values(carrier: &Carrier, what: &str, owned: &Owned, grid: &VolumeGrid, jitter: Option<FieldJitter>) {
    let given = carrier.run(|launcher| {
        let table = owned.table(launcher);
        let volume = unwritten(launcher, grid.len());
        cuda::field_voxelise(launcher, grid, &owned.upload(launcher, &table), key(launcher, jitter), volume).unwrap();
        vec![download(launcher, volume)]
    });
    let mut expected = vec![f32::NAN; grid.len()];
    owned.cpu(grid.voxels).field_voxelise(grid, &owned.parameters(), jitter, &mut expected).unwrap();
    assert_close(&format!("{what}, values"), VALUES, &given[0], &expected);
    for (i, (given, expected)) in given[0].iter().zip(&expected).enumerate() {
        assert_eq!(*given == 0.0, *expected == 0.0, "{what}: in the box or not, at {i}");
    }
}

/// On one launcher: the gradients, added to `start`.
fn backward(
    launcher: &dyn Launcher,
    owned: &Owned,
    grid: &VolumeGrid,
    jitter: Option<FieldJitter>,
    by: &[f32],
    start: &[Vec<f32>; 2],
) -> Vec<Vec<f32>> {
    let table = owned.table(launcher);
    let [tables, network] = [&start[0], &start[1]].map(|values| upload(launcher, values));
    let gradients = DeviceFieldGradients { tables, network };
    let room = FieldGradientRoom::allocate(launcher, &owned.layout, grid.voxels, 0).unwrap();
    let field = owned.upload(launcher, &table);
    let jitter = key(launcher, jitter);
    cuda::field_voxelise_backward(launcher, grid, &field, jitter, upload(launcher, by), &gradients, &room).unwrap();
    vec![download(launcher, tables), download(launcher, network)]
}

/// Gradients are the CPU's.
fn assert_adjoint(carrier: &Carrier, what: &str, owned: &Owned, grid: &VolumeGrid, jitter: Option<FieldJitter>) {
    let by = signed(grid.len(), 7);
    let start = start(owned);
    let given = carrier.run(|launcher| backward(launcher, owned, grid, jitter, &by, &start));
    let [mut tables, mut network] = start.clone();
    let mut gradients = HostFieldGradients { tables: &mut tables, network: &mut network };
    let cpu = owned.cpu(grid.voxels);
    cpu.field_voxelise_backward(grid, &owned.parameters(), jitter, &by, &mut gradients).unwrap();
    assert_gradients(what, owned, &start, &given, &[tables, network]);
}

fn assert_both(carrier: &Carrier, what: &str, owned: &Owned, grid: &VolumeGrid) {
    for jitter in [None, JITTER] {
        assert_values(carrier, what, owned, grid, jitter);
        assert_adjoint(carrier, what, owned, grid, jitter);
    }
}

#[test]
fn voxels_of_all_shapes_are_as_on_the_cpu() {
    on_each("field_voxelise", |carrier| {
        let grid = odd([5, 4, 37]);
        for (what, shape) in shapes() {
            assert_both(carrier, what, &Owned::new(&shape, &grid, 1), &grid);
        }
        let grid = odd([2, 2, 37]);
        assert_both(carrier, "the largest network", &Owned::new(&largest(), &grid, 1), &grid);
    });
}

#[test]
fn grids_of_other_places_and_sizes_are_sampled_too() {
    on_each("field_voxelise, other grids", |carrier| {
        let grid = odd([7, 5, 39]);
        let owned = Owned::new(&small(), &grid, 2);
        let wider = VolumeGrid { voxel_mm: DVec3::new(4.1, 4.3, 2.9), centre_mm: DVec3::new(1.0, -4.0, 7.0), ..grid };
        let away = VolumeGrid { centre_mm: DVec3::new(300.0, 0.0, 0.0), ..grid };
        let above = VolumeGrid { centre_mm: DVec3::new(3.0, -2.0, 80.0), ..grid };
        for (what, other) in [
            ("part", grid.part([3, 2, 5], [4, 3, 19])),
            ("coarser", grid.resampled(3)),
            ("wider", wider),
            ("away", away),
            ("above", above),
            ("one voxel along z", VolumeGrid { voxels: [3, 4, 1], ..grid }),
            ("one voxel", VolumeGrid { voxels: [1; 3], ..grid }),
        ] {
            assert_both(carrier, what, &owned, &other);
        }
    });
}

/// A box of 8 mm; voxels whose centres lie on its faces, and a hair beyond.
#[test]
fn the_boxs_faces_belong_to_it_and_nothing_beyond_does() {
    on_each("field_voxelise, faces", |carrier| {
        let grid = VolumeGrid::over_box([4; 3], DVec3::splat(8.0), DVec3::new(0.3, 0.1, -0.7));
        let owned = Owned::new(&small(), &grid, 3);
        let faces = VolumeGrid { voxels: [5; 3], ..grid };
        let beyond = VolumeGrid { voxel_mm: DVec3::splat(2.0 + 1e-6), ..faces };
        for (what, grid, within) in [("on the faces", faces, 125), ("a hair beyond", beyond, 27)] {
            assert_both(carrier, what, &owned, &grid);
            let launcher = carrier.launcher();
            let launcher = launcher.as_ref();
            let (table, volume) = (owned.table(launcher), unwritten(launcher, 125));
            cuda::field_voxelise(launcher, &grid, &owned.upload(launcher, &table), None, volume).unwrap();
            assert_eq!(download(launcher, volume).iter().filter(|&&value| value > 0.0).count(), within, "{what}");
        }
    });
}

#[test]
fn any_field_and_grid() {
    on_each("field_voxelise, any", |carrier| {
        let cases = (any_shape(), (1usize..6, 1usize..6, 1usize..70), 0u64..1000, any::<bool>(), 0.7..1.4f64);
        proptest!(settings(24), |((shape, voxels, seed, random, scale) in cases)| {
            let grid = odd(voxels.into());
            let owned = Owned::new(&shape, &grid, seed);
            let grid = VolumeGrid { voxel_mm: scale * grid.voxel_mm, ..grid };
            let jitter = random.then_some(FieldJitter { seed, iteration: seed << 30 });
            assert_values(carrier, "any", &owned, &grid, jitter);
            assert_adjoint(carrier, "any", &owned, &grid, jitter);
        });
    });
}

/// More batches than a launch has blocks, so that blocks go on to others.
#[test]
fn more_batches_than_blocks() {
    on_each("field_voxelise, many batches", |carrier| {
        let grid = odd([80, 56, 3]);
        let owned = Owned::new(&FieldShape { levels: 2, ..driven(12) }, &grid, 4);
        assert_values(carrier, "many batches", &owned, &grid, None);
        assert_adjoint(carrier, "many batches", &owned, &grid, None);
    });
}

#[test]
fn levels_of_weight_zero_take_no_part() {
    on_each("field_voxelise, levels left out", |carrier| {
        let grid = odd([4, 5, 35]);
        let mut owned = Owned::new(&small(), &grid, 5);
        for out in [vec![1, 4], vec![0, 1, 2, 3, 4]] {
            out.iter().for_each(|&level| owned.weights[level] = 0.0);
            // What is not read may be anything.
            for &level in &out {
                let level = owned.layout.levels()[level];
                owned.tables[level.first..level.first + 2 * level.entries].fill(1e30);
            }
            assert_both(carrier, "levels left out", &owned, &grid);
        }
    });
}

/// The adjoint of the values: a step along a parameter changes the weighted sum of the volume by the step times its gradient.
#[test]
fn gradients_are_the_slopes_of_the_values() {
    on_each("field_voxelise, slopes", |carrier| {
        let grid = odd([4, 3, 33]);
        // Softplus is all that bends: differences are as good as float32 values.
        let owned = Owned::new(&FieldShape { leak: 0.9999, hidden_layers: 1, levels: 3, ..small() }, &grid, 6);
        let by = random(grid.len(), 7);
        let launcher = carrier.launcher();
        let launcher = launcher.as_ref();
        let zeros = [vec![0.0; owned.tables.len()], vec![0.0; owned.network.len()]];
        let gradients = backward(launcher, &owned, &grid, JITTER, &by, &zeros);
        let (table, volume) = (owned.table(launcher), unwritten(launcher, grid.len()));
        let loss = |owned: &Owned| {
            let jitter = key(launcher, JITTER);
            cuda::field_voxelise(launcher, &grid, &owned.upload(launcher, &table), jitter, volume).unwrap();
            crate::values::dot(&download(launcher, volume), &by)
        };
        for (part, of_part) in gradients.iter().enumerate() {
            let largest = of_part.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for k in 0..6 {
                let at = (k * 977 + 13) % of_part.len();
                let by_step = |step: f32| {
                    let mut moved = owned.clone();
                    if part == 0 {
                        moved.tables[at] += step
                    } else {
                        moved.network[at] += step
                    }
                    loss(&moved)
                };
                let slope = (by_step(0.05) - by_step(-0.05)) / 0.1;
                let (given, scale) = (f64::from(of_part[at]), f64::from(largest));
                // Third derivatives of softplus times 0.05 squared, and 1e-7 of the sum over 0.1.
                assert!((given - slope).abs() < 2e-3 * scale, "{part} {at}: {given}, {slope}, largest {scale}");
            }
        }
    });
}

#[test]
fn nothing_comes_of_no_gradient_and_no_voxels() {
    on_each("field_voxelise_backward, nothing", |carrier| {
        let grid = odd([3, 4, 5]);
        let owned = Owned::new(&small(), &grid, 7);
        let start = start(&owned);
        for grid in [grid, VolumeGrid { voxels: [3, 0, 5], ..grid }] {
            let zeros = vec![0.0; grid.len()];
            let given = carrier.run(|launcher| backward(launcher, &owned, &grid, JITTER, &zeros, &start));
            assert_eq!(given, start);
        }
        assert_values(carrier, "no voxels", &owned, &VolumeGrid { voxels: [0, 1, 5], ..grid }, None);
    });
}

/// Tables and network as parts of one buffer, at places that no four floats are aligned at; and one room for call after call.
#[test]
fn parts_of_one_buffer_and_one_room_for_all() {
    on_each("field_voxelise, parts of a buffer", |carrier| {
        let grid = odd([2, 3, 33]);
        // A network that is staged, and one that is not.
        for shape in [small(), FieldShape { levels: 3, width: 96, ..small() }] {
            let owned = Owned::new(&shape, &grid, 11);
            let (tables, all) = (owned.tables.len(), owned.tables.len() + owned.network.len());
            let by = [signed(grid.len(), 1), random(grid.len(), 2)];
            let given = carrier.run(|launcher| {
                let joined = [&[0.0], owned.tables.as_slice(), &owned.network].concat();
                let (joined, sums) = (upload(launcher, &joined), upload(launcher, &vec![0.0; all + 1]));
                let [low, high] = [1..tables + 1, tables + 1..all + 1];
                let table = owned.table(launcher);
                let field = cuda::DeviceField {
                    table: &table,
                    tables: joined.part(low.clone()).unwrap(),
                    network: joined.part(high.clone()).unwrap(),
                    level_weights: &owned.weights,
                };
                let gradients =
                    DeviceFieldGradients { tables: sums.part(low).unwrap(), network: sums.part(high).unwrap() };
                let volume = unwritten(launcher, grid.len());
                cuda::field_voxelise(launcher, &grid, &field, None, volume).unwrap();
                let room = FieldGradientRoom::allocate(launcher, &owned.layout, grid.voxels, 0).unwrap();
                for by in &by {
                    let by = upload(launcher, by);
                    cuda::field_voxelise_backward(launcher, &grid, &field, None, by, &gradients, &room).unwrap();
                }
                vec![download(launcher, volume), download(launcher, sums)]
            });
            let cpu = owned.cpu(grid.voxels);
            let mut volume = vec![0.0; grid.len()];
            cpu.field_voxelise(&grid, &owned.parameters(), None, &mut volume).unwrap();
            assert_close("parts of a buffer, values", VALUES, &given[0], &volume);
            let zeros = [vec![0.0; tables], vec![0.0; all - tables]];
            let mut expected = zeros.clone();
            let [by_tables, by_network] = &mut expected;
            for by in &by {
                let mut gradients = HostFieldGradients { tables: by_tables, network: by_network };
                cpu.field_voxelise_backward(&grid, &owned.parameters(), None, by, &mut gradients).unwrap();
            }
            assert_eq!(given[1][0], 0.0);
            let given = [given[1][1..tables + 1].to_vec(), given[1][tables + 1..].to_vec()];
            assert_gradients("parts of a buffer", &owned, &zeros, &given, &expected);
        }
    });
}

/// Gradients of any size fit the fixed-point sums, and keep their precision.
#[test]
fn gradients_of_any_size() {
    on_each("field_voxelise_backward, sizes of gradients", |carrier| {
        let grid = odd([4, 3, 33]);
        let owned = Owned::new(&small(), &grid, 8);
        let start = [vec![0.0; owned.tables.len()], vec![0.0; owned.network.len()]];
        let by = signed(grid.len(), 7);
        let of = |scale: f32| {
            let by: Vec<f32> = by.iter().map(|by| by * scale).collect();
            carrier.run(|launcher| backward(launcher, &owned, &grid, None, &by, &start))
        };
        let one = of(1.0);
        // Powers of two: every product and sum is the same but for its exponent.
        for scale in [2.0f32.powi(-60), 2.0f32.powi(-20), 2.0f32.powi(30), 2.0f32.powi(80)] {
            let scaled = of(scale).concat().into_iter().map(|by| by / scale).collect::<Vec<_>>();
            assert_eq!(scaled, one.concat(), "{scale:e}");
        }
        // One voxel a million times the others does not cost the others their gradients.
        let mut uneven = by.clone();
        uneven[200] *= 1e6;
        let given = carrier.run(|launcher| backward(launcher, &owned, &grid, None, &uneven, &start));
        let mut expected = start.clone();
        let [tables, network] = &mut expected;
        let cpu = owned.cpu(grid.voxels);
        let mut gradients = HostFieldGradients { tables, network };
        cpu.field_voxelise_backward(&grid, &owned.parameters(), None, &uneven, &mut gradients).unwrap();
        assert_gradients("uneven", &owned, &start, &given, &expected);
        let few = given[0].iter().zip(&expected[0]).filter(|(a, b)| (*a - *b).abs() <= 1e-4 * b.abs()).count();
        assert!(few > expected[0].len() * 9 / 10, "{few} of {}", expected[0].len());
    });
}

/// The bound that fixed point rests on: it must not lose a voxel, wherever that lies in the sum, nor a weight to one of the other sign (the
/// loop begins with units in such pairs).
#[test]
fn one_voxels_gradient_and_units_that_cancel() {
    on_each("field_voxelise_backward, bounds", |carrier| {
        let grid = odd([8, 8, 70]);
        for hidden_layers in [1, 2] {
            let mut owned = Owned::new(&FieldShape { hidden_layers, ..driven(8) }, &grid, 12);
            for index in 0..=hidden_layers {
                let layer = owned.layout.layer(index);
                // Neighbours: outputs of the same input, or of the last layer inputs.
                for pair in owned.network[layer.first..layer.biases()].chunks_exact_mut(2) {
                    pair[1] = -pair[0];
                }
            }
            let start = start(&owned);
            for voxel in [0, 1, 2, 3, 1025, 2050, 3075, 4099, 4479] {
                let mut by = vec![0.0; grid.len()];
                by[voxel] = 1e6;
                let given = carrier.run(|launcher| backward(launcher, &owned, &grid, None, &by, &start));
                let mut expected = start.clone();
                let [tables, network] = &mut expected;
                let mut gradients = HostFieldGradients { tables, network };
                let cpu = owned.cpu(grid.voxels);
                cpu.field_voxelise_backward(&grid, &owned.parameters(), None, &by, &mut gradients).unwrap();
                assert_gradients("one voxel", &owned, &start, &given, &expected);
            }
        }
    });
}

#[test]
fn not_a_number_shows() {
    on_each("field_voxelise, not a number", |carrier| {
        let grid = odd([4, 3, 33]);
        let owned = Owned::new(&small(), &grid, 9);
        let start = [vec![0.0; owned.tables.len()], vec![0.0; owned.network.len()]];
        for bad in [f32::NAN, f32::INFINITY] {
            let mut by = signed(grid.len(), 7);
            by[17] = bad;
            let given = carrier.run(|launcher| backward(launcher, &owned, &grid, None, &by, &start));
            // Every feature of the voxel's levels, and weights of the units that it moves.
            assert!(given[0].iter().all(|by| by.is_nan()), "{bad}");
            assert!(given[1].iter().any(|by| !by.is_finite()), "{bad}");
        }
        // One entry of the coarsest level: the voxels about it, and no others.
        let mut spoilt = owned.clone();
        spoilt.tables[5] = f32::NAN;
        let given = carrier.run(|launcher| {
            let table = spoilt.table(launcher);
            let volume = unwritten(launcher, grid.len());
            cuda::field_voxelise(launcher, &grid, &spoilt.upload(launcher, &table), None, volume).unwrap();
            vec![download(launcher, volume)]
        });
        let bad = given[0].iter().filter(|value| value.is_nan()).count();
        assert!(bad > 0 && bad < grid.len(), "{bad}");
        let by = vec![1.0; grid.len()];
        let given = carrier.run(|launcher| backward(launcher, &spoilt, &grid, None, &by, &start));
        assert!(given[0].iter().any(|by| by.is_nan()));
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each("field_voxelise, refusals", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let grid = odd([3, 4, 5]);
        let owned = Owned::new(&small(), &grid, 10);
        let table = owned.table(l);
        let field = owned.upload(l, &table);
        let (volume, short) = (unwritten(l, 60), unwritten(l, 59));
        let room = FieldGradientRoom::allocate(l, &owned.layout, grid.voxels, 0).unwrap();
        let gradients = DeviceFieldGradients {
            tables: unwritten(l, owned.tables.len()),
            network: unwritten(l, owned.network.len()),
        };
        let refused = |result: Result<(), ComputeError>, the_buffer: &str| match result {
            Err(ComputeError::Shape { buffer, .. }) => assert_eq!(buffer, the_buffer),
            other => panic!("{the_buffer}: {other:?}"),
        };
        let forward = |field, volume| cuda::field_voxelise(l, &grid, &field, None, volume);
        refused(forward(field, short), "volume");
        refused(forward(cuda::DeviceField { tables: short, ..field }, volume), "tables");
        refused(forward(cuda::DeviceField { network: short, ..field }, volume), "network");
        refused(forward(cuda::DeviceField { level_weights: &[1.0], ..field }, volume), "level_weights");
        let short_key = Some(DeviceSlice::upload(l, &[0; 3]).unwrap());
        refused(cuda::field_voxelise(l, &grid, &field, short_key, volume), "jitter");
        let not_finite = [1.0, f32::NAN, 1.0, 1.0, 1.0];
        let error = forward(cuda::DeviceField { level_weights: &not_finite, ..field }, volume).unwrap_err();
        assert!(error.to_string().contains("`level_weights` of element 1 is NaN"), "{error}");
        let backward =
            |by, gradients, room| cuda::field_voxelise_backward(l, &grid, &field, None, by, &gradients, &room);
        backward(volume, gradients, room).unwrap();
        refused(backward(short, gradients, room), "by_volume");
        refused(backward(volume, DeviceFieldGradients { tables: short, ..gradients }, room), "gradients.tables");
        refused(backward(volume, DeviceFieldGradients { network: short, ..gradients }, room), "gradients.network");
        let other = Owned::new(&FieldShape { levels: 4, ..small() }, &grid, 1);
        let other = FieldGradientRoom::allocate(l, &other.layout, grid.voxels, 0).unwrap();
        refused(backward(volume, gradients, other), "room.sums");
        let larger = odd([30, 30, 30]);
        let by = upload(l, &vec![0.0; larger.len()]);
        refused(cuda::field_voxelise_backward(l, &larger, &field, None, by, &gradients, &room), "room.partials");
    });
}
