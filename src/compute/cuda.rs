//! The operations as CUDA kernels (`kernels/`), a file an operation under the names of [`super::cpu`].
//!
//! ```text
//! operation (this module) ──▶ Launcher ──▶ driver: a GPU, the images of kernels/prebuilt
//! lengths, launch shape,      ▲       └──▶ executor: the same sources, compiled for the CPU, for tests (kernels/host)
//! argument block              └ recorder: the carrier's; makes one of all that an iteration asks for
//! ```
//!
//! Buffers are [`DeviceSlice`]s and stay on the device; operations are put in order on it and nothing is copied between them. What an
//! operation needs of a geometry is uploaded once, when it is planned ([`ScanTable`], [`FilterTable`], [`GaussianViews`]). An operation allocates nothing on the heap; how a launcher launches is its own matter
//! (the executor, for tests, does).
//!
//! [`CudaCompute`] makes these functions the carrier that the runtime asks for.

mod adam_step;
mod back_project_fdk;
mod back_project_matched;
mod carrier;
mod crc32c;
mod driver;
mod executor;
mod experts;
mod field_gradients;
mod field_operations;
mod field_project;
mod field_project_backward;
mod field_table;
mod field_voxelise;
mod field_voxelise_backward;
mod filter_rows;
mod forward_project;
mod gaussian_operations;
mod gaussian_project;
mod gaussian_project_backward;
mod gaussian_room;
mod gaussian_set;
mod gaussian_step;
mod gaussian_views;
mod gaussian_voxelise;
mod gaussian_voxelise_backward;
mod launcher;
mod line_integrals;
mod loss_image;
mod loss_volume;
mod loss_window;
mod memory;
mod operations;
mod record_cache;
mod recorder;
mod registered;
mod sart;
mod scan_table;
mod slices;
mod sum;
mod tally;
mod tape;
mod total_variation;
mod values;
mod views;
mod weight_projections;

pub use adam_step::{adam_step, changing};
pub use back_project_fdk::back_project_fdk;
pub use back_project_matched::back_project_matched;
pub use carrier::CudaCompute;
pub use crc32c::crc32c;
pub use driver::{DeviceFacts, Driver, IMAGES, Image, Registration, STAGING_BYTES, present};
pub use executor::{Executor, Turns};
pub use experts::{ExpertsTable, add_experts_gradient};
pub use field_gradients::FieldGradientRoom;
pub use field_project::{DeviceRays, PixelRecord, RayTable, RayView, field_project};
pub use field_project_backward::field_project_backward;
pub use field_table::{DeviceField, DeviceFieldGradients, FieldTable, LevelRecord};
pub use field_voxelise::{field_voxelise, jitter_key};
pub use field_voxelise_backward::field_voxelise_backward;
pub use filter_rows::{FilterTable, filter_rows};
pub use forward_project::forward_project;
pub use gaussian_project::gaussian_project;
pub use gaussian_project_backward::gaussian_project_backward;
pub use gaussian_room::GaussianRoom;
pub use gaussian_set::DeviceGaussians;
pub use gaussian_step::{add_position_norms, settle_gaussians, weigh_density_gradient};
pub use gaussian_views::GaussianViews;
pub use gaussian_voxelise::gaussian_voxelise;
pub use gaussian_voxelise_backward::gaussian_voxelise_backward;
pub use launcher::{Arguments, Captured, LaunchShape, Launcher};
pub use line_integrals::{CountsRoom, DeviceCorrection, line_integrals};
pub use loss_image::{ImageLossSums, image_loss};
pub use loss_volume::{VolumeSsimRoom, volume_ssim_loss};
pub use memory::{Arena, DeviceSlice};
pub use recorder::GroupCounts;
pub use registered::{Pending, Registered};
pub use sart::{apply_correction, descend, squared_distance, squared_norm, weigh_residual};
pub use scan_table::{ScanTable, ViewRecord};
pub use slices::{SliceRoom, add_slices, deviations, farthest, first_beyond, gather_slices, leave_window};
pub use sum::DeviceSum;
pub use tally::Tally;
pub use tape::Tape;
pub use total_variation::{add_total_variation_gradient, total_variation};
pub use values::{add_modulus_gradient, add_scaled, copy_scaled, count_not_finite, dot, hold_at_zero, scale, subtract};
pub use views::{held_back_squares, mix_sharpened, take_aperture, times_root, whiten};
pub use weight_projections::{DeviceWeights, weight_projections};

use super::ComputeError;
use super::cpu::check_len;

/// A count as kernels take it.
fn count(operation: &'static str, what: &'static str, value: usize) -> Result<i32, ComputeError> {
    i32::try_from(value).map_err(|_| ComputeError::Setting {
        of: operation,
        setting: what,
        value: value as f64,
        requirement: "kernels count in 31 bits; take smaller parts",
    })
}
