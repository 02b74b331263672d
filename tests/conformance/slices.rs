//! Slices of volumes in window units, and back: to the bit as on the CPU, and as plain loops over voxels have them.

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::{CudaCompute, SliceRoom};
use diffnr::compute::slices::{SliceBatch, SliceCompute as _, SliceLayout, WindowUnits};
use diffnr::compute::{ComputeError, Memory as _, Values, ValuesMut};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::settings;
use crate::values::{assert_close, download, random, signed, unwritten, upload};

/// Of water at 0.02/mm in a window of 2000 HU about it.
const UNITS: WindowUnits = WindowUnits { scale: 50.0, offset: -1.0 };

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Counts about a thread's four, a block's 4096, and anything.
fn counts() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..9, 1020usize..1030, 4090usize..4100, 1usize..20_000]
}

/// Any plane of any volume, sides about the tiles' 8 and 32 among them; paddings of any width.
fn layouts() -> impl Strategy<Value = SliceLayout> {
    let side = || prop_oneof![1usize..10, 30usize..35, 1usize..40];
    (0usize..3, side(), side(), side(), prop_oneof![Just(1usize), Just(8), 1usize..20])
        .prop_map(|(axis, x, y, z, multiple)| SliceLayout::across(axis, [x, y, z], multiple))
}

fn len(layout: &SliceLayout) -> usize {
    layout.voxels().iter().product()
}

/// A voxel's slice, row and column.
fn in_slices(layout: &SliceLayout, [x, y, z]: [usize; 3]) -> [usize; 3] {
    match layout.axes() {
        [0, 2, 1] => [x, z, y],
        [1, 2, 0] => [y, z, x],
        [2, 1, 0] => [z, y, x],
        other => panic!("{other:?}"),
    }
}

/// The voxel of a slice's row and column.
fn voxel(layout: &SliceLayout, [slice, row, column]: [usize; 3]) -> usize {
    let [x, y, z] = match layout.axes() {
        [0, 2, 1] => [slice, column, row],
        [1, 2, 0] => [column, slice, row],
        _ => [column, row, slice],
    };
    let [_, ny, nz] = layout.voxels();
    (x * ny + y) * nz + z
}

/// What stands in `out` of NaN after a batch was gathered.
fn gathered(layout: &SliceLayout, batch: &SliceBatch, slices: usize, volume: &[f32]) -> Vec<f32> {
    let ([rows, columns], [high, wide]) = (layout.size(), layout.padded());
    let around = 2 * batch.neighbours + 1;
    let mut out = Vec::new();
    for (slice, of, beside) in triples(slices, batch.volumes, around) {
        for (row, column) in (0..high).flat_map(|row| (0..wide).map(move |column| (row, column))) {
            if of != batch.volume {
                out.push(f32::NAN);
                continue;
            }
            let slice = (batch.first + slice + beside) as i64 - batch.neighbours as i64;
            let slice = slice.clamp(0, layout.slices() as i64 - 1) as usize;
            let at = voxel(layout, [slice, row.min(rows - 1), column.min(columns - 1)]);
            out.push((UNITS.scale * f64::from(volume[at]) + UNITS.offset) as f32);
        }
    }
    out
}

/// All triples below these numbers, the last the fastest.
fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |k| (k / (b * c), k / c % b, k % c))
}

fn assert_gathered(carrier: &Carrier, layout: &SliceLayout, batch: &SliceBatch, slices: usize) {
    let volume: Vec<f32> = signed(len(layout), 1).iter().map(|value| 0.03 * value).collect();
    let n = slices * batch.channels() * layout.pixels();
    let given = carrier.run(|launcher| {
        let (volume, out) = (upload(launcher, &volume), unwritten(launcher, n));
        cuda::gather_slices(launcher, layout, batch, UNITS, volume, out).unwrap();
        vec![download(launcher, out)]
    });
    let mut on_cpu = vec![f32::NAN; n];
    let cpu = CpuCompute::new(1).unwrap();
    cpu.gather_slices(layout, batch, UNITS, Values::from(&volume), ValuesMut::from(&mut on_cpu)).unwrap();
    let what = format!("{layout:?} {batch:?}, {slices} slices");
    assert!(bits(&on_cpu) == bits(&gathered(layout, batch, slices, &volume)), "cpu, {what}");
    assert!(bits(&given[0]) == bits(&on_cpu), "{}, {what}", carrier.name);
}

