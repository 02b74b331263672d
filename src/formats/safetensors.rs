//! Safetensors: named arrays and string metadata in one file (<https://huggingface.co/docs/safetensors>, format 0.3 on).
//!
//! Files are parsed by the crate `safetensors` and written here: the crate keeps metadata in a hash map, so that the same content
//! gives other bytes each time, and ours must give the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::{FormatError, write_whole};

/// Largest file that is read: more is no file of ours.
const MAX_BYTES: u64 = 1 << 33;

/// Values of an array, last axis fastest.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// `F32`.
    F32(&'a [f32]),
    /// `I16`.
    I16(&'a [i16]),
    /// `U8`.
    U8(&'a [u8]),
}

impl Values<'_> {
    fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "F32",
            Self::I16(_) => "I16",
            Self::U8(_) => "U8",
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    fn item_bytes(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::I16(_) => 2,
            Self::U8(_) => 1,
        }
    }

    /// Little-endian.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::I16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::U8(values) => values.to_vec(),
        }
    }
}

/// A named array.
#[derive(Debug, Clone)]
pub struct Tensor<'a> {
    /// Name.
    pub name: &'static str,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Values, as many as the shape says.
    pub values: Values<'a>,
}

/// Writes arrays and metadata; the same bytes for the same content. The file stands under its name only when it is whole.
///
/// # Errors
/// [`FormatError`] where an array does not have the length its shape says, or the file cannot be written.
pub fn write(path: &Path, tensors: &[Tensor<'_>], metadata: &BTreeMap<String, String>) -> Result<(), FormatError> {
    let mut ordered: Vec<&Tensor<'_>> = tensors.iter().collect();
    // Wide items first, so that each array is aligned to its items (as the crate does it).
    ordered.sort_by_key(|tensor| (std::cmp::Reverse(tensor.values.item_bytes()), tensor.name));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut offset = 0;
    for tensor in &ordered {
        let Tensor { name, shape, values } = tensor;
        if shape.iter().product::<usize>() != values.len() {
            let requirement = format!("must hold as many values as its shape says; there are {}", values.len());
            return Err(FormatError::field(path, *name, format!("{shape:?}"), requirement));
        }
        let end = offset + values.len() * values.item_bytes();
        header.insert((*name).into(), json!({"dtype": values.dtype(), "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    write_whole(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        ordered.iter().try_for_each(|tensor| file.write_all(&tensor.values.bytes()))
    })
}

/// A whole file in memory.
#[derive(Debug)]
pub struct Contents {
    bytes: Vec<u8>,
    /// The strings under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads a file and checks that it is whole.
///
/// # Errors
/// [`FormatError`] for a file that cannot be read, is cut short, or is none.
pub fn read(path: &Path) -> Result<Contents, FormatError> {
    let io = |error| FormatError::io(path, "read", error);
    let length = fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        return Err(FormatError::damaged(path, format!("{length} bytes"), format!("at most {MAX_BYTES} are read")));
    }
    let bytes = fs::read(path).map_err(io)?;
    let damaged = |error| {
        FormatError::damaged(path, format!("not a whole safetensors file ({error})"), "remove it or copy it again")
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Contents { bytes, metadata })
}

impl Contents {
    /// Shape and values of an int16 array.
    ///
    /// # Errors
    /// [`FormatError`] naming the array (`path` is quoted) where it is missing or of another type.
    pub fn i16(&self, path: &Path, name: &str) -> Result<(Vec<usize>, Vec<i16>), FormatError> {
        let missing = |what: String| FormatError::field(path, name, what, "must be an array of I16");
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| missing(error.to_string()))?;
        let tensor = tensors.tensor(name).map_err(|_| missing("(missing)".into()))?;
        if tensor.dtype() != Dtype::I16 {
            return Err(missing(format!("{:?}", tensor.dtype())));
        }
        let values = tensor.data().as_chunks::<2>().0.iter().map(|raw| i16::from_le_bytes(*raw)).collect();
        Ok((tensor.shape().to_vec(), values))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample(path: &Path) {
        let metadata = (0..20).map(|i| (format!("key{i}"), format!("value \"{i}\""))).collect();
        let tensors = [
            Tensor { name: "mask", shape: vec![3], values: Values::U8(&[1, 0, 255]) },
            Tensor { name: "hu", shape: vec![2, 2], values: Values::I16(&[-1024, 0, 1, i16::MAX]) },
            Tensor { name: "views", shape: vec![2], values: Values::F32(&[0.5, -1e30]) },
        ];
        write(path, &tensors, &metadata).unwrap();
    }

    #[test]
    fn the_crate_reads_what_we_write_and_the_bytes_are_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
        sample(&a);
        sample(&b);
        let bytes = fs::read(&a).unwrap();
        assert_eq!(bytes, fs::read(&b).unwrap());
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(parsed.tensor("mask").unwrap().data(), [1, 0, 255]);
        assert_eq!(parsed.tensor("views").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&[0.5, -1e30]));
        // Arrays are aligned to their items, for readers that map the file.
        assert_eq!(parsed.tensor("views").unwrap().data().as_ptr() as usize % 4, bytes.as_ptr() as usize % 4);
        let read = read(&a).unwrap();
        assert_eq!(read.metadata["key7"], "value \"7\"");
        assert_eq!(read.i16(&a, "hu").unwrap(), (vec![2, 2], vec![-1024, 0, 1, i16::MAX]));
    }

    #[test]
    fn what_is_cut_short_or_of_another_type_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        sample(&path);
        let whole = read(&path).unwrap();
        assert!(whole.i16(&path, "mask").unwrap_err().to_string().contains("mask = U8"));
        assert!(whole.i16(&path, "nothing").unwrap_err().to_string().contains("(missing)"));
        let bytes = fs::read(&path).unwrap();
        for length in [0, 7, 8, 60, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(read(&path).unwrap_err().to_string().contains("not a whole safetensors file"), "{length}");
        }
        let short = [Tensor { name: "hu", shape: vec![3], values: Values::I16(&[1, 2]) }];
        assert!(write(&path, &short, &BTreeMap::new()).unwrap_err().to_string().contains("hu = [3]"));
    }
}
