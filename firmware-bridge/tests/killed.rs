//! Three real processes, killed with SIGKILL in turn at no particular moment: the others go on, the dead one comes back, and
//! every volume and frame that is accepted is whole.
//!
//! The processes are this test binary again, told its role by an environment variable.
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

mod common;

use common::{COLUMNS, ROWS, TestName, frame_header, pixels};
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::error::ReadError;
use firmware_bridge::layout::VolumeHeader;
use firmware_bridge::mapping::{
    Mapping, MappingError, attach_producer, attach_reader, observe_frames, serve, wait_for,
};
use firmware_bridge::ring::{DropPolicy, FrameRing, Polled, RingGeometry};
use firmware_bridge::slots::{VolumeGeometry, VolumeReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SHAPE: [u32; 3] = [32, 32, 32];
const VOXELS: usize = 32 * 32 * 32;
const ROLE: &str = "DIFFNR_TEST_ROLE";
const NAME: &str = "DIFFNR_TEST_NAME";

/// Takes frames and publishes volumes whose values are all their generation's number, for ever.
fn daemon(name: &str) -> ! {
    let ring = RingGeometry::for_detector(COLUMNS, ROWS, 4, DropPolicy::DropOldest);
    // One slot per reader that may hold a lease, and two.
    let mut served = serve(name, ring, VolumeGeometry::for_shape(SHAPE, 4), 0o600).unwrap();
    let header = VolumeHeader { shape: SHAPE, ..common::volume_header() };
    let mut next = wait_for(Duration::ZERO, || attach_reader(name)).unwrap().newest_generation() + 1;
    loop {
        for _ in 0..4 {
            if let Polled::Frame(frame) = served.consumer.poll(monotonic_ns()) {
                assert_eq!(frame.pixels_u16().unwrap(), pixels(frame.header().sequence));
            }
        }
        let mut values = vec![next as f32; VOXELS];
        match served.writer.begin(&header, monotonic_ns()) {
            Ok(mut slot) => {
                // A dead daemon's half-written generation is passed over: the first value is the true number.
                slot.append(&values).unwrap();
                next = slot.publish(monotonic_ns()).unwrap().generation + 1;
            }
            Err(_) => std::thread::yield_now(),
        }
        values.clear();
    }
}

fn producer(name: &str) -> ! {
    let mut producer = wait_for(Duration::from_secs(10), || attach_producer(name)).unwrap();
    for sequence in 0.. {
        producer.send(&frame_header(sequence), bytemuck::cast_slice(&pixels(sequence)), monotonic_ns());
    }
    unreachable!()
}

fn reader(name: &str) -> ! {
    let reader = wait_for(Duration::from_secs(10), || attach_reader(name)).unwrap();
    let mut values = vec![0.0; VOXELS];
    loop {
        read_one(&reader, &mut values);
    }
}

/// Reads the newest volume if there is one; it must be whole. Returns its generation.
fn read_one(reader: &VolumeReader<Mapping>, values: &mut [f32]) -> Option<u64> {
    // Long enough that it never runs out here: a revoked lease would hide a fault.
    let volume = match reader.newest(monotonic_ns(), 2_000_000_000) {
        Ok(volume) => volume,
        Err(ReadError::NothingPublished | ReadError::Contended) => return None,
        Err(error) => panic!("{error}"),
    };
    match volume.read_into(values) {
        Ok(()) => {}
        Err(ReadError::LeaseRevoked) => return None, // this process was stopped for two seconds
        Err(error) => panic!("{error}"),
    }
    assert!(values.iter().all(|&value| value == values[0]), "torn");
    Some(volume.header().generation)
}

/// Not a test: the other processes, when told so.
#[test]
fn role() {
    let (Ok(role), Ok(name)) = (std::env::var(ROLE), std::env::var(NAME)) else { return };
    match role.as_str() {
        "daemon" => daemon(&name),
        "producer" => producer(&name),
        "reader" => reader(&name),
        other => panic!("role {other}"),
    }
}

fn start(role: &str, name: &TestName) -> Child {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "role", "--nocapture"]).env(ROLE, role).env(NAME, &name.0);
    process.stdout(Stdio::null()).spawn().unwrap()
}

/// Waits until `progress` has gone up `by`; what it counts says that the processes live.
fn goes_on(what: &str, by: u64, mut progress: impl FnMut() -> u64) {
    let (start, first) = (Instant::now(), progress());
    while progress() < first + by {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: nothing happens any more");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_side_is_killed_in_turn() {
    let name = TestName::new("killed");
    let roles = ["daemon", "producer", "reader"];
    let mut processes = roles.map(|role| start(role, &name));
    let reader = wait_for(Duration::from_secs(20), || attach_reader(&name.0)).unwrap();
    let frames: FrameRing<Mapping> = wait_for(Duration::from_secs(20), || observe_frames(&name.0)).unwrap();
    let mut values = vec![0.0; VOXELS];
    for round in 0..15_usize {
        goes_on("frames", 50, || frames.producer_counters().written);
        goes_on("volumes", 5, || read_one(&reader, &mut values).unwrap_or(0).max(reader.slots().status().published));
        // Some moment or other.
        std::thread::sleep(Duration::from_micros(137 * (round as u64 * 7 % 11)));
        let victim = round % 3;
        processes[victim].kill().unwrap();
        processes[victim].wait().unwrap();
        if roles[victim] == "daemon" {
            // The last volume stays readable, and the gantry goes on.
            assert!(read_one(&reader, &mut values).is_some());
            // Killed in the middle of a frame it holds that slot until it is back; behind a slot that is held, frames drop as they come.
            goes_on("frames without a daemon", 50, || {
                let counters = frames.producer_counters();
                counters.dropped_oldest + counters.dropped_newest
            });
        } else if roles[victim] == "producer" {
            goes_on("volumes without a producer", 5, || reader.slots().status().published);
        }
        processes[victim] = start(roles[victim], &name);
    }
    goes_on("frames", 50, || frames.producer_counters().written);
    assert_eq!(frames.producer_counters().epoch, 6, "one at the start, five restarts");
    let status = reader.slots().status();
    assert_eq!(status.attachments, 6);
    for (role, process) in roles.iter().zip(&mut processes) {
        assert!(process.try_wait().unwrap().is_none(), "{role} has ended by itself");
        process.kill().unwrap();
        process.wait().unwrap();
    }
    // The locks are free again.
    assert!(!matches!(attach_producer(&name.0), Err(MappingError::ProducerAlive { .. })));
    println!("{status:?} {:?}", frames.producer_counters());
}
