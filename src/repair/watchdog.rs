//! Ends a run that is still going when the deadline passes: ONNX Runtime looks between two nodes whether it shall leave off.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use ort::session::{NoSelectedOutputs, RunOptions};

/// A thread that waits for the deadline of the repair that is going on.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    options: Arc<RunOptions<NoSelectedOutputs>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    deadline: Option<Instant>,
    quit: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends runs from another thread.
#[derive(Clone)]
pub struct Ender(Arc<RunOptions<NoSelectedOutputs>>);

impl fmt::Debug for Ender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ender").finish_non_exhaustive()
    }
}

impl Ender {
    /// Ends the run that is going on, between two nodes of its graph; one that begins later is not meant.
    pub fn end(&self) {
        // It only sets a flag. What cannot be ended ends at its deadline.
        let _ends_by_itself = self.0.terminate();
    }
}

impl Watchdog {
    pub(super) fn new() -> ort::Result<Self> {
        let (shared, options) = (Arc::new(Shared::default()), Arc::new(RunOptions::new()?));
        let (of_thread, to_end) = (Arc::clone(&shared), Arc::clone(&options));
        let spawned =
            std::thread::Builder::new().name("slicefixer-late".into()).spawn(move || wait(&of_thread, &to_end));
        let thread = Some(spawned.map_err(|error| ort::Error::new(error.to_string()))?);
        Ok(Self { shared, options, thread })
    }

    /// What runs are given, so that they can be ended.
    pub(super) fn options(&self) -> &RunOptions<NoSelectedOutputs> {
        &self.options
    }

    /// What ends a run.
    pub(super) fn ender(&self) -> Ender {
        Ender(Arc::clone(&self.options))
    }

    /// Runs from now on may last until the deadline; without one, as long as they like.
    pub(super) fn arm(&self, deadline: Option<Instant>) -> ort::Result<()> {
        let mut state = self.shared.state();
        self.options.unterminate()?;
        state.deadline = deadline;
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state().quit = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, there is nobody to tell.
            let _ = thread.join();
        }
    }
}

fn wait(shared: &Shared, options: &RunOptions<NoSelectedOutputs>) {
    let mut state = shared.state();
    while !state.quit {
        state = match state.deadline {
            None => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // Under the lock: the next repair cannot be meant.
                    if let Err(error) = options.terminate() {
                        tracing::warn!(reason = error.message(), "a late run of SliceFixer cannot be ended");
                    }
                    state.deadline = None;
                    state
                } else {
                    shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            }
        };
    }
}
