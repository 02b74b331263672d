//! Where log lines go: stderr, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, SuperviseSettings};

/// ONNX Runtime tells at length of every step of making a session; what is of interest in it we say ourselves. A filter that names `ort` says
/// otherwise.
const QUIET: &str = "ort=warn";

/// Installs the log for the whole process; a second call changes nothing.
pub fn start(settings: &SuperviseSettings) {
    // The filter was checked when the settings were.
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.log_level));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let installed = match settings.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if installed.is_err() {
        tracing::debug!("a log is installed already");
    }
}
