//! NIfTI-1 volumes (`.nii`, `.nii.gz`) with any affine.
//!
//! The world is NIfTI's: RAS+ in mm (x grows to the patient's **R**ight, y to **A**nterior, z to **S**uperior). Our volumes lie in
//! the gantry frame, whose axes are the world's; only `patient_offset_mm` stands between the two.
//!
//! Headers are parsed by the crate `nifti`; voxels are decoded here, so that a damaged header cannot make memory grow beyond what
//! the file holds, and written here, because the crate loses write errors of its buffer and renames files with dots in their
//! names.

mod gzip;
mod resample;
mod write;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use glam::{DAffine3, DMat3, DQuat, DVec3};
use ndarray::{Array3, ArrayView3, Axis, Slice};
use nifti::{Endianness, NiftiHeader};

use super::{FormatError, MAX_VOXELS};

pub use write::{Storage, grid_to_world_mm, write, write_mu, write_volume};

/// Planes that are transposed together: a run of sixteen in memory keeps it from missing the cache at every voxel.
const PLANES: usize = 16;

/// Bytes of a NIfTI-1 header.
const HEADER_BYTES: usize = 348;

/// Deflate cannot expand beyond this ratio: a bound on what a compressed file can hold.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// A CT volume in Hounsfield units (or labels of a mask), as stored.
#[derive(Debug, Clone)]
pub struct CtVolume {
    /// Values `[i][j][k]` (k fastest in memory), `scl_slope` and `scl_inter` applied.
    pub hu: Array3<f32>,
    /// From voxel indices (i, j, k), which address centres, to the world (RAS+, mm).
    pub voxel_to_world_mm: DAffine3,
}

impl CtVolume {
    /// Voxel edges along i, j, k in mm.
    #[must_use]
    pub fn spacing_mm(&self) -> DVec3 {
        let m = self.voxel_to_world_mm.matrix3;
        DVec3::new(m.x_axis.length(), m.y_axis.length(), m.z_axis.length())
    }

    /// World position (mm) of the middle of the volume.
    #[must_use]
    pub fn centre_mm(&self) -> DVec3 {
        let (ni, nj, nk) = self.hu.dim();
        self.voxel_to_world_mm.transform_point3(0.5 * (DVec3::new(ni as f64, nj as f64, nk as f64) - 1.0))
    }
}

impl CtVolume {
    /// The values seen along the world's axes as nearly as turning and mirroring goes: `[x][y][z]`, RAS+, with the spacing along each in
    /// mm. Nothing is resampled; an oblique volume stays oblique by what is left of its rotation.
    #[must_use]
    pub fn canonical(&self) -> (ArrayView3<'_, f32>, [f64; 3]) {
        canonical(self.hu.view(), &self.voxel_to_world_mm)
    }
}

/// [`CtVolume::canonical`] of any values `[i][j][k]` with their affine.
#[must_use]
pub fn canonical<'a, T>(values: ArrayView3<'a, T>, voxel_to_world_mm: &DAffine3) -> (ArrayView3<'a, T>, [f64; 3]) {
    let matrix = voxel_to_world_mm.matrix3;
    let columns = [matrix.x_axis, matrix.y_axis, matrix.z_axis];
    let share = |stored: usize, world: usize| columns[stored][world] / columns[stored].length();
    let fit = |order: &[usize; 3]| (0..3).map(|world| share(order[world], world).abs()).sum::<f64>();
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let order = orders.into_iter().max_by(|a, b| fit(a).total_cmp(&fit(b))).unwrap_or([0, 1, 2]);
    let mut values = values.permuted_axes(order);
    for (world, &stored) in order.iter().enumerate() {
        if share(stored, world) < 0.0 {
            values.invert_axis(Axis(world));
        }
    }
    (values, order.map(|stored| columns[stored].length()))
}

