//! Groups of operations, carried out as one: an iteration asks for the same launches again and again, so they are recorded, and once a
//! sequence has come twice the launcher makes one piece of it (a CUDA graph), which later iterations only start.
//!
//! ```text
//! begin ── operations ──▶ tape ── end ──▶ parameters, then  never seen       launched one by one, and remembered
//!              │                                            seen before      captured, and replayed
//!              │                                            captured before  replayed
//!              └─ what must be read or written by the host in between ──▶ what is on the tape is launched, and what follows as it comes
//! ```
//!
//! So a group gives the same results as its operations one by one, whatever they are; only how they are begun differs. What changes from
//! one iteration to the next (learning rates, the draw of random points) lies in a block on the device ([`Recorder::parameters`]), which is
//! written before the group: the sequence itself stays the same.

#![allow(unsafe_code)] // Hands on launches.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

use super::super::{Address, ComputeError};
use super::{Arguments, Captured, DeviceSlice, LaunchShape, Launcher, Tape};

/// Sequences that are remembered: two an iteration's subset, since volumes change places.
const MOST_KNOWN: usize = 128;

/// Words of the block of parameters (`parameters::MOST` of the kernel).
pub(super) const WORDS: usize = 64;

/// A launcher that can hold back what it is asked for. Everything else goes on to the launcher within.
pub(super) struct Recorder {
    recording: Mutex<Recording>,
    /// Taken by [`Recorder::prepare`], or when it is first needed.
    block: Mutex<Option<DeviceSlice<u32>>>,
    hashes: RandomState,
    launcher: Box<dyn Launcher>,
}

#[derive(Debug, Default)]
struct Recording {
    phase: Phase,
    /// Groups that have begun and not ended, one within the other.
    depth: u32,
    tape: Tape,
    /// Parameters of the group, not yet on the device.
    parameters: Vec<u32>,
    known: Vec<Known>,
    turn: u64,
    counts: GroupCounts,
    /// Why the launcher makes no pieces; it is not asked again.
    refused: Option<String>,
    /// Nothing is made of groups.
    singly: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// Operations are launched as they come.
    #[default]
    Through,
    /// A group is being recorded.
    Gathering,
    /// A group that the host had to have a part in: the rest of it is launched as it comes.
    Broken,
}

#[derive(Debug)]
struct Known {
    hash: u64,
    tape: Tape,
    captured: Option<Captured>,
    used: u64,
}

/// How groups were carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// By one call.
    pub replayed: u64,
    /// One operation after the other: the sequence was new.
    pub singly: u64,
    /// One operation after the other: the host read or wrote in between.
    pub broken: u64,
    /// Sequences that the launcher made one piece of.
    pub captured: u64,
    /// Launches, copies and fills of the last sequence.
    pub steps: u64,
}

/// `parameters::Words` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Words([u32; WORDS]);

impl Recorder {
    pub(super) fn new(launcher: Box<dyn Launcher>) -> Self {
        Self { recording: Mutex::default(), block: Mutex::default(), hashes: RandomState::new(), launcher }
    }

    /// Bytes of the block of parameters.
    pub(super) fn bytes() -> usize {
        WORDS * size_of::<u32>()
    }

    /// Takes the block of parameters, so that the first who needs it finds it.
    pub(super) fn prepare(&self) -> Result<(), ComputeError> {
        self.block().map(drop)
    }

    fn block(&self) -> Result<DeviceSlice<u32>, ComputeError> {
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = *block {
            return Ok(block);
        }
        let taken = DeviceSlice::allocate(&*self.launcher, WORDS)?;
        *block = Some(taken);
        Ok(taken)
    }

