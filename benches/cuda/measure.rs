//! Timing on a device, and what a floor is worked out from.

use std::fmt;
use std::time::Instant;

use diffnr::compute::cuda::{CudaCompute, DeviceFacts, Driver, present};
use diffnr::compute::elements::ElementCompute as _;
use diffnr::compute::sart::SartCompute as _;
use diffnr::compute::{Buffer, Compute as _, ComputeError, Memory as _, Workload};
use serde_json::{Value, json};

use crate::SECOND_LEVEL;
use crate::device::multiprocessors_and_clock;

/// Beside what a case asks for: rounding of its buffers, tables that are uploaded at their first use.
const SPARE_BYTES: usize = 8 << 20;

/// The device, as far as floors hang on it.
pub(crate) struct Machine {
    pub(crate) index: usize,
    facts: DeviceFacts,
    /// Multiprocessors and clock in Hz, where the driver tells.
    cores: Option<(f64, f64)>,
    /// Of a copy on the device, read and written.
    bytes_per_s: f64,
    /// One launch after another that does next to nothing.
    launch_s: f64,
    /// An operation on one value that returns a value.
    answer_s: f64,
}

pub(crate) struct Settings {
    pub(crate) machine: Machine,
    pub(crate) small: bool,
}

impl Settings {
    /// The usual size, or the one of a trial.
    pub(crate) fn size<T>(&self, full: T, small: T) -> T {
        if self.small { small } else { full }
    }

    /// A carrier with room for so many floats in buffers and so many bytes beside them.
    pub(crate) fn carrier(&self, floats: usize, scratch_bytes: usize) -> Result<CudaCompute, ComputeError> {
        carrier(self.machine.index, 4 * floats + scratch_bytes + SPARE_BYTES)
    }

    /// A carrier without memory, which says what others need.
    pub(crate) fn adviser(&self) -> Result<CudaCompute, ComputeError> {
        carrier(self.machine.index, 1 << 10)
    }

    /// Times `work`, whose floor `cost` tells, and adds the row.
    pub(crate) fn time(
        &self,
        rows: &mut Vec<Row>,
        compute: &CudaCompute,
        (operation, cost): (&'static str, Cost),
        work: impl FnMut() -> Result<(), ComputeError>,
    ) -> Result<(), ComputeError> {
        let timing = time(compute, self.small, work)?;
        let row = Row { operation, cost, timing };
        row.print(&self.machine);
        rows.push(row);
        Ok(())
    }
}

fn carrier(index: usize, bytes: usize) -> Result<CudaCompute, ComputeError> {
    Ok(CudaCompute::new(Box::new(Driver::new(index, bytes)?)))
}

/// A buffer of values that differ from each other, from 0 to `largest`.
pub(crate) fn uneven(compute: &CudaCompute, len: usize, largest: f32) -> Result<Buffer, ComputeError> {
    const PIECE: usize = 1 << 20;
    let value = |i: usize| largest * ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
    let values: Vec<f32> = (0..len.min(PIECE)).map(value).collect();
    let mut buffer = compute.buffer("values", len)?;
    for first in (0..len).step_by(PIECE) {
        let part = first..len.min(first + PIECE);
        compute.write(&values[..part.len()], buffer.values_mut().part(part))?;
    }
    Ok(buffer)
}

/// Seconds of one repetition.
#[derive(Clone, Copy)]
struct Timing {
    median_s: f64,
    least_s: f64,
    repetitions: usize,
    rounds: usize,
}

fn time(
    compute: &CudaCompute,
    small: bool,
    mut work: impl FnMut() -> Result<(), ComputeError>,
) -> Result<Timing, ComputeError> {
    let mut round = |repetitions: usize| -> Result<f64, ComputeError> {
        let begin = Instant::now();
        for _ in 0..repetitions {
            work()?;
        }
        compute.finish()?;
        Ok(begin.elapsed().as_secs_f64() / repetitions as f64)
    };
    round(1)?;
    let one = round(1)?;
    // Rounds of 30 ms, about a quarter of a second in all: long enough for clocks to rise, short enough for some fifty operations.
    let repetitions = if small { 1 } else { ((0.03 / one) as usize).clamp(1, 1000) };
    let rounds = if small { 1 } else { ((0.3 / (one * repetitions as f64)) as usize).clamp(3, 9) };
    let mut seconds = (0..rounds).map(|_| round(repetitions)).collect::<Result<Vec<f64>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(Timing { median_s: seconds[rounds / 2], least_s: seconds[0], repetitions, rounds })
}

/// What a contract says that an operation costs; 0 for what it says nothing of.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    /// From and to memory.
    pub(crate) bytes: f64,
    /// Instructions of single threads.
    pub(crate) operations: f64,
    /// Out of the first-level caches and shared memory.
    pub(crate) first_level_bytes: f64,
    /// Out of the second-level cache.
    pub(crate) second_level_bytes: f64,
    /// One after the other.
    pub(crate) launches: f64,
    /// Returns a value, and so waits for the device.
    pub(crate) answers: bool,
    /// Billions of voxels and views a second are told of as many.
    pub(crate) updates: f64,
}

impl Cost {
    /// So many bytes a value and nothing else.
    pub(crate) fn bytes(values: usize, bytes_each: f64) -> Self {
        Self { bytes: values as f64 * bytes_each, ..Self::default() }
    }

