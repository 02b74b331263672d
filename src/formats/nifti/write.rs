//! Writing NIfTI-1.

use std::io::{self, Write};
use std::path::Path;

use glam::{DAffine3, DMat3, DQuat, DVec3};
use ndarray::{ArrayView3, Axis, Slice};

use super::super::{FormatError, SceneScale, write_whole};
use super::gzip::ParallelGzip;
use super::{HEADER_BYTES, PLANES};
use crate::geometry::VolumeGrid;

/// Description in the header of a volume in HU, or of unstated content.
const PLAIN: &[u8] = b"diffnr";

/// Description in the header of a volume in a scene's own values.
pub(super) const SCENE_VALUES: &[u8] = b"diffnr: scene values, not HU";

/// How voxels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// float32, exact.
    #[default]
    Float32,
    /// int16, rounded to whole HU and clamped to the type's range.
    Int16,
    /// uint8, for masks: rounded and clamped to 0..=255.
    Uint8,
}

/// From voxel indices of a grid in the gantry frame to the patient's world (RAS+, mm).
#[must_use]
pub fn grid_to_world_mm(grid: &VolumeGrid, patient_offset_mm: DVec3) -> DAffine3 {
    DAffine3 { matrix3: DMat3::from_diagonal(grid.voxel_mm), translation: grid.origin_mm() + patient_offset_mm }
}

/// Writes a reconstruction `[x][y][z]` in 1/mm: as HU where the scene's scale is absolute, else in the scene's own values.
///
/// # Errors
/// See [`write`].
pub fn write_mu(
    path: &Path,
    mu_per_mm: ArrayView3<'_, f32>,
    grid: &VolumeGrid,
    scale: &SceneScale,
    patient_offset_mm: DVec3,
    storage: Storage,
) -> Result<(), FormatError> {
    check_shape(path, mu_per_mm, grid)?;
    let affine = grid_to_world_mm(grid, patient_offset_mm);
    if scale.is_absolute {
        write_described(path, scale.volume_hu(mu_per_mm).view(), &affine, storage, PLAIN)
    } else {
        write_described(path, scale.volume_values(mu_per_mm).view(), &affine, storage, SCENE_VALUES)
    }
}

fn check_shape(path: &Path, values: ArrayView3<'_, f32>, grid: &VolumeGrid) -> Result<(), FormatError> {
    if values.shape() == grid.voxels {
        return Ok(());
    }
    let found = format!("{:?}", values.shape());
    Err(FormatError::field(path, "volume's shape", found, format!("must be {:?}, the grid's", grid.voxels)))
}

/// Writes values `[x][y][z]` on a grid of the gantry frame.
///
/// # Errors
/// See [`write`].
pub fn write_volume(
    path: &Path,
    values: ArrayView3<'_, f32>,
    grid: &VolumeGrid,
    patient_offset_mm: DVec3,
    storage: Storage,
) -> Result<(), FormatError> {
    check_shape(path, values, grid)?;
    write(path, values, &grid_to_world_mm(grid, patient_offset_mm), storage)
}

/// Writes values `[i][j][k]` with any affine (voxel indices to RAS+ mm); compressed where the name ends in `.gz`.
///
/// # Errors
/// [`FormatError`] where the name ends neither in `.nii` nor in `.nii.gz`, an axis is longer than the format allows (32767), or the file
/// cannot be written.
pub fn write(
    path: &Path,
    values: ArrayView3<'_, f32>,
    voxel_to_world_mm: &DAffine3,
    storage: Storage,
) -> Result<(), FormatError> {
    write_described(path, values, voxel_to_world_mm, storage, PLAIN)
}

fn write_described(
    path: &Path,
    values: ArrayView3<'_, f32>,
    voxel_to_world_mm: &DAffine3,
    storage: Storage,
    description: &[u8],
) -> Result<(), FormatError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    let compressed = name.ends_with(".nii.gz");
    if !compressed && !name.ends_with(".nii") {
        return Err(FormatError::damaged(path, "the name is not that of a NIfTI file", "end it in .nii or .nii.gz"));
    }
    let head = header(path, values.shape(), voxel_to_world_mm, storage, description)?;
    write_whole(path, |writer| {
        if compressed {
            let mut packed = ParallelGzip::new(writer)?;
            packed.write_all(&head)?;
            write_voxels(&mut packed, values, storage)?;
            packed.finish().map(|_| ())
        } else {
            writer.write_all(&head)?;
            write_voxels(writer, values, storage)
        }
    })
}

