//! A batch flattened for the kernels, and checked against what the model and its cache hold.

use std::ops::Range;

use conclave_kernels::{BLOCK, SeqSpan};
use conclave_worker_core::{Batch, Branch};

use super::ModelError;

/// What a batch may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) vocab: usize,
    pub(crate) positions: usize,
    pub(crate) blocks: usize,
}

/// The rows of a step. Its memory is reused.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// The token of each row.
    pub(crate) tokens: Vec<u32>,
    /// Its position.
    pub(crate) positions: Vec<u32>,
    /// Where its KV goes.
    pub(crate) slots: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub(crate) sampled: Vec<usize>,
    /// Blocks of all sequences, one list behind the other.
    pub(crate) tables: Vec<u32>,
    entries: Vec<Entry>,
    /// Entries in the order in which attention takes them.
    forest: Vec<Branch>,
}

/// What rows attend to, row by row.
#[derive(Debug, Default)]
pub(crate) struct Sights {
    /// How many slots of its sequence a row sees: its own and all before.
    pub(crate) lengths: Vec<u32>,
    /// Where the sequence's blocks begin in [`Step::tables`].
    pub(crate) offsets: Vec<u32>,
}

impl Sights {
    fn push(&mut self, entry: &Entry, slots: usize) {
        self.lengths.push(slots as u32);
        self.offsets.push(entry.table.start as u32);
    }

    fn clear(&mut self) {
        self.lengths.clear();
        self.offsets.clear();
    }
}

#[derive(Clone, Debug)]
struct Entry {
    rows: Range<usize>,
    table: Range<usize>,
    kv_len: usize,
    /// Its place among the sampled rows, if its last row is one.
    sampled: Option<usize>,
}

impl Step {
    /// Takes over a batch. Unless `grouped`, no two sequences meet a block together. On an error the step is of
    /// no use.
    pub(crate) fn fill(
        &mut self,
        batch: &Batch,
        bounds: Bounds,
        grouped: bool,
    ) -> Result<(), ModelError> {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.sampled.clear();
        self.tables.clear();
        self.entries.clear();
        self.forest.clear();
        self.forest
            .extend(batch.forest().iter().map(|branch| Branch {
                shared_blocks: if grouped { branch.shared_blocks } else { 0 },
                ..*branch
            }));
        for copy in batch.copies() {
            if copy.src.0.max(copy.dst.0) as usize >= bounds.blocks {
                return refuse(format!("{copy:?} of {} blocks", bounds.blocks));
            }
        }
        for entry in batch.entries() {
            let end = entry.end_pos();
            if entry.tokens.is_empty() || end > bounds.positions {
                return refuse(format!(
                    "{end} positions asked, {} are there",
                    bounds.positions
                ));
            }
            let needed = end.div_ceil(BLOCK);
            if entry.block_table.len() < needed {
                let have = entry.block_table.len();
                return refuse(format!("{have} blocks cannot hold {end} positions"));
            }
            let (row, table) = (self.tokens.len(), self.tables.len());
            for block in &entry.block_table[..needed] {
                if block.0 as usize >= bounds.blocks {
                    return refuse(format!("{block:?} of {} blocks", bounds.blocks));
                }
                self.tables.push(block.0);
            }
            for (token, position) in entry.tokens.iter().zip(entry.start_pos..) {
                if *token as usize >= bounds.vocab {
                    return refuse(format!("token {token} of {}", bounds.vocab));
                }
                let block = self.tables[table + position / BLOCK];
                self.tokens.push(*token);
                self.positions.push(position as u32);
                self.slots
                    .push(block * BLOCK as u32 + (position % BLOCK) as u32);
            }
            let rows = row..self.tokens.len();
            let sampled = entry.sample.then_some(self.sampled.len());
            if entry.sample {
                self.sampled.push(rows.end - 1);
            }
            let table = table..self.tables.len();
            self.entries.push(Entry {
                rows,
                table,
                kv_len: end,
                sampled,
            });
        }
        Ok(())
    }

    /// The queries of all rows.
    pub(crate) fn spans<'a>(&'a self, spans: &mut Vec<SeqSpan<'a>>) {
        spans.clear();
        spans.extend(self.forest.iter().map(|branch| {
            let entry = &self.entries[branch.entry];
            SeqSpan {
                q_start: entry.rows.start,
                q_len: entry.rows.len(),
                kv_len: entry.kv_len,
                block_table: &self.tables[entry.table.clone()],
                shared_blocks: branch.shared_blocks,
            }
        }));
    }

    /// The queries of the sampled rows alone, as if only those rows were there.
    pub(crate) fn sampled_spans<'a>(&'a self, spans: &mut Vec<SeqSpan<'a>>) {
        spans.clear();
        // What branches share that have others between them is what all of those share.
        let mut shared = usize::MAX;
        for branch in &self.forest {
            shared = shared.min(branch.shared_blocks);
            let entry = &self.entries[branch.entry];
            if let Some(row) = entry.sampled {
                spans.push(SeqSpan {
                    q_start: row,
                    q_len: 1,
                    kv_len: entry.kv_len,
                    block_table: &self.tables[entry.table.clone()],
                    shared_blocks: if spans.is_empty() { 0 } else { shared },
                });
                shared = usize::MAX;
            }
        }
    }
}

impl Step {
    /// What each row attends to, in the order of the rows: for devices, which take rows by themselves.
    pub(crate) fn sights(&self, sights: &mut Sights) {
        sights.clear();
        for entry in &self.entries {
            let before = entry.kv_len - entry.rows.len();
            (1..=entry.rows.len()).for_each(|row| sights.push(entry, before + row));
        }
    }

    /// As [`Step::sights`], of the sampled rows alone.
    pub(crate) fn sampled_sights(&self, sights: &mut Sights) {
        sights.clear();
        let sampled = self.entries.iter().filter(|entry| entry.sampled.is_some());
        sampled.for_each(|entry| sights.push(entry, entry.kv_len));
    }
}

fn refuse(problem: String) -> Result<(), ModelError> {
    Err(ModelError::Batch { problem })
}
