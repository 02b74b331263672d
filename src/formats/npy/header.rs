//! The head of an `.npy` file: magic, version, length, and a dictionary of three keys.

use std::io::Read;
use std::path::Path;

use super::super::FormatError;
use super::{Dtype, Header};

/// Longest header accepted; NumPy writes 118 bytes for a three-dimensional array.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Reads from the magic to the header's end; also tells how many bytes that were.
pub(super) fn read_head(path: &Path, reader: &mut impl Read) -> Result<(Header, usize), FormatError> {
    let damaged = |problem: &str| FormatError::damaged(path, problem, "write it again with numpy.save");
    let mut fixed = [0_u8; 8];
    reader.read_exact(&mut fixed).map_err(|_| damaged("too short for an .npy file"))?;
    if &fixed[..6] != b"\x93NUMPY" {
        return Err(damaged("not an .npy file (its first bytes are not \\x93NUMPY)"));
    }
    let (length, before) = if fixed[6] == 1 {
        let mut bytes = [0_u8; 2];
        reader.read_exact(&mut bytes).map_err(|_| damaged("truncated header"))?;
        (usize::from(u16::from_le_bytes(bytes)), 10)
    } else if fixed[6] == 2 || fixed[6] == 3 {
        let mut bytes = [0_u8; 4];
        reader.read_exact(&mut bytes).map_err(|_| damaged("truncated header"))?;
        (u32::from_le_bytes(bytes) as usize, 12)
    } else {
        return Err(FormatError::field(path, ".npy version", fixed[6], "only versions 1, 2 and 3 are known"));
    };
    if length > MAX_HEADER_BYTES {
        return Err(FormatError::field(
            path,
            "header length",
            length,
            format!("more than {MAX_HEADER_BYTES} bytes: not a plain array"),
        ));
    }
    let mut text = vec![0_u8; length];
    reader.read_exact(&mut text).map_err(|_| damaged("truncated header"))?;
    let text = String::from_utf8(text).map_err(|_| damaged("the header is not text"))?;
    Ok((parse_dict(path, &text)?, before + length))
}

/// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse_dict(path: &Path, text: &str) -> Result<Header, FormatError> {
    let bad = |what: &str| FormatError::field(path, ".npy header", text.trim(), what.to_string());
    let mut rest = text.trim();
    rest = rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')).ok_or_else(|| bad("must be a {...} dictionary"))?;
    let (mut dtype, mut shape) = (None, None);
    let mut order_seen = false;
    while !rest.trim_start().is_empty() {
        let (key, after) = quoted(rest).ok_or_else(|| bad("keys must be quoted strings"))?;
        let after = after.trim_start().strip_prefix(':').ok_or_else(|| bad("':' expected"))?.trim_start();
        rest = match key {
            "descr" => {
                let (name, after) =
                    quoted(after).ok_or_else(|| bad("descr must be a simple type such as '<f4', not a record"))?;
                dtype = Some(parse_dtype(path, name)?);
                after
            }
            "fortran_order" => {
                order_seen = true;
                if after.starts_with("True") {
                    return Err(FormatError::field(
                        path,
                        "fortran_order",
                        "True",
                        "the axes would be read in the wrong order; save numpy.ascontiguousarray(array)",
                    ));
                }
                after.strip_prefix("False").ok_or_else(|| bad("fortran_order must be False"))?
            }
            "shape" => {
                let inner = after.strip_prefix('(').ok_or_else(|| bad("shape must be a (...) tuple"))?;
                let (numbers, after) = inner.split_once(')').ok_or_else(|| bad("shape must be a (...) tuple"))?;
                let lengths: Option<Vec<usize>> = numbers
                    .split(',')
                    .map(str::trim)
                    .filter(|number| !number.is_empty())
                    .map(|number| number.parse().ok())
                    .collect();
                shape = Some(
                    lengths.filter(|l| l.len() <= 8).ok_or_else(|| bad("shape must hold at most 8 whole numbers"))?,
                );
                after
            }
            _ => return Err(bad("only the keys descr, fortran_order and shape are known")),
        };
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    match (dtype, order_seen, shape) {
        (Some(dtype), true, Some(shape)) => Ok(Header { dtype, shape }),
        _ => Err(bad("descr, fortran_order and shape must all be there")),
    }
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| *c == '\'' || *c == '"')?;
    text[1..].split_once(quote)
}

fn parse_dtype(path: &Path, name: &str) -> Result<Dtype, FormatError> {
    match name {
        "<f4" => Ok(Dtype::F32),
        "<f8" => Ok(Dtype::F64),
        "<u2" => Ok(Dtype::U16),
        "|u1" => Ok(Dtype::U8),
        "|b1" => Ok(Dtype::Bool),
        _ => {
            let plain = match name {
                n if n.starts_with('>') => "big-endian data",
                "<f2" => "float16",
                n if n.starts_with("<i") || n.starts_with("|i") => "signed integers",
                n if n.starts_with("<u") => "wide unsigned integers",
                n if n.starts_with("<c") => "complex numbers",
                n if n.starts_with("|O") => "Python objects",
                _ => "this element type",
            };
            Err(FormatError::field(
                path,
                "descr",
                name,
                format!("{plain} cannot be read; save array.astype('<f4') instead"),
            ))
        }
    }
}
