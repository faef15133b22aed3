//! GGUF files (the specification is `docs/gguf.md` of ggml), read from a map and checked against the
//! file's length: a hostile header gets an error, never a panic or a large allocation.
//!
//! candle's reader is not used: it copies every array into 32-byte values, does not name the tensor
//! whose type it does not know, and divides by the alignment that the file gives.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use conclave_kernels::WeightType;

use super::ModelError;
use super::map::MappedFile;
use super::source::{RawTensor, TensorSource};

/// Arrays of arrays may nest this deep; real files do not nest at all.
const MAX_DEPTH: usize = 4;

/// A GGUF file: metadata and where its tensors lie.
#[derive(Debug)]
pub struct Gguf {
    file: MappedFile,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    data: usize,
}

/// A metadata value; arrays stay in the file.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array {
        kind: u32,
        len: usize,
        bytes: Range<usize>,
    },
}

#[derive(Clone, Debug)]
struct TensorInfo {
    /// Rows first (the file has them last).
    shape: Vec<u64>,
    ggml_type: u32,
    /// From the start of the tensor data.
    offset: u64,
}

impl Gguf {
    /// Maps and reads the header.
    ///
    /// # Errors
    /// [`ModelError::NotGguf`], [`ModelError::GgufVersion`], [`ModelError::Truncated`],
    /// [`ModelError::Malformed`], [`ModelError::Io`].
    pub fn open(path: &Path) -> Result<Gguf, ModelError> {
        let file = MappedFile::open(path)?;
        let mut reader = Reader {
            bytes: file.bytes(),
            at: 0,
        };
        let magic = &file.bytes()[..file.bytes().len().min(4)];
        if magic != b"GGUF" {
            return Err(ModelError::NotGguf {
                path: path.to_owned(),
                magic: magic.to_vec(),
            });
        }
        reader.at = 4;
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(ModelError::GgufVersion { version });
        }
        let tensor_count = reader.u64("the tensor count")?;
        let metadata_count = reader.u64("the metadata count")?;
        let metadata = read_metadata(&mut reader, metadata_count)?;
        let tensors = read_tensors(&mut reader, tensor_count)?;
        let end = reader.at as u64;
        let mut gguf = Gguf {
            file,
            metadata,
            tensors,
            data: 0,
        };
        let alignment = gguf.opt_u64("general.alignment")?.unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(setting(
                "general.alignment",
                format!("{alignment} is no alignment"),
            ));
        }
        if gguf.opt_u64("split.count")?.unwrap_or(1) > 1 {
            return Err(setting(
                "split.count",
                "models split over files are not supported".into(),
            ));
        }
        gguf.data = usize::try_from(end.next_multiple_of(alignment)).unwrap_or(usize::MAX);
        Ok(gguf)
    }

    /// blake3 of the file.
    pub fn digest(&self) -> [u8; 32] {
        self.file.digest().into()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A whole number; `None` if the key is absent.
    pub(crate) fn opt_u64(&self, key: &str) -> Result<Option<u64>, ModelError> {
        let problem = |value: &Value| setting(key, format!("{value:?} is no whole number"));
        self.metadata
            .get(key)
            .map(|value| value.as_u64().ok_or_else(|| problem(value)))
            .transpose()
    }

    /// A number; `None` if the key is absent.
    pub(crate) fn opt_f64(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let problem = |value: &Value| setting(key, format!("{value:?} is no number"));
        let read = |value: &Value| match value {
            Value::Float(value) => Ok(*value),
            Value::Unsigned(value) => Ok(*value as f64),
            Value::Signed(value) => Ok(*value as f64),
            _ => Err(problem(value)),
        };
        self.metadata.get(key).map(read).transpose()
    }

    /// A truth value; `None` if the key is absent.
    pub(crate) fn opt_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => Err(setting(key, format!("{value:?} is no truth value"))),
        }
    }

    /// A text; `None` if the key is absent.
    pub(crate) fn opt_text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(value)) => Ok(Some(value)),
            Some(value) => Err(setting(key, format!("{value:?} is no text"))),
        }
    }

    /// An array of texts; `None` if the key is absent.
    pub(crate) fn opt_texts(&self, key: &str) -> Result<Option<Vec<String>>, ModelError> {
        let Some((kind, len, mut reader)) = self.array(key)? else {
            return Ok(None);
        };
        if kind != 8 {
            return Err(setting(key, "is no array of texts".into()));
        }
        (0..len)
            .map(|_| reader.text(key))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// An array of numbers; `None` if the key is absent.
    pub(crate) fn opt_numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let Some((kind, len, mut reader)) = self.array(key)? else {
            return Ok(None);
        };
        let number = |_| match reader.value(kind, key, MAX_DEPTH)? {
            Value::Unsigned(value) => Ok(value as f64),
            Value::Signed(value) => Ok(value as f64),
            Value::Float(value) => Ok(value),
            _ => Err(setting(key, "is no array of numbers".into())),
        };
        (0..len).map(number).collect::<Result<_, _>>().map(Some)
    }

    fn array(&self, key: &str) -> Result<Option<(u32, usize, Reader<'_>)>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, len, bytes }) => {
                // Ends where the array does; it was read once already.
                let reader = Reader {
                    bytes: &self.file.bytes()[..bytes.end],
                    at: bytes.start,
                };
                Ok(Some((*kind, *len, reader)))
            }
            Some(value) => Err(setting(key, format!("{value:?} is no array"))),
        }
    }
}

