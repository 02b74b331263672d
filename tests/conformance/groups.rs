//! Operations carried out as one: what was captured and is replayed, groups of the runtime's carrier, and graphs of the driver that are refused.

use diffnr::compute::cuda::{CudaCompute, Launcher as _, Tape};
use diffnr::compute::elements::ElementCompute as _;
use diffnr::compute::gaussians::{AdamStep, GaussianCompute as _};
use diffnr::compute::losses::{ImageLoss, LossCompute as _, LossWorkload, VolumeSsimLoss};
use diffnr::compute::sart::SartCompute as _;
use diffnr::compute::{Buffer, Compute as _, ComputeError, Left, Memory as _, Workload, together};
use diffnr::geometry::Detector;

use crate::carriers::on_each;
use crate::driver::on_the_stand_in;
use crate::stand_in;
use crate::values::{download, random, unwritten, upload};

const N: usize = 5000;

/// Puts on the tape: b = 2, c = a (a copy), and then what no operation does between two buffers: the copy shows the order.
fn tape(parts: [std::ops::Range<usize>; 3]) -> Tape {
    let [a, b, c] = parts;
    let mut tape = Tape::default();
    tape.fill(b.clone(), 2.0f32.to_bits());
    tape.copy(a.start, c.start, a.len());
    tape.fill(a.clone(), 5.0f32.to_bits());
    tape.copy(c.start, b.start, c.len() / 2);
    tape
}

#[test]
fn what_is_captured_is_carried_out_when_it_is_replayed() {
    on_each("captured launches", |carrier| {
        carrier.run(|launcher| {
            let first = random(N, 1);
            let (a, b, c) = (upload(launcher, &first), unwritten(launcher, N), unwritten(launcher, N));
            b.fill(launcher, 1.0).unwrap();
            let tape = tape([a.bytes(), b.bytes(), c.bytes()]);
            let captured = launcher.capture(&tape).unwrap();
            assert_eq!((download(launcher, a), download(launcher, b)), (first.clone(), vec![1.0; N]), "only captured");
            let mut before = first;
            for _ in 0..3 {
                launcher.replay(captured).unwrap();
                let half: Vec<f32> = before[..N / 2].iter().copied().chain(vec![2.0; N / 2]).collect();
                assert_eq!(download(launcher, b), half);
                assert_eq!(download(launcher, c), before);
                before = download(launcher, a);
                assert_eq!(before, vec![5.0; N]);
            }
            // A number is used again once it is free, and not before.
            let other = launcher.capture(&tape).unwrap();
            assert_ne!(captured, other);
            launcher.discard(captured);
            let gone = launcher.replay(captured).unwrap_err().to_string();
            assert!(gone.contains("is not there"), "{gone}");
            launcher.discard(captured);
            assert_eq!(launcher.capture(&tape).unwrap(), captured);
            vec![download(launcher, c)]
        });
    });
}

/// What fails when it is captured is said then, and the launcher goes on.
#[test]
fn what_cannot_be_captured_is_refused() {
    on_each("launches that cannot be captured", |carrier| {
        let launcher = carrier.launcher();
        let a = upload(launcher.as_ref(), &random(N, 1));
        let mut beyond = Tape::default();
        beyond.fill(a.bytes().start..1 << 40, 0);
        let refused = launcher.capture(&beyond).and_then(|captured| launcher.replay(captured));
        assert!(refused.unwrap_err().to_string().contains("never handed out"));
        a.fill(launcher.as_ref(), 3.0).unwrap();
        assert_eq!(download(launcher.as_ref(), a), vec![3.0; N]);
    });
}

