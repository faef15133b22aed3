//! From tensors in a file to what the kernels take.

use std::sync::Arc;

use conclave_kernels::{Activation, Isa, PackedMatrix, Pool};

use super::ModelError;
use super::source::{RawTensor, TensorSource};

/// A file's tensors on their way to the kernels.
pub(super) struct Packing<'a> {
    source: &'a dyn TensorSource,
    activation: Activation,
    isa: Isa,
    /// For as long as weights are packed.
    pool: Arc<Pool>,
}

impl<'a> Packing<'a> {
    pub(super) fn new(
        source: &'a dyn TensorSource,
        activation: Activation,
        isa: Isa,
    ) -> Packing<'a> {
        Packing {
            source,
            activation,
            isa,
            pool: Pool::new(Pool::default_threads()),
        }
    }

    /// The matrix of embeddings, one row a token.
    pub(super) fn embedding(&self, name: String, hidden: u64) -> Result<PackedMatrix, ModelError> {
        // How many rows there are is the file's to say; that there are some is not.
        let rows = self.source.tensor(&name)?.shape.first().copied();
        let vocab = rows.filter(|rows| *rows > 0).unwrap_or(1);
        self.matrix(name, vocab, hidden)
    }

    /// The matrix that gives logits, unless the embeddings are it.
    pub(super) fn head(
        &self,
        name: String,
        embedding: &PackedMatrix,
    ) -> Result<Option<PackedMatrix>, ModelError> {
        let (n, k) = (embedding.n() as u64, embedding.k() as u64);
        let head = self.source.has(&name).then(|| self.matrix(name, n, k));
        head.transpose()
    }

    /// A matrix of `n x k`, without bias.
    pub(super) fn matrix(&self, name: String, n: u64, k: u64) -> Result<PackedMatrix, ModelError> {
        let bias = name.replace(".weight", ".bias");
        if bias != name && self.source.has(&bias) {
            return Err(ModelError::Setting {
                key: bias,
                problem: "biases are not supported".into(),
            });
        }
        let raw = self.source.tensor(&name)?;
        raw.expect(&[n, k])?;
        let packed = self.pack(&raw, raw.bytes, n, k)?;
        self.source.release(&raw);
        Ok(packed)
    }

    /// Matrices of `n x k` that lie one after another in a tensor of three dimensions, `parts` in each of `count`
    /// entries.
    pub(super) fn stacked(
        &self,
        name: String,
        [count, parts]: [usize; 2],
        n: usize,
        k: usize,
    ) -> Result<Vec<PackedMatrix>, ModelError> {
        let raw = self.source.tensor(&name)?;
        let (n, k) = (n as u64, k as u64);
        raw.expect(&[count as u64, parts as u64 * n, k])?;
        let bytes = raw.bytes.len() / (count * parts);
        let matrices = raw.bytes.chunks(bytes.max(1));
        let matrices = matrices.map(|bytes| self.pack(&raw, bytes, n, k));
        let matrices = matrices.collect::<Result<_, _>>()?;
        self.source.release(&raw);
        Ok(matrices)
    }

    /// A vector of `len` numbers.
    pub(super) fn vector(&self, name: String, len: u64) -> Result<Vec<f32>, ModelError> {
        let raw = self.source.tensor(&name)?;
        raw.expect(&[len])?;
        raw.floats()
    }

    fn pack(
        &self,
        raw: &RawTensor<'_>,
        bytes: &[u8],
        n: u64,
        k: u64,
    ) -> Result<PackedMatrix, ModelError> {
        let (n, k) = (n as usize, k as usize);
        let (pool, act) = (&self.pool, self.activation);
        let packed = PackedMatrix::pack_on(pool, raw.ty, bytes, n, k, act, self.isa);
        packed.map_err(|source| ModelError::Pack {
            tensor: raw.name.clone(),
            source,
        })
    }
}
