//! Paged attention: query rows are shared out over the pool by kv head and a few rows at a time, or, where
//! those are few and contexts long, by span, too. Rows that share blocks meet them together.

use super::matmul::{Rounding, rounding};
use super::span;
use super::unit::{Call, group};
use super::{Inputs, Kernels, SendPtr};
use super::{blocks, forest};
use crate::attention::{AttnPlan, BLOCK, KvLayer};
use crate::scratch::Scratch;
use crate::weights::PackedMatrix;

/// Query heads that a unit has at least where rows suffice: as many as meet a block at once.
const UNIT_HEADS: usize = 12;

/// Most rows of a unit: more would leave other threads without work and caches without room.
const UNIT_ROWS: usize = 32;

/// Units that each thread should have, so that cores that others use too are evened out.
const UNITS_A_THREAD: usize = 6;

impl Kernels {
    /// Attention of each query over the stored slots of its sequence that it sees, its own included.
    ///
    /// `q` and `out` are `rows x heads x dim`. The bits of a query's result depend on the query, the
    /// stored keys and values of its sequence and its slot only. Rows that no sequence names are left
    /// as they are. Panics on shapes that do not fit and on block ids outside the layer.
    pub fn paged_attention(
        &self,
        q: &[f32],
        kv: &KvLayer,
        plan: &AttnPlan<'_>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.paged_attention_for(q, kv, plan, out, None, scratch);
    }

    /// [`Kernels::paged_attention`], whose results are given as inputs of the product `then`.
    pub fn paged_attention_for<'o>(
        &self,
        q: &[f32],
        kv: &KvLayer,
        plan: &AttnPlan<'_>,
        out: &'o mut [f32],
        then: Option<&PackedMatrix>,
        scratch: &mut Scratch,
    ) -> Inputs<'o> {
        check(q, kv, plan, out);
        forest::list_rows(plan, &mut scratch.query_rows);
        let (width, listed) = (plan.heads * plan.dim, scratch.query_rows.len());
        // Rows that nobody names are not computed, and so not rounded.
        let then = then.filter(|w| w.k() == width && listed * width == out.len());
        let rounding = rounding(then, listed, group(plan) * plan.dim, scratch);
        self.attend(q, kv, plan, out, rounding, scratch);
        Inputs::computed(out, rounding, scratch)
    }

    fn attend(
        &self,
        q: &[f32],
        kv: &KvLayer,
        plan: &AttnPlan<'_>,
        out: &mut [f32],
        rounding: Option<Rounding>,
        scratch: &mut Scratch,
    ) {
        let (rows, memory) = (&scratch.query_rows, &mut scratch.attention);
        let threads = self.pool.threads();
        let unit_rows = unit_rows(plan, rows.len(), threads);
        let blocks = plan.seqs.iter().map(|seq| seq.kv_len.div_ceil(BLOCK));
        let call = Call {
            isa: self.isa,
            q,
            kv,
            plan,
            rows,
            unit_rows,
            blocks: blocks.max().unwrap_or(0),
            rounding,
        };
        let work = |s: &crate::SeqSpan<'_>| 2 * s.q_len * s.kv_len * plan.heads * plan.dim;
        let work: usize = plan.seqs.iter().map(work).sum();
        let lanes = threads * call.lane_len();
        let spans = if call.units() < 2 * threads && self.split(usize::MAX, work) > 1 {
            call.spans(0..rows.len()).end
        } else {
            1
        };
        let states = if spans > 1 {
            call.heads() * spans * call.record()
        } else {
            0
        };
        memory.grow_twofold((lanes + states) * size_of::<f32>());
        let memory = memory.as_mut_ptr().cast::<f32>();
        let (out, memory) = (SendPtr(out.as_mut_ptr()), SendPtr(memory));
        if spans > 1 {
            // SAFETY: the memory is that long, and `out` as long as `q`.
            unsafe { self.by_span(&call, spans, work, memory, out) };
            return;
        }
        let (units, tasks) = (call.units(), self.split(call.units(), work));
        self.pool.run_lanes(tasks, &|lane, task| {
            for unit in units * task / tasks..units * (task + 1) / tasks {
                // SAFETY: `check` has seen the shapes and the block tables; no other running task has the
                // lane, and no other writes these heads of these rows.
                unsafe { call.attend(&call.unit(unit), call.lane(memory.get(), lane), out.get()) };
            }
        });
    }

    /// The same, with tasks for each span, whose states are merged after: the same bits.
    ///
    /// # Safety
    /// `memory` has all lanes and a record for each head of each row and span; `out` is as long as `q`.
    unsafe fn by_span(
        &self,
        call: &Call<'_>,
        spans: usize,
        work: usize,
        memory: SendPtr<f32>,
        out: SendPtr<f32>,
    ) {
        let (heads, record) = (call.heads(), call.record());
        let threads = self.pool.threads();
        // SAFETY: the states lie behind the lanes.
        let states = SendPtr(unsafe { memory.get().add(threads * call.lane_len()) });
        let parts = call.units() * spans;
        let tasks = self.split(parts, work);
        self.pool.run_lanes(tasks, &|lane, task| {
            for part in parts * task / tasks..parts * (task + 1) / tasks {
                let (unit, span) = (call.unit(part / spans), part % spans);
                // SAFETY: each head of each row has a record a span, which only this task writes; no
                // other running task has the lane.
                unsafe {
                    let lane = call.lane(memory.get(), lane);
                    let to = states
                        .get()
                        .add((span * heads + call.first_head(&unit)) * record);
                    let meetings = call.meetings(&unit, span..span + 1, lane.meetings);
                    blocks::expect(call.kv, unit.head, meetings);
                    call.gather(&unit, lane.queries);
                    call.meet(&unit, lane, (meetings, &[]), to);
                }
            }
        });
        let units = call.units();
        let tasks = self.split(units, 4 * heads * spans * call.plan.dim);
        self.pool.run_lanes(tasks, &|lane, task| {
            for unit in units * task / tasks..units * (task + 1) / tasks {
                let unit = call.unit(unit);
                // SAFETY: the spans that the rows see were written above; the rest as there.
                unsafe {
                    let total = call.lane(memory.get(), lane).total;
                    span::reset(call.isa, total, call.unit_heads(&unit), call.plan.dim);
                    for span in 0..spans {
                        let at = (span * heads + call.first_head(&unit)) * record;
                        call.merge(&unit, span, states.get().add(at), total);
                    }
                    call.finish(&unit, total, out.get());
                }
            }
        });
    }
}