/// Six steps of Adam on a quadratic with other rates each, as an iteration asks for them: a loss of views, a loss of a volume, a step.
fn steps(compute: &mut CudaCompute, in_groups: bool) -> Vec<Vec<f32>> {
    let detector = Detector { columns: 20, rows: 10 };
    let (views, voxels) = (3, [6, 10, 10]);
    let n = views * detector.pixels();
    assert_eq!(n, voxels.iter().product::<usize>());
    compute.prepare(&Workload { columns: 20, rows: 10, views_per_call: views, voxels }).unwrap();
    compute.prepare_losses(&LossWorkload { columns: 20, rows: 10, views_per_call: views, voxels }).unwrap();
    let [mut at, target] = [1, 2].map(|seed| compute.filled("values", &random(n, seed)).unwrap());
    let mut others = [0; 3].map(|_| compute.buffer("values", n).unwrap());
    let views_loss = ImageLoss { squares: 100.0, l1: 0.0, huber: 0.0, dissimilarity: 10.0, data_range: 1.0 };
    let volume_loss = VolumeSsimLoss { weight: 5.0, data_range: 1.0, empty_at: 0.0, axes: [1.0; 3] };
    let mut found = Vec::new();
    for step in 1..=6 {
        let [by, first, second] = &mut others;
        let compute: &CudaCompute = compute;
        let mut work = || -> Result<_, ComputeError> {
            let (now, target) = (at.values(), target.values());
            let of_views = compute.image_loss(detector, &views_loss, now, target, None, by.values_mut())?;
            let of_volume = compute.volume_ssim_loss(voxels, &volume_loss, now, target, by.values_mut())?;
            let rate = AdamStep::new(0.02 / step as f32, step);
            let (first, second) = (first.values_mut(), second.values_mut());
            compute.adam_step(&rate, at.values_mut(), by.values(), first, second)?;
            Ok((of_views, of_volume))
        };
        let (of_views, of_volume) = if in_groups { together(compute, work) } else { work() }.unwrap();
        match (of_views, of_volume) {
            (Left::AtHand(views), Left::AtHand(volume)) if !in_groups => found.push((views, volume)),
            (Left::WithCarrier, Left::WithCarrier) if in_groups => {
                found.push((compute.image_loss_left().unwrap(), compute.volume_ssim_loss_left().unwrap()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(found.windows(2).all(|pair| pair[1].0.squares < pair[0].0.squares), "it descends: {found:?}");
    let losses = found.iter().flat_map(|(views, volume)| {
        [views.l1, views.squares, views.dissimilarity, volume.dissimilarity].map(|value| value as f32)
    });
    let losses = losses.collect();
    vec![compute.take(at).unwrap(), losses]
}

#[test]
fn groups_give_the_same_bits_and_are_replayed() {
    on_each("groups of operations", |carrier| {
        let singly = carrier.run_whole(|compute| {
            let singly = steps(compute, false);
            assert_eq!(compute.groups(), Default::default());
            singly
        });
        let as_one = carrier.run_whole(|compute| {
            let as_one = steps(compute, true);
            let groups = compute.groups();
            // The learning rate is another in each, yet the sequence is the same: seen, captured, replayed.
            assert_eq!((groups.singly, groups.captured, groups.replayed, groups.broken), (1, 1, 5, 0), "{groups:?}");
            as_one
        });
        assert_eq!(singly, as_one);
    });
}

/// A sum that is read in the middle, and a write: the group is carried out as it comes, in its order.
#[test]
fn a_group_that_the_host_has_a_part_in_is_right_all_the_same() {
    on_each("groups that are broken off", |carrier| {
        carrier.run_whole(|compute| {
            compute.prepare(&Workload { columns: 8, rows: 8, views_per_call: 1, voxels: [30; 3] }).unwrap();
            let mut values = compute.filled("values", &[1.0; N]).unwrap();
            for turn in 1..=3 {
                let norm = together(compute, || {
                    compute.scale(2.0, values.values_mut())?;
                    let norm = compute.squared_norm(values.values())?;
                    compute.scale(0.5, values.values_mut())?;
                    compute.write(&[3.0; 7], values.values_mut().part(0..7))?;
                    compute.scale(3.0, values.values_mut().part(0..7))?;
                    Ok::<_, ComputeError>(norm)
                });
                let whole = if turn == 1 { 4.0 * N as f64 } else { 4.0 * (N - 7) as f64 + 7.0 * 18.0 * 18.0 };
                assert_eq!(norm.unwrap(), whole);
                let mut read = vec![0.0; N];
                compute.read(values.values(), &mut read).unwrap();
                assert_eq!((&read[..7], &read[7..]), (&[9.0; 7][..], &vec![1.0; N - 7][..]));
                assert_eq!((compute.groups().broken, compute.groups().replayed), (turn, 0));
            }
            vec![compute.take(values).unwrap()]
        });
    });
}

#[test]
fn a_group_that_is_given_up_does_nothing_and_the_next_is_whole() {
    on_each("groups that are given up", |carrier| {
        let compute = CudaCompute::new(carrier.launcher());
        let mut values = compute.filled("values", &[1.0; N]).unwrap();
        let failed = together(&compute, || {
            compute.scale(2.0, values.values_mut())?;
            Err::<(), _>(ComputeError::Memory { buffer: "the test's", bytes: 1 })
        });
        assert!(failed.unwrap_err().to_string().contains("the test's"));
        let mut read = vec![0.0; N];
        compute.read(values.values(), &mut read).unwrap();
        assert_eq!(read, vec![1.0; N]);
        // One within another is part of that.
        compute.begin_group().unwrap();
        compute.scale(2.0, values.values_mut()).unwrap();
        together(&compute, || compute.scale(3.0, values.values_mut())).unwrap();
        assert_eq!(compute.groups(), Default::default());
        compute.end_group().unwrap();
        // After the end operations are launched as they come.
        compute.scale(5.0, values.values_mut()).unwrap();
        compute.read(values.values(), &mut read).unwrap();
        assert_eq!(read, vec![30.0; N]);
        // A group of nothing is none.
        together(&compute, || Ok::<_, ComputeError>(())).unwrap();
        assert_eq!(compute.groups().singly, 1);
    });
}

/// More steps of Adam in one group than its block has room for.
#[test]
fn more_parameters_than_there_is_room_for_are_right_all_the_same() {
    on_each("many parameters", |carrier| {
        let steps = |compute: &mut CudaCompute, in_groups: bool| {
            compute.prepare(&Workload { columns: 8, rows: 8, views_per_call: 1, voxels: [4; 3] }).unwrap();
            let compute: &CudaCompute = compute;
            let by = compute.filled("gradient", &random(N, 1)).unwrap();
            let [mut at, mut first, mut second] = [0; 3].map(|_| compute.buffer("values", N).unwrap());
            let adam = |rate: f32, at: &mut Buffer, first: &mut Buffer, second: &mut Buffer| {
                let (at, first, second) = (at.values_mut(), first.values_mut(), second.values_mut());
                compute.adam_step(&AdamStep::new(rate, 1), at, by.values(), first, second)
            };
            for _ in 0..2 {
                let mut work = || (1..=50).try_for_each(|rate| adam(rate as f32, &mut at, &mut first, &mut second));
                if in_groups { together(compute, work) } else { work() }.unwrap();
            }
            assert_eq!(compute.groups().broken, 2 * u64::from(in_groups));
            vec![compute.take(at).unwrap()]
        };
        let singly = carrier.run_whole(|compute| steps(compute, false));
        assert_eq!(singly, carrier.run_whole(|compute| steps(compute, true)));
        assert!(singly[0].iter().any(|value| *value != 0.0));
    });
}

/// More sequences than are remembered: the oldest go, and with them their graphs.
#[test]
fn sequences_that_are_not_asked_for_any_more_go() {
    on_each("many sequences", |carrier| {
        let compute = CudaCompute::new(carrier.launcher());
        let mut values = compute.filled("values", &[0.0; 8]).unwrap();
        let ones = compute.filled("ones", &[1.0; 8]).unwrap();
        let mut add = |factor: usize| {
            together(&compute, || compute.add_scaled(factor as f32, ones.values(), values.values_mut())).unwrap();
        };
        let rounds = [(0..100).collect::<Vec<_>>(), (0..100).collect(), (100..228).collect(), (0..3).collect()];
        let expected: usize = rounds.iter().flatten().sum();
        rounds.iter().flatten().for_each(|&factor| add(factor));
        let groups = compute.groups();
        assert_eq!((groups.captured, groups.replayed, groups.singly), (100, 100, 100 + 128 + 3), "{groups:?}");
        let mut read = [0.0; 8];
        compute.read(values.values(), &mut read).unwrap();
        assert_eq!(read, [expected as f32; 8]);
    });
}

/// For whoever is next: what was captured works on what was handed out.
#[test]
fn an_emptied_driver_has_no_graphs() {
    on_the_stand_in("graphs of a driver that is emptied", || {
        let mut driver = stand_in::driver(0, 1 << 20).unwrap();
        let a = upload(&driver, &random(N, 1));
        let mut tape = Tape::default();
        tape.fill(a.bytes(), 0);
        let captured = driver.capture(&tape).unwrap();
        driver.replay(captured).unwrap();
        driver.empty().unwrap();
        assert!(driver.replay(captured).unwrap_err().to_string().contains("is not there"));
    });
}

fn on_spoilt_graphs(test: &str, how: i32, said: &str) {
    // A device of the stand-in that no other test makes graphs on.
    const DEVICE: usize = 1;
    on_the_stand_in(test, || {
        let mut compute = CudaCompute::new(Box::new(stand_in::driver(DEVICE, 8 << 20).unwrap()));
        let expected = steps(&mut compute, true);
        assert_eq!((compute.groups().replayed, compute.groups_refused()), (5, None));
        stand_in::spoil_graphs(DEVICE as i32, how);
        let mut compute = CudaCompute::new(Box::new(stand_in::driver(DEVICE, 8 << 20).unwrap()));
        let given = steps(&mut compute, true);
        stand_in::spoil_graphs(DEVICE as i32, 0);
        assert_eq!(given, expected);
        assert_eq!((compute.groups().replayed, compute.groups().singly), (0, 6));
        let refused = compute.groups_refused().unwrap();
        assert!(refused.contains(said), "{refused}");
    });
}

/// Graphs that cannot be had, or hold memory nodes, are refused, and operations launched one by one.
#[test]
fn without_graphs_the_results_are_the_same() {
    on_spoilt_graphs("graphs that take memory", 1, "takes or frees memory is refused");
    on_spoilt_graphs("graphs that cannot be made", 2, "cuGraphInstantiate: refused (CUDA_ERROR_NOT_PERMITTED)");
}
