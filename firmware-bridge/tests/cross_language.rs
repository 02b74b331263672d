//! C producer to Rust consumer, Rust writer to Python reader, Rust recording to C player.
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

mod common;

use common::{COLUMNS, ROWS, SHAPE, TestName, build_c, frame_header, pixels, values, volume_header};
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::{
    DaemonState, FRAME_FIRST, FRAME_LAST, FrameHeader, SequenceRange, VOLUME_PARTIAL, VOLUME_PREVIEW, VolumeHeader,
};
use firmware_bridge::mapping::{Served, serve};
use firmware_bridge::recording::{RecordingReader, RecordingWriter};
use firmware_bridge::ring::{Arrival, DropPolicy, Polled, Rejection, RingGeometry};
use firmware_bridge::slots::{Status, StatusDetail, VolumeGeometry, text_to};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const FRAMES: u64 = 40;
const VOLUMES: VolumeGeometry = VolumeGeometry::for_shape(SHAPE, 3);

fn ring(policy: DropPolicy, slot_count: u32) -> RingGeometry {
    RingGeometry::for_detector(COLUMNS, ROWS, slot_count, policy)
}

fn scratch(file: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{file}", std::process::id()))
}

/// A recording of frames whose pixels and `view_index` tell their number.
fn record(file: &str) -> PathBuf {
    let path = scratch(file);
    let mut writer = RecordingWriter::create(&path, COLUMNS, ROWS).unwrap();
    for view in 0..FRAMES {
        let mut header = FrameHeader { view_index: view as u32, total_views: FRAMES as u32, ..frame_header(view) };
        header.flags |= if view == 0 { FRAME_FIRST } else { 0 };
        header.flags |= if view == FRAMES - 1 { FRAME_LAST } else { 0 };
        writer.append(&header, bytemuck::cast_slice(&pixels(view))).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), FRAMES);
    path
}

/// What the consumer saw, in order.
#[derive(Debug, Default)]
struct Seen {
    /// (epoch, sequence, view) of good frames.
    frames: Vec<(u32, u64, u32)>,
    arrivals: Vec<Arrival>,
    duplicates: u64,
    spoilt_payloads: u64,
    spoilt_headers: u64,
}

impl Seen {
    fn views(&self) -> Vec<u32> {
        self.frames.iter().map(|frame| frame.2).collect()
    }
}

struct Played {
    seen: Seen,
    output: Output,
    served: Served,
}

impl Played {
    fn counter(&self, name: &str) -> u64 {
        let text = String::from_utf8_lossy(&self.output.stdout);
        let rest = text.split_once(&format!("\"{name}\": ")).unwrap_or_else(|| panic!("no {name} in {text}")).1;
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    }
}

