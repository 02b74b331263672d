#![allow(clippy::unwrap_used)]
use std::fs;

use ndarray::Array;
use proptest::prelude::*;

use super::*;
use crate::formats::SceneScale;
use crate::geometry::VolumeGrid;

fn oblique() -> DAffine3 {
    DAffine3 {
        matrix3: DMat3::from_rotation_z(0.3)
            * DMat3::from_rotation_x(-0.8)
            * DMat3::from_diagonal(DVec3::new(-0.5, 0.75, 2.0)),
        translation: DVec3::new(-120.0, 33.0, 7.5),
    }
}

fn asymmetric() -> Array3<f32> {
    Array::from_shape_fn((3, 4, 35), |(i, j, k)| (1000 * i + 100 * j + k) as f32 - 500.0)
}

#[test]
fn i_is_fastest_on_disk_and_the_header_is_the_formats() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.b.nii");
    write(&path, asymmetric().view(), &oblique(), Storage::Int16).unwrap();
    let bytes = fs::read(&path).unwrap();
    let short = |at: usize| i16::from_le_bytes([bytes[at], bytes[at + 1]]);
    assert_eq!([40, 42, 44, 46, 48].map(short), [3, 3, 4, 35, 1]);
    assert_eq!(short(352), -500);
    assert_eq!(short(352 + 2), 500, "the second voxel on disk is [1, 0, 0]");
    assert_eq!(short(352 + 2 * 3), -400, "after a line of 3 comes [0, 1, 0]");
    assert_eq!(bytes.len(), 352 + 2 * 3 * 4 * 35);
    // The crate's own reading of the same header.
    let header = NiftiHeader::from_file(&path).unwrap();
    assert_eq!(header.dim().unwrap(), [3, 4, 35]);
    assert_eq!(header.data_type().unwrap(), nifti::NiftiType::Int16);
    assert!((f64::from(header.pixdim[2]) - 0.75).abs() < 1e-7);
}

#[test]
fn affines_agree_whether_read_from_sform_or_qform() {
    let folder = tempfile::tempdir().unwrap();
    for affine in
        [oblique(), DAffine3::from_scale(DVec3::new(-1.0, -2.0, 3.0)), DAffine3::from_scale(DVec3::new(1.0, 1.0, -1.0))]
    {
        let path = folder.path().join("v.nii");
        write(&path, asymmetric().view(), &affine, Storage::Float32).unwrap();
        let near = |found: DAffine3| {
            let difference =
                (found.matrix3 - affine.matrix3).to_cols_array().into_iter().fold(0.0_f64, |m, e| m.max(e.abs()));
            // Header floats are float32: 6e-8 relative, of numbers up to 120; the qform's fourth component is the square root of
            // what the other three leave of 1, which amplifies it to some 1e-6 of an axis of 2 mm.
            assert!(difference < 5e-6 && (found.translation - affine.translation).length() < 2e-5, "{found:?}");
        };
        near(read_ct(&path).unwrap().voxel_to_world_mm);
        let mut bytes = fs::read(&path).unwrap();
        bytes[254] = 0; // sform_code
        bytes[280..328].fill(0);
        fs::write(&path, &bytes).unwrap();
        near(read_ct(&path).unwrap().voxel_to_world_mm);
        bytes[252] = 0; // qform_code
        fs::write(&path, &bytes).unwrap();
        let plain = read_ct(&path).unwrap();
        assert_eq!(plain.voxel_to_world_mm.translation, DVec3::ZERO);
        assert!((plain.spacing_mm() - affine.matrix3.x_axis.length() * DVec3::X).x.abs() < 1e-6);
    }
}

#[test]
fn grids_stand_where_the_patient_lies_and_water_reads_zero() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.nii.gz");
    let grid = VolumeGrid::over_box([2, 3, 4], DVec3::new(4.0, 9.0, 16.0), DVec3::new(1.0, 2.0, 3.0));
    let offset = DVec3::new(-7.0, 11.0, 100.0);
    let scale = SceneScale::hu_window(0.02);
    let mut mu = Array3::from_elem((2, 3, 4), 0.02);
    mu[[1, 2, 3]] = 0.04;
    write_mu(&path, mu.view(), &grid, &scale, offset, Storage::Int16).unwrap();
    let back = read_ct(&path).unwrap();
    assert_eq!(back.hu[[0, 0, 0]], 0.0);
    assert_eq!(back.hu[[1, 2, 3]], 1000.0);
    let expected = grid.voxel_centre_mm(1, 2, 3) + offset;
    assert!((back.voxel_to_world_mm.transform_point3(DVec3::new(1.0, 2.0, 3.0)) - expected).length() < 1e-5);
    assert!((back.centre_mm() - (grid.centre_mm + offset)).length() < 1e-5);
    // Without an absolute scale the scene's own values are written.
    write_mu(&path, mu.view(), &grid, &SceneScale::unstated(), offset, Storage::Float32).unwrap();
    assert_eq!(read_ct(&path).unwrap().hu[[1, 2, 3]], 0.04);
    assert!(
        write_mu(&path, mu.t(), &grid, &scale, offset, Storage::Int16).unwrap_err().to_string().contains("[4, 3, 2]")
    );
}

