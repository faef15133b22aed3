//! Paged attention: queries are shared out over the pool by kv head and row, or, where those are few
//! and contexts long, by span.

use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH};
use super::span::{self, MAX_DIM, Source, State};
use super::{Kernels, SendPtr};
use crate::attention::{AttnPlan, BLOCK, KvLayer, SPAN, SeqSpan, visible};
use crate::scratch::Scratch;
use std::ops::Range;

/// One query row of one sequence with one kv head: what a task works on.
#[derive(Clone, Copy)]
struct Item<'a> {
    seq: &'a SeqSpan<'a>,
    row: usize,
    head: usize,
}

impl Item<'_> {
    fn seen(&self, plan: &AttnPlan<'_>) -> Range<usize> {
        visible(self.seq.kv_len - self.seq.q_len + self.row, plan.window)
    }

    /// Index of the first number of this item's query heads in `q` and `out`.
    fn at(&self, plan: &AttnPlan<'_>) -> usize {
        let heads = (self.seq.q_start + self.row) * plan.heads;
        (heads + self.head * group(plan)) * plan.dim
    }
}

/// Query heads that share a kv head.
fn group(plan: &AttnPlan<'_>) -> usize {
    plan.heads / plan.kv_heads
}

/// Spans that a query with these visible slots meets.
fn spans(seen: &Range<usize>) -> Range<usize> {
    seen.start / SPAN..seen.end.div_ceil(SPAN)
}

/// Floats of a span state that waits in the scratch: maximum, sums, accumulators.
fn record_len(dim: usize) -> usize {
    1 + WIDTH + dim
}

impl Kernels {
    /// Attention of each query over the stored slots of its sequence that it sees, its own included.
    ///
    /// `q` and `out` are `rows x heads x dim`. The bits of a query's result depend on the query, the
    /// stored keys and values of its sequence and its slot only. Rows that no sequence names are left
    /// as they are. Panics on shapes that do not fit, on block ids outside the layer, and if `dim`
    /// exceeds 256.
    pub fn paged_attention(
        &self,
        q: &[f32],
        kv: &KvLayer,
        plan: &AttnPlan<'_>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        check(q, kv, plan, out);
        let items: usize = plan.seqs.iter().map(|s| s.q_len * plan.kv_heads).sum();
        let work = |s: &SeqSpan<'_>| 2 * s.q_len * s.kv_len * plan.heads * plan.dim;
        let work: usize = plan.seqs.iter().map(work).sum();
        if items < 4 * self.pool.threads() && self.split(usize::MAX, work) > 1 {
            self.attend_by_span(q, kv, plan, items, work, out, scratch);
            return;
        }
        let (isa, to, tasks) = (self.isa, SendPtr(out.as_mut_ptr()), self.split(items, work));
        self.pool.run(tasks, &|task| {
            for index in items * task / tasks..items * (task + 1) / tasks {
                let Some(item) = item_at(plan, index) else {
                    continue;
                };
                let at = item.at(plan);
                let source = Source {
                    kv,
                    table: item.seq.block_table,
                    head: item.head,
                };
                let q = &q[at..at + group(plan) * plan.dim];
                // SAFETY: `check` has seen the shapes and the block table; `out` is as long as `q`,
                // and only this task writes these heads of this row.
                unsafe { attend_item(isa, q, source, plan, item.seen(plan), to.get().add(at)) };
            }
        });
    }

    /// The same, with a task for each span and the states merged after: the same bits.
    #[allow(
        clippy::too_many_arguments,
        reason = "paged_attention's, and what it has computed"
    )]
    fn attend_by_span(
        &self,
        q: &[f32],
        kv: &KvLayer,
        plan: &AttnPlan<'_>,
        items: usize,
        work: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let most = plan
            .seqs
            .iter()
            .map(|s| s.kv_len.div_ceil(SPAN))
            .max()
            .unwrap_or(0);
        let (group, record) = (group(plan), record_len(plan.dim));
        let item_len = most * group * record;
        if scratch.spans.len() < items * item_len {
            scratch.spans.resize(items * item_len, 0.0);
        }
        let (isa, states) = (self.isa, SendPtr(scratch.spans.as_mut_ptr()));
        let parts = items * most;
        let tasks = self.split(parts, work);
        self.pool.run(tasks, &|task| {
            for part in parts * task / tasks..parts * (task + 1) / tasks {
                let Some(item) = item_at(plan, part / most) else {
                    continue;
                };
                let (seen, span) = (item.seen(plan), part % most);
                if !spans(&seen).contains(&span) {
                    continue;
                }
                let at = item.at(plan);
                let source = Source {
                    kv,
                    table: item.seq.block_table,
                    head: item.head,
                };
                let q = &q[at..at + group * plan.dim];
                // SAFETY: as in `paged_attention`; the scratch has a record for every head of every part.
                unsafe {
                    let to = states.get().add(part * group * record);
                    attend_span(isa, q, source, plan, seen, span, to);
                }
            }
        });
        for index in 0..items {
            let Some(item) = item_at(plan, index) else {
                continue;
            };
            let out = &mut out[item.at(plan)..][..group * plan.dim];
            let states = &scratch.spans[index * item_len..][..item_len];
            // SAFETY: the spans that the item sees were written above.
            unsafe { merge_spans(isa, states, spans(&item.seen(plan)), plan, out) };
        }
    }
}

/// Finds item `index`: sequences in order; within one, kv heads; within those, rows.
fn item_at<'a>(plan: &AttnPlan<'a>, mut index: usize) -> Option<Item<'a>> {
    for seq in plan.seqs {
        let here = seq.q_len * plan.kv_heads;
        if index < here {
            return Some(Item {
                seq,
                row: index % seq.q_len,
                head: index / seq.q_len,
            });
        }
        index -= here;
    }
    None
}

