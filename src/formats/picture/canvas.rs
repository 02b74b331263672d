//! A grey picture in memory: pixels, boxes, text, PNG.

use std::io;
use std::path::Path;

use super::super::{FormatError, write_whole};
use super::font::{self, glyph};

/// Pixels across and down a dot of a letter.
const DOT: usize = 2;

/// Height of a line of text in pixels.
pub(super) const TEXT_HEIGHT: usize = font::HEIGHT * DOT;

/// Width of a text in pixels.
pub(super) fn text_width(text: &str) -> usize {
    text.chars().count() * (font::WIDTH + 1) * DOT
}

/// A black canvas to draw on; what falls outside is cut off.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height] }
    }

    pub(super) fn set(&mut self, x: usize, y: usize, grey: u8) {
        if x < self.width && y < self.height {
            self.pixels[y * self.width + x] = grey;
        }
    }

    #[cfg(test)]
    pub(super) fn get(&self, x: usize, y: usize) -> u8 {
        self.pixels[y * self.width + x]
    }

    pub(super) fn fill(&mut self, left: usize, top: usize, width: usize, height: usize, grey: u8) {
        for y in top..top + height {
            for x in left..left + width {
                self.set(x, y, grey);
            }
        }
    }

    /// White letters with a black shadow, so that they can be read on any grey.
    pub(super) fn text(&mut self, left: usize, top: usize, text: &str) {
        for (shift, grey) in [(1, 0), (0, 255)] {
            for (number, letter) in text.chars().enumerate() {
                let x0 = left + number * (font::WIDTH + 1) * DOT + shift;
                for (row, dots) in glyph(letter).into_iter().enumerate() {
                    for column in (0..font::WIDTH).filter(|column| dots >> (font::WIDTH - 1 - column) & 1 == 1) {
                        self.fill(x0 + column * DOT, top + row * DOT + shift, DOT, DOT, grey);
                    }
                }
            }
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), FormatError> {
        write_whole(path, |writer| {
            let mut encoder = png::Encoder::new(writer, self.width as u32, self.height as u32);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(png::BitDepth::Eight);
            let mut image = encoder.write_header().map_err(io::Error::other)?;
            image.write_image_data(&self.pixels).map_err(io::Error::other)?;
            image.finish().map_err(io::Error::other)
        })
    }
}