#[test]
fn slices_are_gathered_to_the_bit() {
    on_each("gather_slices", |carrier| {
        let alone = SliceBatch { first: 0, neighbours: 0, volumes: 1, volume: 0 };
        // More slices across z than a block has, and more neighbours than slices.
        assert_gathered(carrier, &SliceLayout::across(2, [33, 5, 19], 8), &SliceBatch { neighbours: 3, ..alone }, 17);
        assert_gathered(carrier, &SliceLayout::across(0, [2, 33, 70], 1), &SliceBatch { neighbours: 4, ..alone }, 3);
        assert_gathered(carrier, &SliceLayout::across(1, [65, 4, 3], 64), &alone, 1);
        proptest!(settings(40), |(
            layout in layouts(), slices in 1usize..12, share in 0.0..1.0f64, neighbours in 0usize..4, volumes in 1usize..3,
            volume in 0usize..2,
        )| {
            // A batch may run past the end, as the last of a plane does.
            let first = (share * layout.slices() as f64) as usize;
            let batch = SliceBatch { first, neighbours, volumes, volume: volume % volumes };
            assert_gathered(carrier, &layout, &batch, slices);
        });
    });
}

/// Slices of each of three planes, the first across `axis`, in batches, onto a mean and squares of what stood there; the paddings hold what is no number.
fn assert_added(carrier: &Carrier, axis: usize, voxels: [usize; 3], multiple: usize, batch: usize, with_squares: bool) {
    let n = voxels.iter().product();
    let layouts = [0, 1, 2].map(|place| SliceLayout::across((axis + place) % 3, voxels, multiple));
    let planes: Vec<Vec<f32>> = (0..3).map(|plane| signed(n, plane)).collect();
    let slices_of = |plane: usize, first: usize, count: usize| -> Vec<f32> {
        let layout = &layouts[plane];
        let ([rows, columns], [high, wide]) = (layout.size(), layout.padded());
        let value = |slice: usize, row: usize, column: usize| {
            let is_there = row < rows && column < columns;
            if is_there { planes[plane][voxel(layout, [first + slice, row, column])] } else { f32::NAN }
        };
        triples(count, high, wide).map(|(slice, row, column)| value(slice, row, column)).collect()
    };
    let each = |add: &mut dyn FnMut(usize, usize, &[f32])| {
        for (plane, layout) in layouts.iter().enumerate() {
            for first in (0..layout.slices()).step_by(batch) {
                add(plane, first, &slices_of(plane, first, batch.min(layout.slices() - first)));
            }
        }
    };
    let squares_len = if with_squares { n } else { 0 };
    let given = carrier.run(|launcher| {
        let (mean, squares) = (unwritten(launcher, n), unwritten(launcher, squares_len));
        let room = unwritten(launcher, batch * layouts.map(|layout| layout.pixels()).into_iter().max().unwrap_or(0));
        each(&mut |plane, first, slices| {
            let room = room.part(0..slices.len()).unwrap();
            room.copy_from(launcher, slices).unwrap();
            cuda::add_slices(launcher, &layouts[plane], first, plane, room, mean, squares).unwrap();
        });
        let sums = download(launcher, squares);
        cuda::deviations(launcher, 1000.0, 3, squares).unwrap();
        vec![download(launcher, mean), sums, download(launcher, squares)]
    });
    let cpu = CpuCompute::new(1).unwrap();
    let (mut mean, mut squares) = (vec![f32::NAN; n], vec![f32::NAN; squares_len]);
    each(&mut |plane, first, slices| {
        let (mean, squares) = (ValuesMut::from(&mut mean), ValuesMut::from(&mut squares));
        cpu.add_slices(&layouts[plane], first, plane, Values::from(slices), mean, squares).unwrap();
    });
    let mut deviations = squares.clone();
    cpu.deviations(1000.0, 3, ValuesMut::from(&mut deviations)).unwrap();
    for (given, on_cpu) in given.iter().zip([&mean, &squares, &deviations]) {
        assert!(bits(given) == bits(on_cpu), "{}, {voxels:?}, batches of {batch}", carrier.name);
    }
    // Plain means and deviations in float64: float32 of values up to 1, three additions and three products.
    let of_voxel = |at: usize| [0, 1, 2].map(|plane: usize| f64::from(planes[plane][at]));
    let means: Vec<f32> = (0..n).map(|at| (of_voxel(at).iter().sum::<f64>() / 3.0) as f32).collect();
    assert_close("mean over planes", 4e-7, &mean, &means);
    let squared = |at: usize| {
        let values = of_voxel(at);
        let mean = values.iter().sum::<f64>() / 3.0;
        values.iter().map(|value| (value - mean).powi(2)).sum::<f64>()
    };
    if with_squares {
        let expected: Vec<f32> = (0..n).map(|at| (1000.0 * (squared(at) / 3.0).sqrt()) as f32).collect();
        // A square root makes the share of a small sum's rounding twice as large at most.
        assert_close("deviations over planes", 1e-6, &deviations, &expected);
    }
}

