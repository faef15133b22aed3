//! The plan of one step: the only thing that crosses from the scheduler to the runner.

use std::ops::Range;

use crate::block_pool::BlockId;
use crate::sequence::SeqId;

/// What one sequence computes in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchEntry<'a> {
    /// The sequence.
    pub seq: SeqId,
    /// The ids of the tokens to compute; at least one.
    pub tokens: &'a [u32],
    /// The position of the first of them, which is also how many tokens have KV already.
    pub start_pos: usize,
    /// Block i holds the KV of positions `16 i .. 16 i + 16`; covers all tokens of this entry.
    pub block_table: &'a [BlockId],
    /// True iff the entry reaches the sequence's last token: then the next one is sampled.
    pub sample: bool,
}

impl BatchEntry<'_> {
    /// The position after the last token of this entry: where a sampled token will stand.
    pub fn end_pos(&self) -> usize {
        self.start_pos + self.tokens.len()
    }
}

/// Copy-on-write: the whole of block `src` is copied to block `dst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyBlock {
    /// Copied from.
    pub src: BlockId,
    /// Copied to.
    pub dst: BlockId,
}

/// An entry's place in the forest of shared blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Index of the entry.
    pub entry: usize,
    /// How many leading blocks it has in common with the branch before it. All their slots were computed in
    /// earlier steps, so that the queries of both can meet them together.
    pub shared_blocks: usize,
}

#[derive(Clone, Debug)]
struct EntrySpan {
    seq: SeqId,
    tokens: Range<usize>,
    start_pos: usize,
    table: Range<usize>,
    sample: bool,
}

/// The plan of one step. Its memory is reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    entries: Vec<EntrySpan>,
    tokens: Vec<u32>,
    tables: Vec<BlockId>,
    copies: Vec<CopyBlock>,
    branches: Vec<Branch>,
}

