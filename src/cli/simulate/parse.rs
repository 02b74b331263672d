//! Shapes and sizes as written on the command line.

/// `N`, or `AxB` with `separators` parts: numbers split at `x` (or `X`, `*`).
fn parts<T: std::str::FromStr>(text: &str, what: &str) -> Result<Vec<T>, String> {
    text.split(['x', 'X', '*'])
        .map(|part| {
            part.trim().parse().map_err(|_| format!("`{part}` is not {what}; write for example {}", example(what)))
        })
        .collect()
}

fn example(what: &str) -> &'static str {
    if what == "a count" { "256 or 256x320" } else { "1.6 or 1.6x1.2" }
}

/// `ROWSxCOLUMNS`, or one number for both.
pub(in crate::cli) fn detector(text: &str) -> Result<[usize; 2], String> {
    match parts::<usize>(text, "a count")?[..] {
        [n] => Ok([n, n]),
        [rows, columns] => Ok([rows, columns]),
        _ => Err("a detector has two counts: ROWSxCOLUMNS".into()),
    }
}

/// Pixel pitch: one number, or `UxV` (along a row, then along a column).
pub(super) fn pitch(text: &str) -> Result<[f64; 2], String> {
    match parts::<f64>(text, "a length in mm")?[..] {
        [p] => Ok([p, p]),
        [u, v] => Ok([u, v]),
        _ => Err("a pixel has two pitches: UxV in mm".into()),
    }
}

/// Voxels along x, y, z, or one number for all.
pub(super) fn voxels(text: &str) -> Result<[usize; 3], String> {
    match parts::<usize>(text, "a count")?[..] {
        [n] => Ok([n; 3]),
        [x, y, z] => Ok([x, y, z]),
        _ => Err("a volume has three counts: NXxNYxNZ, or one for all".into()),
    }
}

/// Sizes along x, y, z in mm, or one number for all.
pub(super) fn size_mm(text: &str) -> Result<[f64; 3], String> {
    match parts::<f64>(text, "a length in mm")?[..] {
        [s] => Ok([s; 3]),
        [x, y, z] => Ok([x, y, z]),
        _ => Err("a volume has three sizes: XxYxZ in mm, or one for all".into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shapes_are_read_in_the_stated_order() {
        assert_eq!(detector("256x320").unwrap(), [256, 320]);
        assert_eq!(detector("64").unwrap(), [64, 64]);
        assert_eq!(pitch("0.5x0.75").unwrap(), [0.5, 0.75]);
        assert_eq!(voxels("10x20x30").unwrap(), [10, 20, 30]);
        assert_eq!(size_mm("300").unwrap(), [300.0; 3]);
    }

    #[test]
    fn wrong_shapes_say_what_to_write() {
        assert!(detector("1x2x3").unwrap_err().contains("ROWSxCOLUMNS"));
        assert!(voxels("12x4").unwrap_err().contains("NXxNYxNZ"));
        assert!(detector("many").unwrap_err().contains("256"));
        assert!(pitch("-x1").is_err() && voxels("-5").is_err() && size_mm("").is_err());
    }
}