    /// The same of an operation that returns a value.
    pub(crate) fn sum(values: usize, bytes_each: f64) -> Self {
        Self { answers: true, ..Self::bytes(values, bytes_each) }
    }
}

impl Machine {
    pub(crate) fn measure(index: usize, small: bool) -> Result<Self, ComputeError> {
        let devices = present()?;
        let count = devices.len();
        let facts = devices.into_iter().nth(index).ok_or(ComputeError::Device {
            device: "cuda".into(),
            reason: format!("there is no device {index}: there are {count}, counted from 0"),
        })?;
        // Stays, and the device's context with it, which each case would make anew.
        std::mem::forget(carrier(index, 1 << 10)?);
        let values = if small { 1 << 16 } else { 1 << 27 };
        let workload = Workload { columns: 1, rows: 1, views_per_call: 1, voxels: [1; 3] };
        let scratch = carrier(index, 1 << 10)?.scratch_bytes(&workload);
        let mut compute = carrier(index, 8 * values + scratch + SPARE_BYTES)?;
        compute.prepare(&workload)?;
        let (from, mut to) = (uneven(&compute, values, 1.0)?, compute.buffer("copy", values)?);
        let copy = time(&compute, small, || compute.copy(from.values(), to.values_mut()))?;
        let mut one = compute.buffer("value", 1)?;
        let launch = time(&compute, small, || compute.scale(1.0, one.values_mut()))?;
        let answer = time(&compute, small, || compute.squared_norm(one.values()).map(drop))?;
        Ok(Self {
            index,
            facts,
            cores: multiprocessors_and_clock(index),
            bytes_per_s: 8.0 * values as f64 / copy.median_s,
            launch_s: launch.median_s,
            answer_s: answer.median_s,
        })
    }

    /// Least seconds, and what they go to.
    fn floor(&self, cost: &Cost) -> (f64, &'static str) {
        let mut parts = vec![
            (cost.bytes / self.bytes_per_s, "memory"),
            (cost.second_level_bytes / (SECOND_LEVEL * self.bytes_per_s), "second-level cache"),
            (cost.launches * self.launch_s, "launches"),
        ];
        if let Some((multiprocessors, clock_hz)) = self.cores {
            let lanes_per_s = 128.0 * multiprocessors * clock_hz;
            parts.extend([
                (cost.operations / lanes_per_s, "operations"),
                (cost.first_level_bytes / lanes_per_s, "first-level cache"),
            ]);
        }
        let (seconds, by) = parts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
        (seconds + if cost.answers { self.answer_s } else { 0.0 }, by)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "index": self.index, "name": self.facts.name, "description": self.facts.to_string(),
            "stand_in": self.facts.name.starts_with("stand-in"),
            "driver_cuda": self.facts.driver_version, "memory_bytes": self.facts.memory_bytes,
            "multiprocessors": self.cores.map(|(count, _)| count), "clock_hz": self.cores.map(|(_, clock)| clock),
            "copy_bytes_per_s": self.bytes_per_s, "launch_s": self.launch_s, "answer_s": self.answer_s,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "{}", self.facts)?;
        match self.cores {
            Some((count, clock_hz)) => writeln!(to, "{count} multiprocessors at {:.2} GHz", clock_hz / 1e9)?,
            None => {
                writeln!(to, "the driver does not tell multiprocessors and clock: floors are those of memory alone")?
            }
        }
        let Self { bytes_per_s, launch_s, answer_s, .. } = self;
        write!(
            to,
            "copy on the device {:.3} TB/s, a launch {:.1} us, a value returned {:.1} us",
            bytes_per_s / 1e12,
            1e6 * launch_s,
            1e6 * answer_s
        )
    }
}

/// One operation of a case.
pub(crate) struct Row {
    operation: &'static str,
    cost: Cost,
    timing: Timing,
}

impl Row {
    fn gups(&self) -> Option<f64> {
        (self.cost.updates > 0.0).then(|| self.cost.updates / self.timing.median_s / 1e9)
    }

    fn print(&self, machine: &Machine) {
        let (floor, by) = machine.floor(&self.cost);
        let (ms, gups) = (1e3 * self.timing.median_s, self.gups().map_or(String::new(), |g| format!("{g:9.1} GUPS")));
        let ratio = self.timing.median_s / floor;
        println!("  {:30} {ms:10.4} ms  floor {:10.4} ms ({by})  {ratio:6.1} x{gups}", self.operation, 1e3 * floor);
    }

    pub(crate) fn json(&self, (case, sizes): (&str, &str), machine: &Machine) -> Value {
        let (Timing { median_s, least_s, repetitions, rounds }, cost) = (self.timing, &self.cost);
        let (floor_s, by) = machine.floor(cost);
        json!({
            "case": case, "sizes": sizes, "operation": self.operation, "seconds": median_s, "least_s": least_s, "repetitions": repetitions,
            "rounds": rounds, "bytes": cost.bytes, "operations": cost.operations, "first_level_bytes": cost.first_level_bytes,
            "second_level_bytes": cost.second_level_bytes, "launches": cost.launches, "floor_s": floor_s, "floor_by": by,
            "ratio": median_s / floor_s, "gups": self.gups(),
        })
    }
}
