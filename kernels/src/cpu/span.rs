//! The softmax recurrence over blocks of slots, for query heads that share keys and values.
//!
//! What a head has met so far is its [`Record`]; records of heads that are computed together lie one after
//! another. A head's record goes through the same operations whichever heads are beside it.

use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH, exp, prefetch, softcap, sum};
use crate::attention::{BLOCK, KvDtype, KvLayer};
use std::ops::Range;

/// Where the parts of a [`crate::reference::SpanState`] lie in memory, counted in floats: the highest score
/// (and room up to a whole vector), the sums, the accumulators.
#[derive(Clone, Copy)]
pub(super) struct Record {
    dim: usize,
}

impl Record {
    const SUM: usize = WIDTH;
    const ACC: usize = 2 * WIDTH;

    /// Of heads of `dim` elements.
    pub(super) fn new(dim: usize) -> Record {
        Record { dim }
    }

    /// Floats from one head's record to the next: whole vectors.
    pub(super) fn len(self) -> usize {
        Record::ACC + self.dim.next_multiple_of(WIDTH)
    }
}

/// A run of blocks that some query heads meet.
pub(super) struct Run<'a> {
    pub(super) kv: &'a KvLayer,
    /// The cache block of each block of the sequence.
    pub(super) table: &'a [u32],
    /// The kv head.
    pub(super) head: usize,
    /// Which blocks, counted in the sequence.
    pub(super) blocks: Range<usize>,
    /// The slots that all heads see; each block has at least one of them.
    pub(super) seen: Range<usize>,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) queries: Queries,
    /// Records of the heads.
    pub(super) states: *mut f32,
}

/// Query heads, transposed: element `d` of head `h` is at `d * stride + h`.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    pub(super) first: *const f32,
    pub(super) stride: usize,
    pub(super) heads: usize,
}

/// How 16 stored numbers become lanes.
trait Stored {
    type Element;
    /// # Safety
    /// See [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self::Element) -> L;
    /// One number as f32.
    ///
    /// # Safety
    /// The pointer is valid.
    unsafe fn one(from: *const Self::Element) -> f32;
}

/// f32 in the cache.
struct StoredF32;
/// f16 in the cache.
struct StoredF16;

impl Stored for StoredF32 {
    type Element = f32;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L {
        // SAFETY: by the caller's word.
        unsafe { L::load(from) }
    }

    #[inline(always)]
    unsafe fn one(from: *const f32) -> f32 {
        // SAFETY: by the caller's word.
        unsafe { *from }
    }
}

impl Stored for StoredF16 {
    type Element = u16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L {
        // SAFETY: by the caller's word.
        unsafe { L::load_f16(from) }
    }

    #[inline(always)]
    unsafe fn one(from: *const u16) -> f32 {
        // SAFETY: by the caller's word.
        half::f16::from_bits(unsafe { *from }).to_f32()
    }
}

