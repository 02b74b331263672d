//! Segments in `/dev/shm`: creating, attaching, locking, removing.
//!
//! The daemon creates both segments. Each is made under another name (`NAME.frames.new`), filled, finalised and only then
//! renamed into place. A file lock (`flock`, given back by the kernel when its holder dies) on `NAME.volumes` says that a
//! daemon is alive, one on `NAME.frames` that a producer is.
#![allow(unsafe_code)]

use crate::clock::monotonic_ns;
use crate::error::SegmentError;
use crate::memory::SharedMemory;
use crate::ring::{FrameConsumer, FrameProducer, FrameRing, RingGeometry};
use crate::slots::{VolumeGeometry, VolumeReader, VolumeSlots, VolumeWriter};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// A segment could not be created, mapped or attached.
#[derive(Debug, Error)]
pub enum MappingError {
    /// The name cannot be a segment's.
    #[error("segment name {name:?} is not usable: give letters, digits, '-', '_', '.', or a path prefix with a '/'")]
    BadName {
        /// The name given.
        name: String,
    },
    /// There is no such segment.
    #[error("{path} does not exist: start `diffnr serve` first, or check the segment's name")]
    NotFound {
        /// Path of the segment.
        path: PathBuf,
    },
    /// Another daemon holds the lock.
    #[error("{path} is served by another running daemon: stop it, or use another segment name")]
    AlreadyServed {
        /// Path of the segment.
        path: PathBuf,
    },
    /// Another producer holds the lock.
    #[error("{path} has a running producer already: stop it first")]
    ProducerAlive {
        /// Path of the segment.
        path: PathBuf,
    },
    /// The shared memory is full.
    #[error("{path}: no room for {bytes} bytes of shared memory: enlarge /dev/shm or ask for fewer or smaller slots")]
    NoSpace {
        /// Path of the segment.
        path: PathBuf,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The header is not acceptable.
    #[error("{path}: {source}")]
    Segment {
        /// Path of the segment.
        path: PathBuf,
        /// What is wrong.
        source: SegmentError,
    },
    /// A system call failed.
    #[error("{path}: {operation}: {source}")]
    Io {
        /// Path of the segment.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl MappingError {
    /// Whether waiting may help: the daemon has not made the segment yet, or is just replacing it.
    pub fn is_transient(&self) -> bool {
        use SegmentError::{NotYetFinalized, Retired};
        matches!(self, Self::NotFound { .. } | Self::Segment { source: NotYetFinalized | Retired, .. })
    }
}

/// A mapped segment; unmapped when dropped. Cheap to share in an `Arc`.
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
    file: File,
    path: PathBuf,
}

// SAFETY: `MmapRaw` maps whole pages readable and writable at one address until it is dropped; this crate makes no
// references into it but those of `memory`. The file is never truncated by this crate.
unsafe impl SharedMemory for Mapping {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).unwrap_or(NonNull::dangling())
    }
    fn len(&self) -> usize {
        self.map.len()
    }
}

/// Path of the frame segment of `name`: `/dev/shm/NAME.frames`, or `NAME.frames` if the name has a `/`.
pub fn frames_path(name: &str) -> Result<PathBuf, MappingError> {
    path_of(name, "frames")
}

/// Path of the volume segment of `name`: `/dev/shm/NAME.volumes`, or `NAME.volumes` if the name has a `/`.
pub fn volumes_path(name: &str) -> Result<PathBuf, MappingError> {
    path_of(name, "volumes")
}

fn path_of(name: &str, kind: &str) -> Result<PathBuf, MappingError> {
    if name.contains('/') {
        return Ok(PathBuf::from(format!("{name}.{kind}")));
    }
    let fits = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if name.is_empty() || name.len() > 200 || !fits {
        return Err(MappingError::BadName { name: name.into() });
    }
    Ok(PathBuf::from(format!("/dev/shm/{name}.{kind}")))
}

