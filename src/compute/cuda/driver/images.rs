//! The images of the kernels, built in. Each holds code for sm_80, sm_90 and sm_120, and PTX, from which the driver compiles for other
//! devices when the image is loaded.

#![forbid(unsafe_code)]

/// An image and the kernels in it.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Name of the file without its ending.
    pub name: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    /// The kernels, by the names that they are launched by.
    pub kernels: &'static [&'static str],
}

/// As the driver reads numbers in it where they stand.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

macro_rules! image {
    ($name:literal, $kernels:expr) => {
        Image {
            name: $name,
            bytes: {
                static FILE: &Aligned<[u8]> =
                    &Aligned(*include_bytes!(concat!("../../../../kernels/prebuilt/", $name, ".fatbin")));
                &FILE.0
            },
            kernels: &$kernels,
        }
    };
}

/// All of `kernels/prebuilt` (`tests/conformance/prebuilt.rs` compares).
pub const IMAGES: &[Image] = &[
    image!("adam_step", ["adam_step"]),
    image!("back_project_fdk", ["back_project_fdk"]),
    image!("back_project_matched", ["back_project_matched", "back_project_level"]),
    image!("crc32c", ["crc32c"]),
    image!("experts", ["add_experts_gradient"]),
    image!("field_gradients", ["absolute_sum", "field_scales", "add_table_gradients", "add_network_gradient"]),
    image!("field_project", ["field_project"]),
    image!("field_project_backward", ["field_project_backward"]),
    image!("field_voxelise", ["field_voxelise"]),
    image!("field_voxelise_backward", ["field_voxelise_backward"]),
    image!("filter_rows", ["filter_rows"]),
    image!("forward_project", ["forward_project"]),
    image!("gaussian_lists", ["plan_passes", "scan_tiles", "sort_tiles"]),
    image!(
        "gaussian_project",
        ["see_gaussians", "count_pixel_entries", "count_pixel_tiles", "fill_pixel_tiles", "gaussian_project"]
    ),
    image!("gaussian_project_backward", ["weigh_pixels", "gaussian_project_backward", "add_pixel_gradients"]),
    image!("gaussian_step", ["weigh_density_gradient", "add_position_norms", "settle_gaussians"]),
    image!(
        "gaussian_voxelise",
        ["place_gaussians", "count_voxel_entries", "count_voxel_tiles", "fill_voxel_tiles", "gaussian_voxelise"]
    ),
    image!("gaussian_voxelise_backward", ["gaussian_voxelise_backward", "add_voxel_gradients"]),
    image!("line_integrals", ["line_integrals", "replace_bad_pixels"]),
    image!("loss_image", ["compare_images", "add_image_similarity"]),
    image!("loss_volume", ["find_slices", "share_slices", "add_similarity_across", "add_similarity_across_z"]),
    image!("parameters", ["set_parameters"]),
    image!("sart", ["weigh_residual", "apply_correction", "descend", "squared_norm", "squared_distance"]),
    image!(
        "slices",
        [
            "gather_slices",
            "gather_slices_across_z",
            "add_slices",
            "add_slices_across_z",
            "find_farthest",
            "find_first_beyond",
            "leave_window",
            "deviations"
        ]
    ),
    image!("sum", ["sum_partials"]),
    image!("total_variation", ["total_variation", "add_total_variation_gradient"]),
    image!(
        "values",
        [
            "subtract",
            "add_scaled",
            "scale",
            "copy_scaled",
            "dot",
            "hold_at_zero",
            "count_not_finite",
            "add_modulus_gradient"
        ]
    ),
    image!("views", ["take_aperture", "whiten", "mix_sharpened", "times_root", "held_back_squares"]),
    image!("weight_projections", ["weight_projections"]),
];