    fn recording(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How groups were carried out so far.
    pub(super) fn counts(&self) -> GroupCounts {
        self.recording().counts
    }

    /// Why groups are not carried out as one, where the launcher refused to.
    pub(super) fn refused(&self) -> Option<String> {
        self.recording().refused.clone()
    }

    /// Whether what is known of groups is left aside.
    pub(super) fn launch_singly(&self, singly: bool) {
        self.recording().singly = singly;
    }

    /// Whether what is asked for now is held back until the group's end.
    pub(super) fn is_gathering(&self) -> bool {
        self.recording().phase == Phase::Gathering
    }

    /// A group begins; one within another is part of that.
    pub(super) fn begin(&self) {
        let mut recording = self.recording();
        recording.depth += 1;
        if recording.depth == 1 {
            recording.phase = Phase::Gathering;
        }
    }

    /// Forgets a group that has not ended.
    pub(super) fn give_up(&self) {
        self.recording().forget();
    }

    /// Carries out the group, unless its operations were launched as they came.
    pub(super) fn end(&self) -> Result<(), ComputeError> {
        let mut recording = self.recording();
        if recording.depth > 1 {
            recording.depth -= 1;
            return Ok(());
        }
        let outcome = match recording.phase {
            Phase::Through => Ok(()),
            Phase::Broken => {
                recording.counts.broken += 1;
                Ok(())
            }
            Phase::Gathering => self.write_parameters(&mut recording, 0).and_then(|()| self.carry_out(&mut recording)),
        };
        recording.forget();
        outcome
    }

    fn carry_out(&self, recording: &mut Recording) -> Result<(), ComputeError> {
        let Recording { tape, known, turn, counts, refused, singly, .. } = recording;
        if tape.is_empty() {
            return Ok(());
        }
        counts.steps = tape.len() as u64;
        if *singly {
            counts.singly += 1;
            return tape.play(&*self.launcher);
        }
        *turn += 1;
        let hash = self.hashes.hash_one(&*tape);
        if let Some(same) = known.iter_mut().find(|known| known.hash == hash && known.tape == *tape) {
            same.used = *turn;
            if same.captured.is_none() && refused.is_none() {
                match self.launcher.capture(tape) {
                    Ok(captured) => (same.captured, counts.captured) = (Some(captured), counts.captured + 1),
                    Err(error) => {
                        tracing::warn!("iterations are launched operation by operation: {error}");
                        *refused = Some(error.to_string());
                    }
                }
            }
            if let Some(captured) = same.captured {
                counts.replayed += 1;
                return self.launcher.replay(captured);
            }
        } else if known.len() < MOST_KNOWN {
            known.push(Known { hash, tape: tape.clone(), captured: None, used: *turn });
        } else if let Some(oldest) = known.iter_mut().min_by_key(|known| known.used) {
            if let Some(captured) = oldest.captured.take() {
                self.launcher.discard(captured);
            }
            oldest.tape.clone_from(tape);
            (oldest.hash, oldest.used) = (hash, *turn);
        }
        counts.singly += 1;
        tape.play(&*self.launcher)
    }

    /// Puts parameters where the operations asked for next find them.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the device refuses, [`ComputeError::Scratch`] where these are more than the block holds.
    pub(super) fn parameters(&self, operation: &'static str, words: &[u32]) -> Result<DeviceSlice<u32>, ComputeError> {
        let block = self.block()?;
        let (needed, prepared) = (size_of_val(words), Self::bytes());
        let mut recording = self.recording();
        if recording.phase == Phase::Gathering && recording.parameters.len() + words.len() > WORDS {
            // More than a group has room for: launched as it comes, the block can be used anew.
            self.break_off(&mut recording)?;
        }
        if recording.phase != Phase::Gathering {
            recording.parameters.clear();
        }
        let first = recording.parameters.len();
        let part =
            block.part(first..first + words.len()).ok_or(ComputeError::Scratch { operation, needed, prepared })?;
        recording.parameters.extend_from_slice(words);
        if recording.phase != Phase::Gathering {
            self.write_parameters(&mut recording, first)?;
        }
        Ok(part)
    }

    /// Brings the parameters from `first` on to the device.
    fn write_parameters(&self, recording: &mut Recording, first: usize) -> Result<(), ComputeError> {
        let words = recording.parameters.get(first..).unwrap_or(&[]);
        if words.is_empty() {
            return Ok(());
        }
        let Some(block) = self.block()?.part(first..first + words.len()) else { return Ok(()) };
        let mut argument = Words::zeroed();
        argument.0[..words.len()].copy_from_slice(words);
        let shape = LaunchShape { grid: [1; 3], block: [WORDS as u32, 1, 1], shared_bytes: 0 };
        let arguments = Arguments::new().value(argument).value(words.len() as i32).write(block);
        // SAFETY: the arguments of parameters.cu; it writes as many words as the block has.
        unsafe { self.launcher.launch("set_parameters", shape, &arguments) }
    }

    /// The host must have a part in the group: what was recorded is launched now, and what follows as it comes.
    fn break_off(&self, recording: &mut Recording) -> Result<(), ComputeError> {
        if recording.phase != Phase::Gathering {
            return Ok(());
        }
        recording.phase = Phase::Broken;
        self.write_parameters(recording, 0)?;
        recording.tape.play(&*self.launcher)?;
        recording.tape.clear();
        recording.parameters.clear();
        Ok(())
    }

    /// For what cannot be recorded.
    fn at_once(&self) -> Result<&dyn Launcher, ComputeError> {
        self.break_off(&mut self.recording())?;
        Ok(&*self.launcher)
    }
}

impl Recording {
    fn forget(&mut self) {
        self.tape.clear();
        self.parameters.clear();
        (self.phase, self.depth) = (Phase::Through, 0);
    }
}

impl Launcher for Recorder {
    fn description(&self) -> String {
        self.launcher.description()
    }