/// The daemon's two ends, and what was found.
#[derive(Debug)]
pub struct Served {
    /// Frames in.
    pub consumer: FrameConsumer<Mapping>,
    /// Volumes and status out. Holds the daemon's lock: keep it as long as the daemon serves. Its memory may be shared, with a device that fills slots.
    pub writer: VolumeWriter<Arc<Mapping>>,
    /// Whether an existing frame segment was taken over (a running producer goes on); false = made anew.
    pub frames_reattached: bool,
    /// Whether an existing volume segment was taken over (its volumes stay readable); false = made anew.
    pub volumes_reattached: bool,
}

/// The daemon's start: takes over existing segments of just this layout, replaces others (telling attached peers by the
/// `retired` word), creates missing ones. `mode` = permission bits of new files (readers need write access: leases).
pub fn serve(name: &str, ring: RingGeometry, volumes: VolumeGeometry, mode: u32) -> Result<Served, MappingError> {
    let (frames_path, volumes_path) = (frames_path(name)?, volumes_path(name)?);
    let geometry = |path: &Path, check: Result<(), SegmentError>| {
        check.map_err(|source| MappingError::Segment { path: path.into(), source })
    };
    geometry(&frames_path, ring.check())?;
    geometry(&volumes_path, volumes.check())?;
    let pid = std::process::id();
    // The volumes first: their lock makes this process the only daemon.
    let (slots, volumes_reattached) = open_or_create(
        &volumes_path,
        volumes.segment_bytes(),
        mode,
        true,
        |mapping| VolumeSlots::attach(Arc::new(mapping)),
        |slots| *slots.geometry() == volumes,
        |slots| slots.retire(),
        |mapping| VolumeSlots::initialise(Arc::new(mapping), volumes, random_id(), pid, monotonic_ns()),
    )?;
    let (frames, frames_reattached) = open_or_create(
        &frames_path,
        ring.segment_bytes(),
        mode,
        false,
        FrameRing::attach,
        |frames| *frames.geometry() == ring,
        |frames| frames.retire(),
        |mapping| FrameRing::initialise(mapping, ring, random_id(), pid, monotonic_ns()),
    )?;
    let consumer = FrameConsumer::attach(frames, pid, monotonic_ns());
    Ok(Served { consumer, writer: VolumeWriter::attach(slots), frames_reattached, volumes_reattached })
}

/// Attaches as the producer of `name`. Fails while another one is alive.
pub fn attach_producer(name: &str) -> Result<FrameProducer<Mapping>, MappingError> {
    let path = frames_path(name)?;
    let mapping = Mapping::open(&path)?;
    if !try_lock(&mapping.file, &path)? {
        return Err(MappingError::ProducerAlive { path });
    }
    let ring = FrameRing::attach(mapping).map_err(|source| MappingError::Segment { path, source })?;
    Ok(FrameProducer::attach(ring, std::process::id(), monotonic_ns()))
}

/// Attaches as a reader of `name`.
pub fn attach_reader(name: &str) -> Result<VolumeReader<Mapping>, MappingError> {
    let path = volumes_path(name)?;
    let slots = VolumeSlots::attach(Mapping::open(&path)?);
    let slots = slots.map_err(|source| MappingError::Segment { path, source })?;
    Ok(VolumeReader::new(slots, std::process::id()))
}

/// Looks at the frame segment of `name` without becoming producer or consumer: counters, geometry.
pub fn observe_frames(name: &str) -> Result<FrameRing<Mapping>, MappingError> {
    let path = frames_path(name)?;
    FrameRing::attach(Mapping::open(&path)?).map_err(|source| MappingError::Segment { path, source })
}

