//! Attention over the paged cache.

use super::launch::{Argument, Blocks, GRID};
use super::{Buf, CudaKernels, DeviceError, Driver, Kernel, KvLayer};
use crate::attention::SPAN;
use crate::reference::LANES;
use std::sync::Arc;

/// `HEADS` of `attention.cu`.
const HEADS: usize = 8;

/// States of spans that a launch writes at most, in bytes; longer calls go in several launches.
const SCRATCH: usize = 64 << 20;

/// What an attention call does. Row `i` is the query at slot `lengths[i] - 1` of its sequence.
#[derive(Clone, Copy)]
pub struct Attn<'a> {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads; query head `h` reads kv head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Factor on scores, usually `1 / sqrt(dim)`.
    pub scale: f32,
    /// With `Some(w)` a query at slot `p` sees slots `p - w + 1 ..= p` only.
    pub window: Option<usize>,
    /// With `Some(c)` scores become `c * tanh(score / c)`.
    pub softcap: Option<f32>,
    /// Per row: the slots that it sees were there no window, its own the last of them. At least 1.
    pub lengths: &'a Buf<u32>,
    /// Per row: where in `tables` its sequence's block table begins.
    pub offsets: &'a Buf<u32>,
    /// Block tables, one after another: the cache block of each run of 16 slots.
    pub tables: &'a Buf<u32>,
    /// No row's length is greater.
    pub longest: usize,
}

impl Attn<'_> {
    /// Spans that a row sees at most.
    fn spans(&self) -> usize {
        let all = self.longest.div_ceil(SPAN);
        // A window may begin within a span: it touches one more than it is long.
        self.window
            .map_or(all, |w| all.min(w.max(1).div_ceil(SPAN) + 1))
    }

    /// The call from row `first_row` on, with room for `spans` states a row and head.
    fn shape(&self, spans: usize, first_row: usize) -> Shape {
        let window = self.window.map_or(0, |w| w.clamp(1, u32::MAX as usize));
        Shape {
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            dim: self.dim as u32,
            window: window as u32,
            scale: self.scale,
            softcap: self.softcap.unwrap_or(0.0),
            spans: spans as u32,
            first_row: first_row as u32,
        }
    }
}

/// Room for the states of spans. It grows to what a step needs and is then reused.
pub struct AttnScratch {
    states: Buf<f32>,
}

impl AttnScratch {
    /// Without room.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(driver: &Arc<dyn Driver>) -> Result<AttnScratch, DeviceError> {
        Ok(AttnScratch {
            states: Buf::new(driver, 0)?,
        })
    }

    /// Makes room for calls with up to `rows` rows whose longest sequence has `longest` slots; at most 64 MiB, or
    /// what one row takes.
    ///
    /// # Errors
    /// As [`Buf::ensure`].
    pub fn ensure(
        &mut self,
        rows: usize,
        longest: usize,
        heads: usize,
        dim: usize,
    ) -> Result<(), DeviceError> {
        let row = row_states(longest.div_ceil(SPAN), heads, dim);
        let most = (SCRATCH / size_of::<f32>() / row).max(1);
        self.states.ensure(rows.min(most) * row)
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.states.len() * size_of::<f32>()
    }
}

/// Numbers that the states of a row's spans are.
fn row_states(spans: usize, heads: usize, dim: usize) -> usize {
    spans * heads * (1 + LANES + dim)
}

/// A call as the kernels take it: `Shape` of `kernels/cuda/attention.cu`.
#[repr(C)]
pub(super) struct Shape {
    heads: u32,
    kv_heads: u32,
    dim: u32,
    window: u32,
    scale: f32,
    softcap: f32,
    spans: u32,
    first_row: u32,
}

impl CudaKernels {
    /// Attention of `rows` queries, `rows x heads x dim`, over stored keys and values:
    /// [`crate::reference::paged_attention`]. What a row gives does not depend on the other rows.
    ///
    /// Panics on buffers that are too short, on scratch without room for one row ([`AttnScratch::ensure`]), or on
    /// another head layout than the layer's. That tables lead to blocks of the layer is the caller's to see to.
    ///
    /// # Errors
    /// What the driver says.
    pub fn paged_attention(
        &self,
        q: &Buf<f32>,
        layer: &KvLayer,
        plan: &Attn<'_>,
        scratch: &mut AttnScratch,
        rows: usize,
        out: &mut Buf<f32>,
    ) -> Result<(), DeviceError> {
        let Attn {
            heads,
            kv_heads,
            dim,
            ..
        } = *plan;
        assert!((kv_heads, dim) == (layer.kv_heads(), layer.dim()));
        assert!(
            heads.is_multiple_of(kv_heads),
            "{heads} heads on {kv_heads}"
        );
        let len = rows * heads * dim;
        assert!(len <= q.len() && len <= out.len());
        assert!(rows <= plan.lengths.len() && rows <= plan.offsets.len());
        let spans = plan.spans();
        let at_once = scratch.states.len() / row_states(spans, heads, dim).max(1);
        assert!(rows == 0 || at_once > 0, "scratch has no room for a row");
        let parts = (heads / kv_heads).div_ceil(HEADS);
        assert!(kv_heads * parts <= GRID && heads <= GRID && spans <= GRID);
        for first_row in (0..rows).step_by(at_once.max(1)) {
            let count = at_once.min(rows - first_row);
            let shape = plan.shape(spans, first_row);
            let attend = Blocks {
                grid: [count, kv_heads * parts, spans],
                threads: SPAN as u32,
                shared: HEADS * (dim + SPAN + 1) * size_of::<f32>(),
            };
            let merge = Blocks {
                grid: [count, heads, 1],
                threads: dim.next_multiple_of(32).min(SPAN) as u32,
                shared: size_of::<f32>(),
            };
            let (lengths, states) = (plan.lengths, &scratch.states);
            let arguments: &[&dyn Argument] = &[
                q,
                &layer.keys,
                &layer.values,
                lengths,
                plan.offsets,
                plan.tables,
                &shape,
                states,
            ];
            // SAFETY: attention.cu's signatures; the lengths are checked above.
            unsafe {
                self.launch(Kernel::Attend(layer.dtype()), &attend, arguments)?;
                self.launch(Kernel::MergeSpans, &merge, &[states, lengths, &shape, out])?;
            }
        }
        Ok(())
    }
}
