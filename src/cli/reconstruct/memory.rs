//! Memory of the machine and of this process.

use crate::cli::Failure;
use crate::compute::device::Device;
use crate::error::exit;
use crate::geometry::VolumeGrid;

/// Refuses a plan for which the machine has no memory left, rather than being killed half-way.
///
/// `buffers` are the method's, `scratch_bytes` the carrier's; what is there already (the projections) is no part of them. Where they lie on a GPU, of which
/// the arena's own allocation says whether it has the room, it is the volume's copies alone.
pub(super) fn check(
    device: &Device,
    buffers: &[(&'static str, usize)],
    scratch_bytes: usize,
    grid: &VolumeGrid,
    advice: &str,
) -> Result<(), Failure> {
    // Volumes in the unit of the output are copies.
    let copy = grid.len().saturating_mul(size_of::<f32>());
    let (buffers, scratch_bytes) = match device {
        Device::Cpu { .. } => (buffers, scratch_bytes),
        Device::Cuda(_) => (&[][..], 3 * copy),
    };
    let needed = buffers.iter().fold(scratch_bytes.saturating_add(copy), |sum, (_, bytes)| sum.saturating_add(*bytes));
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
    });
    match available {
        Some(kib) if needed >> 10 > kib => Err(Failure {
            message: format!(
                "{} MiB are needed for a volume of {:?} voxels and its working memory, {} MiB are available; {advice}",
                needed >> 20,
                grid.voxels,
                kib >> 10
            ),
            code: exit::BUDGET,
        }),
        _ => Ok(()),
    }
}

/// Largest resident memory of this process so far, as Linux counts it.
pub(super) fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
