//! Drawing rays: pixels of all views with the same chance, air included (a ray that meets nothing says so).

#![forbid(unsafe_code)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compute::field::{FieldJitter, RayPixel};
use crate::geometry::ScanGeometry;

/// Fills `pixels` with random pixels of the views named in `views`, the same for the same `jitter`. Leaves `pixels` as they are where there is no view or no
/// pixel.
pub fn draw_rays(geometry: &ScanGeometry, views: &[usize], jitter: FieldJitter, pixels: &mut [RayPixel]) {
    let detector = geometry.detector;
    let of_views = views.len() * detector.pixels();
    if of_views == 0 {
        return;
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&jitter.seed.to_le_bytes());
    key[8..16].copy_from_slice(&jitter.iteration.to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    // Behind the streams of the rays themselves.
    random.set_stream(u64::MAX);
    for pixel in pixels {
        let index = random.random_range(0..of_views);
        let within = index % detector.pixels();
        *pixel = RayPixel {
            view: views[index / detector.pixels()] as u32,
            row: (within / detector.columns) as u32,
            column: (within % detector.columns) as u32,
        };
    }
}