    fn allocate(&self, bytes: usize) -> Result<usize, ComputeError> {
        self.launcher.allocate(bytes)
    }

    fn address_of(&self, offset: usize) -> Option<Address> {
        self.launcher.address_of(offset)
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), ComputeError> {
        self.at_once()?.copy_in(offset, from)
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), ComputeError> {
        self.at_once()?.copy_out(offset, to)
    }

    unsafe fn begin_copy_out(&self, offset: usize, to: NonNull<u8>, bytes: usize) -> Result<(), ComputeError> {
        // SAFETY: the caller's promise.
        unsafe { self.at_once()?.begin_copy_out(offset, to, bytes) }
    }

    fn end_copy_out(&self) -> Result<(), ComputeError> {
        self.launcher.end_copy_out()
    }

    fn copy(&self, from: usize, to: usize, bytes: usize) -> Result<(), ComputeError> {
        let mut recording = self.recording();
        if recording.phase == Phase::Gathering {
            recording.tape.copy(from, to, bytes);
            return Ok(());
        }
        self.launcher.copy(from, to, bytes)
    }

    fn fill(&self, bytes: Range<usize>, pattern: u32) -> Result<(), ComputeError> {
        let mut recording = self.recording();
        if recording.phase == Phase::Gathering {
            recording.tape.fill(bytes, pattern);
            return Ok(());
        }
        self.launcher.fill(bytes, pattern)
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        let mut recording = self.recording();
        // SAFETY: the caller's promise; slices of the arena stay what they are.
        unsafe {
            if recording.phase == Phase::Gathering {
                recording.tape.launch(kernel, shape, arguments);
                return Ok(());
            }
            self.launcher.launch(kernel, shape, arguments)
        }
    }

    fn capture(&self, tape: &Tape) -> Result<Captured, ComputeError> {
        self.at_once()?.capture(tape)
    }

    fn replay(&self, captured: Captured) -> Result<(), ComputeError> {
        self.at_once()?.replay(captured)
    }

    fn discard(&self, captured: Captured) {
        self.launcher.discard(captured);
    }

    fn synchronize(&self) -> Result<(), ComputeError> {
        self.at_once()?.synchronize()
    }
}