#[test]
fn slices_are_added_to_the_bit() {
    on_each("add_slices", |carrier| {
        assert_added(carrier, 0, [1, 1, 1], 1, 1, true);
        assert_added(carrier, 0, [33, 34, 40], 8, 4, true);
        assert_added(carrier, 1, [35, 33, 19], 8, 11, true);
        assert_added(carrier, 2, [5, 70, 19], 16, 9, false);
        proptest!(settings(16), |(
            axis in 0usize..3, x in 1usize..36, y in 1usize..36, z in 1usize..36, multiple in 1usize..17, batch in 1usize..12,
            with in any::<bool>(),
        )| assert_added(carrier, axis, [x, y, z], multiple, batch, with));
    });
}

/// What lies in other slices is not touched.
#[test]
fn a_batch_of_slices_changes_its_own_voxels_alone() {
    on_each("add_slices, a batch", |carrier| {
        for axis in 0..3 {
            let layout = SliceLayout::across(axis, [20, 21, 22], 8);
            let (before, slices) = (signed(len(&layout), 1), random(3 * layout.pixels(), 2));
            let given = carrier.run(|launcher| {
                let [mean, squares] = [upload(launcher, &before), upload(launcher, &before)];
                cuda::add_slices(launcher, &layout, 7, 0, upload(launcher, &slices), mean, squares).unwrap();
                vec![download(launcher, mean), download(launcher, squares)]
            });
            for (at, (x, y, z)) in triples(20, 21, 22).enumerate() {
                let [slice, row, column] = in_slices(&layout, [x, y, z]);
                let own = (7..10).contains(&slice);
                let value = || slices[(slice - 7) * layout.pixels() + row * layout.padded()[1] + column];
                assert_eq!(given[0][at], if own { value() } else { before[at] });
                assert_eq!(given[1][at], if own { 0.0 } else { before[at] });
            }
        }
    });
}

fn assert_found(carrier: &Carrier, values: &[f32], limit: f32, start: usize) {
    let given = carrier.run(|launcher| {
        let room = SliceRoom::allocate(launcher).unwrap();
        let values = upload(launcher, values).part(start..values.len()).unwrap();
        let far = cuda::farthest(launcher, UNITS, values, &room).unwrap();
        let first = cuda::first_beyond(launcher, limit, values, &room).unwrap();
        vec![vec![far, first.map_or(-1.0, |at| at as f32)]]
    });
    let values = &values[start..];
    let cpu = CpuCompute::new(1).unwrap();
    let far = cpu.farthest(UNITS, Values::from(values)).unwrap();
    let first = cpu.first_beyond(limit, Values::from(values)).unwrap();
    assert_eq!(first, values.iter().position(|value| value.is_nan() || value.abs() > limit));
    let expected = values.iter().map(|&value| UNITS.of(value).abs());
    let any_nan = values.iter().any(|value| value.is_nan());
    assert!(far.is_nan() == any_nan && (any_nan || far == expected.fold(0.0, f32::max)), "{far}");
    assert!(
        given[0][0].is_nan() == any_nan && (any_nan || given[0][0] == far),
        "{}: {} {far}",
        carrier.name,
        given[0][0]
    );
    assert_eq!(given[0][1], first.map_or(-1.0, |at| at as f32), "{}, {} values", carrier.name, values.len());
}

