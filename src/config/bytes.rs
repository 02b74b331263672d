//! Byte counts as people write them.

const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

/// Reads `2 GiB`, `512MB`, `1.5 GiB` or a plain number of bytes; `None` where it is none of these.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| lower.strip_suffix(unit).map(|number| (number, *factor)))
        .unwrap_or((lower.as_str(), 1));
    let value: f64 = number.trim().parse().ok()?;
    let bytes = value * factor as f64;
    (bytes.is_finite() && (0.0..9.0e18).contains(&bytes)).then_some(bytes as u64)
}

/// `1536` as `1.5 KiB`; bytes below one KiB as they are.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        for (text, bytes) in [("2 GiB", 2 << 30), ("512MB", 512_000_000), ("1.5 KiB", 1536), ("4096", 4096), ("7 B", 7)]
        {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "-1 GiB", "two", "1e40 TiB", "nan", "inf"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        assert_eq!(format_bytes(1536), "1.5 KiB");
        assert_eq!(format_bytes(3), "3 B");
    }
}
