//! Finding ONNX Runtime and the shipped model; the provider chain on a machine without a GPU.

use std::fs;

use super::*;
use crate::error::{Classed, ErrorClass};

#[test]
fn the_library_is_looked_for_in_the_order_that_the_error_names() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"").unwrap();
        path.canonicalize().unwrap()
    };
    let option = place("option/libonnxruntime.so.1.31.1");
    let variable = place("variable/onnxruntime/capi/libonnxruntime.so.1.32.0");
    place("variable/onnxruntime/capi/libonnxruntime_providers_shared.so");
    let project = place("project/libonnxruntime.so");
    place("empty/readme");
    let at = |name: &str| folder.path().join(name);
    let folders = [at("empty"), at("gone"), at("project")];
    let find = library::find;
    assert_eq!(find(Some(&at("option")), Some(&at("variable")), &folders).unwrap(), option);
    assert_eq!(find(Some(&option), None, &folders).unwrap(), option);
    assert_eq!(find(None, Some(&at("variable")), &folders).unwrap(), variable);
    assert_eq!(find(None, None, &folders).unwrap(), project);
    // A variable that is set to nothing is not set.
    assert_eq!(find(None, Some(Path::new("")), &folders).unwrap(), project);
    // What was asked for is not replaced by something else.
    let refused = find(Some(&at("empty")), None, &folders).unwrap_err().to_string();
    assert!(refused.contains("empty, as was asked"), "{refused}");
    let refused = find(None, None, &folders[..2]).unwrap_err().to_string();
    for part in ["DIFFNR_ONNXRUNTIME (not set)", "empty", "gone", "make onnxruntime", "pip install onnxruntime"] {
        assert!(refused.contains(part), "\"{part}\" is missing in: {refused}");
    }
}

#[test]
fn a_process_has_one_library_and_says_its_version() {
    let Some(path) = onnx_runtime() else { return };
    let library = library::load(Some(&path)).unwrap();
    assert!(library.version.split('.').count() == 3 && library.version.starts_with("1."), "{}", library.version);
    assert_eq!(library::load(None).unwrap().path, library.path);
    let other = tempfile::Builder::new().prefix("libonnxruntime.so.").tempfile().unwrap();
    let refused = library::load(Some(other.path())).unwrap_err();
    assert!(matches!(refused, RepairError::LibraryTaken { .. }), "{refused}");
    assert_eq!(refused.class(), ErrorClass::Stop);
}

#[test]
fn what_the_cpu_build_refuses_is_kept_with_its_reason() {
    let Some(library) = onnx_runtime() else { return };
    let mut loaded = Loaded::new(&models(), &options(library.clone(), [9; 3])).unwrap();
    let warm = loaded.warm_up();
    assert!(warm.whole >= warm.slice);
    let providers = loaded.fixer.providers().clone();
    assert_eq!(providers.registered.last(), Some(&Provider::Cpu));
    assert_eq!(providers.registered.len() + providers.refused.len(), Provider::CHAIN.len());
    assert!(providers.refused.iter().all(|(_, reason)| reason.len() > 10), "{providers:?}");
    assert!(!providers.assigned.is_empty() && providers.assigned.iter().all(|(_, nodes)| *nodes > 0));
    if providers.registered == [Provider::Cpu] {
        assert_eq!(providers.header_text(), "CPU");
        let log = providers.log_text();
        for part in ["CPU ", " nodes", "TensorRT refused: ", "TensorRT-RTX refused: ", "CUDA refused: "] {
            assert!(log.contains(part), "\"{part}\" is missing in: {log}");
        }
    }
    // Only what is asked for is tried; what is demanded runs, or nothing does.
    for provider in Provider::CHAIN {
        let options = Options { demand: Demand::Only(provider), ..options(library.clone(), [9; 3]) };
        match Loaded::new(&models(), &options) {
            Ok(loaded) => assert_eq!(loaded.fixer.providers().missing(provider), None),
            Err(RepairError::Demanded { provider: named, reason }) => {
                assert_ne!(provider, Provider::Cpu);
                let kept = providers.refused.iter().find(|(refused, _)| *refused == provider).unwrap();
                assert_eq!((named, &reason), (provider, &kept.1));
            }
            Err(other) => panic!("{other}"),
        }
    }
    let options = Options { demand: Demand::Only(Provider::Cpu), ..options(library, [9; 3]) };
    assert!(Loaded::new(&models(), &options).unwrap().fixer.providers().refused.is_empty());
}

#[test]
fn texts_fit_their_fields() {
    let all = Provider::CHAIN.map(|provider| (provider.name().to_string(), 3)).to_vec();
    let providers = Providers { assigned: all, ..Providers::default() };
    assert_eq!(providers.header_text(), "TensorRT+TensorRT-RTX+CUDA+CPU");
    assert!(providers.header_text().len() <= 31);
    let foreign = Providers { assigned: vec![("é".repeat(40) + &"x".repeat(40), 1)], ..Providers::default() };
    assert_eq!(foreign.header_text(), "x".repeat(31));
    let said = "/src/bridge.cc:2043 onnxruntime::Provider&\n Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load x : y.so: no such file.";
    assert_eq!(providers::one_line(said), "Failed to load x : y.so: no such file");
    assert_eq!(providers::one_line("CUDA is not\nin this build."), "CUDA is not in this build");
    assert_eq!("TensorRT".parse(), Ok(Demand::Only(Provider::TensorRt)));
    assert_eq!("tensorrt-rtx".parse(), Ok(Demand::Only(Provider::TensorRtRtx)));
    assert_eq!("any".parse(), Ok(Demand::Any));
    assert!("rocm".parse::<Demand>().unwrap_err().contains("cuda"));
}
