//! Query heads through blocks of slots: scores, and weighted sums of values.
//!
//! A head's scores and its record go through the same operations whichever heads are beside it.

use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH, softcap};
use super::span::Record;
use super::stored::{Stored, StoredF16, StoredF32, ask};
use crate::attention::{BLOCK, KvDtype, KvLayer, SPAN};
use crate::scratch::AlignedBuf;
use std::ops::Range;

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
    /// The unit's query heads, transposed: element `d` of head `h` is at `d * stride + h`.
    pub(super) queries: *const f32,
    pub(super) stride: usize,
    /// A record for each of them.
    pub(super) states: *mut f32,
    /// Room for the keys and values of a block of one head, as f32.
    pub(super) wide: *mut f32,
    /// Room for the scores of a span: `[block][head][slot]`.
    pub(super) scores: *mut f32,
    /// What is met, in this order, all of one span.
    pub(super) meetings: &'a [Meeting],
    /// What is met after that by others: asked for only.
    pub(super) later: &'a [Meeting],
}

/// Calls `$body` with `$T` heads at a time, from head `$first` on, until `$heads` are done. What is read of
/// a block serves `$T` heads; how many fit into the registers is the instruction set's to say.
macro_rules! by_heads {
    ($L:ident, $heads:expr, $first:ident, $T:ident => $body:expr) => {{
        let mut $first = 0;
        while $first < $heads {
            $first += match $heads - $first {
                12.. if $L::REGISTERS >= 32 => {
                    const $T: usize = 12;
                    $body;
                    $T
                }
                6 | 7 | 9.. => {
                    const $T: usize = 6;
                    $body;
                    $T
                }
                4.. if $L::REGISTERS >= 32 => {
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

/// Asks for the keys of the first of what one kv head's queries are about to meet.
pub(super) fn expect(kv: &KvLayer, head: usize, meetings: &[Meeting]) {
    let bytes = kv.dim() * BLOCK * kv.dtype().bytes();
    for meeting in &meetings[..meetings.len().min(AHEAD)] {
        let at = kv.head_start(meeting.block, head) * kv.dtype().bytes();
        let keys = kv.keys.as_ptr().wrapping_add(at);
        ask::<StoredF32>(keys, 0, bytes / size_of::<f32>());
    }
}

per_isa! {
    /// Scores of all slots that a unit's heads meet, those of a block that a head does not see minus infinity.
    pub(super) unsafe fn scores = scores_of(run: &Run<'_>);
}

/// # Safety
/// See [`Lanes`]; the meetings are of one span, their blocks in the layer and their rows in the unit; queries are
/// those of the unit's heads, of as many elements as the layer's, and there is room for their scores.
#[inline(always)]
unsafe fn scores_of<L: Lanes>(run: &Run<'_>) {
    // SAFETY: by the caller's word.
    unsafe {
        match run.kv.dtype() {
            KvDtype::F32 => score_all::<L, StoredF32>(run),
            KvDtype::F16 => score_all::<L, StoredF16>(run),
        }
    }
}

per_isa! {
    /// Adds the values of all slots that a unit's heads meet to their records, weighted with what their scores
    /// have become.
    pub(super) unsafe fn values = values_of(run: &Run<'_>);
}

/// # Safety
/// As for [`scores_of`]; there is a record for each of the unit's heads.
#[inline(always)]
unsafe fn values_of<L: Lanes>(run: &Run<'_>) {
    // SAFETY: by the caller's word.
    unsafe {
        match run.kv.dtype() {
            KvDtype::F32 => add_all::<L, StoredF32>(run),
            KvDtype::F16 => add_all::<L, StoredF16>(run),
        }
    }
}

impl Run<'_> {
    /// Where a meeting's keys or values begin in `of`.
    fn place<T>(&self, of: &AlignedBuf, meeting: &Meeting) -> *const T {
        let at = self.kv.head_start(meeting.block, self.head);
        of.as_ptr().cast::<T>().wrapping_add(at)
    }

    /// What comes so many meetings after one: of `first`, and then of `second` from its beginning.
    fn ahead<T>(
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
    fn scores_of(&self, meeting: &Meeting) -> *mut f32 {
        let block = meeting.at as usize % SPAN_BLOCKS;
        let first = usize::from(meeting.row) * self.group;
        self.scores
            .wrapping_add((block * self.stride + first) * BLOCK)
    }

    /// Whether a meeting's block is made f32 once for all of its heads.
    fn is_wide<L: Lanes>(&self, meeting: &Meeting) -> bool {
        !two_sums_fit::<L>(WIDE_HEADS) && usize::from(meeting.rows) * self.group >= WIDE_HEADS
    }
}

#[inline(always)]
unsafe fn score_all<L: Lanes, S: Stored>(run: &Run<'_>) {
    let (keys, values) = (&run.kv.keys, &run.kv.values);
    let numbers = run.kv.dim() * BLOCK;
    for (index, meeting) in run.meetings.iter().enumerate() {
        let next = run.ahead::<S::Element>(index, keys, (values, run.meetings));
        let keys = run.place::<S::Element>(keys, meeting);
        // SAFETY: blocks are in the layer, and a head of a block has `dim * BLOCK` elements.
        unsafe {
            if run.is_wide::<L>(meeting) {
                let keys = S::widen::<L>(keys, numbers, run.wide, next);
                score::<L, StoredF32, false>(run, meeting, keys, next);
            } else {
                score::<L, S, true>(run, meeting, keys, next);
            }
        }
    }
}

/// All heads of one meeting, so that the block is still in the first-level cache for the next ones.
#[inline(always)]
unsafe fn score<L: Lanes, S: Stored, const ASK: bool>(
    run: &Run<'_>,
    meeting: &Meeting,
    keys: *const S::Element,
    next: *const u8,
) {
    let (first, end) = (usize::from(meeting.first), usize::from(meeting.end));
    let heads = usize::from(meeting.rows) * run.group;
    let (of, to) = (usize::from(meeting.row) * run.group, run.scores_of(meeting));
    // SAFETY: by the caller's word.
    unsafe {
        by_heads!(L, heads, head, T => {
            // Only the first heads wait for memory; for the others the address is one in the cache.
            let next = if head == 0 { next } else { keys.cast() };
            block_scores::<L, S, T, ASK>(run, of + head, keys, to.add(head * BLOCK), next)
        });
        if end - first < BLOCK {
            for head in 0..heads {
                let to = to.add(head * BLOCK);
                let unseen = L::splat(f32::NEG_INFINITY);
                L::load(to).keep(first, end, unseen).store(to);
            }
        }
    }
}

#[inline(always)]
unsafe fn add_all<L: Lanes, S: Stored>(run: &Run<'_>) {
    let (keys, values) = (&run.kv.keys, &run.kv.values);
    let numbers = run.kv.dim() * BLOCK;
    for (index, meeting) in run.meetings.iter().enumerate() {
        let next = run.ahead::<S::Element>(index, values, (keys, run.later));
        let values = run.place::<S::Element>(values, meeting);
        // SAFETY: as in `score_all`.
        unsafe {
            if run.is_wide::<L>(meeting) {
                let values = S::widen::<L>(values, numbers, run.wide, next);
                add::<L, StoredF32, false>(run, meeting, values, next);
            } else {
                add::<L, S, true>(run, meeting, values, next);
            }
        }
    }
}

/// As [`score`].
#[inline(always)]
unsafe fn add<L: Lanes, S: Stored, const ASK: bool>(
    run: &Run<'_>,
    meeting: &Meeting,
    values: *const S::Element,
    next: *const u8,
) {
    let (dim, record) = (run.kv.dim(), Record::new(run.kv.dim()).len());
    let (first, end) = (usize::from(meeting.first), usize::from(meeting.end));
    let heads = usize::from(meeting.rows) * run.group;
    let (of, weights) = (usize::from(meeting.row) * run.group, run.scores_of(meeting));
    // SAFETY: by the caller's word.
    unsafe {
        by_heads!(L, heads, head, T => {
            let (weights, states) = (weights.add(head * BLOCK), run.states.add((of + head) * record));
            let next = if head == 0 { next } else { values.cast() };
            // Almost all blocks are met whole: that loop the compiler may unroll.
            let slots = if end - first == BLOCK { 0..BLOCK } else { first..end };
            add_values::<L, S, T, ASK>(weights, values, slots, dim, states, next);
        });
    }
}

/// Whether two sums a head, what they are multiplied with and a product's factor fit the registers.
const fn two_sums_fit<L: Lanes>(heads: usize) -> bool {
    2 * heads + 2 <= L::REGISTERS
}

/// Scores of 16 slots for each head, one head after another.
#[inline(always)]
unsafe fn block_scores<L: Lanes, S: Stored, const T: usize, const ASK: bool>(
    run: &Run<'_>,
    head: usize,
    keys: *const S::Element,
    scores: *mut f32,
    next: *const u8,
) {
    let (dim, stride) = (run.kv.dim(), run.stride);
    // SAFETY: indices are below `dim` in the queries and below `dim * BLOCK` in the keys.
    unsafe {
        let first = run.queries.add(head);
        let mut even = [L::splat(0.0); T];
        if !two_sums_fit::<L>(T) {
            for d in (0..dim).step_by(2) {
                add_products::<L, S, T>(keys.add(d * BLOCK), first.add(d * stride), &mut even);
                if ASK {
                    ask::<S>(next, d * BLOCK, 2 * BLOCK);
                }
            }
            for (t, even) in even.iter().enumerate() {
                even.store(scores.add(t * BLOCK));
            }
            let mut odd = [L::splat(0.0); T];
            for d in (1..dim).step_by(2) {
                add_products::<L, S, T>(keys.add(d * BLOCK), first.add(d * stride), &mut odd);
            }
            for (t, odd) in odd.iter().enumerate() {
                let score = L::load(scores.add(t * BLOCK)).add(*odd);
                finish_score(score, run).store(scores.add(t * BLOCK));
            }
            return;
        }
        let mut odd = [L::splat(0.0); T];
        for d in (0..dim - dim % 2).step_by(2) {
            add_products::<L, S, T>(keys.add(d * BLOCK), first.add(d * stride), &mut even);
            if ASK {
                ask::<S>(next, d * BLOCK, 2 * BLOCK);
            }
            let d = d + 1;
            add_products::<L, S, T>(keys.add(d * BLOCK), first.add(d * stride), &mut odd);
        }
        if dim % 2 == 1 {
            let d = dim - 1;
            add_products::<L, S, T>(keys.add(d * BLOCK), first.add(d * stride), &mut even);
        }
        for (t, (even, odd)) in even.iter().zip(&odd).enumerate() {
            finish_score(even.add(*odd), run).store(scores.add(t * BLOCK));
        }
    }
}

/// Scale and cap.
#[inline(always)]
unsafe fn finish_score<L: Lanes>(score: L, run: &Run<'_>) -> L {
    // SAFETY: see [`Lanes`].
    unsafe {
        let score = score.mul(L::splat(run.scale));
        // No closure: it would not be compiled for the instruction set.
        match run.softcap {
            Some(c) => softcap(score, c),
            None => score,
        }
    }
}

/// One dimension of the keys of 16 slots times that of each head's query.
#[inline(always)]
unsafe fn add_products<L: Lanes, S: Stored, const T: usize>(
    keys: *const S::Element,
    queries: *const f32,
    sums: &mut [L; T],
) {
    // SAFETY: by the caller's word.
    unsafe {
        let keys = S::load::<L>(keys);
        for (t, sum) in sums.iter_mut().enumerate() {
            *sum = L::splat(*queries.add(t)).fma(keys, *sum);
        }
    }
}

/// Adds weighted values: lanes are dimensions, slots go in ascending order.
#[inline(always)]
unsafe fn add_values<L: Lanes, S: Stored, const T: usize, const ASK: bool>(
    weights: *const f32,
    values: *const S::Element,
    slots: Range<usize>,
    dim: usize,
    states: *mut f32,
    next: *const u8,
) {
    let (whole, record) = (dim / WIDTH * WIDTH, Record::new(dim).len());
    // SAFETY: slots are below `BLOCK` and dimensions below `dim`; a record has that many accumulators.
    unsafe {
        let acc = states.add(Record::ACC);
        // As many vectors at a time as the registers hold, so that a weight serves several.
        let done = if 4 * (T + 1) < L::REGISTERS {
            add_vectors::<L, S, T, 4, ASK>(weights, values, slots.clone(), 0..whole, dim, acc, next)
        } else if 2 * (T + 1) < L::REGISTERS {
            add_vectors::<L, S, T, 2, ASK>(weights, values, slots.clone(), 0..whole, dim, acc, next)
        } else {
            0
        };
        add_vectors::<L, S, T, 1, ASK>(weights, values, slots.clone(), done..whole, dim, acc, next);
        for d in whole..dim {
            for slot in slots.clone() {
                let v = S::one(values.add(slot * dim + d));
                for t in 0..T {
                    let acc = acc.add(t * record + d);
                    *acc = (*weights.add(t * BLOCK + slot)).mul_add(v, *acc);
                }
            }
        }
    }
}

/// Dimensions `of`, `V` vectors of them at a time; returns where too few are left.
#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "one loop, inlined into one place"
)]
unsafe fn add_vectors<L: Lanes, S: Stored, const T: usize, const V: usize, const ASK: bool>(
    weights: *const f32,
    values: *const S::Element,
    slots: Range<usize>,
    of: Range<usize>,
    dim: usize,
    accumulators: *mut f32,
    next: *const u8,
) -> usize {
    let (mut d, record) = (of.start, Record::new(dim).len());
    while d + V * WIDTH <= of.end {
        // SAFETY: by the caller's word.
        unsafe {
            let mut acc = [[L::splat(0.0); V]; T];
            for (t, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(accumulators.add(t * record + d + v * WIDTH));
                }
            }
            for slot in slots.clone() {
                let mut vectors = [L::splat(0.0); V];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = S::load::<L>(values.add(slot * dim + d + v * WIDTH));
                }
                if ASK {
                    ask::<S>(next, slot * dim + d, V * WIDTH);
                }
                for (t, acc) in acc.iter_mut().enumerate() {
                    let weight = L::splat(*weights.add(t * BLOCK + slot));
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = weight.fma(vectors[v], *acc);
                    }
                }
            }
            for (t, acc) in acc.into_iter().enumerate() {
                for (v, acc) in acc.into_iter().enumerate() {
                    acc.store(accumulators.add(t * record + d + v * WIDTH));
                }
            }
        }
        d += V * WIDTH;
    }
    d
}
