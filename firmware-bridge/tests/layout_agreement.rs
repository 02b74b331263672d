//! C header, Rust structs and PROTOCOL.md say the same about every byte and every constant.
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

mod common;

use firmware_bridge::layout::*;
use firmware_bridge::ring::{DropPolicy, machine::SlotState};
use firmware_bridge::slots::machine::VolumeSlotState;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

/// Rust name, C name, size, fields.
type Struct = (&'static str, &'static str, usize, &'static [(&'static str, usize)]);

const STRUCTS: &[Struct] = &[
    ("SequenceRange", "dnr_sequence_range", size_of::<SequenceRange>(), SequenceRange::FIELD_OFFSETS),
    ("FramesHeader", "dnr_frames_header", size_of::<FramesHeader>(), FramesHeader::FIELD_OFFSETS),
    ("FrameSlotControl", "dnr_frame_slot_control", size_of::<FrameSlotControl>(), FrameSlotControl::FIELD_OFFSETS),
    ("FrameHeader", "dnr_frame_header", size_of::<FrameHeader>(), FrameHeader::FIELD_OFFSETS),
    ("RecordingHeader", "dnr_recording_header", size_of::<RecordingHeader>(), RecordingHeader::FIELD_OFFSETS),
    ("VolumesHeader", "dnr_volumes_header", size_of::<VolumesHeader>(), VolumesHeader::FIELD_OFFSETS),
    ("LeaseEntry", "dnr_lease_entry", size_of::<LeaseEntry>(), LeaseEntry::FIELD_OFFSETS),
    ("VolumeSlotControl", "dnr_volume_slot_control", size_of::<VolumeSlotControl>(), VolumeSlotControl::FIELD_OFFSETS),
    ("VolumeHeader", "dnr_volume_header", size_of::<VolumeHeader>(), VolumeHeader::FIELD_OFFSETS),
];

fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("DNR_VERSION_MAJOR", VERSION_MAJOR.into()),
        ("DNR_VERSION_MINOR", VERSION_MINOR.into()),
        ("DNR_CACHE_LINE", CACHE_LINE as u64),
        ("DNR_FRAMES_MAGIC", FRAMES_MAGIC),
        ("DNR_RECORDING_MAGIC", RECORDING_MAGIC),
        ("DNR_VOLUMES_MAGIC", VOLUMES_MAGIC),
        ("DNR_FRAMES_HEADER_BYTES", FRAMES_HEADER_BYTES as u64),
        ("DNR_FRAME_HEADER_BYTES", FRAME_HEADER_BYTES as u64),
        ("DNR_FRAME_SLOT_CONTROL_BYTES", FRAME_SLOT_CONTROL_BYTES as u64),
        ("DNR_RECORDING_HEADER_BYTES", RECORDING_HEADER_BYTES as u64),
        ("DNR_SEQUENCE_LIMIT", SEQUENCE_LIMIT),
        ("DNR_DROP_NEWEST", DropPolicy::DropNewest as u64),
        ("DNR_DROP_OLDEST", DropPolicy::DropOldest as u64),
        ("DNR_SLOT_FREE", SlotState::Free as u64),
        ("DNR_SLOT_WRITING", SlotState::Writing as u64),
        ("DNR_SLOT_FULL", SlotState::Full as u64),
        ("DNR_SLOT_READING", SlotState::Reading as u64),
        ("DNR_KIND_COUNTS_U16", FrameKind::CountsU16 as u64),
        ("DNR_KIND_LINE_INTEGRALS_F32", FrameKind::LineIntegralsF32 as u64),
        ("DNR_KIND_DARK_U16", FrameKind::DarkU16 as u64),
        ("DNR_KIND_FLAT_U16", FrameKind::FlatU16 as u64),
        ("DNR_FRAME_FIRST", FRAME_FIRST.into()),
        ("DNR_FRAME_LAST", FRAME_LAST.into()),
        ("DNR_FRAME_PAYLOAD_CRC", FRAME_PAYLOAD_CRC.into()),
        ("DNR_VOLUMES_HEADER_BYTES", VOLUMES_HEADER_BYTES as u64),
        ("DNR_LEASES_OFFSET", LEASES_OFFSET as u64),
        ("DNR_LEASE_COUNT", LEASE_COUNT as u64),
        ("DNR_LEASE_BYTES", LEASE_BYTES as u64),
        ("DNR_VOLUME_HEADER_BYTES", VOLUME_HEADER_BYTES as u64),
        ("DNR_VOLUME_SLOT_HEADER_OFFSET", VOLUME_SLOT_HEADER_OFFSET as u64),
        ("DNR_VOLUME_SLOT_PAYLOAD_OFFSET", VOLUME_SLOT_PAYLOAD_OFFSET as u64),
        ("DNR_VOLUME_MISSING_RANGES", VOLUME_MISSING_RANGES as u64),
        ("DNR_STATUS_MISSING_RANGES", STATUS_MISSING_RANGES as u64),
        ("DNR_STATUS_MESSAGE_BYTES", STATUS_MESSAGE_BYTES as u64),
        ("DNR_VOLUME_SLOT_EMPTY", VolumeSlotState::Empty as u64),
        ("DNR_VOLUME_SLOT_WRITING", VolumeSlotState::Writing as u64),
        ("DNR_VOLUME_SLOT_PUBLISHED", VolumeSlotState::Published as u64),
        ("DNR_STATE_STARTING", DaemonState::Starting as u64),
        ("DNR_STATE_READY", DaemonState::Ready as u64),
        ("DNR_STATE_RECEIVING", DaemonState::Receiving as u64),
        ("DNR_STATE_RECONSTRUCTING", DaemonState::Reconstructing as u64),
        ("DNR_STATE_DEGRADED", DaemonState::Degraded as u64),
        ("DNR_STATE_STOPPING", DaemonState::Stopping as u64),
        ("DNR_STATE_STOPPED", DaemonState::Stopped as u64),
        ("DNR_VOLUME_PREVIEW", VOLUME_PREVIEW.into()),
        ("DNR_VOLUME_FULL", VOLUME_FULL.into()),
        ("DNR_VOLUME_DEGRADED", VOLUME_DEGRADED.into()),
        ("DNR_VOLUME_PARTIAL", VOLUME_PARTIAL.into()),
        ("DNR_VOLUME_STALE", VOLUME_STALE.into()),
        ("DNR_METHOD_FDK", METHOD_FDK.into()),
        ("DNR_METHOD_GAUSSIANS", METHOD_GAUSSIANS.into()),
        ("DNR_METHOD_FIELD", METHOD_FIELD.into()),
    ]
}

/// Name, offset, bytes.
type Field = (String, usize, usize);

/// Offset and size of each field: up to the next one, as no struct has padding (`bytemuck::Pod` sees to that).
fn fields(size: usize, offsets: &[(&str, usize)]) -> Vec<Field> {
    let ends = offsets.iter().skip(1).map(|&(_, offset)| offset).chain([size]);
    offsets.iter().zip(ends).map(|(&(name, offset), end)| (name.to_owned(), offset, end - offset)).collect()
}

