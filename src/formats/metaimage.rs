//! MetaImage (`.mha`: header and voxels in one file; `.mhd`: voxels in a file beside), as ITK and RTK write it.
//!
//! Raw or zlib-compressed, either byte order, one channel, axes not rotated. Sizes are checked against the file before memory is
//! taken.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::read::ZlibDecoder;
use glam::DVec3;
use ndarray::{Array3, ArrayView3};

use super::{FormatError, MAX_PROJECTION_VALUES, write_whole};

/// Longest header accepted.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Deflate cannot expand beyond this ratio: a bound on what a compressed file can hold.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Element types that are read (as float32).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// MET_UCHAR
    U8,
    /// MET_SHORT
    I16,
    /// MET_USHORT
    U16,
    /// MET_INT
    I32,
    /// MET_UINT
    U32,
    /// MET_FLOAT
    F32,
    /// MET_DOUBLE
    F64,
}

impl Element {
    const NAMES: [(&'static str, Self); 7] = [
        ("MET_UCHAR", Self::U8),
        ("MET_SHORT", Self::I16),
        ("MET_USHORT", Self::U16),
        ("MET_INT", Self::I32),
        ("MET_UINT", Self::U32),
        ("MET_FLOAT", Self::F32),
        ("MET_DOUBLE", Self::F64),
    ];

    fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Decodes little-endian elements.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        macro_rules! each {
            ($type:ty) => {
                for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<{ size_of::<$type>() }>().0) {
                    *value = <$type>::from_le_bytes(*raw) as f32;
                }
            };
        }
        match self {
            Self::U8 => each!(u8),
            Self::I16 => each!(i16),
            Self::U16 => each!(u16),
            Self::I32 => each!(i32),
            Self::U32 => each!(u32),
            Self::F32 => each!(f32),
            Self::F64 => each!(f64),
        }
    }
}

/// An image in memory. ITK's index (i, j, k) is element `[[k, j, i]]`, centred at `offset_mm + (i, j, k) * spacing_mm`.
#[derive(Debug, Clone)]
pub struct MetaImage {
    /// Values `[k][j][i]`, i fastest, as on disk.
    pub values: Array3<f32>,
    /// Position of element (0, 0, 0).
    pub offset_mm: DVec3,
    /// Distance of neighbours along i, j, k.
    pub spacing_mm: DVec3,
    /// Element type on disk.
    pub element: Element,
}

/// Reads an `.mha` or `.mhd` of two or three dimensions.
///
/// # Errors
/// [`FormatError`] naming the header's field.
pub fn read(path: &Path) -> Result<MetaImage, FormatError> {
    let io_error = |source| FormatError::io(path, "read", source);
    let file = File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    let mut stream = BufReader::with_capacity(1 << 17, file);
    let (header, head_bytes) = Header::read(path, &mut stream)?;
    if header.data_file == "LOCAL" {
        return header.read_values(path, stream, length - head_bytes);
    }
    let relative = Path::new(&header.data_file);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain || header.data_file.is_empty() || header.data_file.contains('%') || header.data_file.starts_with("LIST") {
        return Err(FormatError::field(
            path,
            "ElementDataFile",
            &header.data_file,
            "must be LOCAL or one file beside the header (lists and patterns of files are not read)",
        ));
    }
    let data = path.with_file_name("").join(relative);
    let io_error = |source| FormatError::io(&data, "read", source);
    let file = File::open(&data).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    header.read_values(&data, BufReader::with_capacity(1 << 17, file), length)
}

/// Writes float32 values `[k][j][i]`, uncompressed: `.mha` in one file, `.mhd` with a `.raw` beside.
///
/// # Errors
/// [`FormatError`] where the name ends otherwise or the file cannot be written.
pub fn write(path: &Path, values: ArrayView3<'_, f32>, offset_mm: DVec3, spacing_mm: DVec3) -> Result<(), FormatError> {
    let raw = match path.extension().and_then(|extension| extension.to_str()) {
        Some("mha") => None,
        Some("mhd") => Some(path.with_extension("raw")),
        _ => return Err(FormatError::damaged(path, "the name is not that of a MetaImage", "end it in .mha or .mhd")),
    };
    let data_file = match &raw {
        None => "LOCAL".to_string(),
        Some(raw) => raw.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    let (nk, nj, ni) = values.dim();
    let line = |v: DVec3| format!("{} {} {}", v.x, v.y, v.z);
    let head = format!(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
         TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = {}\nCenterOfRotation = 0 0 0\nElementSpacing = {}\n\
         DimSize = {ni} {nj} {nk}\nElementType = MET_FLOAT\nElementDataFile = {data_file}\n",
        line(offset_mm),
        line(spacing_mm),
    );
    let write_values = |writer: &mut dyn Write| -> io::Result<()> {
        values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))
    };
    if let Some(raw) = &raw {
        write_whole(raw, |writer| write_values(writer))?;
    }
    write_whole(path, |writer| {
        writer.write_all(head.as_bytes())?;
        if raw.is_none() { write_values(writer) } else { Ok(()) }
    })
}