fn spawn(name: &TestName, recording: &Path, switches: &[&str]) -> Child {
    let mut sim = Command::new(build_c().join("gantry_sim"));
    sim.arg(&name.0).arg(recording).args(["--json", "--timeout", "10"]).args(switches);
    sim.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn take_in(served: &mut Served, seen: &mut Seen) -> bool {
    match served.consumer.poll(monotonic_ns()) {
        Polled::Empty => return false,
        Polled::Frame(frame) => {
            let header = frame.header();
            assert_eq!(frame.pixels_u16().unwrap(), pixels(header.view_index.into()), "view {}", header.view_index);
            assert_eq!(header.source_mm, [1000.0, 0.0, 0.0]);
            assert!(header.timestamp_ns <= monotonic_ns() && header.timestamp_ns > 0);
            seen.frames.push((header.epoch, header.sequence, header.view_index));
            seen.arrivals.push(frame.arrival());
        }
        Polled::Rejected(Rejection::Duplicate { .. }) => seen.duplicates += 1,
        Polled::Rejected(Rejection::Payload { .. }) => seen.spoilt_payloads += 1,
        Polled::Rejected(Rejection::Header(_)) => seen.spoilt_headers += 1,
    }
    true
}

/// Plays the recording through a ring so large that nothing is dropped there, however slow this machine is.
fn play(test: &str, switches: &[&str]) -> Played {
    let name = TestName::new(test);
    let mut served = serve(&name.0, ring(DropPolicy::DropNewest, 128), VOLUMES, 0o600).unwrap();
    let mut child = spawn(&name, &record(test), switches);
    let mut seen = Seen::default();
    while child.try_wait().unwrap().is_none() {
        if !take_in(&mut served, &mut seen) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    while take_in(&mut served, &mut seen) {}
    Played { seen, output: child.wait_with_output().unwrap(), served }
}

fn all_views_but(missing: &[u32]) -> Vec<u32> {
    (0..FRAMES as u32).filter(|view| !missing.contains(view)).collect()
}

#[test]
fn producer_c_consumer_rust() {
    let played = play("plain", &["--fps", "0"]);
    assert!(played.output.status.success(), "{played:?}", played = played.output);
    assert_eq!(played.seen.views(), all_views_but(&[]));
    assert!(played.seen.frames.iter().all(|&(epoch, sequence, view)| epoch == 1 && sequence == u64::from(view)));
    assert_eq!((played.counter("written"), played.counter("epochs")), (FRAMES, 1));
    assert_eq!(played.served.consumer.ring().producer_counters().pid, 0, "an orderly detach");
}

#[test]
fn producer_c_consumer_rust_dropped_frames() {
    let played = play("drop", &["--fps", "0", "--drop", "3,10-12"]);
    assert_eq!(played.seen.views(), all_views_but(&[3, 10, 11, 12]));
    let gaps: Vec<_> = played.served.consumer.tracker().gaps().iter().map(|gap| gap.range).collect();
    assert_eq!(gaps, [SequenceRange { first: 3, last: 3 }, SequenceRange { first: 10, last: 12 }]);
    assert_eq!(played.counter("left_out"), 4);
}

#[test]
fn producer_c_consumer_rust_random_faults() {
    let switches = ["--fps", "0", "--duplicate", "0.3", "--reorder", "0.3", "--drop-fraction", "0.1", "--seed", "5"];
    let played = play("random", &switches);
    let (duplicated, reordered, left_out) =
        (played.counter("duplicated"), played.counter("reordered"), played.counter("left_out"));
    assert!(duplicated > 0 && reordered > 0 && left_out > 0, "{:?}", played.output);
    assert_eq!(played.seen.duplicates, duplicated);
    let late = played.seen.arrivals.iter().filter(|&&arrival| arrival == Arrival::Late).count() as u64;
    assert_eq!(late, played.served.consumer.tracker().counts().late);
    assert!(late > 0 && late <= reordered, "{late} late, {reordered} reordered");
    assert_eq!(played.seen.frames.len() as u64 + left_out, FRAMES);
    // The same seed does the same.
    let again = play("random-again", &switches);
    assert_eq!(played.seen.frames, again.seen.frames);
}

#[test]
fn producer_c_consumer_rust_corruption() {
    let played = play("corrupt", &["--fps", "0", "--corrupt", "payload:0.2", "--corrupt", "header:0.2", "--seed", "3"]);
    let (payloads, headers) = (played.counter("corrupted_payload"), played.counter("corrupted_header"));
    assert!(payloads > 0 && headers > 0);
    // A frame with both faults is rejected for its header.
    assert_eq!(played.seen.spoilt_headers, headers);
    assert_eq!(played.seen.frames.len() as u64 + played.seen.spoilt_payloads + headers, FRAMES);
    assert!(played.seen.spoilt_payloads <= payloads);
    let counters = played.served.consumer.counters();
    assert_eq!(counters.crc_errors_payload, played.seen.spoilt_payloads);
    assert_eq!(counters.crc_errors_header, headers);
    assert_eq!(counters.invalid_headers, 0, "a turned bit never passes the CRC");
}

#[test]
fn producer_c_consumer_rust_death_in_mid_write_and_restart() {
    let played = play("restart", &["--fps", "0", "--die-in-write", "15", "--restart", "5"]);
    assert!(played.output.status.success(), "{:?}", played.output);
    assert_eq!(played.seen.views(), all_views_but(&[15]));
    // The new epoch counts from 0 at view 16.
    assert!(played.seen.frames.contains(&(1, 14, 14)) && played.seen.frames.contains(&(2, 0, 16)));
    assert_eq!(played.served.consumer.tracker().counts().epoch_changes, 1);
    assert_eq!(played.served.consumer.ring().producer_counters().reclaimed_writing, 1);
}

#[test]
fn producer_c_consumer_rust_death_without_restart() {
    use std::os::unix::process::ExitStatusExt;
    let played = play("death", &["--fps", "0", "--die-after", "20"]);
    assert_eq!(played.output.status.signal(), Some(9));
    assert_eq!(played.seen.views(), (0..20).collect::<Vec<_>>());
    assert_ne!(played.served.consumer.ring().producer_counters().pid, 0, "no orderly detach");
}

#[test]
fn producer_c_consumer_rust_loops_and_stalls() {
    let played = play("loop", &["--fps", "2000", "--loop", "2", "--stall", "50:30"]);
    assert_eq!(played.seen.frames.len() as u64, 2 * FRAMES);
    assert_eq!(played.seen.frames.last(), Some(&(1, 2 * FRAMES - 1, FRAMES as u32 - 1)));
    assert_eq!(played.served.consumer.tracker().counts().missing, 0);
}

#[test]
fn producer_c_full_ring_follows_the_policy() {
    for (policy, expected) in [(DropPolicy::DropNewest, 0..4), (DropPolicy::DropOldest, 36..40)] {
        let name = TestName::new("policy");
        let mut served = serve(&name.0, ring(policy, 4), VOLUMES, 0o600).unwrap();
        let output = spawn(&name, &record("policy"), &["--fps", "0"]).wait_with_output().unwrap();
        assert!(output.status.success(), "the gantry never waits: {output:?}");
        let mut seen = Seen::default();
        while take_in(&mut served, &mut seen) {}
        assert_eq!(seen.views(), expected.collect::<Vec<_>>(), "{policy:?}");
        let counters = served.consumer.ring().producer_counters();
        let lost = FRAMES - 4;
        let expected = if policy == DropPolicy::DropNewest { (lost, 0) } else { (0, lost) };
        assert_eq!((counters.dropped_newest, counters.dropped_oldest), expected);
    }
}

#[test]
fn producer_c_finds_the_replaced_segment() {
    let signal = |child: &Child, signal: &str| {
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    let name = TestName::new("replaced");
    let mut first = serve(&name.0, ring(DropPolicy::DropNewest, 64), VOLUMES, 0o600).unwrap();
    let mut child = spawn(&name, &record("replaced"), &["--fps", "1000", "--loop", "100000"]);
    let mut seen = Seen::default();
    while seen.frames.len() < 10 {
        take_in(&mut first, &mut seen);
    }
    signal(&child, "-STOP");
    drop(first);
    let mut second = serve(&name.0, ring(DropPolicy::DropNewest, 128), VOLUMES, 0o600).unwrap();
    assert!(!second.frames_reattached);
    signal(&child, "-CONT");
    seen = Seen::default();
    while seen.frames.len() < 50 {
        assert_eq!(child.try_wait().unwrap(), None, "the gantry must not give up");
        take_in(&mut second, &mut seen);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen.frames[0].0, 1, "first epoch of the new segment");
    assert_eq!(seen.frames[0].1, 0, "a new epoch counts from 0");
}

#[test]
fn gantry_sim_exit_codes() {
    let name = TestName::new("exit");
    let recording = record("exit");
    let run = |recording: &Path, switches: &[&str]| {
        let output = spawn(&name, recording, switches).wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, message) = run(&recording, &["--timeout", "0"]);
    assert!(code == Some(3) && message.contains("start the daemon first"), "{message}");
    for bad in
        [["--fps", "x"], ["--drop", "5-3"], ["--corrupt", "0.1"], ["--stall", "3"], ["--loop", "0"], ["--no", "1"]]
    {
        assert_eq!(run(&recording, &bad).0, Some(2), "{bad:?}");
    }
    let small = RingGeometry::for_detector(COLUMNS - 1, ROWS, 4, DropPolicy::DropNewest);
    let served = serve(&name.0, small, VOLUMES, 0o600).unwrap();
    let (code, message) = run(&recording, &[]);
    assert!(code == Some(6) && message.contains("larger than a slot"), "{message}");
    let (code, message) = run(&recording, &["--wait-ready", "--timeout", "0"]);
    assert!(code == Some(3) && message.contains("ready"), "{message}");
    let producer = firmware_bridge::mapping::attach_producer(&name.0).unwrap();
    assert_eq!(run(&recording, &[]).0, Some(7));
    drop((producer, served));
    let bytes = std::fs::read(&recording).unwrap();
    for (what, change) in [
        ("truncated", bytes[..bytes.len() - 8].to_vec()),
        ("truncated", bytes[..100].to_vec()),
        ("shorter than its header", bytes[..10].to_vec()),
        ("wrong magic", [&[1], &bytes[1..]].concat()),
        ("CRC is wrong", [&bytes[..16], &[99], &bytes[17..]].concat()),
        ("header is damaged", [&bytes[..70], &[99], &bytes[71..]].concat()),
        ("payload is damaged", [&bytes[..330], &[99], &bytes[331..]].concat()),
    ] {
        let path = scratch("damaged");
        std::fs::write(&path, change).unwrap();
        let (code, message) = run(&path, &["--timeout", "0"]);
        assert!(code == Some(5) && message.contains(what), "{what}: {code:?} {message}");
        let mut reader = match RecordingReader::open(&path) {
            Ok(reader) => reader,
            Err(_) => continue,
        };
        let read = std::iter::from_fn(|| match reader.next_frame() {
            Ok(None) => None,
            Ok(Some(_)) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        assert!(read.take(FRAMES as usize + 1).any(|frame| frame.is_err()), "the Rust reader accepts it: {what}");
    }
}

/// The C side refuses what the Rust side refuses (tests/segments.rs), with the exit code of the reason.
#[test]
fn producer_c_refuses_damaged_segments() {
    let recording = record("refuse");
    let refused = |offset: u64, bytes: &[u8], len_change: i64| {
        let name = TestName::new("refuse");
        drop(serve(&name.0, ring(DropPolicy::DropNewest, 4), VOLUMES, 0o600).unwrap());
        let path = firmware_bridge::mapping::frames_path(&name.0).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
        let len = file.metadata().unwrap().len().saturating_add_signed(len_change);
        file.set_len(len).unwrap();
        let output = spawn(&name, &recording, &["--timeout", "0"]).wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (offset, bytes, len_change, code, text) in [
        (0, &[0; 8][..], 0, 3, "not finalised"),
        (0, &[1; 8], 0, 4, "not a frame segment"),
        (8, &[2, 0], 0, 4, "another protocol version"),
        (135, &[0xff], 0, 4, "impossible segment header"), // top byte of write_cursor
        (408, &[1], 0, 3, "replaced"),
        (0, &[], -1, 4, "truncated"),
        (0, &[], 4096, 4, "longer than its header says"),
        (0, &[], -1_000_000, 3, "not finalised"),
    ] {
        let (found, message) = refused(offset, bytes, len_change);
        assert!(found == code && message.contains(text), "{offset} {len_change}: {found} {message}");
    }
    for offset in (12..88).step_by(4).filter(|offset| !(24..44).contains(offset)) {
        assert_eq!(refused(offset, &[0xfb; 4], 0).0, 4, "offset {offset}");
    }
}

/// Frames large enough for every path of the C side's CRC (three streams of 8 KB, then words, then bytes).
#[test]
fn crc_c_equals_crc_rust() {
    let name = TestName::new("crc");
    let path = scratch("crc");
    let sizes = [(1, 1), (5, 3), (127, 63), (128, 96), (256, 256), (401, 399)];
    let mut writer = RecordingWriter::create(&path, 401, 399).unwrap();
    for (sequence, (columns, rows)) in (0..).zip(sizes) {
        let pixels: Vec<u16> = (0..columns * rows).map(|i: u32| (i.wrapping_mul(2654435761) >> 13) as u16).collect();
        let header = FrameHeader { columns, rows, ..frame_header(sequence) };
        writer.append(&header, bytemuck::cast_slice(&pixels)).unwrap();
    }
    writer.finish().unwrap();
    let geometry = RingGeometry::for_detector(401, 399, 8, DropPolicy::DropNewest);
    let mut served = serve(&name.0, geometry, VOLUMES, 0o600).unwrap();
    let output = spawn(&name, &path, &["--fps", "0"]).wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}"); // the C side has checked Rust's CRCs
    for (columns, rows) in sizes {
        let Polled::Frame(frame) = served.consumer.poll(monotonic_ns()) else { panic!("{columns} x {rows}") };
        assert_eq!(frame.payload().len() as u32, columns * rows * 2); // and Rust those of C
    }
}

/// A Python with numpy: $DIFFNR_PYTHON, or python3. `None`: said so on stderr, past the capture of the test harness.
fn python() -> Option<String> {
    let python = std::env::var("DIFFNR_PYTHON").unwrap_or_else(|_| "python3".into());
    let tried = Command::new(&python).args(["-c", "import numpy"]).output();
    if tried.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let skipped = format!("SKIPPED: Rust writer to Python reader: {python} with numpy is missing ($DIFFNR_PYTHON)\n");
    std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    None
}

#[test]
fn writer_rust_reader_python() {
    let Some(python) = python() else { return };
    let name = TestName::new("python");
    let script = common::crate_folder().join("python/diffnr_reader.py");
    let run = |switches: &[&str]| {
        let output = Command::new(&python).arg(&script).arg(&name.0).args(switches).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    };
    assert_eq!(run(&["--json"]).0, Some(3), "no segment");
    // Large enough for the lanes of Python's CRC.
    let shape = [41, 37, 53];
    let count = 41 * 37 * 53;
    let volumes = VolumeGeometry::for_shape(shape, 3);
    let mut served = serve(&name.0, ring(DropPolicy::DropNewest, 4), volumes, 0o600).unwrap();
    let saved = scratch("python.npy");
    let save = saved.to_str().unwrap();
    assert_eq!(run(&["--save", save]).0, Some(3), "nothing published");
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.001).sin()).collect();
    let mut header = VolumeHeader {
        shape,
        status: VOLUME_PREVIEW | VOLUME_PARTIAL,
        spacing_mm: [0.5, 0.25, 2.0],
        missing_count: 1,
        device: text_to("cpu avx2"),
        value_scale: 2.0,
        early_views: 30,
        repairs: 2,
        repairs_planned: 4,
        repairs_failed: 1,
        repair_ms: 12_345,
        repair_model: text_to("compact"),
        repair_provider: text_to("TensorRT+CPU"),
        ..volume_header()
    };
    header.missing[0] = SequenceRange { first: 7, last: 9 };
    served.writer.publish(&header, &values, monotonic_ns()).unwrap();
    served.writer.set_status(&Status { state: Some(DaemonState::Receiving), frames_accepted: 11, ..Status::default() });
    served.writer.set_status_detail(&StatusDetail::new("going on", &[SequenceRange { first: 7, last: 9 }]));
    let (code, text) = run(&["--save", save, "--json"]);
    assert_eq!(code, Some(0), "{text}");
    for expected in [
        "\"state\": \"receiving\"",
        "\"frames_accepted\": 11",
        "\"message\": \"going on\"",
        "\"missing\": [[7, 9]]",
        "\"status\": [\"PREVIEW\", \"PARTIAL\"]",
        "\"generation\": 1",
        "\"spacing_mm\": [0.5, 0.25, 2.0]",
        "\"device\": \"cpu avx2\"",
        "\"early_views\": 30, \"repairs\": 2, \"repairs_planned\": 4, \"repairs_failed\": 1, \"repair_ms\": 12345",
        "\"repair_model\": \"compact\", \"repair_provider\": \"TensorRT+CPU\"",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    // The last bytes of an .npy are the array, C order: [x, y, z], times value_scale.
    let bytes = std::fs::read(&saved).unwrap();
    let written: Vec<f32> = bytes[bytes.len() - count * 4..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert_eq!(written, values.iter().map(|value| value * 2.0).collect::<Vec<_>>());
    assert_eq!(run(&["--save", save, "--newer-than", "1"]).0, Some(3));

    // A turned bit in the payload is found.
    let path = firmware_bridge::mapping::volumes_path(&name.0).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff], 8192 + 4096 + 12345).unwrap();
    let (code, text) = run(&["--save", save]);
    assert!(code == Some(4) && text.contains("payload CRC32C is wrong"), "{text}");
}

/// While the writer publishes as fast as it can, Python gets whole volumes only.
#[test]
fn writer_rust_reader_python_at_full_speed() {
    let Some(python) = python() else { return };
    let name = TestName::new("python-fast");
    let mut served = serve(&name.0, ring(DropPolicy::DropNewest, 4), VOLUMES, 0o600).unwrap();
    served.writer.publish(&volume_header(), &values(1), monotonic_ns()).unwrap();
    let program = format!(
        "import sys; sys.path.insert(0, {:?})\n\
         from diffnr_reader import Reader, Contended\n\
         whole = 0\n\
         with Reader({:?}) as reader:\n\
         \x20   for _ in range(300):\n\
         \x20       try: header, values = reader.newest()\n\
         \x20       except Contended: continue\n\
         \x20       assert (values.ravel() == [header['generation'] % 1000 * 1000.0 + i for i in range(105)]).all()\n\
         \x20       whole += 1\n\
         print(whole)\n",
        common::crate_folder().join("python"),
        name.0
    );
    let mut child = Command::new(python).args(["-B", "-c", &program]).stdout(Stdio::piped()).spawn().unwrap();
    let mut generation = 2;
    while child.try_wait().unwrap().is_none() {
        served.writer.publish(&volume_header(), &values(generation), monotonic_ns()).unwrap();
        generation += 1;
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let whole: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(whole > 0);
}
