//! NumPy's `.npy` arrays (format versions 1 to 3), little-endian, C order.
//!
//! The header is parsed here and not by a general reader of Python literals, so that a hostile header can cost neither
//! memory (its length is limited) nor stack (nothing nests). Data sizes are checked against the file's length before
//! anything is allocated.

mod header;

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};

use super::{FormatError, MAX_VOXELS, write_whole};
use header::read_head;

/// Element types that are read; others are refused by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// `<f4`
    F32,
    /// `<f8`, converted to float32 where that is asked for.
    F64,
    /// `<u2`
    U16,
    /// `|u1`
    U8,
    /// `|b1`
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::U16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }
}

/// What the head of an `.npy` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type.
    pub dtype: Dtype,
    /// Length of each axis, slowest first.
    pub shape: Vec<usize>,
}

impl Header {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        // Overflow is refused by `open`.
        self.shape.iter().product()
    }

    /// Whether the array has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads the header alone.
///
/// # Errors
/// [`FormatError`] where the file cannot be opened, is no `.npy`, is in Fortran order, has an element type that is not read, or
/// where its length is not what the header asks for.
pub fn read_header(path: &Path) -> Result<Header, FormatError> {
    open(path).map(|(header, _)| header)
}

/// Reads an array of `shape` as float32 into `out` (float64 is converted), e.g. one view of a stack.
///
/// # Errors
/// See [`read_header`]; also where the shape differs from `shape`. The message tells both.
///
/// # Panics
/// When `out` does not have the elements of `shape`, a mistake of the caller.
pub fn read_f32_into(path: &Path, shape: &[usize], out: &mut [f32]) -> Result<(), FormatError> {
    assert_eq!(out.len(), shape.iter().product::<usize>());
    let (header, mut reader) = open_shaped(path, shape)?;
    fill_f32(path, &header, &mut reader, out)
}

/// Reads an array of `shape` as uint16 into `out`.
///
/// # Errors
/// See [`read_f32_into`].
///
/// # Panics
/// When `out` does not have the elements of `shape`, a mistake of the caller.
pub fn read_u16_into(path: &Path, shape: &[usize], out: &mut [u16]) -> Result<(), FormatError> {
    assert_eq!(out.len(), shape.iter().product::<usize>());
    let (header, mut reader) = open_shaped(path, shape)?;
    if header.dtype != Dtype::U16 {
        return Err(FormatError::field(
            path,
            "descr",
            format!("{:?}", header.dtype),
            "raw counts must be uint16 (`array.astype('<u2')`)",
        ));
    }
    let mut values = out.iter_mut();
    in_chunks(path, &mut reader, 2 * out_len(shape), |chunk| {
        for (bytes, value) in chunk.as_chunks::<2>().0.iter().zip(&mut values) {
            *value = u16::from_le_bytes(*bytes);
        }
    })
}

/// Reads a two-dimensional image as float32.
///
/// # Errors
/// See [`read_header`].
pub fn read_image(path: &Path) -> Result<Array2<f32>, FormatError> {
    let (header, mut reader) = open(path)?;
    let &[rows, columns] = &header.shape[..] else {
        return Err(wrong_axes(path, &header, 2));
    };
    let mut image = Array2::zeros((rows, columns));
    fill_f32(path, &header, &mut reader, image.as_slice_mut().unwrap_or_default())?;
    Ok(image)
}

/// Reads a volume `[x][y][z]` as float32 (float64, uint16, uint8 and bool are converted).
///
/// # Errors
/// See [`read_header`]; also where it has not three axes or more than [`MAX_VOXELS`] voxels.
pub fn read_volume(path: &Path) -> Result<Array3<f32>, FormatError> {
    let (header, mut reader) = open(path)?;
    let &[nx, ny, nz] = &header.shape[..] else {
        return Err(wrong_axes(path, &header, 3));
    };
    if header.len() > MAX_VOXELS {
        return Err(FormatError::field(
            path,
            "shape",
            format!("{:?}", header.shape),
            format!("more than {MAX_VOXELS} voxels"),
        ));
    }
    let mut volume = Array3::zeros((nx, ny, nz));
    fill_f32(path, &header, &mut reader, volume.as_slice_mut().unwrap_or_default())?;
    Ok(volume)
}

/// Writes a volume `[x][y][z]` as float32.
///
/// # Errors
/// [`FormatError::Io`].
pub fn write_volume(path: &Path, volume: ArrayView3<'_, f32>) -> Result<(), FormatError> {
    let (nx, ny, nz) = volume.dim();
    write(path, "<f4", &[nx, ny, nz], volume.iter().map(|value| value.to_le_bytes()))
}

/// Writes an image `[row][column]` as float32.
///
/// # Errors
/// [`FormatError::Io`].
pub fn write_image(path: &Path, image: ArrayView2<'_, f32>) -> Result<(), FormatError> {
    let (rows, columns) = image.dim();
    write(path, "<f4", &[rows, columns], image.iter().map(|value| value.to_le_bytes()))
}