/// Reads a three-dimensional NIfTI-1 volume: uint8, int8, uint16, int16, uint32, int32, float32 or float64, either byte order.
///
/// The affine is the sform where there is one, else the qform, else pixdim alone (NIfTI's method 1).
///
/// # Errors
/// [`FormatError`] naming the header's field; also for voxels that are not finite and for truncated data.
pub fn read_ct(path: &Path) -> Result<CtVolume, FormatError> {
    let (stream, most_bytes) = open(path)?;
    decode(path, stream, most_bytes)
}

/// Whether a file says that it holds a scene's own values instead of HU (see [`write_mu`]).
///
/// # Errors
/// See [`read_ct`].
pub fn holds_scene_values(path: &Path) -> Result<bool, FormatError> {
    let (stream, _) = open(path)?;
    let header = read_header(path, stream)?;
    Ok(header.descrip.starts_with(write::SCENE_VALUES))
}

fn open(path: &Path) -> Result<(Box<dyn Read>, u64), FormatError> {
    let io_error = |source| FormatError::io(path, "read", source);
    let mut file = File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    let mut magic = [0_u8; 2];
    let compressed = file.read(&mut magic).map_err(io_error)? == 2 && magic == [0x1f, 0x8b];
    let file = BufReader::with_capacity(1 << 17, File::open(path).map_err(io_error)?);
    if compressed {
        Ok((Box::new(MultiGzDecoder::new(file)), length.saturating_mul(MAX_DEFLATE_RATIO)))
    } else {
        Ok((Box::new(file), length))
    }
}

fn read_header(path: &Path, mut stream: impl Read) -> Result<NiftiHeader, FormatError> {
    let mut head = [0_u8; HEADER_BYTES];
    stream.read_exact(&mut head).map_err(|source| short(path, source))?;
    parse_header(path, &head)
}

/// Reads header and voxels from a stream that can hold at most `most_bytes`.
pub(super) fn decode(path: &Path, mut stream: impl Read, most_bytes: u64) -> Result<CtVolume, FormatError> {
    let header = read_header(path, &mut stream)?;
    let shape = shape(path, &header)?;
    let kind = Kind::of(path, &header)?;
    let offset = f64::from(header.vox_offset);
    if !(348.0..=1e8).contains(&offset) {
        return Err(FormatError::field(
            path,
            "vox_offset",
            offset,
            "must lie between 352 and 1e8 in a single-file NIfTI",
        ));
    }
    let needed = offset as u64 + (shape.iter().product::<usize>() * kind.bytes()) as u64;
    if needed > most_bytes {
        return Err(FormatError::damaged(
            path,
            format!("the header asks for {needed} bytes (dim {shape:?}), the file can hold at most {most_bytes}"),
            "the file is truncated: copy it again",
        ));
    }
    let gap = offset as u64 - HEADER_BYTES as u64;
    let skipped = io::copy(&mut stream.by_ref().take(gap), &mut io::sink()).map_err(|source| short(path, source))?;
    if skipped < gap {
        return Err(short(path, io::ErrorKind::UnexpectedEof.into()));
    }
    let voxel_to_world_mm = affine(path, &header)?;
    let (slope, inter) = scaling(path, &header)?;
    let hu = read_voxels(path, stream, shape, kind, header.endianness == Endianness::Big, slope, inter)?;
    Ok(CtVolume { hu, voxel_to_world_mm })
}

fn short(path: &Path, source: io::Error) -> FormatError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        FormatError::damaged(path, "the file ends before its data do", "it is truncated: copy it again")
    } else {
        FormatError::damaged(path, format!("cannot be read: {source}"), "it is damaged: copy it again")
    }
}

