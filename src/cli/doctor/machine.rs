//! What the system says of itself: processor, memory, limits, shared memory.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::process::Resource;

/// Instructions that somebody may ask after, as Linux names them. The operations use those up to avx512vl; ONNX Runtime uses the rest too.
const INSTRUCTIONS: [&str; 17] = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "bmi1",
    "bmi2",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
];

/// The processor as `/proc/cpuinfo` has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Processor {
    pub(super) model: String,
    /// Logical processors that the system runs.
    pub(super) count: usize,
    /// Those of [`INSTRUCTIONS`] that processor and system offer.
    pub(super) instructions: Vec<&'static str>,
}

impl Processor {
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    fn parse(cpuinfo: &str) -> Self {
        let fields = || cpuinfo.lines().filter_map(|line| line.split_once(':').map(|(key, v)| (key.trim(), v.trim())));
        let first = |wanted: &str| fields().find(|(key, _)| *key == wanted).map_or("", |(_, value)| value);
        let flags: Vec<&str> = first("flags").split_whitespace().collect();
        let model = first("model name");
        Self {
            model: if model.is_empty() { std::env::consts::ARCH.into() } else { model.into() },
            count: fields().filter(|(key, _)| *key == "processor").count(),
            instructions: INSTRUCTIONS.into_iter().filter(|name| flags.contains(name)).collect(),
        }
    }
}

/// Memory of this process's share of the machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Of the machine, or the limit of the container where that is less.
    pub(super) total_bytes: u64,
    /// What can be had without swapping; never above `total_bytes`.
    pub(super) available_bytes: u64,
    /// The container's limit.
    pub(super) limit_bytes: Option<u64>,
}

impl Memory {
    /// `None` where the system does not say.
    pub(super) fn read() -> Option<Self> {
        // Version 2 of control groups, then version 1.
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limit = limits.into_iter().find_map(|path| fs::read_to_string(path).ok());
        Self::parse(&fs::read_to_string("/proc/meminfo").ok()?, limit.as_deref())
    }

    fn parse(meminfo: &str, limit: Option<&str>) -> Option<Self> {
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let total_bytes = bytes("MemTotal")?;
        // "max", or a number beyond any memory: no limit.
        let limit_bytes = limit.and_then(|text| text.trim().parse().ok()).filter(|limit| *limit < total_bytes);
        let total_bytes = limit_bytes.unwrap_or(total_bytes);
        Some(Self { total_bytes, available_bytes: bytes("MemAvailable")?.min(total_bytes), limit_bytes })
    }
}

/// Bytes that a process may lock in memory; `None`: as many as it likes.
pub(super) fn lockable_bytes() -> Option<u64> {
    rustix::process::getrlimit(Resource::Memlock).current
}

/// The file system of the segments.
#[derive(Debug)]
pub(super) struct SharedMemory {
    pub(super) size_bytes: u64,
    pub(super) free_bytes: u64,
}

impl SharedMemory {
    /// Reserves a few pages there and gives them back, as a segment does.
    ///
    /// # Errors
    /// What fails, with the system's reason.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let failed = |what: &str, error: io::Error| format!("{}: {what}: {error}", folder.display());
        let facts = rustix::fs::statvfs(folder).map_err(|errno| failed("cannot be looked at", errno.into()))?;
        let path = folder.join(format!("diffnr-doctor-{}", std::process::id()));
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| failed("no file can be made", error))?;
        let reserved = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 16);
        let removed = fs::remove_file(&path);
        reserved.map_err(|errno| failed("no memory can be reserved", errno.into()))?;
        removed.map_err(|error| failed("a file cannot be removed", error))?;
        Ok(Self {
            size_bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
            free_bytes: facts.f_bavail.saturating_mul(facts.f_frsize),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_processor_is_read_from_what_linux_says() {
        let text = "processor\t: 0\nmodel name\t: A \u{b5}P: fast\nflags\t\t: fpu avx avx2 avx512f amx_tile\n\n\
                    processor\t: 1\nmodel name\t: A \u{b5}P: fast\nflags\t\t: fpu\n";
        let found = Processor::parse(text);
        assert_eq!((found.model.as_str(), found.count), ("A \u{b5}P: fast", 2));
        assert_eq!(found.instructions, ["avx", "avx2", "avx512f", "amx_tile"]);
        let nothing = Processor::parse("");
        assert_eq!((nothing.model.as_str(), nothing.count), (std::env::consts::ARCH, 0));
        assert!(nothing.instructions.is_empty());
        // What the operations choose by and what is shown are two readings of one processor.
        #[cfg(target_arch = "x86_64")]
        assert_eq!(Processor::read().instructions.contains(&"avx2"), is_x86_feature_detected!("avx2"));
    }

    #[test]
    fn memory_is_the_machines_or_the_containers() {
        let text = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    600 kB\n";
        let read = |limit| Memory::parse(text, limit).unwrap();
        let whole = Memory { total_bytes: 1_024_000, available_bytes: 614_400, limit_bytes: None };
        for unlimited in [None, Some("max\n"), Some("9223372036854771712")] {
            assert_eq!(read(unlimited), whole);
        }
        let held = Memory { total_bytes: 409_600, available_bytes: 409_600, limit_bytes: Some(409_600) };
        assert_eq!(read(Some("409600\n")), held);
        for damaged in ["", "MemTotal: many kB", "MemTotal: 99999999999999999999 kB", "MemTotal: 10 kB\n"] {
            assert_eq!(Memory::parse(damaged, None), None, "{damaged}");
        }
    }

    #[test]
    fn shared_memory_is_tried_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let found = SharedMemory::read(folder.path()).unwrap();
        assert!(found.size_bytes >= found.free_bytes && found.size_bytes > 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let gone = SharedMemory::read(&folder.path().join("gone")).unwrap_err();
        assert!(gone.contains("gone: cannot be looked at"), "{gone}");
    }
}
