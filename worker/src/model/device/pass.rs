//! One worker's steps on a device.

use std::sync::Arc;
use std::time::Instant;

use conclave_kernels::cuda::{CudaKernels, DeviceError};
use conclave_kernels::{BLOCK, KvDtype};
use conclave_worker_core::Batch;

use super::DeviceModel;
use super::memory::{Acts, Extent, Memory, Rows};
use crate::model::ModelError;
use crate::model::meter::{Meter, Part};
use crate::model::step::Step;

/// What to do when the KV cache or a step does not fit.
const LOWER: &str = "lower `kv_memory_mib` (or `kv_blocks`), `step_tokens` or `max_sequences`, or end what else \
                     uses the device";

/// One worker's memory on a device, and its steps there.
pub(in crate::model) struct Pass {
    model: Arc<DeviceModel>,
    memory: Memory,
    /// Slots of the longest sequence that the cache holds.
    longest: usize,
    blocks: usize,
    logits: Vec<f32>,
    meter: Option<Meter>,
}

impl Pass {
    /// Allocates a KV cache of `blocks` blocks.
    pub(in crate::model) fn new(
        model: &Arc<DeviceModel>,
        blocks: usize,
        kv: KvDtype,
    ) -> Result<Pass, ModelError> {
        let (device, llama) = (&model.device, &model.llama);
        let bytes = llama.cache_bytes(blocks, kv);
        let free = device.memory()?.free;
        let what = "the KV cache";
        if bytes as u64 > free {
            return Err(device.too_small(what, bytes, free, LOWER));
        }
        let refused = |error| device.refusal(error, what, bytes, LOWER);
        let driver = device.kernels().driver();
        let memory = Memory {
            cache: llama.cache(driver, blocks, kv).map_err(refused)?,
            rows: Rows::new(driver)?,
            acts: Acts::new(driver)?,
        };
        Ok(Pass {
            longest: llama.context().min(blocks * BLOCK),
            model: Arc::clone(model),
            memory,
            blocks,
            logits: Vec::new(),
            meter: None,
        })
    }

    pub(in crate::model) fn cache_bytes(&self) -> usize {
        self.memory.cache.bytes()
    }

    /// Takes the memory of a step of `rows` tokens of which `sampled` are sampled.
    pub(in crate::model) fn reserve(
        &mut self,
        rows: usize,
        sampled: usize,
    ) -> Result<(), ModelError> {
        let most = Extent {
            rows,
            sampled: sampled.min(rows),
            longest: self.longest,
        };
        // Sequences that share blocks name them all; most do not fill the cache by themselves.
        let blocks = self.longest.div_ceil(BLOCK).saturating_mul(sampled);
        let blocks = blocks.min(4 * self.blocks);
        let taken = self.memory.rows.ensure(most, blocks);
        let widths = self.model.llama.widths();
        let taken = taken.and_then(|()| self.memory.acts.ensure(widths, most));
        let device = &self.model.device;
        taken.map_err(|error| match error {
            DeviceError::OutOfMemory { asked, .. } => {
                device.refusal(error, "the buffers of a step", asked, LOWER)
            }
            error => ModelError::Device(error),
        })?;
        self.logits.resize(sampled.min(rows) * widths.vocab, 0.0);
        Ok(())
    }

    pub(in crate::model) fn measure(&mut self, on: bool) -> Option<Meter> {
        std::mem::replace(&mut self.meter, on.then(Meter::default))
    }

    pub(in crate::model) fn meter(&mut self) -> Option<&mut Meter> {
        self.meter.as_mut()
    }

    /// Computes a batch, of which `step` was made, and gives the logits of its sampled rows, `sampled x vocab`.
    pub(in crate::model) fn run(
        &mut self,
        batch: &Batch,
        step: &Step,
    ) -> Result<&[f32], DeviceError> {
        let (model, memory) = (&self.model, &mut self.memory);
        let kernels = model.device.kernels();
        for copy in batch.copies().iter().filter(|copy| copy.src != copy.dst) {
            memory.cache.copy_block(copy.src.0, copy.dst.0)?;
        }
        let mut clock = Clock {
            kernels,
            meter: self.meter.as_mut(),
        };
        let mut numbers = 0;
        if !batch.is_empty() {
            memory.rows.upload(step)?;
            let (extent, widths) = (memory.rows.extent, model.llama.widths());
            memory.acts.ensure(widths, extent)?;
            numbers = extent.sampled * widths.vocab;
            model.llama.forward(memory, &mut clock)?;
        }
        if self.logits.len() < numbers {
            self.logits.resize(numbers, 0.0);
        }
        let logits = &mut self.logits[..numbers];
        memory.acts.logits.download(logits)?;
        // What failed belongs to this step, also if nothing came down.
        kernels.driver().synchronize()?;
        Ok(logits)
    }
}

/// Runs the parts of a step. If somebody measures, each is waited for.
pub(in crate::model) struct Clock<'a> {
    pub(in crate::model) kernels: &'a CudaKernels,
    meter: Option<&'a mut Meter>,
}

impl Clock<'_> {
    /// Runs one part.
    pub(in crate::model) fn part(
        &mut self,
        part: Part,
        run: impl FnOnce(&CudaKernels) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Some(meter) = self.meter.as_deref_mut() else {
            return run(self.kernels);
        };
        let since = Instant::now();
        run(self.kernels)?;
        self.kernels.driver().synchronize()?;
        meter.add(part, since);
        Ok(())
    }
}
