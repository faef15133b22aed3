//! What a worker's steps hold on a device. It grows at the beginning of a step, if it must, and stays.

use std::sync::Arc;

use conclave_kernels::cuda::{AttnScratch, Buf, DeviceError, Driver, KvCache, Rounded};

use crate::model::step::{Sights, Step};

/// Keys and values, rows and activations of one worker.
pub(in crate::model) struct Memory {
    pub(in crate::model) cache: KvCache,
    pub(in crate::model) rows: Rows,
    pub(in crate::model) acts: Acts,
}

/// How long the rows of a step's buffers are, in numbers.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Widths {
    pub(in crate::model) hidden: usize,
    pub(in crate::model) q: usize,
    pub(in crate::model) kv: usize,
    pub(in crate::model) ffn: usize,
    pub(in crate::model) vocab: usize,
    /// Query heads, and elements of each.
    pub(in crate::model) heads: usize,
    pub(in crate::model) dim: usize,
}

/// How large a step is.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::model) struct Extent {
    /// Tokens computed.
    pub(in crate::model) rows: usize,
    /// Those that are sampled.
    pub(in crate::model) sampled: usize,
    /// Slots of the longest sequence.
    pub(in crate::model) longest: usize,
}

impl Extent {
    /// The least that holds both.
    pub(super) fn max(self, other: Extent) -> Extent {
        Extent {
            rows: self.rows.max(other.rows),
            sampled: self.sampled.max(other.sampled),
            longest: self.longest.max(other.longest),
        }
    }
}

/// The rows of a step, as they go up.
pub(in crate::model) struct Rows {
    pub(in crate::model) extent: Extent,
    pub(in crate::model) tokens: Buf<u32>,
    pub(in crate::model) positions: Buf<u32>,
    pub(in crate::model) slots: Buf<u32>,
    /// Blocks of all sequences, one list behind the other.
    pub(in crate::model) tables: Buf<u32>,
    /// What all rows attend to.
    pub(in crate::model) seen: Seen,
    /// Which rows are sampled, and what those attend to.
    pub(in crate::model) sampled: Buf<u32>,
    pub(in crate::model) sampled_seen: Seen,
    /// Where lists are made before they go up.
    sights: Sights,
    indices: Vec<u32>,
}

/// [`Sights`] on the device.
pub(in crate::model) struct Seen {
    pub(in crate::model) lengths: Buf<u32>,
    pub(in crate::model) offsets: Buf<u32>,
}

impl Seen {
    fn new(driver: &Arc<dyn Driver>) -> Result<Seen, DeviceError> {
        Ok(Seen {
            lengths: Buf::new(driver, 0)?,
            offsets: Buf::new(driver, 0)?,
        })
    }

    fn upload(&mut self, sights: &Sights) -> Result<(), DeviceError> {
        filled(&mut self.lengths, &sights.lengths)?;
        filled(&mut self.offsets, &sights.offsets)
    }
}

impl Rows {
    pub(super) fn new(driver: &Arc<dyn Driver>) -> Result<Rows, DeviceError> {
        let empty = || Buf::new(driver, 0);
        Ok(Rows {
            extent: Extent::default(),
            tokens: empty()?,
            positions: empty()?,
            slots: empty()?,
            tables: empty()?,
            seen: Seen::new(driver)?,
            sampled: empty()?,
            sampled_seen: Seen::new(driver)?,
            sights: Sights::default(),
            indices: Vec::new(),
        })
    }

    /// Room for steps of up to `most`; so many blocks are in their tables.
    pub(super) fn ensure(&mut self, most: Extent, blocks: usize) -> Result<(), DeviceError> {
        let Extent { rows, sampled, .. } = most;
        for (buffer, len) in [
            (&mut self.tokens, rows),
            (&mut self.positions, rows),
            (&mut self.slots, rows),
            (&mut self.seen.lengths, rows),
            (&mut self.seen.offsets, rows),
            (&mut self.sampled, sampled),
            (&mut self.sampled_seen.lengths, sampled),
            (&mut self.sampled_seen.offsets, sampled),
            (&mut self.tables, blocks),
        ] {
            buffer.ensure(len)?;
        }
        Ok(())
    }

