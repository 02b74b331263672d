//! Recordings: a scan as the gantry would send it, on disk. `c/gantry_sim.c` plays them.
//!
//! A [`RecordingHeader`], then for each frame its [`FrameHeader`], its payload, and zero bytes up to a multiple of 8.
//! Header CRCs are always there, payload CRCs by flag; epochs are 0 (the player's own stands in what it sends).

use crate::crc::crc32c;
use crate::error::FrameError;
use crate::layout::{
    FRAME_HEADER_BYTES, FRAME_PAYLOAD_CRC, FrameHeader, RECORDING_HEADER_BYTES, RECORDING_MAGIC, RecordingHeader,
    VERSION_MAJOR, VERSION_MINOR,
};
use crate::ring::{DropPolicy, RingGeometry};
use bytemuck::Zeroable;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A recording could not be written or read.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// The recording.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file's header is not one.
    #[error("{path}: not a recording: {field} is {value}; {wanted}")]
    Header {
        /// The recording.
        path: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        wanted: &'static str,
    },
    /// A frame is not acceptable.
    #[error("{path}: frame {index}: {source}")]
    Frame {
        /// The recording.
        path: PathBuf,
        /// Which frame, from 0.
        index: u64,
        /// What is wrong.
        source: FrameError,
    },
    /// The file ends too early.
    #[error("{path}: truncated in frame {index} of {frame_count}")]
    Truncated {
        /// The recording.
        path: PathBuf,
        /// Which frame, from 0.
        index: u64,
        /// How many there should be.
        frame_count: u64,
    },
}

const fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}

fn geometry_of(header: &RecordingHeader) -> RingGeometry {
    RingGeometry {
        slot_count: 2,
        max_columns: header.max_columns,
        max_rows: header.max_rows,
        payload_capacity: header.max_payload_bytes,
        policy: DropPolicy::DropNewest,
    }
}

/// Writes a recording; not valid before [`RecordingWriter::finish`].
#[derive(Debug)]
pub struct RecordingWriter {
    file: BufWriter<File>,
    path: PathBuf,
    header: RecordingHeader,
}

impl RecordingWriter {
    /// A new file for frames of at most `max_columns` x `max_rows` pixels; an existing one is replaced.
    pub fn create(path: &Path, max_columns: u32, max_rows: u32) -> Result<Self, RecordingError> {
        let header = RecordingHeader {
            magic: RECORDING_MAGIC,
            version_major: VERSION_MAJOR,
            version_minor: VERSION_MINOR,
            header_bytes: RECORDING_HEADER_BYTES as u32,
            max_columns,
            max_rows,
            max_payload_bytes: (u64::from(max_columns) * u64::from(max_rows)).saturating_mul(4),
            ..RecordingHeader::zeroed()
        };
        check_limits(&header, path)?;
        let failed = |source| RecordingError::Io { path: path.into(), source };
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
        file.write_all(bytemuck::bytes_of(&RecordingHeader::zeroed())).map_err(failed)?;
        Ok(Self { file, path: path.into(), header })
    }

    /// Appends a frame. Version, `payload_bytes`, epoch (0) and CRCs are filled in.
    pub fn append(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), RecordingError> {
        let mut header = *header;
        header.epoch = 0;
        header.payload_bytes = payload.len() as u64;
        header.payload_crc32c = if header.has(FRAME_PAYLOAD_CRC) { crc32c(payload) } else { 0 };
        header.seal();
        let index = self.header.frame_count;
        header.validate(&geometry_of(&self.header)).map_err(|source| RecordingError::Frame {
            path: self.path.clone(),
            index,
            source,
        })?;
        let padding = (padded(header.payload_bytes) - header.payload_bytes) as usize;
        let mut write = || {
            self.file.write_all(bytemuck::bytes_of(&header))?;
            self.file.write_all(payload)?;
            self.file.write_all(&[0; 8][..padding])
        };
        write().map_err(|source| RecordingError::Io { path: self.path.clone(), source })?;
        self.header.frame_count += 1;
        Ok(())
    }

    /// Completes the file. Returns the number of frames.
    pub fn finish(mut self) -> Result<u64, RecordingError> {
        self.header.header_crc32c = header_crc(&self.header);
        let mut write = || {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(bytemuck::bytes_of(&self.header))?;
            self.file.flush()
        };
        write().map_err(|source| RecordingError::Io { path: self.path.clone(), source })?;
        Ok(self.header.frame_count)
    }
}

