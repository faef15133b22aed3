//! Paged attention: query rows are shared out over the pool by kv head and a few rows at a time, or, where
//! those are few and contexts long, by span, too. Rows that share blocks meet them together.

use super::blocks::{self, Meeting, Run};
use super::forest::{self, QueryRow};
use super::span::{self, Record};
use super::matmul::{Rounding, rounding};
use super::{Inputs, Kernels, SendPtr};
use crate::attention::{AttnPlan, BLOCK, KvLayer, SPAN};
use crate::isa::Isa;
use crate::scratch::Scratch;
use crate::weights::PackedMatrix;
use std::ops::Range;

/// Query heads that a unit has at least where rows suffice: as many as meet a block at once.
const UNIT_HEADS: usize = 12;

/// Most rows of a unit: more would leave other threads without work and caches without room.
const UNIT_ROWS: usize = 32;

/// Units that each thread should have, so that cores that others use too are evened out.
const UNITS_A_THREAD: usize = 6;

/// One call, as tasks see it.
struct Call<'a> {
    isa: Isa,
    q: &'a [f32],
    kv: &'a KvLayer,
    plan: &'a AttnPlan<'a>,
    rows: &'a [QueryRow],
    /// Rows of a unit; the last one may have fewer.
    unit_rows: usize,
    /// Most blocks that a row sees.
    blocks: usize,
    /// How results are rounded, if they are.
    rounding: Option<Rounding>,
}

/// A few rows with one kv head: what a task works on.
struct Unit {
    head: usize,
    rows: Range<usize>,
}

/// Memory of one unit at a time.
#[derive(Clone, Copy)]
struct Lane {
    /// The unit's queries, transposed.
    queries: *mut f32,
    /// A record a head.
    span: *mut f32,
    /// A record a head.
    total: *mut f32,
    /// Room for a block of keys and values.
    wide: *mut f32,
    /// Room for the scores of a block.
    scores: *mut f32,
    /// Room for all that the unit meets.
    meetings: *mut Meeting,
}

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
                    call.gather(&unit, lane.queries);
                    let meetings = call.meetings(&unit, span..span + 1, lane.meetings);
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