#[test]
fn scaling_other_types_and_the_other_byte_order_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.nii");
    write(&path, asymmetric().view(), &oblique(), Storage::Int16).unwrap();
    let good = fs::read(&path).unwrap();

    let mut scaled = good.clone();
    scaled[112..116].copy_from_slice(&2.0_f32.to_le_bytes());
    scaled[116..120].copy_from_slice(&(-24.0_f32).to_le_bytes());
    fs::write(&path, &scaled).unwrap();
    assert_eq!(read_ct(&path).unwrap().hu[[2, 3, 34]], 2.0 * 1834.0 - 24.0);

    let mut unscaled = good.clone();
    unscaled[112..116].fill(0);
    unscaled[116..120].copy_from_slice(&(-24.0_f32).to_le_bytes());
    fs::write(&path, &unscaled).unwrap();
    assert_eq!(read_ct(&path).unwrap().hu, asymmetric());

    // Big-endian: every field of the header by its width, then the voxels.
    let mut swapped = good.clone();
    let fields: [(usize, usize, usize); 7] =
        [(0, 4, 1), (32, 4, 1), (36, 2, 1), (40, 2, 8), (56, 4, 3), (68, 2, 4), (76, 4, 11)];
    let rest: [(usize, usize, usize); 4] = [(124, 4, 6), (252, 2, 2), (256, 4, 18), (352, 2, 3 * 4 * 35)];
    for (at, width, count) in fields.into_iter().chain(rest) {
        swapped[at..at + width * count].chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    swapped[120..124].copy_from_slice(&good[120..124]);
    fs::write(&path, &swapped).unwrap();
    let big = read_ct(&path).unwrap();
    assert_eq!(big.hu, asymmetric());
    assert!((big.voxel_to_world_mm.translation - oblique().translation).length() < 1e-4);

    for (code, bits, bytes) in
        [(64_i16, 64_i16, (-1.5_f64).to_le_bytes().to_vec()), (8, 32, (-70_000_i32).to_le_bytes().to_vec())]
    {
        let mut other = good[..352].to_vec();
        other[70..72].copy_from_slice(&code.to_le_bytes());
        other[72..74].copy_from_slice(&bits.to_le_bytes());
        other.extend(bytes.iter().copied().cycle().take(bytes.len() * 3 * 4 * 35));
        fs::write(&path, &other).unwrap();
        let expected = if code == 64 { -1.5 } else { -70_000.0 };
        assert!(read_ct(&path).unwrap().hu.iter().all(|&value| value == expected));
    }
}

#[test]
fn damaged_files_are_refused_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.nii");
    write(&path, asymmetric().view(), &oblique(), Storage::Float32).unwrap();
    let good = fs::read(&path).unwrap();
    let refuses = |at: usize, bytes: &[u8], words: &[&str]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, &bad).unwrap();
        let error = read_ct(&path).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    refuses(0, &540_i32.to_le_bytes(), &["NIfTI-2"]);
    refuses(0, &7_i32.to_le_bytes(), &["sizeof_hdr", "348"]);
    refuses(344, b"ni1\0", &["magic", ".hdr"]);
    refuses(344, b"xyz\0", &["NIfTI-1 header"]);
    refuses(40, &[4, 0, 3, 0, 4, 0, 35, 0, 2, 0], &["dim", "[3, 4, 35, 2]", "three-dimensional"]);
    refuses(42, &0_i16.to_le_bytes(), &["dim"]);
    refuses(42, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &["dim", "voxels"]);
    refuses(46, &3000_i16.to_le_bytes(), &["3000", "truncated"]);
    refuses(70, &128_i16.to_le_bytes(), &["datatype", "colours"]);
    refuses(70, &999_i16.to_le_bytes(), &["datatype", "unknown"]);
    refuses(108, &f32::NAN.to_le_bytes(), &["vox_offset"]);
    refuses(108, &1e30_f32.to_le_bytes(), &["vox_offset"]);
    refuses(116, &f32::NAN.to_le_bytes(), &["scl_inter"]);
    refuses(123, &[1], &["xyzt_units", "mm"]);
    refuses(280, &f32::NAN.to_le_bytes(), &["srow"]);
    refuses(280, &[0; 48], &["srow", "span"]);
    refuses(352 + 4 * 13, &f32::NAN.to_le_bytes(), &["voxel [1, 0, 1]", "finite"]);
    for length in [0, 100, 348, 352, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(read_ct(&path).unwrap_err().to_string().contains("truncated"), "{length}");
    }
}

