//! Volumes side by side, each a column: axial slice, coronal slice, caption.

use std::path::Path;

use super::{
    Canvas, FormatError, MARGIN, Panel, ROW_PIXELS, Slice, Window, canvas, check, grey_scale, scale_bar, slices,
};

/// Longest line of a caption that is shown whole.
const LETTERS: usize = 32;

/// Widest picture.
const MAX_WIDTH: usize = 16_384;

/// Writes volumes side by side, all at one scale (that of the largest), with one scale bar and one grey scale: axial slices above,
/// coronal ones below, and each volume's caption under its column.
///
/// # Errors
/// As [`super::write_contact_sheet`]; also for more volumes than a picture has room for.
pub fn write_columns(path: &Path, panels: &[Panel<'_>], window: Window) -> Result<(), FormatError> {
    draw(path, panels, window)?.write(path)
}

pub(super) fn draw(path: &Path, panels: &[Panel<'_>], window: Window) -> Result<Canvas, FormatError> {
    let longest_mm = check(path, panels, window)?;
    let pixel_mm = longest_mm / ROW_PIXELS;
    let columns: Vec<[Slice<'_>; 2]> = panels
        .iter()
        .map(|panel| {
            let [axial, coronal, _] = slices(panel, pixel_mm);
            [axial, coronal]
        })
        .collect();
    let captions: Vec<Vec<String>> =
        panels.iter().map(|panel| panel.caption.lines().map(shortened).collect()).collect();

    let line = canvas::TEXT_HEIGHT + MARGIN;
    let widest_slice = columns.iter().flatten().map(|slice| slice.width).max().unwrap_or(0);
    let widest_text = captions.iter().flatten().map(|text| canvas::text_width(text)).max().unwrap_or(0);
    let column_width = widest_slice.max(widest_text) + MARGIN;
    let scale_width = 16 + MARGIN + canvas::text_width("-00000 HU");
    let width = MARGIN + panels.len() * column_width + scale_width + MARGIN;
    if width > MAX_WIDTH {
        return Err(FormatError::field(
            path,
            "picture's width",
            width,
            format!("must be at most {MAX_WIDTH} pixels: show fewer than {} volumes", panels.len()),
        ));
    }
    // Below each slice stands its name.
    let row_height = |plane: usize| columns.iter().map(|column| column[plane].height).max().unwrap_or(0) + line;
    let tops = [MARGIN, MARGIN + row_height(0)];
    let captions_top = tops[1] + row_height(1) + MARGIN;
    let caption_lines = captions.iter().map(Vec::len).max().unwrap_or(0);
    let height = captions_top + caption_lines * line + MARGIN + line;

    let mut canvas = Canvas::new(width, height);
    for (place, (column, caption)) in columns.iter().zip(&captions).enumerate() {
        let left = MARGIN + place * column_width;
        for (slice, top) in column.iter().zip(tops) {
            slice.draw(&mut canvas, left, top, window);
        }
        for (number, text) in caption.iter().enumerate() {
            canvas.text(left, captions_top + number * line, text);
        }
    }
    scale_bar(&mut canvas, MARGIN, height - line, pixel_mm, longest_mm);
    grey_scale(&mut canvas, MARGIN + panels.len() * column_width, MARGIN, row_height(0) - line, window);
    Ok(canvas)
}

/// A line of a caption, its end cut off where it is too long.
fn shortened(text: &str) -> String {
    if text.chars().count() <= LETTERS {
        return text.into();
    }
    text.chars().take(LETTERS - 2).chain("..".chars()).collect()
}
