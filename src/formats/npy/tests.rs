#![allow(clippy::unwrap_used)]
use std::fs;

use ndarray::Array;
use proptest::prelude::*;

use super::*;

/// An `.npy` file put together by hand, independently of the writer.
fn file(folder: &Path, descr: &str, order: &str, shape: &str, data: &[u8]) -> std::path::PathBuf {
    let text = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    let path = folder.join("array.npy");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn the_last_axis_is_fastest() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<u8> = (0..24_u32).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let volume = read_volume(&file(folder.path(), "'<f4'", "False", "(2, 3, 4)", &values)).unwrap();
    assert_eq!(volume[[1, 2, 3]], 23.0);
    assert_eq!(volume[[0, 0, 1]], 1.0);
    assert_eq!(volume[[1, 0, 0]], 12.0);
}

#[test]
fn other_types_are_converted_or_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let doubles: Vec<u8> = [1.5_f64, -2.25].iter().flat_map(|v| v.to_le_bytes()).collect();
    let image = read_image(&file(folder.path(), "'<f8'", "False", "(1, 2)", &doubles)).unwrap();
    assert_eq!(image.as_slice().unwrap(), [1.5, -2.25]);
    for (descr, word) in [
        ("'>f4'", "big-endian"),
        ("'<f2'", "float16"),
        ("'<i4'", "signed"),
        ("'<c8'", "complex"),
        ("[('a', '<f4')]", "not a record"),
    ] {
        let error = read_image(&file(folder.path(), descr, "False", "(1, 2)", &[0; 16])).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("array.npy"), "{descr}: {error}");
    }
    let mut counts = [0_u16; 2];
    let path = file(folder.path(), "'<f4'", "False", "(1, 2)", &[0; 8]);
    assert!(read_u16_into(&path, &[1, 2], &mut counts).unwrap_err().to_string().contains("uint16"));
}

#[test]
fn damaged_files_are_refused_with_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for (order, shape, bytes, words) in [
        ("True", "(1, 2)", 8, vec!["fortran_order", "ascontiguousarray"]),
        ("False", "(1, 2)", 7, vec!["8 bytes", "holds 7", "truncated"]),
        ("False", "(1, 2)", 9, vec!["after its data"]),
        ("False", "(1000000000, 1000000000)", 8, vec!["absurdly large"]),
        ("False", "(18446744073709551615, 2)", 8, vec!["absurdly large"]),
        ("False", "(1, -2)", 8, vec!["whole numbers"]),
        ("False", "(2,)", 8, vec!["2 axes"]),
        ("Maybe", "(1, 2)", 8, vec!["fortran_order"]),
    ] {
        let path = file(folder.path(), "'<f4'", order, shape, &vec![0; bytes]);
        let error = read_image(&path).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{shape}: {error}");
    }
    let path = folder.path().join("array.npy");
    for bytes in [
        &b""[..],
        b"\x93NUMP",
        b"PK\x03\x04aaaaaaaa",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"\x93NUMPY\x09\x00\x00\x00",
    ] {
        fs::write(&path, bytes).unwrap();
        assert!(read_volume(&path).is_err());
    }
    assert!(read_volume(folder.path()).unwrap_err().to_string().contains("regular file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn volumes_come_back_bit_for_bit(shape in (1_usize..6, 1_usize..6, 1_usize..6), seed in any::<u32>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volume.npy");
        let mut state = seed;
        let volume = Array::from_shape_simple_fn(shape, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(state)
        });
        write_volume(&path, volume.view()).unwrap();
        let back = read_volume(&path).unwrap();
        prop_assert!(volume.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
        // A view that is not contiguous is written by its indices, not by its memory.
        write_volume(&path, volume.t()).unwrap();
        let back = read_volume(&path).unwrap();
        prop_assert!(volume.t().iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