#[test]
fn truncated_and_overpromising_gzip_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.nii.gz");
    write(&path, asymmetric().view(), &oblique(), Storage::Float32).unwrap();
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(read_ct(&path).unwrap_err().to_string().contains("truncated"));
    // A header that promises 1 GiB in a file of a few hundred bytes: refused before memory is taken.
    let plain = folder.path().join("v.nii");
    write(&plain, asymmetric().view(), &oblique(), Storage::Uint8).unwrap();
    let mut bytes = fs::read(&plain).unwrap();
    for axis in 0..3 {
        bytes[42 + 2 * axis..44 + 2 * axis].copy_from_slice(&1000_i16.to_le_bytes());
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &bytes).unwrap();
    fs::write(&path, encoder.finish().unwrap()).unwrap();
    let error = read_ct(&path).unwrap_err().to_string();
    assert!(error.contains("1000000352 bytes") && error.contains("can hold at most"), "{error}");
}

#[test]
fn canonical_views_run_along_the_world() {
    let hu = asymmetric();
    // Stored axes: i to the feet, j to the left, k to the front.
    let matrix3 = DMat3::from_cols(DVec3::new(0.1, 0.0, -3.0), DVec3::new(-1.0, 0.0, 0.1), DVec3::new(0.0, 2.0, 0.0));
    let volume = CtVolume { hu, voxel_to_world_mm: DAffine3 { matrix3, translation: DVec3::ZERO } };
    let (seen, spacing) = volume.canonical();
    assert_eq!(seen.dim(), (4, 35, 3));
    assert_eq!(seen[[0, 0, 0]], volume.hu[[2, 3, 0]]);
    assert_eq!(seen[[3, 34, 1]], volume.hu[[1, 0, 34]]);
    assert!((DVec3::from_array(spacing) - DVec3::new(1.005, 2.0, 3.0017)).length() < 1e-3);
}

#[test]
fn cell_averages_keep_the_mean_and_know_the_edge() {
    let fine = VolumeGrid::over_box([12, 16, 20], DVec3::new(12.0, 16.0, 20.0), DVec3::new(3.0, 4.0, 5.0));
    let ramp = Array::from_shape_fn((12, 16, 20), |(x, y, z)| {
        let at = fine.voxel_centre_mm(x, y, z);
        (2.0 * at.x - 3.0 * at.y + 0.5 * at.z) as f32
    });
    let volume = CtVolume { hu: ramp, voxel_to_world_mm: grid_to_world_mm(&fine, DVec3::ZERO) };
    let coarse = VolumeGrid::over_box([3, 4, 7], DVec3::new(12.0, 16.0, 28.0), DVec3::new(3.0, 4.0, 5.0));
    let (values, inside) = volume.averaged_onto(&grid_to_world_mm(&coarse, DVec3::ZERO), [3, 4, 7]);
    for ((x, y, z), &value) in values.indexed_iter() {
        assert_eq!(inside[[x, y, z]], (1..6).contains(&z), "{z}");
        // Away from the edges a linear function is its own cell average; float32 voxels of size 1e2.
        if x == 1 && (1..3).contains(&y) && (2..5).contains(&z) {
            let at = coarse.voxel_centre_mm(x, y, z);
            assert!((f64::from(value) - (2.0 * at.x - 3.0 * at.y + 0.5 * at.z)).abs() < 1e-4);
        }
    }
    // Onto its own grid: cells are averaged there too, but a constant stays, and every voxel is inside.
    let constant = CtVolume { hu: Array3::from_elem((12, 16, 20), 7.0), ..volume };
    let (same, inside) = constant.averaged_onto(&constant.voxel_to_world_mm, [12, 16, 20]);
    assert!(same.iter().all(|&value| value == 7.0) && inside.iter().all(|&inside| inside));
}

#[test]
fn names_that_are_not_niftis_are_refused() {
    let error = write(Path::new("v.img"), asymmetric().view(), &oblique(), Storage::Int16).unwrap_err().to_string();
    assert!(error.contains(".nii.gz"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn volumes_come_back(
        shape in (1_usize..6, 1_usize..6, 1_usize..40),
        spacing in (0.1_f64..5.0, 0.1_f64..5.0, 0.1_f64..5.0),
        angles in (-3.0_f64..3.0, -1.5_f64..1.5, -3.0_f64..3.0),
        gz in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(if gz { "v.nii.gz" } else { "v.nii" });
        let values = Array::from_shape_fn(shape, |(i, j, k)| (i * 100 + j * 10 + k) as f32 * 0.37 - 50.0);
        let rotation = DMat3::from_rotation_z(angles.0) * DMat3::from_rotation_y(angles.1) * DMat3::from_rotation_x(angles.2);
        let affine = DAffine3 {
            matrix3: rotation * DMat3::from_diagonal(DVec3::new(spacing.0, spacing.1, spacing.2)),
            translation: DVec3::new(1.0, 2.0, 3.0),
        };
        write(&path, values.view(), &affine, Storage::Float32).unwrap();
        let back = read_ct(&path).unwrap();
        prop_assert_eq!(&back.hu, &values);
        // float32 header fields of size up to 5.
        prop_assert!((back.voxel_to_world_mm.matrix3 - affine.matrix3).to_cols_array().iter().all(|e| e.abs() < 1e-6));
        write(&path, values.view(), &affine, Storage::Int16).unwrap();
        prop_assert_eq!(read_ct(&path).unwrap().hu, values.mapv(f32::round));
    }
}
