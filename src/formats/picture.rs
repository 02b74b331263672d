//! Grey pictures (PNG) of volumes: the three middle slices side by side, with captions, a scale bar and a grey scale.
//!
//! Volumes are `[x][y][z]` along the patient's axes (RAS+: x to the right, y to the front, z to the head), and slices are shown as radiology
//! hangs them: axial seen from the feet (front up, the patient's right on the left), coronal seen from the front (head up,
//! right on the left), sagittal seen from the left (head up, front on the left). The letter at each slice's left edge says which side
//! that is. [`super::nifti::CtVolume::canonical`] turns any volume these ways.

mod canvas;
mod columns;
mod font;

use std::path::Path;

use ndarray::{ArrayView2, ArrayView3, Axis};

use super::FormatError;
use canvas::Canvas;
pub use columns::write_columns;

/// Space around things, in pixels.
const MARGIN: usize = 10;

/// Longest edge of one slice on the picture, in pixels; slices are enlarged or reduced to about it.
const SLICE_PIXELS: f64 = 384.0;

/// Tallest picture.
const MAX_HEIGHT: usize = 30_000;

/// Which values are black and white.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Black.
    pub low: f32,
    /// White.
    pub high: f32,
    /// Unit printed on the grey scale, e.g. "HU".
    pub unit: &'static str,
}

impl Window {
    /// The whole range that our scenes keep: -1000 to 1000 HU.
    pub const WIDE: Self = Self { low: -1000.0, high: 1000.0, unit: "HU" };
    /// Soft tissue: -160 to 240 HU.
    pub const SOFT_TISSUE: Self = Self { low: -160.0, high: 240.0, unit: "HU" };
    /// Lung: -1350 to 150 HU.
    pub const LUNG: Self = Self { low: -1350.0, high: 150.0, unit: "HU" };

    fn grey(&self, value: f32) -> u8 {
        // NaN compares false and becomes black.
        let share = (value - self.low) / (self.high - self.low);
        (255.0 * share.clamp(0.0, 1.0)).round() as u8
    }
}

/// One volume of a picture.
#[derive(Debug, Clone)]
pub struct Panel<'a> {
    /// Values `[x][y][z]`, RAS+.
    pub volume: ArrayView3<'a, f32>,
    /// Voxel edges along x, y, z in mm.
    pub spacing_mm: [f64; 3],
    /// Text above, e.g. a title with PSNR and SSIM. Letters beyond plain ASCII show as '?'.
    pub caption: String,
}

/// Writes the three middle slices of one volume.
///
/// # Errors
/// See [`write_contact_sheet`].
pub fn write_slices(path: &Path, panel: &Panel<'_>, window: Window) -> Result<(), FormatError> {
    write_contact_sheet(path, std::slice::from_ref(panel), window)
}