/// The fields of a header that matter here.
struct Header {
    path: PathBuf,
    size: [usize; 3],
    offset: DVec3,
    spacing: DVec3,
    element: Element,
    big_endian: bool,
    compressed: bool,
    /// Bytes before the voxels in their own file; `None`: voxels are at its end.
    skip: Option<u64>,
    data_file: String,
}

impl Header {
    /// Reads lines up to `ElementDataFile`, which the format puts last.
    fn read(path: &Path, stream: &mut impl Read) -> Result<(Self, u64), FormatError> {
        let mut header = Self {
            path: path.to_path_buf(),
            size: [0; 3],
            offset: DVec3::ZERO,
            spacing: DVec3::ONE,
            element: Element::F32,
            big_endian: false,
            compressed: false,
            skip: Some(0),
            data_file: String::new(),
        };
        let (mut read, mut dimensions, mut sized, mut typed) = (0_usize, 3_usize, false, false);
        loop {
            let line = next_line(path, stream, &mut read)?;
            let Some((key, value)) = line.split_once('=') else {
                return Err(FormatError::damaged(
                    path,
                    format!("the header's line {:?} is not \"key = value\"", line.chars().take(40).collect::<String>()),
                    "this is no MetaImage",
                ));
            };
            let (key, value) = (key.trim(), value.trim());
            let bad = |requirement: &str| FormatError::field(path, key, value, requirement);
            let yes = || match value.to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(bad("must be True or False")),
            };
            match key {
                "ObjectType" if value != "Image" => return Err(bad("must be Image")),
                "NDims" => {
                    dimensions =
                        value.parse().ok().filter(|n| (2..=3).contains(n)).ok_or_else(|| bad("must be 2 or 3"))?;
                }
                "BinaryData" if !yes()? => return Err(bad("voxels as text are not read; save binary data")),
                "BinaryDataByteOrderMSB" | "ElementByteOrderMSB" => header.big_endian = yes()?,
                "CompressedData" => header.compressed = yes()?,
                "ElementNumberOfChannels" if value != "1" => return Err(bad("only one channel is read")),
                "HeaderSize" => {
                    let number: i64 = value.parse().map_err(|_| bad("must be a whole number"))?;
                    header.skip = if number == -1 {
                        None
                    } else {
                        Some(u64::try_from(number).map_err(|_| bad("must be -1 or at least 0"))?)
                    };
                }
                "TransformMatrix" | "Rotation" | "Orientation" => {
                    let matrix =
                        floats(value, dimensions * dimensions).ok_or_else(|| bad("must hold finite numbers"))?;
                    let identity = |at: usize| f64::from(u8::from(at.is_multiple_of(dimensions + 1)));
                    if matrix.iter().enumerate().any(|(at, element)| (element - identity(at)).abs() > 1e-6) {
                        return Err(bad("must be the identity; resample the image along its axes"));
                    }
                }
                "Offset" | "Position" | "Origin" => {
                    header.offset =
                        vector(value, dimensions, 0.0).ok_or_else(|| bad("must be finite numbers, one an axis"))?
                }
                "ElementSpacing" => {
                    header.spacing = vector(value, dimensions, 1.0)
                        .filter(|spacing| spacing.min_element() > 0.0)
                        .ok_or_else(|| bad("must be numbers > 0, one an axis"))?;
                }
                "DimSize" => {
                    sized = true;
                    header.size =
                        sizes(value, dimensions).ok_or_else(|| bad("must be whole numbers > 0, one an axis"))?;
                    let whole = header.size.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
                    if whole.is_none_or(|n| n > MAX_PROJECTION_VALUES) {
                        return Err(bad("absurdly large; the header is damaged"));
                    }
                }
                "ElementType" => {
                    typed = true;
                    let known = Element::NAMES.iter().find(|(name, _)| *name == value);
                    header.element = known.ok_or_else(|| bad("this element type is not read; save MET_FLOAT"))?.1;
                }
                "ElementDataFile" => {
                    header.data_file = value.to_string();
                    break;
                }
                // Fields such as AnatomicalOrientation say nothing about where voxels are.
                _ => {}
            }
        }
        for (there, key) in [(sized, "DimSize"), (typed, "ElementType")] {
            if !there {
                return Err(FormatError::field(path, key, "(missing)", "this field is required"));
            }
        }
        Ok((header, read as u64))
    }

    /// Reads the voxels from a stream that holds `held` bytes.
    fn read_values(self, path: &Path, mut stream: impl Read, held: u64) -> Result<MetaImage, FormatError> {
        let count: usize = self.size.iter().product();
        let bytes = (count * self.element.bytes()) as u64;
        let skip = match self.skip {
            Some(skip) => skip,
            None => held.saturating_sub(bytes),
        };
        let most = held.saturating_sub(skip).saturating_mul(if self.compressed { MAX_DEFLATE_RATIO } else { 1 });
        if bytes > most {
            return Err(FormatError::damaged(
                path,
                format!("DimSize = {:?} asks for {bytes} bytes of voxels, the file can hold at most {most}", self.size),
                "the file is truncated: copy or write it again",
            ));
        }
        io::copy(&mut stream.by_ref().take(skip), &mut io::sink())
            .map_err(|source| FormatError::io(path, "read", source))?;
        let [ni, nj, nk] = self.size;
        let mut values = Array3::zeros((nk, nj, ni));
        let out = values.as_slice_mut().unwrap_or_default();
        if self.compressed {
            self.decode(path, ZlibDecoder::new(stream), out)?;
        } else {
            self.decode(path, stream, out)?;
        }
        if let Some(at) = values.iter().position(|value: &f32| !value.is_finite()) {
            let place = format!("element [{}, {}, {}]", at % ni, at / ni % nj, at / (ni * nj));
            return Err(FormatError::field(path, place, "NaN or infinite", "values must be finite"));
        }
        Ok(MetaImage { values, offset_mm: self.offset, spacing_mm: self.spacing, element: self.element })
    }

    fn decode(&self, path: &Path, mut stream: impl Read, out: &mut [f32]) -> Result<(), FormatError> {
        let width = self.element.bytes();
        let mut buffer = vec![0_u8; (1 << 16).min(out.len() * width)];
        let whole = buffer.len() / width;
        for piece in out.chunks_mut(whole.max(1)) {
            let bytes = &mut buffer[..piece.len() * width];
            stream.read_exact(bytes).map_err(|source| {
                FormatError::damaged(
                    path,
                    format!("the voxels cannot be read: {source}"),
                    format!("the file is truncated or damaged (header: {})", self.path.display()),
                )
            })?;
            if self.big_endian {
                bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
            }
            self.element.decode(bytes, piece);
        }
        Ok(())
    }
}

