//! The forward pass of a llama on a device: the ops of the processor's path, one after another.

use std::sync::Arc;

use conclave_kernels::cuda::{
    Attn, Buf, CudaKernels, DeviceError, Driver, Inputs, KvCache, Matrix, Rope, Rounded,
};
use conclave_kernels::{BLOCK, KvDtype};

use super::{Layer, Llama, LlamaConfig, LlamaWeights};
use crate::model::device::{Acts, Clock, Memory, Rows, Widths};
use crate::model::meter::Part;

/// A llama whose weights are on a device.
pub(in crate::model) struct DeviceLlama {
    config: LlamaConfig,
    weights: LlamaWeights<Matrix, Buf<f32>>,
    rope: Rope,
}

impl DeviceLlama {
    /// Moves weights to the device, and the rotations of all positions.
    pub(in crate::model) fn upload(
        llama: Llama,
        kernels: &CudaKernels,
    ) -> Result<DeviceLlama, DeviceError> {
        let driver = kernels.driver();
        let rope = Rope::upload(driver, &llama.rope(llama.config.context))?;
        let matrix = |matrix| Matrix::upload(kernels, &matrix);
        let vector = |vector: Vec<f32>| Buf::of(driver, &vector);
        Ok(DeviceLlama {
            weights: llama.weights.moved(matrix, vector)?,
            config: llama.config,
            rope,
        })
    }

    /// Positions below this can be computed.
    pub(in crate::model) fn context(&self) -> usize {
        self.config.context
    }

    /// The shape of a step's buffers.
    pub(in crate::model) fn widths(&self) -> Widths {
        Widths {
            hidden: self.config.hidden,
            q: self.config.q_width(),
            kv: self.config.kv_width(),
            ffn: self.config.ffn,
            vocab: self.weights.embedding.n(),
            heads: self.config.heads,
            dim: self.config.head_dim,
        }
    }

    /// A KV cache of `blocks` blocks.
    pub(in crate::model) fn cache(
        &self,
        driver: &Arc<dyn Driver>,
        blocks: usize,
        dtype: KvDtype,
    ) -> Result<KvCache, DeviceError> {
        let LlamaConfig {
            layers,
            kv_heads,
            head_dim,
            ..
        } = self.config;
        KvCache::new(driver, layers, blocks, kv_heads, head_dim, dtype)
    }

    /// Memory that it takes, in bytes.
    pub(in crate::model) fn cache_bytes(&self, blocks: usize, dtype: KvDtype) -> usize {
        let slot = 2 * self.config.layers * self.config.kv_width() * dtype.bytes();
        slot.saturating_mul(BLOCK).saturating_mul(blocks)
    }

