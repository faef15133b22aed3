//! Query heads through blocks of slots: what they meet, where it lies, and what to ask for meanwhile.
//!
//! A head's scores and its record go through the same operations whichever heads and blocks are beside it.

use super::lanes::Lanes;
use super::stored::{StoredF32, ask};
use crate::attention::{BLOCK, KvLayer, SPAN};
use crate::scratch::AlignedBuf;

/// How many meetings ahead their keys and values are asked for: blocks lie scattered, so the processor cannot
/// foresee them, and one block of few heads takes less time than memory does.
const AHEAD: usize = 4;

/// Heads from which on a block of f16 is made f32 once for all of them, where the registers
/// do not hold two sums of so many.
const WIDE_HEADS: usize = 6;

/// Blocks of a span.
pub(super) const SPAN_BLOCKS: usize = SPAN / BLOCK;

/// A block of the cache that some rows of a unit meet together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meeting {
    /// The cache block.
    pub(super) block: u32,
    /// Which block of the sequence it is.
    pub(super) at: u32,
    /// The first of the rows, counted in the unit.
    pub(super) row: u16,
    pub(super) rows: u16,
    /// The slots that they see, at least one.
    pub(super) first: u16,
    pub(super) end: u16,
}

impl Meeting {
    /// The span that the block is in.
    pub(super) fn span(&self) -> usize {
        self.at as usize / SPAN_BLOCKS
    }

    /// Whether the same rows meet both.
    pub(super) fn has_rows_of(&self, other: &Meeting) -> bool {
        (self.row, self.rows) == (other.row, other.rows)
    }
}

/// Blocks that the heads of a unit meet.
pub(super) struct Run<'a> {
    pub(super) kv: &'a KvLayer,
    /// The kv head.
    pub(super) head: usize,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    /// Query heads of a row.
    pub(super) group: usize,
    /// The unit's query heads, as [`super::scores::place_queries`] places them.
    pub(super) queries: *const f32,
    /// How many they are.
    pub(super) heads: usize,
    /// A record for each of them.
    pub(super) states: *mut f32,
    /// Room for the keys of two blocks of one head, or the values of one, as f32.
    pub(super) wide: *mut f32,
    /// Room for the scores of a span: `[block][head][slot]`.
    pub(super) scores: *mut f32,
    /// What is met, in this order, all of one span.
    pub(super) meetings: &'a [Meeting],
    /// What is met after that by others: asked for only.
    pub(super) later: &'a [Meeting],
}

/// Calls `$body` with `$T` heads at a time, from head `$first` on, until `$heads` are done. What is read of
/// a block serves `$T` heads; how many fit depends on the registers that there are for one block.
macro_rules! by_heads {
    ($registers:expr, $heads:expr, $first:ident, $T:ident => $body:expr) => {{
        let mut $first = 0;
        while $first < $heads {
            $first += match $heads - $first {
                12.. if $registers >= 32 => {
                    const $T: usize = 12;
                    $body;
                    $T
                }
                6 | 7 | 9.. => {
                    const $T: usize = 6;
                    $body;
                    $T
                }
                4.. if $registers >= 16 => {
                    const $T: usize = 4;
                    $body;
                    $T
                }
                3 | 5.. => {
                    const $T: usize = 3;
                    $body;
                    $T
                }
                2 | 4 => {
                    const $T: usize = 2;
                    $body;
                    $T
                }
                _ => {
                    const $T: usize = 1;
                    $body;
                    $T
                }
            };
        }
    }};
}
pub(super) use by_heads;

/// Asks for the keys of the first of what one kv head's queries are about to meet.
pub(super) fn expect(kv: &KvLayer, head: usize, meetings: &[Meeting]) {
    let bytes = kv.dim() * BLOCK * kv.dtype().bytes();
    for meeting in &meetings[..meetings.len().min(AHEAD)] {
        let at = kv.head_start(meeting.block, head) * kv.dtype().bytes();
        let keys = kv.keys.as_ptr().wrapping_add(at);
        ask::<StoredF32>(keys, 0, bytes / size_of::<f32>());
    }
}

impl Run<'_> {
    /// Where a meeting's keys or values begin in `of`.
    pub(super) fn place<T>(&self, of: &AlignedBuf, meeting: &Meeting) -> *const T {
        let at = self.kv.head_start(meeting.block, self.head);
        of.as_ptr().cast::<T>().wrapping_add(at)
    }

    /// What comes so many meetings after one: of `first`, and then of `second` from its beginning.
    pub(super) fn ahead<T>(
        &self,
        index: usize,
        first: &AlignedBuf,
        (second, later): (&AlignedBuf, &[Meeting]),
    ) -> *const u8 {
        let ahead = index + AHEAD;
        match self.meetings.get(ahead) {
            Some(next) => self.place::<T>(first, next).cast(),
            None => later
                .get(ahead - self.meetings.len())
                .map_or(std::ptr::null(), |next| {
                    self.place::<T>(second, next).cast()
                }),
        }
    }

    /// A meeting's scores: 16 of each of its heads.
    pub(super) fn scores_of(&self, meeting: &Meeting) -> *mut f32 {
        let block = meeting.at as usize % SPAN_BLOCKS;
        let first = usize::from(meeting.row) * self.group;
        self.scores
            .wrapping_add((block * self.heads + first) * BLOCK)
    }

    /// Whether a meeting's block is made f32 once for all of its heads.
    pub(super) fn is_wide<L: Lanes>(&self, meeting: &Meeting) -> bool {
        L::REGISTERS < 32 && usize::from(meeting.rows) * self.group >= WIDE_HEADS
    }
}