fn header_crc(header: &RecordingHeader) -> u32 {
    crc32c(&bytemuck::bytes_of(header)[..offset_of!(RecordingHeader, header_crc32c)])
}

fn check_limits(header: &RecordingHeader, path: &Path) -> Result<(), RecordingError> {
    let pixels = u64::from(header.max_columns) * u64::from(header.max_rows);
    let most_bytes = pixels.saturating_mul(4); // both may be nonsense here
    for (field, value, fits, wanted) in [
        ("max_columns", u64::from(header.max_columns), (1..=65536).contains(&header.max_columns), "must be 1 to 65536"),
        ("max_rows", header.max_rows.into(), (1..=65536).contains(&header.max_rows), "must be 1 to 65536"),
        (
            "max_payload_bytes",
            header.max_payload_bytes,
            (1..=most_bytes).contains(&header.max_payload_bytes),
            "must be 1 to max_columns x max_rows x 4",
        ),
    ] {
        if !fits {
            return Err(RecordingError::Header { path: path.into(), field, value, wanted });
        }
    }
    Ok(())
}

/// Reads a recording frame by frame; every frame is checked, memory is bounded by the file's size.
#[derive(Debug)]
pub struct RecordingReader {
    file: BufReader<File>,
    path: PathBuf,
    header: RecordingHeader,
    next: u64,
    left: u64,
    payload: Vec<u8>,
}

impl RecordingReader {
    /// Opens a recording and checks its header.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |source| RecordingError::Io { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let bad = |field, value, wanted| Err(RecordingError::Header { path: path.into(), field, value, wanted });
        let Some(left) = bytes.checked_sub(RECORDING_HEADER_BYTES as u64) else {
            return bad("file size", bytes, "must be at least 64 bytes");
        };
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut header = RecordingHeader::zeroed();
        file.read_exact(bytemuck::bytes_of_mut(&mut header)).map_err(failed)?;
        if header.magic == 0 {
            return bad("magic", 0, "the recording was not finished");
        }
        if header.magic != RECORDING_MAGIC {
            return bad("magic", header.magic, "must be \"DNRREC01\"");
        }
        if header.version_major != VERSION_MAJOR {
            return bad("version_major", header.version_major.into(), "must be this program's");
        }
        if header.header_crc32c != header_crc(&header) {
            return bad("header_crc32c", header.header_crc32c.into(), "does not fit the header: the file is damaged");
        }
        if header.header_bytes as usize != RECORDING_HEADER_BYTES {
            return bad("header_bytes", header.header_bytes.into(), "must be 64");
        }
        check_limits(&header, path)?;
        Ok(Self { file, path: path.into(), header, next: 0, left, payload: Vec::new() })
    }

    /// The file's header.
    pub fn header(&self) -> &RecordingHeader {
        &self.header
    }

    /// The next frame, header and payload; `None` after the last one.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, &[u8])>, RecordingError> {
        let (index, frame_count) = (self.next, self.header.frame_count);
        if index >= frame_count {
            return Ok(None);
        }
        let path = || self.path.clone();
        let truncated = || RecordingError::Truncated { path: path(), index, frame_count };
        self.left = self.left.checked_sub(FRAME_HEADER_BYTES as u64).ok_or_else(truncated)?;
        let mut header = FrameHeader::zeroed();
        let read = self.file.read_exact(bytemuck::bytes_of_mut(&mut header));
        read.map_err(|source| RecordingError::Io { path: path(), source })?;
        header.validate(&geometry_of(&self.header)).map_err(|source| RecordingError::Frame {
            path: path(),
            index,
            source,
        })?;
        // Before anything is allocated: the file must really hold so much.
        self.left = self.left.checked_sub(padded(header.payload_bytes)).ok_or_else(truncated)?;
        self.payload.resize(padded(header.payload_bytes) as usize, 0);
        let read = self.file.read_exact(&mut self.payload);
        read.map_err(|source| RecordingError::Io { path: path(), source })?;
        let payload = &self.payload[..header.payload_bytes as usize];
        if header.has(FRAME_PAYLOAD_CRC) {
            let computed = crc32c(payload);
            if computed != header.payload_crc32c {
                let source = FrameError::PayloadCrc { found: header.payload_crc32c, computed };
                return Err(RecordingError::Frame { path: path(), index, source });
            }
        }
        self.next += 1;
        Ok(Some((header, payload)))
    }
}