impl Call<'_> {
    fn group(&self) -> usize {
        group(self.plan)
    }

    fn record(&self) -> usize {
        Record::new(self.plan.dim).len()
    }

    /// Query heads of all rows.
    fn heads(&self) -> usize {
        self.rows.len() * self.plan.heads
    }

    fn chunks(&self) -> usize {
        self.rows.len().div_ceil(self.unit_rows)
    }

    fn units(&self) -> usize {
        self.plan.kv_heads * self.chunks()
    }

    /// Units of one kv head follow each other: what one read of the cache the next may read, too.
    fn unit(&self, index: usize) -> Unit {
        let (head, chunk) = (index / self.chunks(), index % self.chunks());
        let first = chunk * self.unit_rows;
        Unit {
            head,
            rows: first..self.rows.len().min(first + self.unit_rows),
        }
    }

    /// Query heads of a unit.
    fn unit_heads(&self, unit: &Unit) -> usize {
        unit.rows.len() * self.group()
    }

    /// The number of a unit's first query head among all.
    fn first_head(&self, unit: &Unit) -> usize {
        (unit.head * self.rows.len() + unit.rows.start) * self.group()
    }

    /// Floats of the queries of a unit: whole vectors.
    fn queries_len(&self) -> usize {
        (self.unit_rows * self.group() * self.plan.dim).next_multiple_of(16)
    }

    /// Floats of the records of a unit.
    fn records_len(&self) -> usize {
        self.unit_rows * self.group() * self.record()
    }

    /// Floats of a block of keys and values.
    fn wide_len(&self) -> usize {
        2 * BLOCK * self.plan.dim
    }

    /// Floats of the scores of a block.
    fn scores_len(&self) -> usize {
        self.unit_rows * self.group() * BLOCK
    }

    /// Floats of a lane.
    fn lane_len(&self) -> usize {
        let meetings = self.unit_rows * self.blocks * size_of::<Meeting>() / size_of::<f32>();
        let len = self.queries_len() + 2 * self.records_len() + self.wide_len();
        (len + self.scores_len() + meetings).next_multiple_of(16)
    }

    /// # Safety
    /// `memory` has the lane.
    unsafe fn lane(&self, memory: *mut f32, lane: usize) -> Lane {
        // SAFETY: by the caller's word.
        unsafe {
            let queries = memory.add(lane * self.lane_len());
            let span = queries.add(self.queries_len());
            let total = span.add(self.records_len());
            let wide = total.add(self.records_len());
            let scores = wide.add(self.wide_len());
            Lane {
                queries,
                span,
                total,
                wide,
                scores,
                meetings: scores.add(self.scores_len()).cast(),
            }
        }
    }

    /// The spans that any of the rows sees any slot of.
    fn spans(&self, rows: Range<usize>) -> Range<usize> {
        let rows = self.rows[rows].iter().map(|row| &row.seen);
        let (first, end) = rows.fold((usize::MAX, 0), |(first, end), seen| {
            (first.min(seen.start), end.max(seen.end))
        });
        first / SPAN..end.div_ceil(SPAN)
    }

    /// All of a unit's rows over all their spans.
    ///
    /// # Safety
    /// Nobody else uses the lane or writes the unit's heads of its rows in `out`.
    unsafe fn attend(&self, unit: &Unit, lane: Lane, out: *mut f32) {
        // SAFETY: by the caller's word; the lane has a record for each of the unit's heads.
        unsafe {
            self.gather(unit, lane.queries);
            span::reset(self.isa, lane.total, self.unit_heads(unit), self.plan.dim);
            let spans = self.spans(unit.rows.clone());
            let mut rest = self.meetings(unit, spans, lane.meetings);
            while let Some(next) = rest.first() {
                let span = next.span();
                let met = rest.partition_point(|meeting| meeting.span() == span);
                self.meet(unit, lane, rest.split_at(met), lane.span);
                self.merge(unit, span, lane.span, lane.total);
                rest = &rest[met..];
            }
            self.finish(unit, lane.total, out);
        }
    }

    /// Transposes a unit's queries, as [`Queries`] says.
    ///
    /// # Safety
    /// `to` has room for them.
    unsafe fn gather(&self, unit: &Unit, to: *mut f32) {
        let (group, dim, heads) = (self.group(), self.plan.dim, self.unit_heads(unit));
        for (index, row) in self.rows[unit.rows.clone()].iter().enumerate() {
            let at = (row.at * self.plan.heads + unit.head * group) * dim;
            for (h, head) in self.q[at..][..group * dim].chunks_exact(dim).enumerate() {
                for (d, element) in head.iter().enumerate() {
                    // SAFETY: by the caller's word.
                    unsafe { *to.add(d * heads + index * group + h) = *element };
                }
            }
        }
    }

    /// Lists what a unit's rows meet in `spans`, span by span.
    ///
    /// # Safety
    /// `to` has room for every block of each of the unit's rows, and nobody else uses it meanwhile.
    unsafe fn meetings<'a>(
        &self,
        unit: &Unit,
        spans: Range<usize>,
        to: *mut Meeting,
    ) -> &'a [Meeting] {
        let mut count = 0;
        for span in spans {
            let blocks = span * SPAN / BLOCK..(span + 1) * SPAN / BLOCK;
            forest::meet(self.rows, unit.rows.clone(), blocks, &mut |rows, blocks| {
                let QueryRow { seq, seen, .. } = &self.rows[rows.start];
                let table = self.plan.seqs[*seq].block_table;
                for at in blocks {
                    let slots = at * BLOCK..(at + 1) * BLOCK;
                    let meeting = Meeting {
                        block: table[at],
                        at: at as u32,
                        row: (rows.start - unit.rows.start) as u16,
                        rows: rows.len() as u16,
                        first: (seen.start.max(slots.start) - slots.start) as u16,
                        end: (seen.end.min(slots.end) - slots.start) as u16,
                    };
                    // SAFETY: a row meets a block once.
                    unsafe { to.add(count).write(meeting) };
                    count += 1;
                }
            });
        }
        // SAFETY: that many were written.
        unsafe { std::slice::from_raw_parts(to, count) }
    }

    /// The states of a unit's heads after the first of two lists of meetings, which is of one span.
    ///
    /// # Safety
    /// The lane holds the unit's queries; `states` has a record for each of its heads.
    unsafe fn meet(
        &self,
        unit: &Unit,
        lane: Lane,
        (meetings, later): (&[Meeting], &[Meeting]),
        states: *mut f32,
    ) {
        let heads = self.unit_heads(unit);
        let run = Run {
            kv: self.kv,
            head: unit.head,
            scale: self.plan.scale,
            softcap: self.plan.softcap,
            group: self.group(),
            queries: lane.queries,
            stride: heads,
            states,
            wide: lane.wide,
            scores: lane.scores,
            meetings,
            later,
        };
        // SAFETY: by the caller's word; the meetings are the unit's.
        unsafe {
            span::reset(self.isa, states, heads, self.plan.dim);
            blocks::run(self.isa, &run);
        }
    }

    /// Appends a span's states to the totals of those of a unit's rows that see any of it.
    ///
    /// # Safety
    /// Both have a record for each of the unit's heads.
    unsafe fn merge(&self, unit: &Unit, span: usize, states: *const f32, totals: *mut f32) {
        let group = self.group();
        for (index, row) in self.rows[unit.rows.clone()].iter().enumerate() {
            if row.seen.start < (span + 1) * SPAN && row.seen.end > span * SPAN {
                let at = index * group * self.record();
                // SAFETY: by the caller's word.
                unsafe {
                    span::merge(
                        self.isa,
                        totals.add(at),
                        states.add(at),
                        group,
                        self.plan.dim,
                    )
                };
            }
        }
    }

    /// Writes what a unit's rows give, and rounds it for the next product.
    ///
    /// # Safety
    /// `totals` has a record for each of the unit's heads, and `out` the rows.
    unsafe fn finish(&self, unit: &Unit, totals: *const f32, out: *mut f32) {
        let (group, dim) = (self.group(), self.plan.dim);
        for (index, row) in self.rows[unit.rows.clone()].iter().enumerate() {
            let at = (row.at * self.plan.heads + unit.head * group) * dim;
            // SAFETY: by the caller's word.
            unsafe {
                let totals = totals.add(index * group * self.record());
                span::finish(self.isa, totals, group, dim, out.add(at));
                if let Some(rounding) = self.rounding {
                    let width = self.plan.heads * dim;
                    let blocks = at % width / 32..(at % width + group * dim) / 32;
                    rounding.round(self.isa, out.add(row.at * width), row.at, blocks);
                }
            }
        }
    }
}

/// Rows of a unit, such that its heads fill whole vectors of heads.
fn unit_rows(plan: &AttnPlan<'_>, rows: usize, threads: usize) -> usize {
    let least = UNIT_HEADS.div_ceil(group(plan));
    let wanted = (rows * plan.kv_heads / (UNITS_A_THREAD * threads)).min(UNIT_ROWS);
    (wanted / least * least).max(least).min(rows).max(1)
}

/// Query heads that share a kv head.
fn group(plan: &AttnPlan<'_>) -> usize {
    plan.heads / plan.kv_heads
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
