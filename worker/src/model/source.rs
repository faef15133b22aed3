//! Tensors as they lie in a file.

use conclave_kernels::WeightType;
use half::{bf16, f16};

use super::ModelError;

/// A tensor in a mapped file.
#[derive(Clone, Debug)]
pub struct RawTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// How its numbers are stored.
    pub ty: WeightType,
    /// Rows first: a matrix is `[outputs, inputs]`.
    pub shape: Vec<u64>,
    /// Its numbers, rows one after another.
    pub bytes: &'a [u8],
}

/// A file or folder of tensors.
pub trait TensorSource {
    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;

    /// A tensor, its bytes checked against the file's length.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorType`], [`ModelError::Truncated`],
    /// [`ModelError::Malformed`].
    fn tensor(&self, name: &str) -> Result<RawTensor<'_>, ModelError>;

    /// The tensor was copied and will not be read again.
    fn release(&self, tensor: &RawTensor<'_>);
}

impl RawTensor<'_> {
    /// The tensor's numbers, if its shape is `expected`.
    ///
    /// # Errors
    /// [`ModelError::Shape`].
    pub fn expect(&self, expected: &[u64]) -> Result<(), ModelError> {
        if self.shape == expected {
            return Ok(());
        }
        Err(ModelError::Shape {
            tensor: self.name.clone(),
            found: self.shape.clone(),
            expected: expected.to_vec(),
        })
    }

    /// The numbers of an unquantized tensor.
    ///
    /// # Errors
    /// [`ModelError::TensorType`] if it is quantized.
    pub fn floats(&self) -> Result<Vec<f32>, ModelError> {
        let wide = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        match self.ty {
            WeightType::F32 => Ok(self.bytes.chunks_exact(4).map(wide).collect()),
            WeightType::F16 => Ok(self.halves(|bits| f16::from_bits(bits).to_f32())),
            WeightType::Bf16 => Ok(self.halves(|bits| bf16::from_bits(bits).to_f32())),
            other => Err(ModelError::TensorType {
                tensor: self.name.clone(),
                found: format!("{} (for a vector)", other.name()),
            }),
        }
    }

    fn halves(&self, read: impl Fn(u16) -> f32) -> Vec<f32> {
        self.bytes
            .chunks_exact(2)
            .map(|b| read(u16::from_le_bytes([b[0], b[1]])))
            .collect()
    }
}