fn next_line(path: &Path, stream: &mut impl Read, read: &mut usize) -> Result<String, FormatError> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0_u8];
        let got = stream.read(&mut byte).map_err(|source| FormatError::io(path, "read", source))?;
        *read += got;
        if got == 0 || *read > MAX_HEADER_BYTES {
            return Err(FormatError::damaged(
                path,
                "the header does not end with ElementDataFile",
                "this is no MetaImage, or it is truncated",
            ));
        }
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    String::from_utf8(line)
        .map_err(|_| FormatError::damaged(path, "the header is not text", "this is no MetaImage"))
        .map(|line| line.trim_end_matches('\r').to_string())
}

fn floats(text: &str, count: usize) -> Option<Vec<f64>> {
    let numbers: Option<Vec<f64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    numbers.filter(|numbers| numbers.len() == count && numbers.iter().all(|number| number.is_finite()))
}

fn vector(text: &str, dimensions: usize, third: f64) -> Option<DVec3> {
    let numbers = floats(text, dimensions)?;
    Some(DVec3::new(numbers[0], numbers[1], numbers.get(2).copied().unwrap_or(third)))
}

fn sizes(text: &str, dimensions: usize) -> Option<[usize; 3]> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut sizes = [1; 3];
    for (size, word) in sizes.iter_mut().zip(&words) {
        *size = word.parse().ok().filter(|&n| n > 0)?;
    }
    (words.len() == dimensions).then_some(sizes)
}

#[cfg(test)]
mod tests;
