//! The paged KV cache on the device, laid out as the CPU's (see [`crate::KvCache`]).

use super::{Buf, DeviceError, Driver};
use crate::attention::{BLOCK, KvDtype};
use half::f16;
use std::sync::Arc;

/// Keys and values of all layers, allocated once.
pub struct KvCache {
    layers: Vec<KvLayer>,
}

impl KvCache {
    /// A cache of `blocks` blocks in each of `layers` layers. Slots hold nothing until they are written.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or what the driver says.
    pub fn new(
        driver: &Arc<dyn Driver>,
        layers: usize,
        blocks: usize,
        kv_heads: usize,
        dim: usize,
        dtype: KvDtype,
    ) -> Result<KvCache, DeviceError> {
        let layer = |_| KvLayer::new(driver, blocks, kv_heads, dim, dtype);
        let layers = (0..layers).map(layer).collect::<Result<_, _>>()?;
        Ok(KvCache { layers })
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

    /// Copies block `from` onto another block `to` in every layer: the copy of copy-on-write.
    ///
    /// # Errors
    /// What the driver says.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<(), DeviceError> {
        let mut layers = self.layers.iter_mut();
        layers.try_for_each(|layer| layer.copy_block(from, to))
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|l| l.keys.len() + l.values.len())
            .sum()
    }
}

/// Keys and values of one layer.
pub struct KvLayer {
    pub(super) keys: Buf<u8>,
    pub(super) values: Buf<u8>,
    blocks: usize,
    kv_heads: usize,
    dim: usize,
    dtype: KvDtype,
}

impl KvLayer {
    /// A layer of `blocks` blocks. Slots hold nothing until they are written.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or what the driver says.
    pub fn new(
        driver: &Arc<dyn Driver>,
        blocks: usize,
        kv_heads: usize,
        dim: usize,
        dtype: KvDtype,
    ) -> Result<KvLayer, DeviceError> {
        let bytes = blocks * kv_heads * BLOCK * dim * dtype.bytes();
        Ok(KvLayer {
            keys: Buf::new(driver, bytes)?,
            values: Buf::new(driver, bytes)?,
            blocks,
            kv_heads,
            dim,
            dtype,
        })
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

    /// Copies block `from` onto another block `to`. Panics if they are not in the layer.
    ///
    /// # Errors
    /// What the driver says.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<(), DeviceError> {
        if from == to {
            return Ok(());
        }
        let bytes = self.kv_heads * BLOCK * self.dim * self.dtype.bytes();
        let (from, to) = (from as usize * bytes, to as usize * bytes);
        self.keys.copy_within(from, to, bytes)?;
        self.values.copy_within(from, to, bytes)
    }

    /// Reads the key and the value of one head at a slot id, `dim` numbers each, after all ops before: to look at,
    /// not to compute with.
    ///
    /// # Errors
    /// What the driver says.
    pub fn read_slot(
        &self,
        slot: u32,
        head: usize,
        k: &mut [f32],
        v: &mut [f32],
    ) -> Result<(), DeviceError> {
        let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
        let size = self.dtype.bytes();
        let mut bytes = vec![0; BLOCK * self.dim * size];
        let start = (block * self.kv_heads + head) * bytes.len();
        self.keys.download_at(start, &mut bytes)?;
        for (d, k) in k.iter_mut().enumerate().take(self.dim) {
            *k = number(&bytes[(d * BLOCK + offset) * size..], self.dtype);
        }
        self.values.download_at(start, &mut bytes)?;
        for (d, v) in v.iter_mut().enumerate().take(self.dim) {
            *v = number(&bytes[(offset * self.dim + d) * size..], self.dtype);
        }
        Ok(())
    }
}

fn number(b: &[u8], dtype: KvDtype) -> f32 {
    match dtype {
        KvDtype::F32 => f32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        KvDtype::F16 => f16::from_ne_bytes([b[0], b[1]]).to_f32(),
    }
}