fn check(q: &[f32], kv: &KvLayer, plan: &AttnPlan<'_>, out: &[f32]) {
    assert!(
        plan.kv_heads > 0 && plan.heads.is_multiple_of(plan.kv_heads),
        "{plan:?}"
    );
    assert_eq!((plan.kv_heads, plan.dim), (kv.kv_heads(), kv.dim()));
    assert!(plan.dim <= MAX_DIM, "heads of {} elements", plan.dim);
    assert_eq!(q.len(), out.len());
    let rows = q.len() / (plan.heads * plan.dim);
    for seq in plan.seqs {
        assert!(seq.q_start + seq.q_len <= rows, "{seq:?} in {rows} rows");
        assert!(seq.q_len <= seq.kv_len, "{seq:?}");
        let blocks = seq.block_table.iter().take(seq.kv_len.div_ceil(BLOCK));
        assert_eq!(
            blocks.len(),
            seq.kv_len.div_ceil(BLOCK),
            "block table of {seq:?}"
        );
        assert!(
            blocks.max().is_none_or(|b| (*b as usize) < kv.blocks()),
            "blocks of {seq:?}"
        );
    }
}

/// Calls `$body` with `$T` query heads at a time, from head `$first` on, until `$group` are done.
macro_rules! by_heads {
    ($L:ident, $group:expr, $first:ident, $T:ident => $body:expr) => {{
        let mut $first = 0;
        while $first < $group {
            $first += match $group - $first {
                4.. if $L::MANY => {
                    const $T: usize = 4;
                    $body;
                    $T
                }
                3 => {
                    const $T: usize = 3;
                    $body;
                    $T
                }
                2.. => {
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
    /// All query heads of an item, over all their spans.
    unsafe fn attend_item = attend_item_of(
        q: &[f32], source: Source<'_>, plan: &AttnPlan<'_>, seen: Range<usize>, out: *mut f32,
    );
}

/// # Safety
/// As for [`span::run`]; `out` is as long as `q`.
#[inline(always)]
unsafe fn attend_item_of<L: Lanes>(
    q: &[f32],
    source: Source<'_>,
    plan: &AttnPlan<'_>,
    seen: Range<usize>,
    out: *mut f32,
) {
    let dim = plan.dim;
    by_heads!(L, group(plan), first, T => {
        let mut total = State::<T>::EMPTY;
        for span in spans(&seen) {
            let mut state = State::<T>::EMPTY;
            let q = &q[first * dim..][..T * dim];
            // SAFETY: by the caller's word.
            unsafe {
                span::run::<L, T>(q, source, plan, seen.clone(), span, &mut state);
                span::merge::<L, T>(&mut total, &state, dim);
            }
        }
        // SAFETY: heads `first..first + T` are within `out`.
        unsafe { span::finish::<L, T>(&total, dim, out.add(first * dim)) };
    });
}

per_isa! {
    /// All query heads of an item, over one span; the states go to `to`, a record a head.
    unsafe fn attend_span = attend_span_of(
        q: &[f32],
        source: Source<'_>,
        plan: &AttnPlan<'_>,
        seen: Range<usize>,
        span: usize,
        to: *mut f32,
    );
}

/// # Safety
/// As for [`span::run`]; `to` has a record for each head.
#[inline(always)]
unsafe fn attend_span_of<L: Lanes>(
    q: &[f32],
    source: Source<'_>,
    plan: &AttnPlan<'_>,
    seen: Range<usize>,
    span: usize,
    to: *mut f32,
) {
    let (dim, record) = (plan.dim, record_len(plan.dim));
    by_heads!(L, group(plan), first, T => {
        let mut state = State::<T>::EMPTY;
        // SAFETY: by the caller's word.
        unsafe {
            let q = &q[first * dim..][..T * dim];
            span::run::<L, T>(q, source, plan, seen.clone(), span, &mut state);
            for t in 0..T {
                let to = to.add((first + t) * record);
                *to = state.max[t];
                to.add(1).copy_from_nonoverlapping(state.sum[t].as_ptr(), WIDTH);
                to.add(1 + WIDTH).copy_from_nonoverlapping(state.acc[t].as_ptr(), dim);
            }
        }
    });
}

per_isa! {
    /// Merges the span states of an item, which `states` holds by span and head.
    unsafe fn merge_spans = merge_spans_of(
        states: &[f32], spans: Range<usize>, plan: &AttnPlan<'_>, out: &mut [f32],
    );
}

/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn merge_spans_of<L: Lanes>(
    states: &[f32],
    spans: Range<usize>,
    plan: &AttnPlan<'_>,
    out: &mut [f32],
) {
    let (dim, record) = (plan.dim, record_len(plan.dim));
    for head in 0..group(plan) {
        let mut total = State::<1>::EMPTY;
        for span in spans.clone() {
            let from = &states[(span * group(plan) + head) * record..][..record];
            let mut state = State::<1>::EMPTY;
            state.max[0] = from[0];
            state.sum[0].copy_from_slice(&from[1..1 + WIDTH]);
            state.acc[0][..dim].copy_from_slice(&from[1 + WIDTH..]);
            // SAFETY: by the caller's word.
            unsafe { span::merge::<L, 1>(&mut total, &state, dim) };
        }
        let out = &mut out[head * dim..][..dim];
        // SAFETY: `out` has the head's `dim` elements.
        unsafe { span::finish::<L, 1>(&total, dim, out.as_mut_ptr()) };
    }
}
