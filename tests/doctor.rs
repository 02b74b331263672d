//! `diffnr doctor` as a user runs it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use diffnr::repair::library;
use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `diffnr doctor` in a folder of its own, with ONNX Runtime at the given place.
fn run(onnxruntime: &Path, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_diffnr"));
    command.arg("doctor").args(arguments).current_dir(folder.path());
    command.env(library::VARIABLE, onnxruntime).env_remove("DIFFNR_MODELS").env_remove("DIFFNR_TENSORRT_RTX");
    command.output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// ONNX Runtime's place; says so where there is none.
fn onnx_runtime() -> Option<PathBuf> {
    let folder = std::env::var_os(library::VARIABLE).map_or_else(|| root().join(library::FOLDER), PathBuf::from);
    if !folder.exists() {
        eprintln!("SKIPPED: no ONNX Runtime (make onnxruntime, or DIFFNR_ONNXRUNTIME)");
        return None;
    }
    Some(folder)
}

#[test]
fn without_onnx_runtime_the_main_job_can_be_done_and_what_is_missing_is_named() {
    let told = json(&run(Path::new("/nowhere/onnxruntime"), &["--json"]));
    let checks = &told["checks"];
    assert_eq!(told["ready"], true);
    assert!(text(&told, "summary").contains("without SliceFixer"));
    assert_eq!(checks["onnxruntime"]["state"], "missing");
    assert!(text(&checks["onnxruntime"], "found").contains("/nowhere/onnxruntime"));
    assert!(text(&checks["onnxruntime"], "more").contains("make onnxruntime"));
    for provider in ["tensorrt", "tensorrt_rtx", "cuda", "cpu"] {
        let check = &checks[format!("provider_{provider}")];
        assert_eq!((text(check, "state"), text(check, "found")), ("missing", "not tried: no ONNX Runtime"));
    }
    assert_eq!(checks["slice_fixer"]["state"], "missing");
    assert!(text(&checks["slice_fixer"], "found").contains("no manifest.toml in"));
    // What is there whatever is installed.
    for name in ["processor", "memory", "shared_memory", "locked_memory", "gpu", "cuda_kernels"] {
        assert!(["good", "missing"].contains(&text(&checks[name], "state")), "{name}: {checks}");
    }
    let threads = std::thread::available_parallelism().unwrap().get();
    assert_eq!(checks["processor"]["threads"], threads);
    let [total, available] = ["total_bytes", "available_bytes"].map(|name| checks["memory"][name].as_u64().unwrap());
    assert!(total >= available && available > 1 << 20);
    assert!(checks["shared_memory"]["size_bytes"].as_u64() >= checks["shared_memory"]["free_bytes"].as_u64());
    let left: Vec<_> = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.file_name()).collect();
    // Doctors of other tests may be at work: none of a process that is gone may be left.
    let stale = |name: &str| {
        let pid = name.strip_prefix("diffnr-doctor-");
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists() && Path::new("/dev/shm").join(name).exists())
    };
    assert!(!left.iter().any(|name| stale(&name.to_string_lossy())), "{left:?}");
}

#[test]
fn in_words_every_thing_has_a_line_and_what_is_missing_a_way_to_get_it() {
    let output = run(Path::new("/nowhere"), &[]);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for part in ["processor", "memory", "/dev/shm", "GPU", "ONNX Runtime", "TensorRT-RTX", "SliceFixer", "for more: "] {
        assert!(words.contains(part), "\"{part}\" is missing in: {words}");
    }
    let lines: Vec<&str> = words.lines().collect();
    assert!(lines[0].starts_with('\u{2714}'), "{words}");
    let of_onnx = lines.iter().position(|line| line.starts_with("- ONNX Runtime")).unwrap();
    assert!(lines[of_onnx + 1].trim().starts_with("for more: make onnxruntime"), "{words}");
    assert!(lines.last().unwrap().starts_with("The main job can be done here, without SliceFixer"), "{words}");
}

#[test]
fn with_onnx_runtime_providers_are_tried_and_the_model_is_run() {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let model = root().join("tests/data/repair");
    let told = json(&run(&onnxruntime, &["--json", "--slice-fixer", model.to_str().unwrap()]));
    let checks = &told["checks"];
    assert_eq!(checks["onnxruntime"]["state"], "good");
    assert!(text(&checks["onnxruntime"], "version").starts_with("1."));
    // The CPU runs a graph everywhere; the others run it, or say why not and what to install.
    assert_eq!(text(&checks["provider_cpu"], "found"), "runs");
    for provider in ["tensorrt", "tensorrt_rtx", "cuda"] {
        let check = &checks[format!("provider_{provider}")];
        match text(check, "state") {
            "good" => assert_eq!(text(check, "found"), "runs"),
            state => {
                assert_eq!(state, "missing");
                assert!(text(check, "found").len() > 10 && text(check, "more").len() > 10, "{check}");
            }
        }
    }
    assert_eq!(checks["slice_fixer"]["state"], "good", "{checks}");
    assert_eq!(checks["slice_fixer"]["name"], "test");
    assert!(checks["slice_fixer"]["cpu_slice_ms"].as_f64() > Some(0.0));
    assert!(text(&told, "summary").contains("with SliceFixer"));
}

#[test]
fn a_damaged_model_is_named_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let from = root().join("tests/data/repair");
    for name in ["manifest.toml", "condition.onnx", "repair.onnx"] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    let arguments = ["--json", "--slice-fixer", folder.path().to_str().unwrap()];
    let whole = json(&run(Path::new("/nowhere"), &arguments));
    assert!(text(&whole["checks"]["slice_fixer"], "found").contains("whole, but not tried"));
    let mut bytes = std::fs::read(folder.path().join("repair.onnx")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(folder.path().join("repair.onnx"), bytes).unwrap();
    let told = json(&run(Path::new("/nowhere"), &arguments));
    let check = &told["checks"]["slice_fixer"];
    assert!(text(check, "found").contains("repair.onnx") && text(check, "found").contains("sha256"), "{check}");
    assert!(text(check, "more").contains("slicefixer export"), "{check}");
}

#[test]
fn a_plan_that_does_not_fit_this_machine_ends_with_its_exit_code() {
    let settings = root().join("examples/gantry.toml");
    let of = |voxels: &str| {
        Command::new(env!("CARGO_BIN_EXE_diffnr"))
            .args(["doctor", "--json", "--onnxruntime", "/nowhere", "--config"])
            .arg(&settings)
            .env("DIFFNR_VOLUME__VOXELS", voxels)
            .env("DIFFNR_MEMORY__HOST_LIMIT", "100 TiB")
            .output()
            .unwrap()
    };
    let fits = json(&of("[16, 16, 16]"));
    assert_eq!(fits["checks"]["plan"]["state"], "good", "{fits}");
    // 4096^3 voxels are 256 GiB a copy: more than the machines that run tests have.
    let output = of("[4096, 4096, 4096]");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{words}");
    assert!(words.contains("are available"), "{words}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["ready"], &told["checks"]["plan"]["fits_memory"]), (&Value::Bool(false), &Value::Bool(false)));
    // Settings that are wrong end as they do everywhere.
    assert_eq!(of("[0, 16, 16]").status.code(), Some(3));
}
