//! Working memory of the operations: allocated and touched once by `prepare`, lent to one operation at a time.

#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, TryLockError};

use super::super::ComputeError;

/// One cache line of floats; makes a `Vec` of them start on a line.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; Line::FLOATS]);

impl Line {
    const FLOATS: usize = 16;
}

/// Floats that start on a cache line.
#[derive(Debug, Default)]
pub(super) struct AlignedFloats(Vec<Line>);

impl AlignedFloats {
    /// Grows to hold at least `floats`; every page is written once, so that no operation meets a page fault.
    fn grow(&mut self, floats: usize) -> Result<(), ComputeError> {
        let lines = floats.div_ceil(Line::FLOATS);
        if lines > self.0.len() {
            // The old content is worthless: no need to copy it.
            self.0 = Vec::new();
            self.0.try_reserve_exact(lines).map_err(|_| ComputeError::Device {
                device: "cpu".into(),
                reason: format!(
                    "{} bytes of scratch are not to be had; use a smaller volume or fewer views per call",
                    lines * size_of::<Line>()
                ),
            })?;
            self.0.resize(lines, Line([0.0; Line::FLOATS]));
        }
        Ok(())
    }

    /// All floats there are.
    pub(super) fn floats(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// What an operation needs of scratch, in floats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// One buffer for the whole call.
    pub(super) shared: usize,
    /// One buffer for each thread of the pool.
    pub(super) per_thread: usize,
}

impl Need {
    /// Enough for either of two operations (they never run at the same time).
    pub(super) fn either(self, other: Self) -> Self {
        Self { shared: self.shared.max(other.shared), per_thread: self.per_thread.max(other.per_thread) }
    }

    /// In bytes, for a pool of `threads`.
    pub(super) fn bytes(self, threads: usize) -> usize {
        let line = |floats: usize| floats.div_ceil(Line::FLOATS).saturating_mul(size_of::<Line>());
        line(self.shared).saturating_add(line(self.per_thread).saturating_mul(threads))
    }
}

/// The buffers of one carrier.
#[derive(Debug)]
pub(super) struct Scratch {
    shared: Mutex<AlignedFloats>,
    threads: Vec<Mutex<AlignedFloats>>,
    prepared: Need,
}

impl Scratch {
    /// Empty buffers for a pool of `threads`.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            shared: Mutex::default(),
            threads: (0..threads).map(|_| Mutex::default()).collect(),
            prepared: Need::default(),
        }
    }

    /// Allocates for `need`; what is already there is kept where it suffices.
    pub(super) fn prepare(&mut self, need: Need) -> Result<(), ComputeError> {
        let need = need.either(self.prepared);
        own(&mut self.shared).grow(need.shared)?;
        for buffer in &mut self.threads {
            own(buffer).grow(need.per_thread)?;
        }
        self.prepared = need;
        Ok(())
    }

    /// Takes the buffers for one operation; gives the shared one.
    ///
    /// From within the pool a second operation at the same time is refused: waiting there could wait for itself (the pool's
    /// thread that waits may be the one that holds the first operation's tasks).
    pub(super) fn take(
        &self,
        operation: &'static str,
        need: Need,
    ) -> Result<MutexGuard<'_, AlignedFloats>, ComputeError> {
        if need.shared > self.prepared.shared || need.per_thread > self.prepared.per_thread {
            return Err(ComputeError::Scratch {
                operation,
                needed: need.bytes(self.threads.len()),
                prepared: self.prepared.bytes(self.threads.len()),
            });
        }
        match self.shared.try_lock() {
            Ok(guard) => Ok(guard),
            // A panic in an earlier operation leaves only numbers behind that the next one overwrites.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(ComputeError::Device {
                device: "cpu".into(),
                reason: format!("{operation}: another operation is using this carrier's scratch; call them in turn"),
            }),
        }
    }

    /// The buffer of the pool's thread that calls. Tasks hold it only while they do not wait for other tasks.
    pub(super) fn of_this_thread(&self) -> MutexGuard<'_, AlignedFloats> {
        let index = rayon::current_thread_index().unwrap_or(0) % self.threads.len();
        self.threads[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn own(buffer: &mut Mutex<AlignedFloats>) -> &mut AlignedFloats {
    buffer.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
}