impl Batch {
    /// How many sequences take part.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many tokens are computed.
    pub fn total_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Entry `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Batch::len`].
    pub fn entry(&self, index: usize) -> BatchEntry<'_> {
        let span = &self.entries[index];
        BatchEntry {
            seq: span.seq,
            tokens: &self.tokens[span.tokens.clone()],
            start_pos: span.start_pos,
            block_table: &self.tables[span.table.clone()],
            sample: span.sample,
        }
    }

    /// All entries, earliest sequence first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = BatchEntry<'_>> {
        (0..self.len()).map(|index| self.entry(index))
    }

    /// The copies to make, in this order, before any entry is computed. The order matters: a block may
    /// be copied from and then, having lost its last holder, be copied to.
    pub fn copies(&self) -> &[CopyBlock] {
        &self.copies
    }

    /// All entries, those that begin with the same blocks side by side: the tries of their block tables, depth
    /// first. Any run of branches shares as many blocks as the least of `shared_blocks` in it, the first one's
    /// apart.
    pub fn forest(&self) -> &[Branch] {
        &self.branches
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.tokens.clear();
        self.tables.clear();
        self.copies.clear();
        self.branches.clear();
    }

    pub(crate) fn push_copy(&mut self, copy: CopyBlock) {
        self.copies.push(copy);
    }

    pub(crate) fn push(&mut self, entry: BatchEntry<'_>) {
        let tokens = self.tokens.len();
        self.tokens.extend_from_slice(entry.tokens);
        let table = self.tables.len();
        self.tables.extend_from_slice(entry.block_table);
        self.entries.push(EntrySpan {
            seq: entry.seq,
            tokens: tokens..self.tokens.len(),
            start_pos: entry.start_pos,
            table: table..self.tables.len(),
            sample: entry.sample,
        });
    }

    /// Grows the forest. A block that two tables name is full and written by nobody in this step (who
    /// writes has a block of its own), so equal ids are all there is to compare.
    pub(crate) fn plant(&mut self) {
        let mut branches = std::mem::take(&mut self.branches);
        branches.clear();
        branches.extend((0..self.len()).map(|entry| Branch {
            entry,
            shared_blocks: 0,
        }));
        self.sort_from(&mut branches, 0);
        self.branches = branches;
    }

    /// Orders branches that have their first `depth` blocks in common, and says what each but the first shares
    /// with the one before it.
    fn sort_from(&self, branches: &mut [Branch], depth: usize) {
        let block = |branch: &Branch| self.entry(branch.entry).block_table.get(depth).copied();
        branches.sort_unstable_by_key(|branch| (block(branch), branch.entry));
        let mut is_first = true;
        for run in branches.chunk_by_mut(|a, b| block(a) == block(b)) {
            if run.len() > 1 {
                let common = self.common_blocks(run);
                match common > depth {
                    true => self.sort_from(run, common),
                    // Tables that end here are equal.
                    false => run[1..].iter_mut().for_each(|b| b.shared_blocks = depth),
                }
            }
            if !is_first {
                run[0].shared_blocks = depth;
            }
            is_first = false;
        }
    }

    /// How many leading blocks all of `branches` have in common.
    fn common_blocks(&self, branches: &[Branch]) -> usize {
        let table = |branch: &Branch| self.entry(branch.entry).block_table;
        let (first, others) = match branches {
            [] => return 0,
            [first, others @ ..] => (table(first), others),
        };
        others.iter().fold(first.len(), |common, other| {
            let same = first[..common].iter().zip(table(other));
            same.take_while(|(a, b)| a == b).count()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(tables: &[&[u32]]) -> Batch {
        let mut batch = Batch::default();
        for (seq, table) in (0..).zip(tables) {
            let block_table: Vec<_> = table.iter().copied().map(BlockId).collect();
            batch.push(BatchEntry {
                seq: SeqId(seq),
                tokens: &[seq as u32, 7],
                start_pos: 3,
                block_table: &block_table,
                sample: seq % 2 == 0,
            });
        }
        batch.plant();
        batch
    }

    #[test]
    fn an_entry_comes_out_as_it_went_in() {
        let batch = batch(&[&[4, 5], &[6]]);
        let expected = BatchEntry {
            seq: SeqId(1),
            tokens: &[1, 7],
            start_pos: 3,
            block_table: &[BlockId(6)],
            sample: false,
        };
        assert_eq!(batch.entries().nth(1), Some(expected));
        assert_eq!(expected.end_pos(), 5);
        assert_eq!((batch.len(), batch.total_tokens()), (2, 4));
    }

    fn forest(batch: &Batch) -> Vec<(usize, usize)> {
        let branches = batch.forest().iter();
        branches.map(|b| (b.entry, b.shared_blocks)).collect()
    }

    #[test]
    fn entries_with_common_leading_blocks_stand_side_by_side() {
        let batch = batch(&[&[1, 2, 3], &[9, 2], &[1, 2, 4], &[8], &[1, 2, 3, 5]]);
        assert_eq!(forest(&batch), [(0, 0), (4, 3), (2, 2), (3, 0), (1, 0)]);
    }

    #[test]
    fn trunks_branch_more_than_once() {
        let tables: [&[u32]; 6] = [
            &[7, 1, 2, 20],
            &[7, 1, 3, 21],
            &[7, 1, 2, 22],
            &[7, 5, 23],
            &[7, 1, 3, 24],
            &[7, 5, 25],
        ];
        let expected = [(0, 0), (2, 3), (1, 2), (4, 3), (3, 1), (5, 2)];
        assert_eq!(forest(&batch(&tables)), expected);
    }

    #[test]
    fn a_table_that_ends_within_another_shares_all_it_has() {
        let batch = batch(&[&[1, 2, 3], &[1, 2]]);
        assert_eq!(forest(&batch), [(1, 0), (0, 2)]);
    }

    proptest! {
        /// The order groups equal beginnings and each number is the length of one, whatever the tables are.
        #[test]
        fn the_forest_is_the_sorted_tables_and_what_neighbours_share(
            tables in prop::collection::vec(prop::collection::vec(0u32..3, 1..7), 0..12),
        ) {
            let slices: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
            let mut order: Vec<usize> = (0..tables.len()).collect();
            order.sort_by_key(|entry| (&tables[*entry], *entry));
            let shared = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
            let expected: Vec<_> = (0..order.len()).map(|at| {
                let before = at.checked_sub(1).map(|at| shared(slices[order[at]], slices[order[at + 1]]));
                (order[at], before.unwrap_or(0))
            }).collect();
            prop_assert_eq!(forest(&batch(&slices)), expected);
        }
    }

    #[test]
    fn a_cleared_batch_keeps_its_memory() {
        let mut batch = batch(&[&[1, 2], &[1, 3]]);
        let before = (batch.tables.capacity(), batch.branches.capacity());
        batch.clear();
        assert!(batch.is_empty() && batch.forest().is_empty() && batch.total_tokens() == 0);
        let after = (batch.tables.capacity(), batch.branches.capacity());
        assert_eq!(before, after);
    }
}
