//! The softmax recurrence over one span of slots, for a few query heads that share keys and values.

use super::lanes::{Lanes, WIDTH, exp, prefetch, softcap, sum};
use crate::attention::{AttnPlan, BLOCK, KvDtype, KvLayer, SPAN};
use std::ops::Range;

/// Most elements of a head.
pub(super) const MAX_DIM: usize = 256;

/// [`crate::reference::SpanState`] of `T` query heads.
#[derive(Clone, Copy)]
pub(super) struct State<const T: usize> {
    pub(super) max: [f32; T],
    pub(super) sum: [[f32; WIDTH]; T],
    pub(super) acc: [[f32; MAX_DIM]; T],
}

impl<const T: usize> State<T> {
    /// Before any slot.
    pub(super) const EMPTY: State<T> = State {
        max: [f32::NEG_INFINITY; T],
        sum: [[0.0; WIDTH]; T],
        acc: [[0.0; MAX_DIM]; T],
    };
}

/// Keys and values of one sequence and kv head.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) kv: &'a KvLayer,
    pub(super) table: &'a [u32],
    pub(super) head: usize,
}

/// How 16 stored numbers become lanes.
pub(super) trait Stored {
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
pub(super) struct StoredF32;
/// f16 in the cache.
pub(super) struct StoredF16;

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

/// Runs the recurrence over the slots of `span` that are within `seen`, from an empty state.
///
/// `q` holds `T` heads of `plan.dim` one after another.
///
/// # Safety
/// See [`Lanes`]; `plan.dim <= MAX_DIM`; the block table covers `seen` with blocks of the layer.
#[inline(always)]
pub(super) unsafe fn run<L: Lanes, const T: usize>(
    q: &[f32],
    source: Source<'_>,
    plan: &AttnPlan<'_>,
    seen: Range<usize>,
    span: usize,
    state: &mut State<T>,
) {
    // SAFETY: by the caller's word.
    unsafe {
        match source.kv.dtype() {
            KvDtype::F32 => blocks::<L, StoredF32, T>(q, source, plan, seen, span, state),
            KvDtype::F16 => blocks::<L, StoredF16, T>(q, source, plan, seen, span, state),
        }
    }
}

#[inline(always)]
unsafe fn blocks<L: Lanes, S: Stored, const T: usize>(
    q: &[f32],
    source: Source<'_>,
    plan: &AttnPlan<'_>,
    seen: Range<usize>,
    span: usize,
    state: &mut State<T>,
) {
    let (start, end) = (seen.start.max(span * SPAN), seen.end.min((span + 1) * SPAN));
    for block in start / BLOCK..end.div_ceil(BLOCK) {
        let first = start.max(block * BLOCK) - block * BLOCK;
        let last = end.min((block + 1) * BLOCK) - block * BLOCK;
        // Blocks lie scattered, so the processor cannot foresee the next one.
        let next = if block * BLOCK + last < end {
            block + 1
        } else {
            block
        };
        let [here, next] =
            [block, next].map(|b| source.kv.head_start(source.table[b], source.head));
        // SAFETY: both blocks are in the layer, and a head of a block has `dim * BLOCK` elements.
        unsafe {
            let keys = source.kv.keys.as_ptr().cast::<S::Element>();
            let values = source.kv.values.as_ptr().cast::<S::Element>();
            let scores = scores::<L, S, T>(q, keys.add(here), keys.add(next), plan);
            let p = weigh::<L, T>(scores, first..last, plan.dim, state);
            let (values, next) = (values.add(here), values.add(next));
            add_values::<L, S, T>(&p, values, next, first..last, plan.dim, state);
        }
    }
}

/// Scores of 16 slots for each head: lanes are slots. Asks for `next`, the keys needed after.
#[inline(always)]
unsafe fn scores<L: Lanes, S: Stored, const T: usize>(
    q: &[f32],
    keys: *const S::Element,
    next: *const S::Element,
    plan: &AttnPlan<'_>,
) -> [L; T] {
    let dim = plan.dim;
    assert_eq!(q.len(), T * dim);
    // SAFETY: indices are below `T * dim` in `q` and below `dim * BLOCK` in the keys.
    unsafe {
        let mut sums = [[L::splat(0.0); 2]; T];
        for d in (0..dim - dim % 2).step_by(2) {
            let even = S::load::<L>(keys.add(d * BLOCK));
            let odd = S::load::<L>(keys.add((d + 1) * BLOCK));
            prefetch(next.add(d * BLOCK).cast());
            prefetch(next.add((d + 1) * BLOCK).cast());
            for (t, sums) in sums.iter_mut().enumerate() {
                let q = q.as_ptr().add(t * dim + d);
                sums[0] = L::splat(*q).fma(even, sums[0]);
                sums[1] = L::splat(*q.add(1)).fma(odd, sums[1]);
            }
        }
        if dim % 2 == 1 {
            let even = S::load::<L>(keys.add((dim - 1) * BLOCK));
            for (t, sums) in sums.iter_mut().enumerate() {
                sums[0] = L::splat(q[t * dim + dim - 1]).fma(even, sums[0]);
            }
        }
        let mut scores = [L::splat(0.0); T];
        for (score, sums) in scores.iter_mut().zip(sums) {
            *score = sums[0].add(sums[1]).mul(L::splat(plan.scale));
            if let Some(c) = plan.softcap {
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
    state: &mut State<T>,
) -> [[f32; BLOCK]; T] {
    let mut weights = [[0f32; BLOCK]; T];
    for t in 0..T {
        // SAFETY: see [`Lanes`]; all arrays have the lengths that are read and written.
        unsafe {
            let mut score = scores[t];
            if slots.len() < BLOCK {
                score = score.keep(slots.start, slots.end, L::splat(f32::NEG_INFINITY));
            }
            let (old, highest) = (state.max[t], score.max_lane());
            let max = if highest > old { highest } else { old };
            let mut total = L::load(state.sum[t].as_ptr());
            // Without a new maximum the correction is 1 and changes no bit.
            if max != old {
                state.max[t] = max;
                let correction = exp(L::splat(old - max));
                total = total.mul(correction);
                for d in (0..dim).step_by(WIDTH) {
                    let acc = state.acc[t].as_mut_ptr().add(d);
                    L::load(acc).mul(correction).store(acc);
                }
            }
            let p = exp(score.sub(L::splat(max)));
            total.add(p).store(state.sum[t].as_mut_ptr());
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
    state: &mut State<T>,
) {
    let whole = dim / WIDTH * WIDTH;
    // SAFETY: slots are below `BLOCK` and dimensions below `dim`.
    unsafe {
        for d in (0..whole).step_by(WIDTH) {
            let mut acc = [L::splat(0.0); T];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = L::load(state.acc[t].as_ptr().add(d));
            }
            for slot in slots.clone() {
                let v = S::load::<L>(values.add(slot * dim + d));
                prefetch(next.add(slot * dim + d).cast());
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = L::splat(weights[t][slot]).fma(v, *acc);
                }
            }
            for (t, acc) in acc.into_iter().enumerate() {
                acc.store(state.acc[t].as_mut_ptr().add(d));
            }
        }
        for d in whole..dim {
            for slot in slots.clone() {
                let v = S::one(values.add(slot * dim + d));
                for (acc, weights) in state.acc.iter_mut().zip(weights) {
                    acc[d] = weights[slot].mul_add(v, acc[d]);
                }
            }
        }
    }
}

/// Appends the state of the next span.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
pub(super) unsafe fn merge<L: Lanes, const T: usize>(
    total: &mut State<T>,
    next: &State<T>,
    dim: usize,
) {
    for t in 0..T {
        let (mine, theirs) = (total.max[t], next.max[t]);
        let max = if theirs > mine { theirs } else { mine };
        total.max[t] = max;
        // SAFETY: all arrays have the lengths that are read and written; `dim <= MAX_DIM`, a multiple of 16.
        unsafe {
            let (a, b) = (exp(L::splat(mine - max)), exp(L::splat(theirs - max)));
            let to = total.sum[t].as_mut_ptr();
            L::load(next.sum[t].as_ptr())
                .fma(b, L::load(to).mul(a))
                .store(to);
            for d in (0..dim).step_by(WIDTH) {
                let to = total.acc[t].as_mut_ptr().add(d);
                L::load(next.acc[t].as_ptr().add(d))
                    .fma(b, L::load(to).mul(a))
                    .store(to);
            }
        }
    }
}

/// Writes the attention result of each head to `out`, `T * dim` numbers.
///
/// # Safety
/// See [`Lanes`]; `out` has that many.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes, const T: usize>(state: &State<T>, dim: usize, out: *mut f32) {
    let mut lanes = [0f32; WIDTH];
    for t in 0..T {
        // SAFETY: the last lanes are written only as far as the head goes.
        unsafe {
            let total = L::splat(sum(L::load(state.sum[t].as_ptr())));
            for d in (0..dim).step_by(WIDTH) {
                L::load(state.acc[t].as_ptr().add(d))
                    .div(total)
                    .store(lanes.as_mut_ptr());
                let to = out.add(t * dim + d);
                to.copy_from_nonoverlapping(lanes.as_ptr(), WIDTH.min(dim - d));
            }
        }
    }
}