    /// Takes over a step.
    pub(super) fn upload(&mut self, step: &Step) -> Result<(), DeviceError> {
        filled(&mut self.tokens, &step.tokens)?;
        filled(&mut self.positions, &step.positions)?;
        filled(&mut self.slots, &step.slots)?;
        filled(&mut self.tables, &step.tables)?;
        self.indices.clear();
        let indices = step.sampled.iter().map(|row| *row as u32);
        self.indices.extend(indices);
        filled(&mut self.sampled, &self.indices)?;
        step.sampled_sights(&mut self.sights);
        self.sampled_seen.upload(&self.sights)?;
        step.sights(&mut self.sights);
        self.seen.upload(&self.sights)?;
        let longest = self.sights.lengths.iter().max();
        self.extent = Extent {
            rows: step.tokens.len(),
            sampled: step.sampled.len(),
            longest: longest.map_or(0, |longest| *longest as usize),
        };
        Ok(())
    }
}

/// Makes room and fills it.
fn filled(buffer: &mut Buf<u32>, numbers: &[u32]) -> Result<(), DeviceError> {
    buffer.ensure(numbers.len())?;
    buffer.upload(numbers)
}

/// Activations of a step, `rows x` their width.
pub(in crate::model) struct Acts {
    pub(in crate::model) hidden: Buf<f32>,
    pub(in crate::model) normed: Buf<f32>,
    pub(in crate::model) q: Buf<f32>,
    pub(in crate::model) k: Buf<f32>,
    pub(in crate::model) v: Buf<f32>,
    /// Sampled rows of the stream and of queries, on their way to the front.
    pub(in crate::model) kept_hidden: Buf<f32>,
    pub(in crate::model) kept_q: Buf<f32>,
    pub(in crate::model) attended: Buf<f32>,
    pub(in crate::model) gate: Buf<f32>,
    pub(in crate::model) up: Buf<f32>,
    pub(in crate::model) inner: Buf<f32>,
    /// `sampled x vocab`.
    pub(in crate::model) logits: Buf<f32>,
    /// Whichever were rounded last.
    pub(in crate::model) rounded: Rounded,
    pub(in crate::model) attention: AttnScratch,
    /// The largest step so far.
    most: Extent,
}

impl Acts {
    pub(super) fn new(driver: &Arc<dyn Driver>) -> Result<Acts, DeviceError> {
        let empty = || Buf::new(driver, 0);
        Ok(Acts {
            hidden: empty()?,
            normed: empty()?,
            q: empty()?,
            k: empty()?,
            v: empty()?,
            kept_hidden: empty()?,
            kept_q: empty()?,
            attended: empty()?,
            gate: empty()?,
            up: empty()?,
            inner: empty()?,
            logits: empty()?,
            rounded: Rounded::new(driver, 0)?,
            attention: AttnScratch::new(driver)?,
            most: Extent::default(),
        })
    }

    /// Room for a step of that size, and for all that were.
    pub(super) fn ensure(&mut self, widths: Widths, step: Extent) -> Result<(), DeviceError> {
        self.most = self.most.max(step);
        let Extent {
            rows,
            sampled,
            longest,
        } = self.most;
        let Widths { hidden, q, kv, .. } = widths;
        for (buffer, len) in [
            (&mut self.hidden, rows * hidden),
            (&mut self.kept_hidden, rows * hidden),
            (&mut self.normed, rows * hidden),
            (&mut self.q, rows * q),
            (&mut self.kept_q, rows * q),
            (&mut self.attended, rows * q),
            (&mut self.k, rows * kv),
            (&mut self.v, rows * kv),
            (&mut self.gate, rows * widths.ffn),
            (&mut self.up, rows * widths.ffn),
            (&mut self.inner, rows * widths.ffn),
            (&mut self.logits, sampled * widths.vocab),
        ] {
            buffer.ensure(len)?;
        }
        let longest_input = hidden.max(q).max(widths.ffn);
        self.rounded
            .ensure(rows * longest_input.next_multiple_of(32))?;
        let Widths { heads, dim, .. } = widths;
        self.attention.ensure(rows, longest, heads, dim)
    }
}