/// Writes several volumes below each other, all at one scale (that of the largest), with one scale bar and one grey scale.
///
/// # Errors
/// [`FormatError`] where there is nothing to show, the window is empty, a spacing is not positive, or the file cannot be written.
pub fn write_contact_sheet(path: &Path, panels: &[Panel<'_>], window: Window) -> Result<(), FormatError> {
    let canvas = draw(path, panels, window)?;
    canvas.write(path)
}

/// Refuses what cannot be shown; gives the longest edge of all volumes in mm.
fn check(path: &Path, panels: &[Panel<'_>], window: Window) -> Result<f64, FormatError> {
    if !(window.low < window.high && (window.high - window.low).is_finite()) {
        let shown = format!("{}:{}", window.low, window.high);
        return Err(FormatError::field(path, "window", shown, "the lower value must lie below the upper one"));
    }
    let mut longest_mm = 0.0_f64;
    for (number, panel) in panels.iter().enumerate() {
        for axis in 0..3 {
            let size_mm = panel.volume.len_of(Axis(axis)) as f64 * panel.spacing_mm[axis];
            if !size_mm.is_finite() || panel.spacing_mm[axis] <= 0.0 || panel.volume.is_empty() {
                let shown = format!("{:?} voxels of {:?} mm", panel.volume.shape(), panel.spacing_mm);
                return Err(FormatError::field(
                    path,
                    format!("picture of volume {number}"),
                    shown,
                    "nothing can be shown of this",
                ));
            }
            longest_mm = longest_mm.max(size_mm);
        }
    }
    if panels.is_empty() {
        return Err(FormatError::damaged(path, "no volume to show", "give at least one"));
    }
    Ok(longest_mm)
}

fn draw(path: &Path, panels: &[Panel<'_>], window: Window) -> Result<Canvas, FormatError> {
    let longest_mm = check(path, panels, window)?;
    let pixel_mm = longest_mm / SLICE_PIXELS;
    let rows: Vec<[Slice<'_>; 3]> = panels.iter().map(|panel| slices(panel, pixel_mm)).collect();

    let line = canvas::TEXT_HEIGHT + MARGIN;
    // The slices' names, and a gap to the next volume.
    let below = line + MARGIN;
    let caption_lines = |panel: &Panel<'_>| panel.caption.lines().count();
    let row_height = |row: &[Slice<'_>; 3]| row.iter().map(|slice| slice.height).max().unwrap_or(0);
    let width_of = |row: &[Slice<'_>; 3]| row.iter().map(|slice| slice.width + MARGIN).sum::<usize>();
    let slices_width = rows.iter().map(width_of).max().unwrap_or(0);
    let scale_width = 16 + MARGIN + canvas::text_width("-00000 HU");
    let caption_width =
        panels.iter().flat_map(|panel| panel.caption.lines()).map(canvas::text_width).max().unwrap_or(0);
    let width = (MARGIN + slices_width + scale_width + MARGIN).max(caption_width + 2 * MARGIN).min(16_384);
    let height: usize = MARGIN
        + panels
            .iter()
            .zip(&rows)
            .map(|(panel, row)| caption_lines(panel) * line + row_height(row) + below)
            .sum::<usize>()
        + line;
    if height > MAX_HEIGHT {
        return Err(FormatError::field(
            path,
            "picture's height",
            height,
            format!("must be at most {MAX_HEIGHT} pixels: show fewer volumes"),
        ));
    }

    let mut canvas = Canvas::new(width, height);
    let mut top = MARGIN;
    let first_slice_top = MARGIN + caption_lines(&panels[0]) * line;
    for (panel, row) in panels.iter().zip(&rows) {
        for text in panel.caption.lines() {
            canvas.text(MARGIN, top, text);
            top += line;
        }
        let mut left = MARGIN;
        for slice in row {
            slice.draw(&mut canvas, left, top, window);
            left += slice.width + MARGIN;
        }
        top += row_height(row) + below;
    }
    scale_bar(&mut canvas, MARGIN, height - line, pixel_mm, longest_mm);
    grey_scale(&mut canvas, MARGIN + slices_width, first_slice_top, row_height(&rows[0]), window);
    Ok(canvas)
}

/// Pixels of the longest edge of a slice in [`write_rows`] and [`write_columns`].
const ROW_PIXELS: f64 = 256.0;

/// Writes rows of volumes side by side: the axial slices of all volumes of a row, then their coronal slices, each row at its own scale. A row's
/// text stands above it, each volume's caption below its slices.
///
/// # Errors
/// As [`write_contact_sheet`].
pub fn write_rows<const N: usize>(
    path: &Path,
    rows: &[(&str, [Panel<'_>; N])],
    window: Window,
) -> Result<(), FormatError> {
    let line = canvas::TEXT_HEIGHT + MARGIN;
    let edge = ROW_PIXELS as usize;
    let row_height = 2 * line + edge + MARGIN;
    let height = MARGIN + rows.len() * row_height;
    if rows.is_empty() || N == 0 || height > MAX_HEIGHT {
        return Err(FormatError::damaged(path, format!("{} rows of {N} volumes", rows.len()), "nothing can be shown"));
    }
    let widest = rows.iter().map(|(text, _)| canvas::text_width(text)).max().unwrap_or(0);
    let mut canvas = Canvas::new((2 * N * (edge + MARGIN)).max(widest + MARGIN) + MARGIN, height);
    for (number, (text, panels)) in rows.iter().enumerate() {
        let top = MARGIN + number * row_height;
        canvas.text(MARGIN, top, text);
        let longest = |panel: &Panel<'_>| {
            (0..3).map(|axis| panel.volume.len_of(Axis(axis)) as f64 * panel.spacing_mm[axis]).fold(0.0, f64::max)
        };
        let longest_mm = panels.iter().map(longest).fold(0.0, f64::max);
        if !(longest_mm > 0.0 && longest_mm.is_finite()) || panels.iter().any(|panel| panel.volume.is_empty()) {
            return Err(FormatError::damaged(
                path,
                format!("row {number} has no extent"),
                "nothing can be shown of it",
            ));
        }
        for (place, panel) in panels.iter().enumerate() {
            let [axial, coronal, _] = slices(panel, longest_mm / ROW_PIXELS);
            for (plane, slice) in [axial, coronal].iter().enumerate() {
                let left = MARGIN + (plane * N + place) * (edge + MARGIN);
                slice.draw(&mut canvas, left, top + line, window);
                let after = left + canvas::text_width(slice.name) + 2 * MARGIN;
                canvas.text(after, top + line + slice.height + 4, &panel.caption);
            }
        }
    }
    canvas.write(path)
}

/// One slice as it hangs: `values[[down, right]]`.
struct Slice<'a> {
    values: ArrayView2<'a, f32>,
    /// Voxels per pixel, down and right.
    step: [f64; 2],
    width: usize,
    height: usize,
    name: &'static str,
    left: &'static str,
}

/// Axial, coronal and sagittal middle slices.
fn slices<'a>(panel: &Panel<'a>, pixel_mm: f64) -> [Slice<'a>; 3] {
    let volume = panel.volume;
    let [dx, dy, dz] = panel.spacing_mm;
    let hang = |across: usize, down_mm: f64, right_mm: f64, name, left| {
        let middle = volume.len_of(Axis(across)) / 2;
        // Without `across`, the remaining two axes stand as (right, down); both run against the world's direction.
        let mut values = volume.index_axis_move(Axis(across), middle).reversed_axes();
        values.invert_axis(Axis(0));
        values.invert_axis(Axis(1));
        let (down, right) = values.dim();
        let pixels = |count: usize, mm: f64| ((count as f64 * mm / pixel_mm).round() as usize).clamp(1, 4096);
        let step = [pixel_mm / down_mm, pixel_mm / right_mm];
        Slice { values, step, width: pixels(right, right_mm), height: pixels(down, down_mm), name, left }
    };
    [hang(2, dy, dx, "axial", "R"), hang(1, dz, dx, "coronal", "R"), hang(0, dz, dy, "sagittal", "A")]
}

impl Slice<'_> {
    fn draw(&self, canvas: &mut Canvas, left: usize, top: usize, window: Window) {
        for y in 0..self.height {
            for x in 0..self.width {
                // Centres of pixels fall between centres of voxels.
                let down = (y as f64 + 0.5) * self.step[0] - 0.5;
                let right = (x as f64 + 0.5) * self.step[1] - 0.5;
                canvas.set(left + x, top + y, window.grey(self.at(down, right)));
            }
        }
        canvas.text(left, top + self.height + 4, self.name);
        canvas.text(left + 4, top + self.height / 2, self.left);
    }

    /// Bilinear value, the edge continued outwards.
    fn at(&self, down: f64, right: f64) -> f32 {
        let (rows, columns) = self.values.dim();
        let split = |position: f64, count: usize| {
            let inside = position.clamp(0.0, count as f64 - 1.0);
            let low = inside.floor() as usize;
            (low, (low + 1).min(count - 1), (inside - low as f64) as f32)
        };
        let (y0, y1, fy) = split(down, rows);
        let (x0, x1, fx) = split(right, columns);
        let line = |y: usize| (1.0 - fx) * self.values[[y, x0]] + fx * self.values[[y, x1]];
        (1.0 - fy) * line(y0) + fy * line(y1)
    }
}

/// A bar of a round length, about a quarter of the longest edge.
fn scale_bar(canvas: &mut Canvas, left: usize, top: usize, pixel_mm: f64, longest_mm: f64) {
    let wanted = 0.25 * longest_mm;
    let decade = 10.0_f64.powf(wanted.log10().floor());
    let length_mm =
        [5.0, 2.0, 1.0].into_iter().map(|step| step * decade).find(|&length| length <= wanted).unwrap_or(decade);
    let pixels = (length_mm / pixel_mm).round() as usize;
    let middle = top + canvas::TEXT_HEIGHT / 2;
    canvas.fill(left, middle - 1, pixels, 3, 255);
    canvas.fill(left, middle - 5, 2, 11, 255);
    canvas.fill((left + pixels).saturating_sub(2), middle - 5, 2, 11, 255);
    canvas.text(left + pixels + MARGIN, top, &format!("{length_mm} mm"));
}

/// White on top, black below, with the values of both ends and the middle.
fn grey_scale(canvas: &mut Canvas, left: usize, top: usize, height: usize, window: Window) {
    for y in 0..height {
        let share = 1.0 - (y as f32 + 0.5) / height as f32;
        canvas.fill(left, top + y, 16, 1, (255.0 * share).round() as u8);
    }
    canvas.fill(left, top, 16, 1, 128);
    canvas.fill(left, (top + height).saturating_sub(1), 16, 1, 128);
    let label = |value: f32| {
        let rounded = (value * 100.0).round() / 100.0;
        if window.unit.is_empty() { format!("{rounded}") } else { format!("{rounded} {}", window.unit) }
    };
    let text_left = left + 16 + MARGIN / 2;
    canvas.text(text_left, top, &label(window.high));
    canvas.text(
        text_left,
        (top + height / 2).saturating_sub(canvas::TEXT_HEIGHT / 2),
        &label(0.5 * (window.low + window.high)),
    );
    canvas.text(text_left, (top + height).saturating_sub(canvas::TEXT_HEIGHT), &label(window.low));
}

#[cfg(test)]
mod tests;
