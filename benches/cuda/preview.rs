//! From the last frame's arrival to the volume in shared memory, frames coming as a gantry sends them; and whether the volume that a reader finds there is
//! the device's, to the bit: its CRC by the CPU against the device's, its values against those that come through the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Zeroable as _;
use diffnr::compute::counts::{Correction, CountsCompute as _};
use diffnr::compute::elements::ElementCompute as _;
use diffnr::compute::{Compute as _, Memory as _, Values};
use diffnr::reconstruct::{FdkAccumulator, FdkPlan, FdkSettings};
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::VolumeHeader;
use firmware_bridge::slots::VolumeGeometry;
use serde_json::{Value, json};

use crate::measure::Settings;
use crate::slots::Slots;
use crate::views::{grid, scan};

pub(crate) fn measure(settings: &Settings) -> Result<Value, String> {
    let (views, columns, voxels, runs, frames_per_s) = settings.size((50, 512, 256, 20, 30.0), (4, 24, 16, 2, 200.0));
    let (geometry, grid) = (scan(views, columns), grid(voxels));
    let text = |error: &dyn std::error::Error| error.to_string();
    let plan = FdkPlan::without_scratch(&geometry, &grid, FdkSettings::default()).map_err(|error| text(&error))?;
    let pixels = geometry.detector.pixels();
    let adviser = settings.adviser().map_err(|error| text(&error))?;
    let scratch = adviser.scratch_bytes(&plan.workload()) + adviser.counts_scratch_bytes(pixels);
    // The buffers of the plan hold the volume too; bytes all.
    let of_plan: usize = plan.buffers().iter().map(|(_, bytes)| bytes).sum();
    let mut compute = settings.carrier(grid.len() + 3 * pixels, of_plan + scratch).map_err(|error| text(&error))?;
    compute.prepare(&plan.workload()).map_err(|error| text(&error))?;
    let mut accumulator = FdkAccumulator::new(&compute, Arc::new(plan)).map_err(|error| text(&error))?;
    compute.prepare_counts(pixels).map_err(|error| text(&error))?;
    let image = |value: f32| compute.filled("calibration", &vec![value; pixels]).map_err(|error| text(&error));
    let (dark, gain, mut line_integrals) = (image(100.0)?, image(1.0 / 40_000.0)?, image(0.0)?);
    let correction = Correction {
        dark: dark.values(),
        gain: gain.values(),
        scale: 1.0,
        min_transmission: 1e-5,
        bad_pixels: Values::Host(&[]),
    };
    let frames: Vec<u16> = (0..geometry.projection_len()).map(|i| 10_000 + (i % 251) as u16 * 20).collect();
    let (mut latencies, mut frame_s, mut behind_s) = (Vec::with_capacity(runs), Vec::new(), 0.0_f64);
    let header = VolumeHeader { shape: grid.voxels.map(|count| count as u32), ..VolumeHeader::zeroed() };
    let Slots { mut writer, reader, registration, not_shared } =
        Slots::new(settings.machine.index, VolumeGeometry::for_shape(header.shape, 3))?;
    let (mut found, mut through_host) = (vec![0.0_f32; grid.len()], vec![0.0_f32; grid.len()]);
    // The first run warms up.
    for run in 0..=runs {
        accumulator.reset(&compute).map_err(|error| text(&error))?;
        compute.finish().map_err(|error| text(&error))?;
        let begin = Instant::now();
        let mut arrived = begin;
        for (view, frame) in frames.chunks_exact(pixels).enumerate() {
            let due = begin + Duration::from_secs_f64((view + 1) as f64 / frames_per_s);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // A frame arrives when it is due, whether or not anybody is ready for it.
            arrived = due;
            let asked = Instant::now();
            let pose = Some(&geometry.views[view]);
            compute.line_integrals(&correction, frame, line_integrals.values_mut()).map_err(|error| text(&error))?;
            accumulator.add_view(&compute, view, pose, &line_integrals).map_err(|error| text(&error))?;
            if run > 0 {
                frame_s.push(asked.elapsed().as_secs_f64());
                behind_s = behind_s.max((asked - due).as_secs_f64());
            }
        }
        let mut slot = writer.begin(&header, 0).map_err(|error| text(&error))?;
        let payload = registration.of(slot.payload()).ok_or("the slot lies elsewhere")?;
        let copy = compute.begin_read(accumulator.volume(), payload).map_err(|error| text(&error))?;
        let crc = compute.crc32c(accumulator.volume()).map_err(|error| text(&error))?;
        copy.wait().map_err(|error| text(&error))?;
        slot.filled(crc);
        slot.publish(0).map_err(|error| text(&error))?;
        if run > 0 {
            latencies.push(arrived.elapsed().as_secs_f64());
        }
        // Reading works out the CRC and holds it against the header's, which is the device's.
        let volume = reader.newest(monotonic_ns(), 10_000_000_000).map_err(|error| text(&error))?;
        volume.read_into(&mut found).map_err(|error| text(&error))?;
        compute.read(accumulator.volume(), &mut through_host).map_err(|error| text(&error))?;
        if let Some(at) = found.iter().zip(&through_host).position(|(a, b)| a.to_bits() != b.to_bits()) {
            let (found, expected) = (found[at], through_host[at]);
            return Err(format!("run {run}: voxel {at} of the slot is {found}, through the host {expected}"));
        }
    }
    latencies.sort_by(f64::total_cmp);
    frame_s.sort_by(f64::total_cmp);
    // With as few runs as here the 99th percentile is the largest.
    let (p50, p99) = (latencies[runs / 2], latencies[(runs * 99).div_ceil(100) - 1]);
    let frame = frame_s[frame_s.len() / 2];
    let place = if not_shared.is_some() { "the heap" } else { "shared memory" };
    println!(
        "  {views} frames of {columns}^2 counts at {frames_per_s}/s into {voxels}^3: volume in {place} {:.2} ms after the last frame (p50), {:.2} ms (p99 of \
         {runs}); a frame is asked for in {:.2} ms",
        1e3 * p50,
        1e3 * p99,
        1e3 * frame,
    );
    Ok(json!({
        "frames": views, "pixels": columns, "voxels": voxels, "frames_per_s": frames_per_s, "runs": runs, "p50_s": p50, "p99_s": p99,
        "place": place, "not_shared": not_shared, "same_bits_as_through_host": true, "all_s": latencies, "add_view_p50_s": frame, "most_behind_s": behind_s,
    }))
}