/// Writes an image `[row][column]` of raw counts as uint16.
///
/// # Errors
/// [`FormatError::Io`].
pub fn write_counts(path: &Path, image: ArrayView2<'_, u16>) -> Result<(), FormatError> {
    let (rows, columns) = image.dim();
    write(path, "<u2", &[rows, columns], image.iter().map(|value| value.to_le_bytes()))
}

fn out_len(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn wrong_axes(path: &Path, header: &Header, axes: usize) -> FormatError {
    FormatError::field(path, "shape", format!("{:?}", header.shape), format!("must have {axes} axes"))
}

fn open_shaped(path: &Path, shape: &[usize]) -> Result<(Header, BufReader<File>), FormatError> {
    let (header, reader) = open(path)?;
    if header.shape != shape {
        return Err(FormatError::field(
            path,
            "shape",
            format!("{:?}", header.shape),
            format!("must be {shape:?}, as the scan's description says"),
        ));
    }
    Ok((header, reader))
}

fn open(path: &Path) -> Result<(Header, BufReader<File>), FormatError> {
    let file = File::open(path).map_err(|source| FormatError::io(path, "read", source))?;
    let meta = file.metadata().map_err(|source| FormatError::io(path, "read", source))?;
    if !meta.is_file() {
        return Err(FormatError::damaged(path, "not a regular file", "give the path of an .npy file"));
    }
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (header, head_bytes) = read_head(path, &mut reader)?;
    let data_bytes = header
        .shape
        .iter()
        .try_fold(header.dtype.bytes(), |product, &length| product.checked_mul(length))
        .filter(|&bytes| bytes <= 8 * MAX_PROJECTION_BYTES)
        .ok_or_else(|| {
            FormatError::field(path, "shape", format!("{:?}", header.shape), "absurdly large; the header is damaged")
        })?;
    let held = meta.len().saturating_sub(head_bytes as u64);
    if held != data_bytes as u64 {
        return Err(FormatError::damaged(
            path,
            format!("the header asks for {data_bytes} bytes of data, the file holds {held}"),
            if held < data_bytes as u64 {
                "the file is truncated: copy or write it again"
            } else {
                "the file has bytes after its data: write it again with numpy.save"
            },
        ));
    }
    Ok((header, reader))
}

/// Bound on the data of one file that a header may ask for, before the file's length is compared.
const MAX_PROJECTION_BYTES: usize = super::MAX_PROJECTION_VALUES;

fn fill_f32(path: &Path, header: &Header, reader: &mut impl Read, out: &mut [f32]) -> Result<(), FormatError> {
    let bytes = header.dtype.bytes() * out.len();
    let mut values = out.iter_mut();
    in_chunks(path, reader, bytes, |chunk| match header.dtype {
        Dtype::F32 => {
            for (bytes, value) in chunk.as_chunks::<4>().0.iter().zip(&mut values) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Dtype::F64 => {
            for (bytes, value) in chunk.as_chunks::<8>().0.iter().zip(&mut values) {
                *value = f64::from_le_bytes(*bytes) as f32;
            }
        }
        Dtype::U16 => {
            for (bytes, value) in chunk.as_chunks::<2>().0.iter().zip(&mut values) {
                *value = f32::from(u16::from_le_bytes(*bytes));
            }
        }
        Dtype::U8 | Dtype::Bool => {
            for (byte, value) in chunk.iter().zip(&mut values) {
                *value = f32::from(*byte);
            }
        }
    })
}

/// Hands over `bytes` bytes in pieces whose length is a multiple of 8 (but for the last).
fn in_chunks(
    path: &Path,
    reader: &mut impl Read,
    mut bytes: usize,
    mut take: impl FnMut(&[u8]),
) -> Result<(), FormatError> {
    let mut buffer = vec![0_u8; bytes.min(1 << 16)];
    while bytes > 0 {
        let chunk = bytes.min(buffer.len());
        let piece = &mut buffer[..chunk];
        reader.read_exact(piece).map_err(|source| FormatError::io(path, "read", source))?;
        take(piece);
        bytes -= chunk;
    }
    Ok(())
}

fn write<const N: usize>(
    path: &Path,
    descr: &str,
    shape: &[usize],
    values: impl Iterator<Item = [u8; N]>,
) -> Result<(), FormatError> {
    write_whole(path, |writer| -> io::Result<()> {
        let lengths: String = shape.iter().map(|length| format!("{length}, ")).collect();
        let mut head = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", lengths.trim_end());
        // Data start at a multiple of 64 bytes, as NumPy writes it.
        while (10 + head.len() + 1) % 64 != 0 {
            head.push(' ');
        }
        head.push('\n');
        writer.write_all(b"\x93NUMPY\x01\x00")?;
        writer.write_all(&(head.len() as u16).to_le_bytes())?;
        writer.write_all(head.as_bytes())?;
        for value in values {
            writer.write_all(&value)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