/// Repeats `attach` until it succeeds, fails for good, or `timeout` has passed (then the last error comes back).
pub fn wait_for<T>(timeout: Duration, mut attach: impl FnMut() -> Result<T, MappingError>) -> Result<T, MappingError> {
    let start = Instant::now();
    loop {
        match attach() {
            Err(error) if error.is_transient() && start.elapsed() < timeout => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Removes both segments of `name` if they are there. Attached peers keep their mappings.
pub fn unlink(name: &str) -> Result<(), MappingError> {
    for path in [frames_path(name)?, volumes_path(name)?] {
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(MappingError::Io { path, operation: "remove", source });
            }
            _ => {}
        }
    }
    Ok(())
}

impl Mapping {
    /// Maps an existing file as it is.
    pub fn open(path: &Path) -> Result<Self, MappingError> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => MappingError::NotFound { path: path.into() },
            _ => MappingError::Io { path: path.into(), operation: "open for reading and writing", source },
        })?;
        Self::map(file, path)
    }

    fn map(file: File, path: &Path) -> Result<Self, MappingError> {
        let failed = |operation, source| MappingError::Io { path: path.into(), operation, source };
        let len = file.metadata().map_err(|source| failed("read its size", source))?.len();
        if len == 0 {
            return Err(MappingError::Segment { path: path.into(), source: SegmentError::NotYetFinalized });
        }
        let map = MmapOptions::new().populate().map_raw(&file).map_err(|source| failed("mmap", source))?;
        Ok(Self { map, file, path: path.into() })
    }

    /// Path that was mapped.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A number that another creation will not have.
fn random_id() -> u64 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u64(monotonic_ns());
    hasher.finish().max(1)
}

fn try_lock(file: &File, path: &Path) -> Result<bool, MappingError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(MappingError::Io { path: path.into(), operation: "flock", source: errno.into() }),
    }
}

/// Whether `path` still names the file behind `file`.
fn still_named(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(named)) => ours.ino() == named.ino() && ours.dev() == named.dev(),
        _ => false,
    }
}

#[allow(clippy::too_many_arguments)] // the same steps for both kinds of segment; private
fn open_or_create<T>(
    path: &Path,
    bytes: u64,
    mode: u32,
    lock: bool,
    attach: impl Fn(Mapping) -> Result<T, SegmentError>,
    fits: impl Fn(&T) -> bool,
    retire: impl Fn(&T),
    initialise: impl Fn(Mapping) -> Result<T, SegmentError>,
) -> Result<(T, bool), MappingError> {
    let mut old_lock = None;
    let existing = loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break None,
            Err(source) => {
                return Err(MappingError::Io { path: path.into(), operation: "open for reading and writing", source });
            }
            Ok(file) => {
                if lock && !try_lock(&file, path)? {
                    return Err(MappingError::AlreadyServed { path: path.into() });
                }
                if still_named(&file, path) {
                    break Some(file);
                }
            }
        }
    };
    if let Some(file) = existing {
        // A copy of the descriptor shares its lock: held until the new file is in place.
        old_lock = file.try_clone().ok();
        // An unusable file (truncated, other version, not finalised) is replaced like one of another layout.
        if let Ok(segment) = Mapping::map(file, path)
            .and_then(|mapping| attach(mapping).map_err(|source| MappingError::Segment { path: path.into(), source }))
        {
            if fits(&segment) {
                return Ok((segment, true));
            }
            retire(&segment);
        }
    }
    let mut new_path = path.as_os_str().to_owned();
    new_path.push(".new");
    let new_path = PathBuf::from(new_path);
    let failed = |operation, source| MappingError::Io { path: new_path.clone(), operation, source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false) // only once the lock is ours
        .mode(mode)
        .open(&new_path)
        .map_err(|source| failed("create", source))?;
    if lock && !try_lock(&file, &new_path)? {
        return Err(MappingError::AlreadyServed { path: path.into() });
    }
    if lock && !still_named(&file, &new_path) {
        return Err(MappingError::AlreadyServed { path: path.into() }); // another daemon was faster
    }
    file.set_len(0).map_err(|source| failed("truncate", source))?;
    // Reserves the pages: an overcommitted segment would end in SIGBUS at some later store.
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => {}
        Err(Errno::NOSPC) => {
            let _gone = std::fs::remove_file(&new_path);
            return Err(MappingError::NoSpace { path: path.into(), bytes });
        }
        Err(errno) => return Err(failed("fallocate", errno.into())),
    }
    let mapping = Mapping { path: path.into(), ..Mapping::map(file, &new_path)? };
    let segment = initialise(mapping).map_err(|source| MappingError::Segment { path: path.into(), source })?;
    std::fs::rename(&new_path, path).map_err(|source| failed("rename into place", source))?;
    drop(old_lock);
    Ok((segment, false))
}