fn parse_header(path: &Path, head: &[u8; HEADER_BYTES]) -> Result<NiftiHeader, FormatError> {
    let size = i32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let sizes = [size, size.swap_bytes()];
    if sizes.contains(&540) {
        return Err(FormatError::field(path, "sizeof_hdr", 540, "NIfTI-2 is not read; save it as NIfTI-1"));
    }
    if !sizes.contains(&348) {
        return Err(FormatError::field(path, "sizeof_hdr", size, "must be 348: this is no NIfTI-1 file"));
    }
    let header = NiftiHeader::from_reader(&head[..]).map_err(|error| {
        FormatError::damaged(path, format!("not a NIfTI-1 header: {error}"), "save it as .nii or .nii.gz")
    })?;
    if header.sizeof_hdr != 348 {
        return Err(FormatError::field(path, "dim[0]", header.dim[0], "does not fit the byte order of sizeof_hdr"));
    }
    if &header.magic != b"n+1\0" {
        return Err(FormatError::field(
            path,
            "magic",
            String::from_utf8_lossy(&header.magic[..3]),
            "header and voxels in two files (.hdr/.img) are not read; save a single .nii",
        ));
    }
    let space = header.xyzt_units & 7;
    if space != 0 && space != 2 {
        return Err(FormatError::field(path, "xyzt_units", space, "lengths must be in mm (code 2)"));
    }
    Ok(header)
}

fn shape(path: &Path, header: &NiftiHeader) -> Result<[usize; 3], FormatError> {
    let axes = usize::from(header.dim[0]);
    let lengths: Vec<usize> = header.dim[1..].iter().map(|&n| usize::from(n)).collect();
    if !(1..=7).contains(&axes) {
        return Err(FormatError::field(path, "dim[0]", axes, "must be between 1 and 7"));
    }
    let used = &lengths[..axes];
    if used.contains(&0) || used.iter().skip(3).any(|&n| n != 1) {
        return Err(FormatError::field(path, "dim", format!("{used:?}"), "must be one three-dimensional volume"));
    }
    let length = |axis: usize| used.get(axis).copied().unwrap_or(1);
    let shape = [length(0), length(1), length(2)];
    if shape.iter().product::<usize>() > MAX_VOXELS {
        return Err(FormatError::field(path, "dim", format!("{shape:?}"), format!("more than {MAX_VOXELS} voxels")));
    }
    Ok(shape)
}

/// How a voxel is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    F64,
}

