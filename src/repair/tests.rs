//! The tests run small graphs (`tests/data/repair/make.py`) whose results are known in closed form, and need ONNX Runtime: `make
//! onnxruntime`, or DIFFNR_ONNXRUNTIME.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::Array2;
use tempfile::TempDir;

use super::*;
use crate::compute::cpu::CpuCompute;
use crate::compute::{Values, ValuesMut};

mod contract;
mod faults;
mod finding;
mod values;

/// Where the graphs lie.
fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/repair")
}

/// ONNX Runtime's folder; says so where there is none.
fn onnx_runtime() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(library::FOLDER);
    let named = std::env::var_os(library::VARIABLE).map(PathBuf::from);
    let found = named.or_else(|| library::find(None, None, &[folder]).ok());
    if found.is_none() {
        eprintln!("SKIPPED: no ONNX Runtime (make onnxruntime, or DIFFNR_ONNXRUNTIME)");
    }
    found
}

/// One thread, batches of three, ONNX Runtime where it was found.
fn options(library: PathBuf, voxels: [usize; 3]) -> Options {
    Options { threads: 1, batch: 3, onnxruntime: Some(library), ..Options::new(voxels) }
}

/// A copy of the model whose manifest is `change`d, with `repair` in place of its repairing graph (the hash follows).
fn changed(repair: &str, change: impl FnOnce(String) -> String) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(models().join("condition.onnx"), folder.path().join("condition.onnx")).unwrap();
    let graph = std::fs::read(models().join(repair)).unwrap();
    std::fs::write(folder.path().join("repair.onnx"), &graph).unwrap();
    let sha256 = |bytes: &[u8]| manifest::hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
    let old = sha256(&std::fs::read(models().join("repair.onnx")).unwrap());
    let text = std::fs::read_to_string(models().join("manifest.toml")).unwrap();
    assert!(text.contains(&old), "tests/data/repair/manifest.toml is older than its graphs: run make.py");
    std::fs::write(folder.path().join("manifest.toml"), change(text.replace(&old, &sha256(&graph)))).unwrap();
    folder
}

/// Two views of 8 x 9 pixels.
fn views() -> [Array2<f32>; 2] {
    [1.0, -0.5].map(|factor| Array2::from_shape_fn((8, 9), |(v, u)| factor * (v as f32 + 0.1 * (u * u) as f32)))
}

/// A model on the CPU, and its carrier.
struct Loaded {
    compute: CpuCompute,
    fixer: SliceFixer,
}

impl Loaded {
    fn new(model: &Path, options: &Options) -> Result<Self, RepairError> {
        let (manifest, mut compute) = (Manifest::read(model)?, CpuCompute::new(2)?);
        let buffers = SliceBuffers::take(&mut compute, &manifest, options)?;
        let fixer = SliceFixer::load(manifest, options, &compute, buffers)?;
        Ok(Self { compute, fixer })
    }

    fn warm_up(&mut self) -> WarmUp {
        self.fixer.warm_up(&self.compute).unwrap()
    }

    /// The volume repaired, 1/mm, and how far the planes disagree, HU.
    fn repair(
        &mut self,
        volume: &[f32],
        deadline: Option<Instant>,
        watch: &mut dyn Watch,
    ) -> Result<[Vec<f32>; 2], RepairError> {
        let mut repaired = [volume.to_vec(), volume.to_vec()];
        let [per_mm, disagreement_hu] = repaired.each_mut().map(ValuesMut::from);
        let given = Given { volume: Values::from(volume), unexplained: Values::Host(&[]) };
        let into = Repaired { per_mm, disagreement_hu };
        let repair = Repair::new(MU_WATER_PER_MM).unwrap();
        repair.run(&self.compute, &mut self.fixer, given, into, deadline, watch)?;
        Ok(repaired)
    }
}

fn conditioned(fixer: &mut SliceFixer, anatomy: &str) {
    let views = views();
    fixer.condition(&Conditioning { views: [views[0].view(), views[1].view()], anatomy }).unwrap();
}

/// Attenuation of water in the tests.
const MU_WATER_PER_MM: f64 = 0.02;

/// Smooth, unlike along each axis, -900 to 900 HU.
fn volume([nx, ny, nz]: [usize; 3]) -> Vec<f32> {
    let mut values = Vec::new();
    for x in 0..nx {
        for y in 0..ny {
            for z in 0..nz {
                let wave = (0.9 * x as f64).sin()
                    + (0.5 * y as f64 + 0.3).cos()
                    + (0.7 * z as f64 * (1.0 + 0.1 * y as f64)).sin();
                values.push((MU_WATER_PER_MM * (1.0 + 0.3 * wave)) as f32);
            }
        }
    }
    values
}
