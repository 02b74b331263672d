//! The images in `kernels/prebuilt` are of these sources (`make check-kernels` compiles them again and compares the bytes).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diffnr::compute::cuda::IMAGES;

use sha2::{Digest as _, Sha256};

#[test]
fn images_are_of_these_sources() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let names = |folder: &Path, endings: &[&str]| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| endings.iter().any(|ending| name.ends_with(ending))).collect()
    };
    let compiled: BTreeSet<String> =
        std::fs::read_to_string(kernels.join("prebuilt/sources.sha256")).unwrap().lines().map(String::from).collect();
    let sources = names(&kernels, &[".cu", ".cuh"]);
    let current: BTreeSet<String> = sources
        .iter()
        .map(|name| {
            let digest = Sha256::digest(std::fs::read(kernels.join(name)).unwrap());
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hex}  {name}")
        })
        .collect();
    assert_eq!(current, compiled, "kernels have changed since their images were made: run `make kernels`");
    let images = names(&kernels.join("prebuilt"), &[".fatbin"]);
    let expected = names(&kernels, &[".cu"]).iter().map(|name| name.replace(".cu", ".fatbin")).collect();
    assert_eq!(images, expected);
}

/// Every image of the folder is built into the program, with every kernel of its source.
#[test]
fn all_images_are_built_in() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let registered = |name: &str| -> BTreeSet<String> {
        let source = std::fs::read_to_string(kernels.join(name).with_extension("cu")).unwrap();
        let lines = source.lines().filter_map(|line| line.strip_prefix("REGISTER_KERNEL(")?.strip_suffix(')'));
        lines.map(String::from).collect()
    };
    let files = std::fs::read_dir(kernels.join("prebuilt")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let folder: BTreeMap<String, BTreeSet<String>> = names
        .filter_map(|name| Some(name.strip_suffix(".fatbin")?.to_string()))
        .map(|name| (name.clone(), registered(&name)))
        .collect();
    let listed: BTreeMap<String, BTreeSet<String>> = IMAGES
        .iter()
        .map(|image| (image.name.into(), image.kernels.iter().map(|&kernel| kernel.into()).collect()))
        .collect();
    let list = "src/compute/cuda/driver/images.rs";
    assert_eq!(listed, folder, "write the images of kernels/prebuilt and their kernels into IMAGES of {list}");
    for image in IMAGES {
        assert_eq!(image.bytes.as_ptr() as usize % 64, 0);
        // What a fat binary begins with.
        assert_eq!(image.bytes[..4], 0xba55_ed50_u32.to_le_bytes(), "{}", image.name);
    }
}
