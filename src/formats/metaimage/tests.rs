#![allow(clippy::unwrap_used)]
use std::fs;

use ndarray::Array;
use proptest::prelude::*;

use super::*;

const HEAD: &str = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -1 2.5 3\nElementSpacing = 0.5 1 2\nDimSize = 2 3 1\nElementType = MET_USHORT\n\
AnatomicalOrientation = RAI\nElementDataFile = LOCAL\n";

fn file(folder: &Path, head: &str, data: &[u8]) -> PathBuf {
    let path = folder.join("image.mha");
    fs::write(&path, [head.as_bytes(), data].concat()).unwrap();
    path
}

fn counts() -> Vec<u8> {
    (0..6_u16).flat_map(|n| (n * 1000).to_le_bytes()).collect()
}

#[test]
fn i_is_fastest_and_positions_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let image = read(&file(folder.path(), HEAD, &counts())).unwrap();
    assert_eq!(image.values.shape(), [1, 3, 2]);
    assert_eq!(image.values[[0, 0, 1]], 1000.0);
    assert_eq!(image.values[[0, 2, 0]], 4000.0);
    assert_eq!(image.offset_mm, DVec3::new(-1.0, 2.5, 3.0));
    assert_eq!(image.spacing_mm, DVec3::new(0.5, 1.0, 2.0));
    assert_eq!(image.element, Element::U16);
}

#[test]
fn compressed_big_endian_and_detached_voxels_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let plain = read(&file(folder.path(), HEAD, &counts())).unwrap().values;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&counts()).unwrap();
    let head = HEAD.replace("CompressedData = False", "CompressedData = True");
    assert_eq!(read(&file(folder.path(), &head, &encoder.finish().unwrap())).unwrap().values, plain);

    let big: Vec<u8> = (0..6_u16).flat_map(|n| (n * 1000).to_be_bytes()).collect();
    let head = HEAD.replace("MSB = False", "MSB = True");
    assert_eq!(read(&file(folder.path(), &head, &big)).unwrap().values, plain);

    fs::write(folder.path().join("voxels.raw"), [vec![7; 5], counts()].concat()).unwrap();
    for size in ["-1", "5"] {
        let head = HEAD.replace("LOCAL", "voxels.raw").replace("NDims", &format!("HeaderSize = {size}\nNDims"));
        assert_eq!(read(&file(folder.path(), &head, &[])).unwrap().values, plain);
    }
}

#[test]
fn damaged_headers_are_refused_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let refuses = |from: &str, to: &str, words: &[&str]| {
        assert!(HEAD.contains(from));
        let error = read(&file(folder.path(), &HEAD.replace(from, to), &counts())).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    refuses("NDims = 3", "NDims = 4", &["NDims", "2 or 3"]);
    refuses("BinaryData = True", "BinaryData = False", &["BinaryData", "text"]);
    refuses("1 0 0 0 1 0 0 0 1", "0 1 0 1 0 0 0 0 1", &["TransformMatrix", "identity"]);
    refuses("0.5 1 2", "0.5 0 2", &["ElementSpacing", "> 0"]);
    refuses("0.5 1 2", "0.5 nan 2", &["ElementSpacing"]);
    refuses("DimSize = 2 3 1", "DimSize = 2 -3 1", &["DimSize"]);
    refuses("DimSize = 2 3 1", "DimSize = 2 3", &["DimSize"]);
    refuses("DimSize = 2 3 1", "DimSize = 99999 99999 99999", &["DimSize", "absurdly large"]);
    refuses("DimSize = 2 3 1", "DimSize = 2000 3000 1", &["12000000 bytes", "at most 12", "truncated"]);
    refuses("DimSize = 2 3 1\n", "", &["DimSize", "missing"]);
    refuses("MET_USHORT", "MET_LONG_LONG", &["ElementType", "MET_LONG_LONG"]);
    refuses("LOCAL", "LIST", &["ElementDataFile", "lists"]);
    refuses("LOCAL", "../secret.raw", &["ElementDataFile"]);
    refuses("LOCAL", "gone.raw", &["gone.raw", "cannot read"]);
    refuses("ElementDataFile = LOCAL\n", "", &["ElementDataFile"]);
    refuses("NDims = 3", "NDims 3", &["key = value"]);
    refuses("NDims = 3", "ElementNumberOfChannels = 3\nNDims = 3", &["one channel"]);
    let head = HEAD.replace("MET_USHORT", "MET_FLOAT");
    let nan = [f32::NAN; 6].map(f32::to_le_bytes).concat();
    assert!(read(&file(folder.path(), &head, &nan)).unwrap_err().to_string().contains("element [0, 0, 0]"));
    let head = HEAD.replace("CompressedData = False", "CompressedData = True");
    assert!(read(&file(folder.path(), &head, &[1; 12])).unwrap_err().to_string().contains("damaged"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn images_come_back(shape in (1_usize..5, 1_usize..5, 1_usize..5), detached in any::<bool>(), offset in -1e3_f64..1e3) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(if detached { "a.mhd" } else { "a.mha" });
        let values = Array::from_shape_fn(shape, |(k, j, i)| (100 * k + 10 * j + i) as f32 / 3.0);
        let (offset, spacing) = (DVec3::new(offset, 2.0, 1.0 / 3.0), DVec3::new(0.1, 0.2, 0.3));
        write(&path, values.view(), offset, spacing).unwrap();
        let back = read(&path).unwrap();
        prop_assert_eq!(&back.values, &values);
        // Rust prints the shortest text that reads back exactly.
        prop_assert_eq!((back.offset_mm, back.spacing_mm), (offset, spacing));
    }
}