/// Rows of a unit, such that its heads fill whole vectors of heads.
fn unit_rows(plan: &AttnPlan<'_>, rows: usize, threads: usize) -> usize {
    let least = UNIT_HEADS.div_ceil(group(plan));
    let wanted = (rows * plan.kv_heads / (UNITS_A_THREAD * threads)).min(UNIT_ROWS);
    (wanted / least * least).max(least).min(rows).max(1)
}

fn check(q: &[f32], kv: &KvLayer, plan: &AttnPlan<'_>, out: &[f32]) {
    assert!(
        plan.kv_heads > 0 && plan.heads > 0 && plan.heads.is_multiple_of(plan.kv_heads),
        "{plan:?}"
    );
    assert_eq!((plan.kv_heads, plan.dim), (kv.kv_heads(), kv.dim()));
    assert_eq!(q.len(), out.len());
    let rows = q.len() / (plan.heads * plan.dim);
    let mut before: &[u32] = &[];
    for seq in plan.seqs {
        assert!(seq.q_start + seq.q_len <= rows, "{seq:?} in {rows} rows");
        assert!(seq.q_len <= seq.kv_len, "{seq:?}");
        let needed = seq.kv_len.div_ceil(BLOCK);
        assert!(seq.block_table.len() >= needed, "block table of {seq:?}");
        let blocks = seq.block_table[..needed].iter();
        assert!(
            blocks.max().is_none_or(|b| (*b as usize) < kv.blocks()),
            "blocks of {seq:?}"
        );
        let shared = ..seq.shared_blocks;
        assert!(
            seq.shared_blocks <= before.len().min(needed),
            "shared blocks of {seq:?}"
        );
        debug_assert_eq!(before[shared], seq.block_table[shared], "{seq:?}");
        before = &seq.block_table[..needed];
    }
}
