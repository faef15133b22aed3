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

/// Entries whose block tables begin with the same blocks: the shared part can be read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// How many leading blocks all members share. All their slots were computed in earlier steps.
    pub shared_blocks: usize,
    /// Indices of entries, ascending; at least two.
    pub members: &'a [usize],
}

#[derive(Clone, Debug)]
struct EntrySpan {
    seq: SeqId,
    tokens: Range<usize>,
    start_pos: usize,
    table: Range<usize>,
    sample: bool,
}

#[derive(Clone, Debug)]
struct GroupSpan {
    shared_blocks: usize,
    members: Range<usize>,
}

/// The plan of one step. Its memory is reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    entries: Vec<EntrySpan>,
    tokens: Vec<u32>,
    tables: Vec<BlockId>,
    copies: Vec<CopyBlock>,
    groups: Vec<GroupSpan>,
    members: Vec<usize>,
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

    /// Entries that share leading blocks. An entry is in at most one group.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = Group<'_>> {
        self.groups.iter().map(|span| Group {
            shared_blocks: span.shared_blocks,
            members: &self.members[span.members.clone()],
        })
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.tokens.clear();
        self.tables.clear();
        self.copies.clear();
        self.groups.clear();
        self.members.clear();
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

    /// Finds the groups. A block that two tables name is full and written by nobody in this step (who
    /// writes has a block of its own), so equal ids are all there is to compare.
    pub(crate) fn find_groups(&mut self) {
        let mut members = std::mem::take(&mut self.members);
        let mut groups = std::mem::take(&mut self.groups);
        members.extend(0..self.len());
        let first = |index: &usize| self.entry(*index).block_table.first().copied();
        members.sort_unstable_by_key(|index| (first(index), *index));
        let mut start = 0;
        for run in members.chunk_by(|a, b| first(a) == first(b)) {
            let end = start + run.len();
            if run.len() > 1 {
                groups.push(GroupSpan {
                    shared_blocks: self.shared_blocks(run),
                    members: start..end,
                });
            }
            start = end;
        }
        self.members = members;
        self.groups = groups;
    }

    fn shared_blocks(&self, members: &[usize]) -> usize {
        let table = |index: usize| self.entry(index).block_table;
        let head = table(members[0]);
        members[1..].iter().fold(head.len(), |shared, &index| {
            let same = |(a, b): &(&BlockId, &BlockId)| a == b;
            head[..shared]
                .iter()
                .zip(table(index))
                .take_while(same)
                .count()
        })
    }
}

#[cfg(test)]
mod tests {
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
        batch.find_groups();
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

    #[test]
    fn entries_with_common_leading_blocks_form_a_group() {
        let batch = batch(&[&[1, 2, 3], &[9, 2], &[1, 2, 4], &[8], &[1, 2, 3, 5]]);
        let groups: Vec<_> = batch.groups().collect();
        let expected = Group {
            shared_blocks: 2,
            members: &[0, 2, 4],
        };
        assert_eq!(groups, [expected]);
    }

    #[test]
    fn a_cleared_batch_keeps_its_memory() {
        let mut batch = batch(&[&[1, 2], &[1, 3]]);
        let before = (
            batch.tables.capacity(),
            batch.members.capacity(),
            batch.groups.capacity(),
        );
        batch.clear();
        assert!(batch.is_empty() && batch.groups().len() == 0 && batch.total_tokens() == 0);
        let after = (
            batch.tables.capacity(),
            batch.members.capacity(),
            batch.groups.capacity(),
        );
        assert_eq!(before, after);
    }
}
