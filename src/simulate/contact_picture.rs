//! A contact picture: a few projections side by side as one grey PNG, to see at a glance that a scan is what was meant.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use ndarray::ArrayView2;

/// Pixels between tiles.
const GAP: usize = 4;

/// Writes `images` (`[row][column]`, all of one size) in `columns` columns, `low` black and `high` white.
///
/// # Errors
/// What the operating system or the encoder says; nothing to show is [`io::ErrorKind::InvalidInput`].
pub fn write_png(
    path: &Path,
    images: &[ArrayView2<'_, f32>],
    columns: usize,
    (low, high): (f32, f32),
) -> io::Result<()> {
    let Some(first) = images.first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no images to show"));
    };
    let columns = columns.clamp(1, images.len());
    let (rows, (height, width)) = (images.len().div_ceil(columns), first.dim());
    let (whole_width, whole_height) = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP);
    let mut pixels = vec![40_u8; whole_width * whole_height];
    let scale = 255.0 / (high - low).max(f32::MIN_POSITIVE);
    for (tile, image) in images.iter().enumerate() {
        let (top, left) = ((tile / columns) * (height + GAP), (tile % columns) * (width + GAP));
        for ((row, column), &value) in image.indexed_iter() {
            // `as` saturates and maps NaN to 0.
            pixels[(top + row) * whole_width + left + column] = ((value - low) * scale).round() as u8;
        }
    }
    let size = |n: usize| u32::try_from(n).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e));
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), size(whole_width)?, size(whole_height)?);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(())
}
