//! The images in `kernels/prebuilt` are of these sources (`make check-kernels` compiles them again and compares the bytes).

use std::collections::BTreeSet;
use std::path::Path;

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
