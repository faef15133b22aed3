//! The paged KV cache and the plan of an attention call.
//!
//! A cache block holds [`BLOCK`] slots of one layer. Keys lie transposed, `[block][kv_head][dim][slot]`,
//! so that one vector holds the same dimension of 16 slots; values lie `[block][kv_head][slot][dim]`.
//! A slot id is `block * BLOCK + offset`.

use crate::scratch::AlignedBuf;
use half::f16;

/// Slots in a cache block.
pub const BLOCK: usize = 16;

/// Slots in a span: each span is attended by itself, and spans are merged in order.
pub const SPAN: usize = 256;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 4 bytes, exact.
    F32,
    /// 2 bytes, rounded to nearest even.
    F16,
}

impl KvDtype {
    /// Bytes of one stored number.
    pub fn bytes(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::F16 => 2,
        }
    }

    /// The name used in settings and audit records.
    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::F16 => "f16",
        }
    }
}

/// Keys and values of all layers, allocated once.
pub struct KvCache {
    layers: Vec<KvLayer>,
}

impl KvCache {
    /// A cache of `blocks` blocks in each of `layers` layers, all zero.
    pub fn new(
        layers: usize,
        blocks: usize,
        kv_heads: usize,
        dim: usize,
        dtype: KvDtype,
    ) -> KvCache {
        let layer = || KvLayer::new(blocks, kv_heads, dim, dtype);
        KvCache {
            layers: (0..layers).map(|_| layer()).collect(),
        }
    }

    /// The layer at `index`. Panics if there is none.
    pub fn layer(&self, index: usize) -> &KvLayer {
        &self.layers[index]
    }

    /// The layer at `index`, to write to. Panics if there is none.
    pub fn layer_mut(&mut self, index: usize) -> &mut KvLayer {
        &mut self.layers[index]
    }

    /// Layers in the cache.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Copies block `from` onto block `to` in every layer: the copy of copy-on-write.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        for layer in &mut self.layers {
            layer.copy_block(from, to);
        }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|l| l.keys.len() + l.values.len())
            .sum()
    }
}

/// Keys and values of one layer.
pub struct KvLayer {
    pub(crate) keys: AlignedBuf,
    pub(crate) values: AlignedBuf,
    blocks: usize,
    kv_heads: usize,
    dim: usize,
    dtype: KvDtype,
}

impl KvLayer {
    /// A layer of `blocks` blocks, all zero.
    pub fn new(blocks: usize, kv_heads: usize, dim: usize, dtype: KvDtype) -> KvLayer {
        let bytes = blocks * kv_heads * BLOCK * dim * dtype.bytes();
        let (keys, values) = (AlignedBuf::zeroed(bytes), AlignedBuf::zeroed(bytes));
        KvLayer {
            keys,
            values,
            blocks,
            kv_heads,
            dim,
            dtype,
        }
    }

    /// Blocks in the layer.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Key and value heads a slot.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements of a head.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How numbers are stored.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Copies block `from` onto block `to`.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let bytes = self.kv_heads * BLOCK * self.dim * self.dtype.bytes();
        let start = from as usize * bytes;
        for buffer in [&mut self.keys, &mut self.values] {
            buffer
                .bytes_mut()
                .copy_within(start..start + bytes, to as usize * bytes);
        }
    }

    /// Index of the first number of a head of a block, in keys and in values.
    pub(crate) fn head_start(&self, block: u32, head: usize) -> usize {
        debug_assert!((block as usize) < self.blocks && head < self.kv_heads);
        (block as usize * self.kv_heads + head) * BLOCK * self.dim
    }

    /// Reads the key and the value of one head at a slot id, `dim` numbers each.
    pub fn read_slot(&self, slot: u32, head: usize, k: &mut [f32], v: &mut [f32]) {
        let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
        let start = self.head_start(block, head);
        for d in 0..self.dim {
            k[d] = load(&self.keys, self.dtype, start + d * BLOCK + offset);
            v[d] = load(&self.values, self.dtype, start + offset * self.dim + d);
        }
    }
}

fn load(buffer: &AlignedBuf, dtype: KvDtype, index: usize) -> f32 {
    let b = buffer.bytes();
    match dtype {
        KvDtype::F32 => {
            let i = index * 4;
            f32::from_ne_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
        }
        KvDtype::F16 => f16::from_ne_bytes([b[index * 2], b[index * 2 + 1]]).to_f32(),
    }
}

/// What one attention call does: the head layout and, per sequence, its queries and its slots.
#[derive(Clone, Copy, Debug)]
pub struct AttnPlan<'a> {
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
    /// The sequences of the batch; those that share blocks side by side.
    pub seqs: &'a [SeqSpan<'a>],
}

/// The queries of one sequence in an attention call. They are its last `q_len` slots.
#[derive(Clone, Copy, Debug)]
pub struct SeqSpan<'a> {
    /// First row of the sequence in `q` and `out`.
    pub q_start: usize,
    /// Its rows; row `i` is the query at slot `kv_len - q_len + i`.
    pub q_len: usize,
    /// Slots stored, those of these queries included.
    pub kv_len: usize,
    /// Cache block of each run of [`BLOCK`] slots, at least `kv_len.div_ceil(BLOCK)` of them.
    pub block_table: &'a [u32],
    /// How many leading blocks the sequence before it in the plan has, too. Those meet the queries of both
    /// at once. It changes no bit: 0 is always right.
    pub shared_blocks: usize,
}

/// Slots that the query at slot `p` sees.
pub(crate) fn visible(p: usize, window: Option<usize>) -> std::ops::Range<usize> {
    let end = p + 1;
    window.map_or(0, |w| end.saturating_sub(w.max(1)))..end
}