#[test]
fn the_c_header_agrees() {
    let mut program = String::from("#include \"diffnr_producer.h\"\n#include <stdio.h>\nint main(void) {\n");
    for (_, c, _, offsets) in STRUCTS {
        writeln!(program, "printf(\"{c} %zu\\n\", sizeof({c}));").unwrap();
        for (field, _) in *offsets {
            let member = format!("offsetof({c}, {field}), sizeof((({c} *)0)->{field})");
            writeln!(program, "printf(\"{c}.{field} %zu %zu\\n\", {member});").unwrap();
        }
    }
    for (name, _) in constants() {
        writeln!(program, "printf(\"{name} %llu\\n\", (unsigned long long){name});").unwrap();
    }
    program.push_str("return 0;\n}\n");
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, binary) = (folder.join("layout.c"), folder.join("layout"));
    std::fs::write(&source, program).unwrap();
    let mut compiler = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]);
    let compiled = compiler.arg(common::crate_folder().join("include")).arg(&source).arg("-o").arg(&binary).output();
    let compiled = compiled.expect("a C compiler (cc, or $CC) is needed");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = String::from_utf8(Command::new(&binary).output().unwrap().stdout).unwrap();

    let mut expected = String::new();
    for (_, c, size, offsets) in STRUCTS {
        writeln!(expected, "{c} {size}").unwrap();
        for (field, offset, bytes) in fields(*size, offsets) {
            writeln!(expected, "{c}.{field} {offset} {bytes}").unwrap();
        }
    }
    for (name, value) in constants() {
        writeln!(expected, "{name} {value}").unwrap();
    }
    let differing: Vec<_> = printed.lines().zip(expected.lines()).filter(|(c, rust)| c != rust).collect();
    assert!(differing.is_empty(), "(C, Rust): {differing:#?}");
    assert_eq!(printed.lines().count(), expected.lines().count());
}

/// The producer that PROTOCOL.md shows compiles without a warning.
#[test]
fn the_example_of_protocol_md_compiles() {
    let text = std::fs::read_to_string(common::crate_folder().join("PROTOCOL.md")).unwrap();
    let example = text.split_once("```c\n").unwrap().1.split_once("```").unwrap().0;
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join("example.c");
    std::fs::write(&source, example).unwrap();
    let mut compiler = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]);
    compiler.arg(common::crate_folder().join("include")).arg("-c").arg(&source).arg("-o").arg(folder.join("example.o"));
    let compiled = compiler.output().expect("a C compiler (cc, or $CC) is needed");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}

/// Bytes of a type as PROTOCOL.md writes it: `u64`, `f64[3]`, `SequenceRange[16]`, `u64 atomic`.
fn bytes_of(written: &str) -> usize {
    let written = written.trim_end_matches(" atomic");
    let (element, count) = match written.split_once('[') {
        Some((element, rest)) => (element, rest.trim_end_matches(']').parse().unwrap()),
        None => (written, 1),
    };
    let bytes = match element {
        "u8" => 1,
        "u16" => 2,
        "u32" | "f32" => 4,
        "u64" | "f64" => 8,
        other => STRUCTS.iter().find(|entry| entry.0 == other).unwrap_or_else(|| panic!("type {other}")).2,
    };
    bytes * count
}

#[test]
fn protocol_md_agrees() {
    let text = std::fs::read_to_string(common::crate_folder().join("PROTOCOL.md")).unwrap();
    let mut tables: BTreeMap<String, (usize, Vec<Field>)> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("#### ") {
            // "#### FrameHeader (256 bytes)"
            let (name, rest) = heading.split_once(" (").unwrap();
            let bytes = rest.trim_end_matches(" bytes)").parse().unwrap();
            tables.insert(name.into(), (bytes, Vec::new()));
            current = Some(name.to_owned());
        } else if line.starts_with('#') {
            current = None;
        } else if let (Some(name), Some(row)) = (&current, line.strip_prefix("| ")) {
            let cells: Vec<&str> = row.split(" | ").collect();
            if let Ok(offset) = cells[0].trim().parse() {
                let field = cells[1].trim().trim_matches('`').to_owned();
                tables.get_mut(name).unwrap().1.push((field, offset, bytes_of(cells[2].trim())));
            }
        }
    }
    for (rust, _, size, offsets) in STRUCTS {
        let (bytes, rows) = tables.remove(*rust).unwrap_or_else(|| panic!("no table for {rust}"));
        assert_eq!((bytes, rows), (*size, fields(*size, offsets)), "{rust}");
    }
    assert!(tables.is_empty(), "tables of nothing: {:?}", tables.keys());
    for (name, value) in constants() {
        let short = name.trim_start_matches("DNR_");
        let row = format!("| `{short}` | {value} |");
        assert!(text.contains(&row), "PROTOCOL.md lacks the row {row}");
    }
}