/// Calls `$body` with `$T` heads at a time, from head `$first` on, until `$heads` are done. What is read of
/// a block serves `$T` heads; how many fit into the registers is the instruction set's to say.
macro_rules! by_heads {
    ($L:ident, $heads:expr, $first:ident, $T:ident => $body:expr) => {{
        let mut $first = 0;
        while $first < $heads {
            $first += match $heads - $first {
                12.. if $L::MANY => {
                    const $T: usize = 12;
                    $body;
                    $T
                }
                6 | 7 | 9.. if $L::MANY => {
                    const $T: usize = 6;
                    $body;
                    $T
                }
                4.. if $L::MANY => {
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

per_isa! {
    /// Takes a run's heads through its blocks, from the states that their records hold.
    pub(super) unsafe fn run = run_of(run: &Run<'_>);
}

/// # Safety
/// See [`Lanes`]; the table names a block of the layer for each of the run's blocks; queries and states are
/// those of the run's heads, of as many elements as the layer's.
#[inline(always)]
unsafe fn run_of<L: Lanes>(run: &Run<'_>) {
    // SAFETY: by the caller's word.
    unsafe {
        match run.kv.dtype() {
            KvDtype::F32 => blocks::<L, StoredF32>(run),
            KvDtype::F16 => blocks::<L, StoredF16>(run),
        }
    }
}

/// Block by block, so that one is still in the first-level cache when the next heads meet it.
#[inline(always)]
unsafe fn blocks<L: Lanes, S: Stored>(run: &Run<'_>) {
    let (dim, record) = (run.kv.dim(), Record::new(run.kv.dim()).len());
    for block in run.blocks.clone() {
        let first = run.seen.start.max(block * BLOCK) - block * BLOCK;
        let last = run.seen.end.min((block + 1) * BLOCK) - block * BLOCK;
        // Blocks lie scattered, so the processor cannot foresee the next one.
        let next = (block + 1).min(run.blocks.end - 1);
        let [here, next] = [block, next].map(|b| run.kv.head_start(run.table[b], run.head));
        let keys = run.kv.keys.as_ptr().cast::<S::Element>();
        let values = run.kv.values.as_ptr().cast::<S::Element>();
        by_heads!(L, run.queries.heads, head, T => {
            // SAFETY: both blocks are in the layer, and a head of a block has `dim * BLOCK` elements.
            unsafe {
                let states = run.states.add(head * record);
                let (keys, ahead) = (keys.add(here), keys.add(next));
                let scores = scores::<L, S, T>(run, head, keys, ahead);
                let weights = weigh::<L, T>(scores, first..last, dim, states);
                let (values, ahead) = (values.add(here), values.add(next));
                add_values::<L, S, T>(&weights, values, ahead, first..last, dim, states);
            }
        });
    }
}

/// Scores of 16 slots for each head: lanes are slots. Asks for `next`, the keys needed after.
#[inline(always)]
unsafe fn scores<L: Lanes, S: Stored, const T: usize>(
    run: &Run<'_>,
    head: usize,
    keys: *const S::Element,
    next: *const S::Element,
) -> [L; T] {
    let (dim, Queries { first, stride, .. }) = (run.kv.dim(), run.queries);
    // SAFETY: indices are below `dim` in the queries and below `dim * BLOCK` in the keys.
    unsafe {
        let first = first.add(head);
        let mut sums = [[L::splat(0.0); 2]; T];
        for d in (0..dim - dim % 2).step_by(2) {
            let even = S::load::<L>(keys.add(d * BLOCK));
            let odd = S::load::<L>(keys.add((d + 1) * BLOCK));
            prefetch(next.add(d * BLOCK).cast());
            if size_of::<S::Element>() == 4 {
                prefetch(next.add((d + 1) * BLOCK).cast());
            }
            let (q, r) = (first.add(d * stride), first.add((d + 1) * stride));
            for (t, sums) in sums.iter_mut().enumerate() {
                sums[0] = L::splat(*q.add(t)).fma(even, sums[0]);
                sums[1] = L::splat(*r.add(t)).fma(odd, sums[1]);
            }
        }
        if dim % 2 == 1 {
            let even = S::load::<L>(keys.add((dim - 1) * BLOCK));
            let q = first.add((dim - 1) * stride);
            for (t, sums) in sums.iter_mut().enumerate() {
                sums[0] = L::splat(*q.add(t)).fma(even, sums[0]);
            }
        }
        let mut scores = [L::splat(0.0); T];
        for (score, sums) in scores.iter_mut().zip(sums) {
            *score = sums[0].add(sums[1]).mul(L::splat(run.scale));
            if let Some(c) = run.softcap {
                *score = softcap(*score, c);
            }
        }
        scores
    }
}

/// Updates maxima and sums, corrects what was accumulated, and returns the slots' weights.
#[inline(always)]
unsafe fn weigh<L: Lanes, const T: usize>(
    scores: [L; T],
    slots: Range<usize>,
    dim: usize,
    states: *mut f32,
) -> [[f32; BLOCK]; T] {
    let (mut weights, record) = ([[0f32; BLOCK]; T], Record::new(dim).len());
    for t in 0..T {
        // SAFETY: see [`Lanes`]; all arrays have the lengths that are read and written.
        unsafe {
            let state = states.add(t * record);
            let mut score = scores[t];
            if slots.len() < BLOCK {
                score = score.keep(slots.start, slots.end, L::splat(f32::NEG_INFINITY));
            }
            let (old, highest) = (*state, score.max_lane());
            let max = if highest > old { highest } else { old };
            let sum = state.add(Record::SUM);
            let mut total = L::load(sum);
            // Without a new maximum the correction is 1 and changes no bit.
            if max != old {
                *state = max;
                let correction = exp(L::splat(old - max));
                total = total.mul(correction);
                for d in (0..dim).step_by(WIDTH) {
                    let acc = state.add(Record::ACC + d);
                    L::load(acc).mul(correction).store(acc);
                }
            }
            let p = exp(score.sub(L::splat(max)));
            total.add(p).store(sum);
            p.store(weights[t].as_mut_ptr());
        }
    }
    weights
}

/// Adds weighted values: lanes are dimensions, slots go in ascending order. Asks for `next`.
#[inline(always)]
unsafe fn add_values<L: Lanes, S: Stored, const T: usize>(
    weights: &[[f32; BLOCK]; T],
    values: *const S::Element,
    next: *const S::Element,
    slots: Range<usize>,
    dim: usize,
    states: *mut f32,
) {
    let (whole, record) = (dim / WIDTH * WIDTH, Record::new(dim).len());
    // SAFETY: slots are below `BLOCK` and dimensions below `dim`; a record has that many accumulators.
    unsafe {
        let accumulators = states.add(Record::ACC);
        for d in (0..whole).step_by(WIDTH) {
            let mut acc = [L::splat(0.0); T];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = L::load(accumulators.add(t * record + d));
            }
            for slot in slots.clone() {
                let v = S::load::<L>(values.add(slot * dim + d));
                prefetch(next.add(slot * dim + d).cast());
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = L::splat(weights[t][slot]).fma(v, *acc);
                }
            }
            for (t, acc) in acc.into_iter().enumerate() {
                acc.store(accumulators.add(t * record + d));
            }
        }
        for d in whole..dim {
            for slot in slots.clone() {
                let v = S::one(values.add(slot * dim + d));
                for (t, weights) in weights.iter().enumerate() {
                    let acc = accumulators.add(t * record + d);
                    *acc = weights[slot].mul_add(v, *acc);
                }
            }
        }
    }
}

per_isa! {
    /// Makes `heads` records those of heads that have met nothing.
    pub(super) unsafe fn reset = reset_of(states: *mut f32, heads: usize, dim: usize);
}

/// # Safety
/// See [`Lanes`]; there are that many records.
#[inline(always)]
unsafe fn reset_of<L: Lanes>(states: *mut f32, heads: usize, dim: usize) {
    let record = Record::new(dim).len();
    for head in 0..heads {
        // SAFETY: within the record.
        unsafe {
            let state = states.add(head * record);
            *state = f32::NEG_INFINITY;
            for at in (Record::SUM..record).step_by(WIDTH) {
                L::splat(0.0).store(state.add(at));
            }
        }
    }
}

per_isa! {
    /// Appends the states of the next span to `heads` records.
    pub(super) unsafe fn merge = merge_of(
        totals: *mut f32, next: *const f32, heads: usize, dim: usize,
    );
}

/// # Safety
/// See [`Lanes`]; there are that many records of both.
#[inline(always)]
unsafe fn merge_of<L: Lanes>(totals: *mut f32, next: *const f32, heads: usize, dim: usize) {
    let record = Record::new(dim).len();
    for head in 0..heads {
        // SAFETY: within the records.
        unsafe {
            let (total, next) = (totals.add(head * record), next.add(head * record));
            let (mine, theirs) = (*total, *next);
            let max = if theirs > mine { theirs } else { mine };
            *total = max;
            let (a, b) = (exp(L::splat(mine - max)), exp(L::splat(theirs - max)));
            for at in (Record::SUM..record).step_by(WIDTH) {
                let to = total.add(at);
                L::load(next.add(at)).fma(b, L::load(to).mul(a)).store(to);
            }
        }
    }
}

per_isa! {
    /// Writes the attention result of `heads` heads to `out`, `heads * dim` numbers.
    pub(super) unsafe fn finish = finish_of(
        states: *const f32, heads: usize, dim: usize, out: *mut f32,
    );
}

/// # Safety
/// See [`Lanes`]; there are that many records, and `out` has that many numbers.
#[inline(always)]
unsafe fn finish_of<L: Lanes>(states: *const f32, heads: usize, dim: usize, out: *mut f32) {
    let (record, mut lanes) = (Record::new(dim).len(), [0f32; WIDTH]);
    for head in 0..heads {
        // SAFETY: the last lanes are written only as far as the head goes.
        unsafe {
            let state = states.add(head * record);
            let total = L::splat(sum(L::load(state.add(Record::SUM))));
            for d in (0..dim).step_by(WIDTH) {
                let quotient = L::load(state.add(Record::ACC + d)).div(total);
                let to = out.add(head * dim + d);
                if d + WIDTH <= dim {
                    quotient.store(to);
                } else {
                    quotient.store(lanes.as_mut_ptr());
                    to.copy_from_nonoverlapping(lanes.as_ptr(), dim - d);
                }
            }
        }
    }
}