impl TensorSource for Gguf {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor(&self, name: &str) -> Result<RawTensor<'_>, ModelError> {
        let missing = || ModelError::MissingTensor {
            tensor: name.to_owned(),
        };
        let info = self.tensors.get(name).ok_or_else(missing)?;
        let ty = WeightType::from_ggml(info.ggml_type).ok_or_else(|| ModelError::TensorType {
            tensor: name.to_owned(),
            found: ggml_name(info.ggml_type),
        })?;
        let malformed = |problem: &str| ModelError::Malformed {
            what: format!("tensor {name} of shape {:?} {problem}", info.shape),
        };
        let count = info
            .shape
            .iter()
            .try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let count = count.ok_or_else(|| malformed("is too large"))?;
        let row = info.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(ty.block_len() as u64) {
            return Err(malformed(&format!(
                "has rows of no whole {} blocks",
                ty.name()
            )));
        }
        let need = (count / ty.block_len() as u64).checked_mul(ty.block_bytes() as u64);
        let need = need.ok_or_else(|| malformed("is too large"))?;
        let start = (self.data as u64).checked_add(info.offset);
        let start = start.ok_or_else(|| malformed("begins beyond the file"))?;
        let file = self.file.bytes();
        let truncated = || ModelError::Truncated {
            what: format!("tensor {name}"),
            need,
            have: (file.len() as u64).saturating_sub(start),
        };
        let end = start.checked_add(need).ok_or_else(truncated)?;
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let bytes = range.and_then(|(start, end)| file.get(start..end));
        let bytes = bytes.ok_or_else(truncated)?;
        Ok(RawTensor {
            name: name.to_owned(),
            ty,
            shape: info.shape.clone(),
            bytes,
        })
    }

    fn release(&self, tensor: &RawTensor<'_>) {
        let start = tensor.bytes.as_ptr() as usize - self.file.bytes().as_ptr() as usize;
        self.file.release(start..start + tensor.bytes.len());
    }
}

impl Value {
    fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(value) => Some(*value),
            Value::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }
}

fn read_metadata(
    reader: &mut Reader<'_>,
    count: u64,
) -> Result<BTreeMap<String, Value>, ModelError> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let key = reader.text(&format!("metadata key {index}"))?;
        let kind = reader.u32(&key)?;
        let value = reader.value(kind, &key, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(ModelError::Malformed {
                what: format!("key {key} is there twice"),
            });
        }
    }
    Ok(metadata)
}

fn read_tensors(
    reader: &mut Reader<'_>,
    count: u64,
) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
    let mut tensors = BTreeMap::new();
    for index in 0..count {
        let name = reader.text(&format!("tensor name {index}"))?;
        let dims = reader.u32(&name)?;
        if !(1..=4).contains(&dims) {
            let what = format!("tensor {name} has {dims} dimensions");
            return Err(ModelError::Malformed { what });
        }
        let mut shape = (0..dims)
            .map(|_| reader.u64(&name))
            .collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        if shape.contains(&0) {
            let what = format!("tensor {name} of shape {shape:?} is empty");
            return Err(ModelError::Malformed { what });
        }
        let (ggml_type, offset) = (reader.u32(&name)?, reader.u64(&name)?);
        if tensors
            .insert(
                name.clone(),
                TensorInfo {
                    shape,
                    ggml_type,
                    offset,
                },
            )
            .is_some()
        {
            return Err(ModelError::Malformed {
                what: format!("tensor {name} is there twice"),
            });
        }
    }
    Ok(tensors)
}

/// Reads little-endian values and never beyond the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, need: u64, what: &str) -> Result<&'a [u8], ModelError> {
        let rest = &self.bytes[self.at..];
        let have = rest.len() as u64;
        if need > have {
            return Err(ModelError::Truncated {
                what: what.to_owned(),
                need,
                have,
            });
        }
        self.at += need as usize;
        Ok(&rest[..need as usize])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string; what is not UTF-8 is replaced, as some files in the wild need it.
    fn text(&mut self, what: &str) -> Result<String, ModelError> {
        let len = self.u64(what)?;
        Ok(String::from_utf8_lossy(self.take(len, what)?).into_owned())
    }

    fn value(&mut self, kind: u32, what: &str, depth: usize) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(what)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            4 => Value::Unsigned(self.u32(what)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(what)?).into()),
            7 => Value::Bool(self.array::<1>(what)?[0] != 0),
            8 => Value::Text(self.text(what)?),
            9 => self.skip_array(what, depth)?,
            10 => Value::Unsigned(self.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            _ => {
                return Err(ModelError::Malformed {
                    what: format!("{what} has type {kind}"),
                });
            }
        })
    }

    /// Walks over an array and keeps where it lies.
    fn skip_array(&mut self, what: &str, depth: usize) -> Result<Value, ModelError> {
        if depth >= MAX_DEPTH {
            return Err(ModelError::Malformed {
                what: format!("{what} nests too deep"),
            });
        }
        let (kind, len) = (self.u32(what)?, self.u64(what)?);
        let start = self.at;
        match fixed_size(kind) {
            Some(size) => {
                self.take(len.saturating_mul(size), what)?;
            }
            None if kind == 8 => {
                for _ in 0..len {
                    let bytes = self.u64(what)?;
                    self.take(bytes, what)?;
                }
            }
            // Each turn reads 12 bytes or fails.
            None => {
                for _ in 0..len {
                    self.value(kind, what, depth + 1)?;
                }
            }
        }
        // Every element takes a byte at least, so the count fits.
        Ok(Value::Array {
            kind,
            len: len as usize,
            bytes: start..self.at,
        })
    }
}

/// Bytes of a scalar value type.
fn fixed_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The name of a tensor type that no kernel reads.
fn ggml_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "a whole-number type",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    name.to_owned()
}

fn setting(key: &str, problem: String) -> ModelError {
    ModelError::Setting {
        key: key.to_owned(),
        problem,
    }
}