#[test]
fn the_farthest_and_the_first_beyond_are_found() {
    on_each("farthest, first_beyond", |carrier| {
        assert_found(carrier, &[], 1.0, 0);
        // Negative magnitudes count as well, and the limit itself is none.
        assert_found(carrier, &[0.1, -3.0, 2.0], 3.0, 0);
        assert_found(carrier, &[0.1, -3.0, 2.0], 2.9, 0);
        assert_found(carrier, &[f32::MAX, f32::INFINITY], f32::MAX, 0);
        assert_found(carrier, &[f32::MAX, f32::INFINITY, f32::NAN], f32::INFINITY, 0);
        // No value, however far the offset is from 0, comes of what lies beyond the last.
        assert_found(carrier, &[0.02; 5], 1.0, 0);
        proptest!(settings(24), |(n in counts(), at in 0.0..1.0f64, what in 0usize..4, start in 0usize..5)| {
            let mut values = signed(n, 1);
            let place = (at * n as f64) as usize;
            values[place] = [f32::NAN, f32::NEG_INFINITY, -1.5, 0.0][what];
            // And another behind it.
            values[n - 1] = if what == 3 { values[n - 1] } else { 7.0 };
            assert_found(carrier, &values, 1.0, start.min(n));
        });
    });
}

#[test]
fn values_leave_the_window_to_the_bit() {
    on_each("leave_window", |carrier| {
        proptest!(settings(12), |(n in counts(), start in 0usize..5)| {
            let units = WindowUnits { scale: 41.7, offset: -0.93 };
            let values = signed(n, 1);
            let start = start.min(n);
            let given = carrier.run(|launcher| {
                let whole = upload(launcher, &values);
                cuda::leave_window(launcher, units, whole.part(start..n).unwrap()).unwrap();
                vec![download(launcher, whole)]
            });
            let mut expected = values.clone();
            CpuCompute::new(1).unwrap().leave_window(units, ValuesMut::from(&mut expected[start..])).unwrap();
            assert!(bits(&given[0]) == bits(&expected));
            // There and back: float32 of window units of size 1.
            assert!(expected[start..].iter().zip(&values[start..]).all(|(value, unit)| (units.of(*value) - unit).abs() < 1e-6));
        });
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_each("refusals of slices", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let layout = SliceLayout::across(1, [4, 5, 6], 8);
        let batch = SliceBatch { first: 0, neighbours: 1, volumes: 2, volume: 1 };
        let [volume, short, batches] = [120, 119, 6 * 64 * 2].map(|len| unwritten(l, len));
        let refused = |result: Result<(), ComputeError>, the_buffer: &str| match result {
            Err(ComputeError::Shape { buffer, .. }) => assert_eq!(buffer, the_buffer),
            other => panic!("{the_buffer}: {other:?}"),
        };
        cuda::gather_slices(l, &layout, &batch, UNITS, volume, batches).unwrap();
        refused(cuda::gather_slices(l, &layout, &batch, UNITS, short, batches), "volume");
        refused(cuda::gather_slices(l, &layout, &batch, UNITS, volume, batches.part(1..768).unwrap()), "slices");
        let (slice, none) = (batches.part(0..64).unwrap(), batches.part(0..0).unwrap());
        cuda::add_slices(l, &layout, 4, 0, slice, volume, none).unwrap();
        refused(cuda::add_slices(l, &layout, 5, 0, slice, volume, none), "slices");
        refused(cuda::add_slices(l, &layout, 0, 0, slice, short, none), "volume");
        refused(cuda::add_slices(l, &layout, 0, 0, slice, volume, short), "squares");
        let mut compute = CudaCompute::new(carrier.launcher());
        let values = compute.filled("values", &[1.0, -9.0]).unwrap();
        let unprepared = compute.first_beyond(2.0, values.values()).unwrap_err();
        assert!(unprepared.to_string().contains("first_beyond: needs 4 bytes"), "{unprepared}");
        compute.prepare_slices().unwrap();
        assert_eq!(compute.first_beyond(2.0, values.values()).unwrap(), Some(1));
        assert_eq!(compute.farthest(UNITS, values.values()).unwrap(), 451.0);
    });
}
