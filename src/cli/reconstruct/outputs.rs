//! What `diffnr reconstruct` writes.

use std::path::Path;

use ndarray::ArrayView3;

use super::Arguments;
use crate::cli::Failure;
use crate::error::exit;
use crate::formats::nifti::{self, Storage};
use crate::formats::picture::{self, Panel};
use crate::formats::{FormatError, Scan, SceneScale, npy};
use crate::geometry::VolumeGrid;

fn is_npy(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".npy")
}

/// Refuses names and folders that cannot be written, before the work is done.
pub(super) fn check(arguments: &Arguments) -> Result<(), Failure> {
    let refuse = |message: String, code: u8| Err(Failure { message, code });
    for path in &arguments.output {
        let name = path.to_string_lossy();
        if !(is_npy(path) || name.ends_with(".nii") || name.ends_with(".nii.gz")) {
            return refuse(format!("{name}: no volume's name; end it in .nii.gz, .nii or .npy"), exit::USAGE);
        }
    }
    for path in arguments.output.iter().chain(&arguments.png).chain(arguments.trace.file()) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return refuse(format!("{}: the folder {} does not exist", path.display(), folder.display()), exit::OUTPUT);
        }
    }
    Ok(())
}

/// Unit of NIfTI volumes.
pub(super) fn unit(scale: &SceneScale) -> &'static str {
    if scale.is_absolute { "HU" } else { "scene value" }
}

/// Writes volume and picture; `volume` is in 1/mm.
pub(super) fn write(
    arguments: &Arguments,
    scan: &Scan,
    grid: &VolumeGrid,
    volume: ArrayView3<'_, f32>,
) -> Result<(), Failure> {
    let output = |error: FormatError| Failure::new(exit::OUTPUT, &error);
    for path in &arguments.output {
        if is_npy(path) {
            npy::write_volume(path, scan.scale.volume_values(volume).view()).map_err(output)?;
        } else {
            nifti::write_mu(path, volume, grid, &scan.scale, scan.patient_offset_mm, Storage::Float32)
                .map_err(output)?;
        }
    }
    if let Some(path) = &arguments.png {
        let (values, window) = if scan.scale.is_absolute {
            (scan.scale.volume_hu(volume), picture::Window::WIDE)
        } else {
            (scan.scale.volume_values(volume), picture::Window { low: 0.0, high: 1.0, unit: "value" })
        };
        let panel = Panel {
            volume: values.view(),
            spacing_mm: grid.voxel_mm.to_array(),
            caption: format!(
                "{}, {} views, {}",
                arguments.method.title(),
                scan.geometry.views.len(),
                arguments.scan.display()
            ),
        };
        picture::write_slices(path, &panel, window).map_err(output)?;
    }
    Ok(())
}
