//! What a task of attention works on: a few rows with one kv head, over all that they see.

use super::blocks::{self, Meeting, Run};
use super::forest::{self, QueryRow};
use super::matmul::Rounding;
use super::scores::{place_queries, scores};
use super::span::{self, Record};
use super::values::values;
use crate::attention::{AttnPlan, BLOCK, KvLayer, SPAN};
use crate::isa::Isa;
use std::ops::Range;

/// One call, as tasks see it.
pub(super) struct Call<'a> {
    pub(super) isa: Isa,
    pub(super) q: &'a [f32],
    pub(super) kv: &'a KvLayer,
    pub(super) plan: &'a AttnPlan<'a>,
    pub(super) rows: &'a [QueryRow],
    /// Rows of a unit; the last one may have fewer.
    pub(super) unit_rows: usize,
    /// Most blocks that a row sees.
    pub(super) blocks: usize,
    /// How results are rounded, if they are.
    pub(super) rounding: Option<Rounding>,
}

/// A few rows with one kv head: what a task works on.
pub(super) struct Unit {
    pub(super) head: usize,
    rows: Range<usize>,
}

/// Memory of one unit at a time.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// The unit's queries.
    pub(super) queries: *mut f32,
    /// A record a head.
    span: *mut f32,
    /// A record a head.
    pub(super) total: *mut f32,
    /// Room for keys or values as f32.
    wide: *mut f32,
    /// Room for the scores of a span.
    scores: *mut f32,
    /// Room for all that the unit meets.
    pub(super) meetings: *mut Meeting,
}

impl Call<'_> {
    fn group(&self) -> usize {
        group(self.plan)
    }

    pub(super) fn record(&self) -> usize {
        Record::new(self.plan.dim).len()
    }

    /// Query heads of all rows.
    pub(super) fn heads(&self) -> usize {
        self.rows.len() * self.plan.heads
    }

    fn chunks(&self) -> usize {
        self.rows.len().div_ceil(self.unit_rows)
    }

    pub(super) fn units(&self) -> usize {
        self.plan.kv_heads * self.chunks()
    }

    /// Units of one kv head follow each other: what one read of the cache the next may read, too.
    pub(super) fn unit(&self, index: usize) -> Unit {
        let (head, chunk) = (index / self.chunks(), index % self.chunks());
        let first = chunk * self.unit_rows;
        Unit {
            head,
            rows: first..self.rows.len().min(first + self.unit_rows),
        }
    }

    /// Query heads of a unit.
    pub(super) fn unit_heads(&self, unit: &Unit) -> usize {
        unit.rows.len() * self.group()
    }

    /// The number of a unit's first query head among all.
    pub(super) fn first_head(&self, unit: &Unit) -> usize {
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

    /// Floats of two blocks of keys.
    fn wide_len(&self) -> usize {
        2 * BLOCK * self.plan.dim
    }

    /// Floats of the scores of a span.
    fn scores_len(&self) -> usize {
        self.unit_rows * self.group() * SPAN
    }

    /// Floats of a lane.
    pub(super) fn lane_len(&self) -> usize {
        let meetings = self.unit_rows * self.blocks * size_of::<Meeting>() / size_of::<f32>();
        let len = self.queries_len() + 2 * self.records_len() + self.wide_len();
        (len + self.scores_len() + meetings).next_multiple_of(16)
    }

    /// # Safety
    /// `memory` has the lane.
    pub(super) unsafe fn lane(&self, memory: *mut f32, lane: usize) -> Lane {
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
    pub(super) fn spans(&self, rows: Range<usize>) -> Range<usize> {
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
    pub(super) unsafe fn attend(&self, unit: &Unit, lane: Lane, out: *mut f32) {
        // SAFETY: by the caller's word; the lane has a record for each of the unit's heads.
        unsafe {
            let spans = self.spans(unit.rows.clone());
            let mut rest = self.meetings(unit, spans, lane.meetings);
            blocks::expect(self.kv, unit.head, rest);
            self.gather(unit, lane.queries);
            span::reset(self.isa, lane.total, self.unit_heads(unit), self.plan.dim);
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

    /// Brings a unit's queries to one place.
    ///
    /// # Safety
    /// `to` has room for them.
    pub(super) unsafe fn gather(&self, unit: &Unit, to: *mut f32) {
        let (group, dim, heads) = (self.group(), self.plan.dim, self.unit_heads(unit));
        for (index, row) in self.rows[unit.rows.clone()].iter().enumerate() {
            let at = (row.at * self.plan.heads + unit.head * group) * dim;
            let from = self.q[at..][..group * dim].as_ptr();
            // SAFETY: by the caller's word.
            unsafe { place_queries(self.isa, from, group, index * group, heads, dim, to) };
        }
    }

    /// Lists what a unit's rows meet in `spans`, span by span.
    ///
    /// # Safety
    /// `to` has room for every block of each of the unit's rows, and nobody else uses it meanwhile.
    pub(super) unsafe fn meetings<'a>(
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
    pub(super) unsafe fn meet(
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
            heads,
            states,
            wide: lane.wide,
            scores: lane.scores,
            meetings,
            later,
        };
        // SAFETY: by the caller's word; the meetings are the unit's.
        unsafe {
            span::reset(self.isa, states, heads, self.plan.dim);
            scores(self.isa, &run);
            self.weigh(unit, &run);
            values(self.isa, &run);
        }
    }

    /// Turns the scores of what a unit's rows have met into weights.
    ///
    /// # Safety
    /// The run has scores of all of its meetings.
    unsafe fn weigh(&self, unit: &Unit, run: &Run<'_>) {
        let Some(span) = run.meetings.first().map(Meeting::span) else {
            return;
        };
        let (group, dim) = (run.group, self.plan.dim);
        for (index, row) in self.rows[unit.rows.clone()].iter().enumerate() {
            let blocks = row.blocks_of(span);
            if !blocks.is_empty() {
                let (first, stride) = (index * group, run.heads * BLOCK);
                // SAFETY: the row has met these blocks.
                unsafe {
                    let states = run.states.add(first * self.record());
                    let scores = run.scores.add(first * BLOCK);
                    span::weigh(self.isa, scores, stride, blocks, group, dim, states);
                }
            }
        }
    }

    /// Appends a span's states to the totals of those of a unit's rows that see any of it.
    ///
    /// # Safety
    /// Both have a record for each of the unit's heads.
    pub(super) unsafe fn merge(
        &self,
        unit: &Unit,
        span: usize,
        states: *const f32,
        totals: *mut f32,
    ) {
        let group = self.group();
        for (index, row) in self.rows[unit.rows.clone()].iter().enumerate() {
            if !row.blocks_of(span).is_empty() {
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
    pub(super) unsafe fn finish(&self, unit: &Unit, totals: *const f32, out: *mut f32) {
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

/// Query heads that share a kv head.
pub(super) fn group(plan: &AttnPlan<'_>) -> usize {
    plan.heads / plan.kv_heads
}
