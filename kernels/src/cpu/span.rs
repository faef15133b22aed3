//! What query heads have met: their scores as weights, the states of spans, and how those are merged.
//!
//! What a head has met so far is its [`Record`]; records of heads that are computed together lie one after
//! another. A head's record goes through the same operations whichever heads are beside it.

use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH, exp};
use std::ops::Range;

/// Where the parts of a [`crate::reference::SpanState`] lie in memory, counted in floats: the highest score
/// (and room up to a whole vector), the sums, the accumulators.
#[derive(Clone, Copy)]
pub(super) struct Record {
    dim: usize,
}

impl Record {
    pub(super) const SUM: usize = WIDTH;
    pub(super) const ACC: usize = 2 * WIDTH;

    /// Of heads of `dim` elements.
    pub(super) fn new(dim: usize) -> Record {
        Record { dim }
    }

    /// Floats from one head's record to the next: whole vectors.
    pub(super) fn len(self) -> usize {
        Record::ACC + self.dim.next_multiple_of(WIDTH)
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
    /// Turns the scores of `heads` heads in `blocks` of a span into weights, and notes their maxima and sums in as
    /// many records. Scores of a block are `stride` from those of the one before.
    pub(super) unsafe fn weigh = weigh_of(
        scores: *mut f32, stride: usize, blocks: Range<usize>, heads: usize, dim: usize, states: *mut f32,
    );
}

/// # Safety
/// See [`Lanes`]; there are 16 scores of each head in each of the blocks, and that many records.
#[inline(always)]
unsafe fn weigh_of<L: Lanes>(
    scores: *mut f32,
    stride: usize,
    blocks: Range<usize>,
    heads: usize,
    dim: usize,
    states: *mut f32,
) {
    let record = Record::new(dim).len();
    // One loop after the other: the maxima of heads do not wait for each other's weights.
    for head in 0..heads {
        // SAFETY: by the caller's word.
        unsafe {
            let mut highest = L::splat(f32::NEG_INFINITY);
            for block in blocks.clone() {
                highest = L::load(scores.add(head * WIDTH + block * stride)).max(highest);
            }
            *states.add(head * record) = highest.max_lane();
        }
    }
    for head in 0..heads {
        // SAFETY: by the caller's word.
        unsafe {
            let state = states.add(head * record);
            let (max, mut sum) = (L::splat(*state), L::splat(0.0));
            for block in blocks.clone() {
                let at = scores.add(head * WIDTH + block * stride);
                let weight = exp(L::load(at).sub(max));
                sum = sum.add(weight);
                weight.store(at);
            }
            sum.store(state.add(Record::SUM));
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
            if mine == f32::NEG_INFINITY && max.is_finite() {
                // What there is weighs 0 and the next 1: zeros added to it, that make -0 a 0.
                for at in (Record::SUM..record).step_by(WIDTH) {
                    let next = L::load(next.add(at)).add(L::splat(0.0));
                    next.store(total.add(at));
                }
                continue;
            }
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
            let total = L::splat(L::load(state.add(Record::SUM)).sum());
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