/// The header's 348 bytes and the four that say "no extension".
fn header(
    path: &Path,
    shape: &[usize],
    affine: &DAffine3,
    storage: Storage,
    description: &[u8],
) -> Result<Vec<u8>, FormatError> {
    let mut head = vec![0_u8; HEADER_BYTES + 4];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348_i32.to_le_bytes());
    put(38, b"r");
    put(40, &3_i16.to_le_bytes());
    for axis in 0..7 {
        let length = shape.get(axis).copied().unwrap_or(1);
        let short = i16::try_from(length).ok().filter(|&n| n > 0).ok_or_else(|| {
            FormatError::field(path, format!("dim[{}]", axis + 1), length, "NIfTI-1 axes hold 1 to 32767 voxels")
        })?;
        put(42 + 2 * axis, &short.to_le_bytes());
    }
    let (code, bits) = match storage {
        Storage::Float32 => (16_i16, 32_i16),
        Storage::Int16 => (4, 16),
        Storage::Uint8 => (2, 8),
    };
    put(70, &code.to_le_bytes());
    put(72, &bits.to_le_bytes());

    let m = affine.matrix3;
    let spacing = DVec3::new(m.x_axis.length(), m.y_axis.length(), m.z_axis.length());
    let flip = if m.determinant() < 0.0 { -1.0 } else { 1.0 };
    let rotation = DMat3::from_cols(m.x_axis / spacing.x, m.y_axis / spacing.y, flip * m.z_axis / spacing.z);
    // The qform can hold a rotation only; a sheared affine has the sform alone.
    let orthogonal = (rotation * rotation.transpose() - DMat3::IDENTITY).to_cols_array().iter().all(|e| e.abs() < 1e-6);
    let f32_at = |value: f64| (value as f32).to_le_bytes();
    put(76, &f32_at(flip));
    for axis in 0..3 {
        put(80 + 4 * axis, &f32_at(spacing[axis]));
    }
    put(108, &f32_at(352.0)); // vox_offset
    put(112, &f32_at(1.0)); // scl_slope
    put(123, &[2]); // xyzt_units: mm
    put(148, description);
    if orthogonal {
        let q = DQuat::from_mat3(&rotation);
        let q = if q.w < 0.0 { -q } else { q };
        put(252, &1_i16.to_le_bytes()); // qform_code: scanner
        for (slot, value) in [q.x, q.y, q.z].into_iter().chain(affine.translation.to_array()).enumerate() {
            put(256 + 4 * slot, &f32_at(value));
        }
    }
    put(254, &1_i16.to_le_bytes()); // sform_code: scanner
    for row in 0..3 {
        let line = [m.x_axis[row], m.y_axis[row], m.z_axis[row], affine.translation[row]];
        for (column, value) in line.into_iter().enumerate() {
            put(280 + 16 * row + 4 * column, &f32_at(value));
        }
    }
    put(344, b"n+1\0");
    Ok(head)
}

/// Writes planes of constant k, i fastest; sixteen planes are turned at a time, as in reading.
fn write_voxels(writer: &mut impl Write, values: ArrayView3<'_, f32>, storage: Storage) -> io::Result<()> {
    let (ni, nj, nk) = values.dim();
    let plane = ni * nj;
    let mut block = vec![0.0_f32; plane * PLANES.min(nk)];
    let mut bytes = Vec::new();
    for k0 in (0..nk).step_by(PLANES) {
        let planes = PLANES.min(nk - k0);
        let slab = values.slice_axis(Axis(2), Slice::from(k0..k0 + planes));
        for ((i, j, k), &value) in slab.indexed_iter() {
            block[k * plane + j * ni + i] = value;
        }
        let block = &block[..planes * plane];
        bytes.clear();
        match storage {
            Storage::Float32 => bytes.extend(block.iter().flat_map(|value| value.to_le_bytes())),
            Storage::Int16 => bytes.extend(block.iter().flat_map(|value| (value.round() as i16).to_le_bytes())),
            Storage::Uint8 => bytes.extend(block.iter().map(|value| value.round() as u8)),
        }
        writer.write_all(&bytes)?;
    }
    Ok(())
}
