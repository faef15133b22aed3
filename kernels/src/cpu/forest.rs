//! Which query rows meet which blocks together: the rows of a call as a forest over their block tables.
//!
//! Rows lie in the order in which sequences that share blocks are neighbours; each says how many leading
//! blocks it has in common with the one before it. The least of these over a range of rows is what the whole
//! range shares, so a tree need not be built: halving ranges walks it.

use super::blocks::SPAN_BLOCKS;
use crate::attention::{AttnPlan, BLOCK, visible};
use std::ops::Range;

/// One row of queries.
#[derive(Clone, Debug)]
pub(crate) struct QueryRow {
    /// Its sequence's place in the plan.
    pub(super) seq: usize,
    /// Its place in `q` and `out`.
    pub(super) at: usize,
    /// The slots that it sees.
    pub(super) seen: Range<usize>,
    /// How many leading blocks it has in common with the row before it.
    shared: usize,
}

impl QueryRow {
    /// The blocks of which it sees any slot.
    fn blocks(&self) -> Range<usize> {
        self.seen.start / BLOCK..self.seen.end.div_ceil(BLOCK)
    }

    /// Of the blocks of a span, those of which it sees any slot.
    pub(super) fn blocks_of(&self, span: usize) -> Range<usize> {
        let (first, end) = (span * SPAN_BLOCKS, (span + 1) * SPAN_BLOCKS);
        let blocks = clip(self.blocks(), &(first..end));
        blocks.start.saturating_sub(first)..blocks.end.saturating_sub(first)
    }

    /// The blocks of which it sees all slots.
    fn whole_blocks(&self) -> Range<usize> {
        self.seen.start.div_ceil(BLOCK)..self.seen.end / BLOCK
    }
}

/// Lists the rows of a plan, sequence by sequence.
pub(super) fn list_rows(plan: &AttnPlan<'_>, rows: &mut Vec<QueryRow>) {
    rows.clear();
    for (index, seq) in plan.seqs.iter().enumerate() {
        rows.extend((0..seq.q_len).map(|row| QueryRow {
            seq: index,
            at: seq.q_start + row,
            seen: visible(seq.kv_len - seq.q_len + row, plan.window),
            // Rows of one sequence have one table.
            shared: if row > 0 {
                usize::MAX
            } else {
                seq.shared_blocks
            },
        }));
    }
}

/// Calls `each(rows, blocks)` so that each row of `within` meets each of `blocks` of which it sees any slot,
/// once and in ascending order. Where several rows meet blocks together the blocks are the same cache blocks
/// and all rows see them whole.
pub(super) fn meet(
    rows: &[QueryRow],
    within: Range<usize>,
    blocks: Range<usize>,
    each: &mut dyn FnMut(Range<usize>, Range<usize>),
) {
    let (first, others) = match &rows[within.clone()] {
        [] => return,
        _ if blocks.is_empty() => return,
        [row] => {
            let seen = clip(row.blocks(), &blocks);
            if !seen.is_empty() {
                each(within, seen);
            }
            return;
        }
        [first, others @ ..] => (first, others),
    };
    let mut whole = first.whole_blocks();
    let (mut shared, mut least) = (usize::MAX, 0);
    for (index, row) in others.iter().enumerate() {
        let blocks = row.whole_blocks();
        whole = whole.start.max(blocks.start)..whole.end.min(blocks.end);
        if row.shared < shared {
            (shared, least) = (row.shared, index);
        }
    }
    // Where fewest blocks are shared, or in the middle if it is sight that differs.
    let cut = match shared < whole.end {
        true => least + 1,
        false => within.len() / 2,
    };
    let cut = within.start + cut;
    let common = clip(whole.start..whole.end.min(shared), &blocks);
    let halves = [within.start..cut, cut..within.end];
    if common.is_empty() {
        for half in halves {
            meet(rows, half, blocks.clone(), each);
        }
        return;
    }
    // A window's edge comes before what all see.
    for half in halves.clone() {
        meet(rows, half, blocks.start..common.start, each);
    }
    each(within, common.clone());
    for half in halves {
        meet(rows, half, common.end..blocks.end, each);
    }
}

fn clip(a: Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}
