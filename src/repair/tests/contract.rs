//! Models that are not what their manifest says, and manifests that make no sense.

use std::fs;

use super::*;
use crate::error::{Classed, ErrorClass};

/// Loads a changed model, which must be refused with all of `parts` in the message.
fn refused(folder: &Path, library: &Path, parts: &[&str]) {
    let refused = Loaded::new(folder, &options(library.to_path_buf(), [8; 3])).map(drop).unwrap_err();
    assert_eq!(refused.class(), ErrorClass::Stop);
    let message = refused.to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{parts:?}: {message}");
}

#[test]
fn a_model_that_breaks_its_contract_is_refused_by_what_differs() {
    let Some(library) = onnx_runtime() else { return };
    let same = |text: String| text;
    refused(
        changed("broken/opset17.onnx", same).path(),
        &library,
        &["repair.onnx", "opset is 17, the manifest says 18"],
    );
    let parts =
        ["input slices is float32 [batch, 5, rows, columns], the manifest says float32 [batch, 3, rows, columns]"];
    refused(changed("broken/channels.onnx", same).path(), &library, &parts);
    refused(changed("broken/type.onnx", same).path(), &library, &["input slices is float64", "says float32"]);
    // Roles exchanged.
    let swapped = changed("condition.onnx", same);
    refused(
        swapped.path(),
        &library,
        &["the list of inputs is projections, anatomy", "slices, context, plane, height"],
    );
    // The file changed after the manifest was written.
    let whole = changed("repair.onnx", same);
    let path = whole.path().join("repair.onnx");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    refused(whole.path(), &library, &["repair.onnx", "sha256 is ", "the manifest says "]);
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(whole.path(), &library, &["repair.onnx", "sha256 is "]);
    fs::remove_file(&path).unwrap();
    refused(whole.path(), &library, &["repair.onnx", "cannot be read"]);
}

#[test]
fn graphs_that_are_none_are_refused_by_onnx_runtime_with_its_reason() {
    let Some(library) = onnx_runtime() else { return };
    // The manifest's hash is right: a truncated export, an empty file, noise.
    let whole = fs::read(models().join("repair.onnx")).unwrap();
    for bytes in [&whole[..whole.len() / 2], &whole[..10], b"", b"<html>not found</html>", &[0xff; 4096]] {
        let sha256 = manifest::hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
        let old = manifest::hex(&<sha2::Sha256 as sha2::Digest>::digest(&whole));
        let folder = changed("repair.onnx", |text| text.replace(&old, &sha256));
        fs::write(folder.path().join("repair.onnx"), bytes).unwrap();
        refused(folder.path(), &library, &["repair.onnx"]);
    }
}

#[test]
fn manifests_are_checked_field_by_field() {
    let said = |from: &str, to: &str, parts: &[&str]| {
        let folder = changed("repair.onnx", |text| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        let message = Manifest::read(folder.path()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{from} -> {to}: {message}");
        // A hostile value does not make a message without end.
        assert!(message.len() < 600, "{message}");
    };
    said("format = 1", "format = 2", &["manifest.toml", "format = 2"]);
    said("format = 1", "", &["manifest.toml", "format"]);
    said("format = 1", "format = = 1", &["manifest.toml"]);
    said("opset = 18", "opset = 23", &["opset = 23", "18"]);
    said("opset = 18", "opset = -1", &["manifest.toml"]);
    said("opset = 18", "opset = 99999999999999999999999", &["manifest.toml"]);
    said("[-1000.0, 1000.0]", "[1000.0, -1000.0]", &["window_hu"]);
    said("[-1000.0, 1000.0]", "[-1000.0, nan]", &["window_hu"]);
    said("[-1000.0, 1000.0]", "[-1e300, 1e300]", &["window_hu"]);
    said("neighbours = 1", "neighbours = 4000000000", &["neighbours = 4000000000"]);
    said(
        "neighbours = 1",
        "neighbours = 2",
        &["graph.repair.slices = [batch, 3, rows, columns]", "[batch, 5, rows, columns]"],
    );
    said("multiple = 8", "multiple = 0", &["multiple = 0"]);
    said("multiple = 8", "multiple = 100000", &["multiple = 100000"]);
    said("\"coronal\", ", "\"axial\", ", &["planes", "at most once"]);
    said("\"coronal\", ", "\"oblique\", ", &["oblique"]);
    said("\"other\", \"head\", \"chest\"", "", &["anatomies = 0 names"]);
    said("thorax = \"chest\"", "thorax = \"breast\"", &["anatomy_of_name = breast"]);
    said("role = \"repair\"", "role = \"condition\"", &["role \"condition\" twice"]);
    said("role = \"repair\"", "role = \"other\"", &["no role \"repair\""]);
    for file in ["../repair.onnx", "/etc/passwd", "a/b.onnx", "..", ".", "", "a\\\\b", "C:\\\\x", "x\\u0000"] {
        said("file = \"repair.onnx\"", &format!("file = \"{file}\""), &["graph.repair.file", "plain name"]);
    }
    said("sha256 = \"", "sha256 = \"0", &["graph.condition.sha256", "64 hexadecimal"]);
    said("sha256 = \"", "sha256 = \"\" # ", &["graph.condition.sha256", "64 hexadecimal"]);
    said("[1, 2, 4, 6]", "[1, 2, 4, 9223372036854775807]", &["graph.condition.projections", "65536"]);
    said("[1, 2, 4, 6]", "[1, 2, 65536, 65536]", &["graph.condition.projections", "2^24"]);
    said("[1, 2, 4, 6]", "[1, 2, 4, -6]", &["graph.condition.projections"]);
    said("[1, 2, 4, 6]", "[1, 2, 4]", &["graph.condition.projections"]);
    said("[1, 2, 3]", "[1, 2, 4]", &["graph.repair.context = [1, 2, 3]: must be [1, 2, 4]"]);
    said("name = \"height\"", "name = \"depth\"", &["graph.repair.height = (missing)"]);
    said("type = \"int64\"", "type = \"int32\"", &["graph.condition.anatomy = int32: must be int64"]);
    said(
        "name = \"test\"",
        &format!("name = \"test\"\nextra = \"{}\"\nopset = 1", "x".repeat(5000)),
        &["manifest.toml"],
    );
}

#[test]
fn models_are_named_by_folder_manifest_or_graph() {
    for name in ["", "manifest.toml", "repair.onnx"] {
        assert_eq!(Manifest::read(&models().join(name)).unwrap().name, "test");
    }
    let message = Manifest::read(&models().join("condition.onnx")).unwrap_err().to_string();
    assert!(
        message.contains("graph.repair.file = repair.onnx") && message.contains("condition.onnx was asked"),
        "{message}"
    );
    let message = Manifest::read(&models().join("nowhere")).unwrap_err().to_string();
    assert!(message.contains("nowhere") && message.contains("cannot be read"), "{message}");
    // Not text, and longer than any manifest.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manifest.toml");
    fs::write(&path, [0xff; 64]).unwrap();
    assert!(Manifest::read(&path).unwrap_err().to_string().contains("UTF-8"));
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Manifest::read(&path).unwrap_err().to_string().contains("longer than"));
}
