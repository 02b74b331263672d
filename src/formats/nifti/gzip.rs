//! gzip on all cores: pieces are deflated independently and joined into one ordinary gzip member.
//!
//! Each piece but the last ends in a sync flush, so that the pieces' bits follow each other on whole bytes (RFC 1951, stored block
//! of length zero). The result does not depend on the number of threads.

use std::io::{self, Write};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use rayon::prelude::*;

/// Bytes of one piece: large enough that starting without a dictionary costs little.
const PIECE_BYTES: usize = 1 << 20;

/// Pieces that are gathered before they are deflated together.
const BATCH: usize = 16;

/// A writer that deflates what it is given; [`ParallelGzip::finish`] must be called.
pub(super) struct ParallelGzip<W: Write> {
    inner: W,
    waiting: Vec<u8>,
    crc: Crc,
}

impl<W: Write> ParallelGzip<W> {
    /// Begins a gzip member.
    pub(super) fn new(mut inner: W) -> io::Result<Self> {
        // Magic, deflate, no name, no time, fastest level, unknown system.
        inner.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255])?;
        Ok(Self { inner, waiting: Vec::with_capacity(BATCH * PIECE_BYTES), crc: Crc::new() })
    }

    /// Deflates what is left and ends the member.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.deflate_waiting()?;
        // An empty final block ends the stream.
        let end = deflate(&[], FlushCompress::Finish)?;
        self.inner.write_all(&end)?;
        self.inner.write_all(&self.crc.sum().to_le_bytes())?;
        self.inner.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.inner)
    }

    fn deflate_waiting(&mut self) -> io::Result<()> {
        let pieces: Vec<io::Result<(Vec<u8>, Crc)>> = self
            .waiting
            .par_chunks(PIECE_BYTES)
            .map(|piece| {
                let mut crc = Crc::new();
                crc.update(piece);
                Ok((deflate(piece, FlushCompress::Sync)?, crc))
            })
            .collect();
        for piece in pieces {
            let (bytes, crc) = piece?;
            self.inner.write_all(&bytes)?;
            self.crc.combine(&crc);
        }
        self.waiting.clear();
        Ok(())
    }
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BATCH * PIECE_BYTES - self.waiting.len();
        let taken = bytes.len().min(room);
        self.waiting.extend_from_slice(&bytes[..taken]);
        if self.waiting.len() == BATCH * PIECE_BYTES {
            self.deflate_waiting()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.deflate_waiting()?;
        self.inner.flush()
    }
}

fn deflate(piece: &[u8], flush: FlushCompress) -> io::Result<Vec<u8>> {
    let mut state = Compress::new(Compression::fast(), false);
    let mut out = Vec::with_capacity(piece.len() + piece.len() / 64 + 64);
    loop {
        let consumed = state.total_in() as usize;
        let before = out.len();
        let status = state.compress_vec(&piece[consumed..], &mut out, flush).map_err(io::Error::other)?;
        let all_in = state.total_in() as usize == piece.len();
        // With room to spare, everything pending has been written.
        if status == Status::StreamEnd || (all_in && out.len() < out.capacity()) {
            return Ok(out);
        }
        if out.len() == out.capacity() {
            out.reserve(1 << 16);
        } else if out.len() == before && !all_in {
            return Err(io::Error::other("deflate makes no progress"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn members_are_ordinary_whatever_their_length_and_content() {
        let mut state = 1_u32;
        let mut noise = |_: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for length in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 5, BATCH * PIECE_BYTES + 7] {
            for noisy in [false, true] {
                let bytes: Vec<u8> = (0..length).map(|n| if noisy { noise(n) } else { (n / 1000) as u8 }).collect();
                let mut writer = ParallelGzip::new(Vec::new()).unwrap();
                writer.write_all(&bytes).unwrap();
                let packed = writer.finish().unwrap();
                let mut back = Vec::new();
                // Reads one member only, and checks its CRC and length.
                let mut reader = GzDecoder::new(&packed[..]);
                reader.read_to_end(&mut back).unwrap();
                assert!(back == bytes, "{length} {noisy}");
                assert!(reader.into_inner().is_empty(), "nothing follows the member");
                assert!(noisy || packed.len() < length / 50 + 64, "{length}: {}", packed.len());
            }
        }
    }
}