impl Kind {
    fn of(path: &Path, header: &NiftiHeader) -> Result<Self, FormatError> {
        Ok(match header.datatype {
            2 => Self::U8,
            256 => Self::I8,
            512 => Self::U16,
            4 => Self::I16,
            768 => Self::U32,
            8 => Self::I32,
            16 => Self::F32,
            64 => Self::F64,
            code => {
                let name = match code {
                    32 | 1792 | 2048 => "complex numbers",
                    128 | 2304 => "colours",
                    1024 | 1280 => "64-bit integers",
                    1536 => "128-bit floats",
                    1 => "single bits",
                    _ => "an unknown type",
                };
                return Err(FormatError::field(path, "datatype", code, format!("{name}: save it as int16 or float32")));
            }
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Decodes little-endian voxels.
    fn decode(self, bytes: &[u8], out: &mut [f64]) {
        macro_rules! each {
            ($type:ty) => {
                for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<{ size_of::<$type>() }>().0) {
                    *value = <$type>::from_le_bytes(*raw) as f64;
                }
            };
        }
        match self {
            Self::U8 => each!(u8),
            Self::I8 => each!(i8),
            Self::U16 => each!(u16),
            Self::I16 => each!(i16),
            Self::U32 => each!(u32),
            Self::I32 => each!(i32),
            Self::F32 => each!(f32),
            Self::F64 => each!(f64),
        }
    }
}

/// Slope and intercept; a slope of zero means that values stand as they are.
fn scaling(path: &Path, header: &NiftiHeader) -> Result<(f64, f64), FormatError> {
    let (slope, inter) = (f64::from(header.scl_slope), f64::from(header.scl_inter));
    if slope == 0.0 || !slope.is_finite() {
        return Ok((1.0, 0.0));
    }
    if !inter.is_finite() {
        return Err(FormatError::field(path, "scl_inter", inter, "must be finite"));
    }
    Ok((slope, inter))
}

fn affine(path: &Path, header: &NiftiHeader) -> Result<DAffine3, FormatError> {
    let (name, affine) = if header.sform_code > 0 {
        let rows = [header.srow_x, header.srow_y, header.srow_z].map(|row| row.map(f64::from));
        let column = |c: usize| DVec3::new(rows[0][c], rows[1][c], rows[2][c]);
        ("srow", DAffine3 { matrix3: DMat3::from_cols(column(0), column(1), column(2)), translation: column(3) })
    } else {
        let spacing = DVec3::new(header.pixdim[1].into(), header.pixdim[2].into(), header.pixdim[3].into());
        if header.qform_code > 0 {
            let [b, c, d] = [header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from);
            // A unit quaternion; float32 rounding may leave a hair more than 1.
            let a = (1.0 - (b * b + c * c + d * d)).max(0.0).sqrt();
            let rotation = DMat3::from_quat(DQuat::from_xyzw(b, c, d, a).normalize());
            let flip = if header.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
            let origin = DVec3::new(header.quatern_x.into(), header.quatern_y.into(), header.quatern_z.into());
            let scale = DMat3::from_diagonal(spacing * DVec3::new(1.0, 1.0, flip));
            ("quatern and pixdim", DAffine3 { matrix3: rotation * scale, translation: origin })
        } else {
            ("pixdim", DAffine3 { matrix3: DMat3::from_diagonal(spacing), translation: DVec3::ZERO })
        }
    };
    let edges = affine.matrix3.x_axis.length() * affine.matrix3.y_axis.length() * affine.matrix3.z_axis.length();
    let volume = affine.matrix3.determinant().abs();
    // 1e-3: axes within 0.06 degrees of one plane are a damaged header, not an oblique scan.
    let usable = affine.is_finite() && edges.is_finite() && edges > 0.0 && volume > 1e-3 * edges;
    usable.then_some(affine).ok_or_else(|| {
        FormatError::field(
            path,
            name,
            format!("{:?}", affine.matrix3.to_cols_array()),
            "must be finite and span space (three independent axes, spacing > 0)",
        )
    })
}

/// Reads voxels stored i-fastest into `[i][j][k]`, sixteen planes at a time: a run of sixteen in memory keeps the transposition from
/// missing the cache at every voxel.
fn read_voxels(
    path: &Path,
    mut stream: impl Read,
    [ni, nj, nk]: [usize; 3],
    kind: Kind,
    big_endian: bool,
    slope: f64,
    inter: f64,
) -> Result<Array3<f32>, FormatError> {
    let plane = ni * nj;
    let mut hu = Array3::<f32>::zeros((ni, nj, nk));
    let mut bytes = vec![0_u8; plane * kind.bytes()];
    let mut decoded = vec![0.0_f64; plane];
    let mut block = vec![0.0_f32; plane * PLANES.min(nk)];
    for k0 in (0..nk).step_by(PLANES) {
        let planes = PLANES.min(nk - k0);
        for k in 0..planes {
            stream.read_exact(&mut bytes).map_err(|source| short(path, source))?;
            if big_endian {
                bytes.chunks_exact_mut(kind.bytes()).for_each(<[u8]>::reverse);
            }
            kind.decode(&bytes, &mut decoded);
            for (at, value) in decoded.iter().enumerate() {
                let value = (value * slope + inter) as f32;
                if !value.is_finite() {
                    let place = format!("voxel [{}, {}, {}]", at % ni, at / ni, k0 + k);
                    return Err(FormatError::field(
                        path,
                        place,
                        value,
                        "must be finite; fill holes with air (-1000 HU)",
                    ));
                }
                block[k * plane + at] = value;
            }
        }
        let mut slab = hu.slice_axis_mut(Axis(2), Slice::from(k0..k0 + planes));
        for ((i, j, k), value) in slab.indexed_iter_mut() {
            *value = block[k * plane + j * ni + i];
        }
    }
    Ok(hu)
}

#[cfg(test)]
mod tests;