    /// Asks for all ops of a step. Its rows are in `memory.rows`; the logits of those that are sampled will be in
    /// `memory.acts.logits`.
    pub(in crate::model) fn forward(
        &self,
        memory: &mut Memory,
        clock: &mut Clock<'_>,
    ) -> Result<(), DeviceError> {
        let Memory { cache, rows, acts } = memory;
        let (hidden, mut count) = (self.config.hidden, rows.extent.rows);
        clock.part(Part::Embed, |ops| {
            ops.embed(
                &self.weights.embedding,
                &rows.tokens,
                count,
                &mut acts.hidden,
            )
        })?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            clock.part(Part::Project, |ops| {
                self.project(ops, acts, layer, rows, index, cache)
            })?;
            let last = index + 1 == self.weights.layers.len();
            if last {
                // Nobody reads the last layer's output but the rows that are sampled.
                count = rows.extent.sampled;
                let (from, ops) = (&rows.sampled, clock.kernels);
                ops.gather(&acts.hidden, from, count, hidden, &mut acts.kept_hidden)?;
                ops.gather(
                    &acts.q,
                    from,
                    count,
                    self.config.q_width(),
                    &mut acts.kept_q,
                )?;
                std::mem::swap(&mut acts.hidden, &mut acts.kept_hidden);
                std::mem::swap(&mut acts.q, &mut acts.kept_q);
                if count == 0 {
                    return Ok(());
                }
            }
            clock.part(Part::Attention, |ops| {
                self.attend(ops, acts, rows, last, cache, index)
            })?;
            clock.part(Part::Sums, |ops| {
                let Acts {
                    attended,
                    rounded,
                    hidden,
                    ..
                } = acts;
                products(ops, attended, rounded, count, true, [(&layer.o, hidden)])
            })?;
            clock.part(Part::Gated, |ops| self.gated(ops, acts, layer, count))?;
            clock.part(Part::Sums, |ops| {
                let Acts {
                    inner,
                    rounded,
                    hidden,
                    ..
                } = acts;
                products(ops, inner, rounded, count, true, [(&layer.down, hidden)])
            })?;
        }
        clock.part(Part::Head, |ops| self.head(ops, acts, count))
    }

    /// Norm, query, key and value of every row; keys and values go to the cache.
    fn project(
        &self,
        ops: &CudaKernels,
        acts: &mut Acts,
        layer: &Layer<Matrix, Buf<f32>>,
        rows: &Rows,
        index: usize,
        cache: &mut KvCache,
    ) -> Result<(), DeviceError> {
        let LlamaConfig {
            heads,
            kv_heads,
            head_dim,
            eps,
            ..
        } = self.config;
        let Acts {
            hidden,
            normed,
            rounded,
            q,
            k,
            v,
            ..
        } = acts;
        let count = rows.extent.rows;
        ops.rms_norm(hidden, &layer.attn_norm, eps, count, normed)?;
        let three = [
            (&layer.q, &mut *q),
            (&layer.k, &mut *k),
            (&layer.v, &mut *v),
        ];
        products(ops, normed, rounded, count, false, three)?;
        ops.rope(q, &rows.positions, count, heads, head_dim, &self.rope)?;
        ops.rope(k, &rows.positions, count, kv_heads, head_dim, &self.rope)?;
        ops.write_kv(cache.layer_mut(index), k, v, &rows.slots, count)
    }

    /// Attention of all rows, or of those that are sampled.
    fn attend(
        &self,
        ops: &CudaKernels,
        acts: &mut Acts,
        rows: &Rows,
        sampled: bool,
        cache: &KvCache,
        index: usize,
    ) -> Result<(), DeviceError> {
        let (seen, count) = match sampled {
            true => (&rows.sampled_seen, rows.extent.sampled),
            false => (&rows.seen, rows.extent.rows),
        };
        let LlamaConfig {
            heads,
            kv_heads,
            head_dim: dim,
            ..
        } = self.config;
        let plan = Attn {
            heads,
            kv_heads,
            dim,
            scale: (1.0 / (dim as f64).sqrt()) as f32,
            window: None,
            softcap: None,
            lengths: &seen.lengths,
            offsets: &seen.offsets,
            tables: &rows.tables,
            longest: rows.extent.longest,
        };
        let Acts {
            q,
            attention,
            attended,
            ..
        } = acts;
        ops.paged_attention(q, cache.layer(index), &plan, attention, count, attended)
    }

    /// Norm, gate and up, and what becomes of them.
    fn gated(
        &self,
        ops: &CudaKernels,
        acts: &mut Acts,
        layer: &Layer<Matrix, Buf<f32>>,
        count: usize,
    ) -> Result<(), DeviceError> {
        let Acts {
            hidden,
            normed,
            rounded,
            gate,
            up,
            inner,
            ..
        } = acts;
        ops.rms_norm(hidden, &layer.ffn_norm, self.config.eps, count, normed)?;
        let both = [(&layer.gate, &mut *gate), (&layer.up, &mut *up)];
        products(ops, normed, rounded, count, false, both)?;
        ops.silu_mul(gate, up, count * self.config.ffn, inner)
    }

    /// Norm and logits.
    fn head(&self, ops: &CudaKernels, acts: &mut Acts, count: usize) -> Result<(), DeviceError> {
        let Acts {
            hidden,
            normed,
            rounded,
            logits,
            ..
        } = acts;
        ops.rms_norm(hidden, &self.weights.norm, self.config.eps, count, normed)?;
        let head = self.weights.head.as_ref();
        let head = head.unwrap_or(&self.weights.embedding);
        products(ops, normed, rounded, count, false, [(head, logits)])
    }
}

/// Products of the same `count` inputs with matrices, each to its place, or added to what is there. Inputs are
/// rounded once, if any of the matrices takes them so.
fn products<const N: usize>(
    ops: &CudaKernels,
    x: &Buf<f32>,
    rounded: &mut Rounded,
    count: usize,
    add: bool,
    products: [(&Matrix, &mut Buf<f32>); N],
) -> Result<(), DeviceError> {
    let takes = products.iter().find(|(matrix, _)| matrix.takes_int8());
    if let Some((matrix, _)) = takes {
        ops.round(x, count, matrix.k(), rounded)?;
    }
    for (matrix, out) in products {
        let inputs = match matrix.takes_int8() {
            true => Inputs::Int8(rounded),
            false => Inputs::F32(x),
        };
        ops.qmatmul(matrix, inputs, count, out, add)?;
    }
    Ok(())
}
