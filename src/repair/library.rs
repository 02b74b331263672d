//! Finding and loading ONNX Runtime: a shared library that is loaded from a file, once a process.

#![allow(unsafe_code)] // Reads the version from the library before ONNX Runtime is set up.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::RepairError;

/// Names the library, or the folder it lies in.
pub const VARIABLE: &str = "DIFFNR_ONNXRUNTIME";

/// Where `make onnxruntime` puts it.
pub const FOLDER: &str = ".onnxruntime";

/// ONNX Runtime in this process.
#[derive(Debug, Clone)]
pub struct Library {
    /// The file.
    pub path: PathBuf,
    /// Its version, as it says itself.
    pub version: String,
    environment: ort::environment::Environment,
}

impl Library {
    pub(super) fn environment(&self) -> &ort::environment::Environment {
        &self.environment
    }
}

static LOADED: Mutex<Option<Library>> = Mutex::new(None);

/// Loads ONNX Runtime, or gives the one that is loaded. Looks at `asked` (file or folder), at [`VARIABLE`], at [`FOLDER`] beside the working
/// directory and beside the executable, in this order; the first that is set or there is taken.
///
/// # Errors
/// [`RepairError::LibraryMissing`] with all places, [`RepairError::Library`] with the loader's reason, [`RepairError::LibraryTaken`].
pub fn load(asked: Option<&Path>) -> Result<Library, RepairError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = loaded.as_ref() {
        let Some(asked) = asked else { return Ok(library.clone()) };
        let path = named(asked)?;
        return if path == library.path {
            Ok(library.clone())
        } else {
            Err(RepairError::LibraryTaken { loaded: library.path.clone(), asked: path })
        };
    }
    let path = find(asked, std::env::var_os(VARIABLE).map(PathBuf::from).as_deref(), &folders())?;
    let refuse = |reason: String| RepairError::Library { path: path.clone(), reason };
    let version = version(&path).map_err(refuse)?;
    let builder = ort::init_from(&path).map_err(|error| refuse(error.to_string()))?;
    let environment =
        builder.with_name("diffnr").with_telemetry(false).build().map_err(|error| refuse(error.message().into()))?;
    tracing::info!(path = %path.display(), version, "ONNX Runtime loaded");
    let library = Library { path, version, environment };
    *loaded = Some(library.clone());
    Ok(library)
}

/// [`FOLDER`] beside the working directory and beside the executable.
fn folders() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let mut folders: Vec<PathBuf> =
        std::env::current_dir().ok().into_iter().chain(beside).map(|folder| folder.join(FOLDER)).collect();
    folders.dedup();
    folders
}

/// The library among the places; what is named explicitly is not passed over where nothing is there.
pub(super) fn find(asked: Option<&Path>, variable: Option<&Path>, folders: &[PathBuf]) -> Result<PathBuf, RepairError> {
    if let Some(path) = asked.or(variable.filter(|path| !path.as_os_str().is_empty())) {
        return named(path);
    }
    if let Some(path) = folders.iter().find_map(|folder| in_folder(folder)) {
        return absolute(&path);
    }
    let shown: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Err(RepairError::LibraryMissing {
        searched: format!("at the option or setting (not given), {VARIABLE} (not set), {}", shown.join(", ")),
    })
}

/// The library that a file or folder names.
fn named(path: &Path) -> Result<PathBuf, RepairError> {
    let found = if path.is_dir() { in_folder(path) } else { path.is_file().then(|| path.to_path_buf()) };
    match found {
        Some(path) => absolute(&path),
        None => Err(RepairError::LibraryMissing { searched: format!("at {}, as was asked", path.display()) }),
    }
}

/// Links and relative names are resolved: the loader would look for a bare name elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, RepairError> {
    path.canonicalize().map_err(|error| RepairError::Library { path: path.to_path_buf(), reason: error.to_string() })
}

/// The library in a folder, or in the folders of the PyPI package below it; of several the last by name.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    ["", "capi", "onnxruntime/capi"].into_iter().find_map(|below| {
        let entries = std::fs::read_dir(folder.join(below)).ok()?;
        let is_library = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name.strip_prefix("libonnxruntime.so").is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        entries.flatten().map(|entry| entry.path()).filter(is_library).max()
    })
}

/// The first field of `OrtApiBase` is `GetApi`, the second `GetVersionString`: the one part of the interface that never changes.
fn version(path: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's initialisers; the user names ONNX Runtime here, and it is loaded to be run at once.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // SAFETY: the symbol has had this signature since ONNX Runtime 1.0; a library without it is refused.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|_| "it exports no OrtGetApiBase, so it is another library".to_string())?;
    // SAFETY: takes no arguments and returns a pointer to static data of the library, which stays loaded to the end of this function.
    let base = unsafe { base().as_ref() }.ok_or("OrtGetApiBase gives nothing")?;
    // SAFETY: a static, zero-terminated string, copied before the library is let go.
    let text = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    Ok(text.to_string_lossy().into_owned())
}
