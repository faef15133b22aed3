//! Values of blocks, weighted and added to what query heads have.

use super::blocks::{Meeting, Run, by_heads};
use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH};
use super::span::Record;
use super::stored::{Stored, StoredF16, StoredF32, ask};
use crate::attention::{BLOCK, KvDtype};
use std::ops::Range;

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

/// Meetings of the same rows, one after another.
struct Met<'a, S: Stored> {
    run: &'a Run<'a>,
    meetings: Range<usize>,
    /// Where the values of the only one are, if they were made f32.
    wide: Option<*const S::Element>,
}

impl<S: Stored> Met<'_, S> {
    fn first(&self) -> &Meeting {
        &self.run.meetings[self.meetings.start]
    }

    /// Where the values of a meeting begin.
    fn values(&self, index: usize) -> *const S::Element {
        let meeting = &self.run.meetings[index];
        let place = || self.run.place::<S::Element>(&self.run.kv.values, meeting);
        self.wide.unwrap_or_else(place)
    }

    /// What to ask for at a meeting: the first heads wait for memory, for the others it is in a cache.
    fn next(&self, index: usize, head: usize) -> *const u8 {
        let (keys, values) = (&self.run.kv.keys, &self.run.kv.values);
        match head {
            0 => self
                .run
                .ahead::<S::Element>(index, values, (keys, self.run.later)),
            _ => self.values(index).cast(),
        }
    }
}

#[inline(always)]
unsafe fn add_all<L: Lanes, S: Stored>(run: &Run<'_>) {
    let mut index = 0;
    while let Some(meeting) = run.meetings.get(index) {
        // SAFETY: as in `scores`: blocks are in the layer, and a head of a block has `dim * BLOCK` elements.
        let end = unsafe {
            if run.is_wide::<L>(meeting) {
                let (end, wide) = (index + 1, Some(widen::<L, S>(run, index)));
                let meetings = index..end;
                add::<L, StoredF32, false>(&Met {
                    run,
                    meetings,
                    wide,
                });
                end
            } else {
                let others = run.meetings[index..].iter();
                let end = index + others.take_while(|m| m.has_rows_of(meeting)).count();
                let (meetings, wide) = (index..end, None);
                add::<L, S, true>(&Met {
                    run,
                    meetings,
                    wide,
                });
                end
            }
        };
        index = end;
    }
}

/// Makes the values of a meeting f32, and asks for those of a later one.
#[inline(always)]
unsafe fn widen<L: Lanes, S: Stored>(run: &Run<'_>, index: usize) -> *const f32 {
    let (keys, values) = (&run.kv.keys, &run.kv.values);
    let next = run.ahead::<S::Element>(index, values, (keys, run.later));
    let values = run.place::<S::Element>(values, &run.meetings[index]);
    // SAFETY: by the caller's word.
    unsafe { S::widen::<L>(values, run.kv.dim() * BLOCK, run.wide, next) }
}

/// All heads of the meetings: each keeps its sums in registers from the first to the last.
#[inline(always)]
unsafe fn add<L: Lanes, S: Stored, const ASK: bool>(met: &Met<'_, S>) {
    let heads = usize::from(met.first().rows) * met.run.group;
    // SAFETY: by the caller's word.
    unsafe {
        by_heads!(L::REGISTERS, heads, head, T => add_values::<L, S, T, ASK>(met, head));
    }
}

/// Adds weighted values to the records of `T` heads from `head` on: lanes are dimensions, slots go in ascending
/// order.
#[inline(always)]
unsafe fn add_values<L: Lanes, S: Stored, const T: usize, const ASK: bool>(
    met: &Met<'_, S>,
    head: usize,
) {
    let dim = met.run.kv.dim();
    let (whole, record) = (dim / WIDTH * WIDTH, Record::new(dim).len());
    let first = usize::from(met.first().row) * met.run.group + head;
    // SAFETY: slots are below `BLOCK` and dimensions below `dim`; a record has that many accumulators.
    unsafe {
        let acc = met.run.states.add(first * record + Record::ACC);
        // As many vectors at a time as the registers hold, so that a weight serves several.
        let done = if 4 * (T + 1) < L::REGISTERS {
            add_vectors::<L, S, T, 4, ASK>(met, head, 0..whole, acc)
        } else if 2 * (T + 1) < L::REGISTERS {
            add_vectors::<L, S, T, 2, ASK>(met, head, 0..whole, acc)
        } else {
            0
        };
        add_vectors::<L, S, T, 1, ASK>(met, head, done..whole, acc);
        for index in met.meetings.clone() {
            let (meeting, values) = (&met.run.meetings[index], met.values(index));
            let weights = met.run.scores_of(meeting).add(head * BLOCK);
            for d in whole..dim {
                for slot in usize::from(meeting.first)..usize::from(meeting.end) {
                    let v = S::one(values.add(slot * dim + d));
                    for t in 0..T {
                        let acc = acc.add(t * record + d);
                        *acc = (*weights.add(t * BLOCK + slot)).mul_add(v, *acc);
                    }
                }
            }
        }
    }
}

/// Dimensions `of`, `V` vectors of them at a time; returns where too few are left.
#[inline(always)]
unsafe fn add_vectors<L: Lanes, S: Stored, const T: usize, const V: usize, const ASK: bool>(
    met: &Met<'_, S>,
    head: usize,
    of: Range<usize>,
    accumulators: *mut f32,
) -> usize {
    let record = Record::new(met.run.kv.dim()).len();
    let mut d = of.start;
    while d + V * WIDTH <= of.end {
        // SAFETY: by the caller's word.
        unsafe {
            let mut acc = [[L::splat(0.0); V]; T];
            for (t, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(accumulators.add(t * record + d + v * WIDTH));
                }
            }
            for index in met.meetings.clone() {
                add_block::<L, S, T, V, ASK>(met, head, index, d, &mut acc);
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

/// What a meeting's slots add from dimension `d` on.
#[inline(always)]
unsafe fn add_block<L: Lanes, S: Stored, const T: usize, const V: usize, const ASK: bool>(
    met: &Met<'_, S>,
    head: usize,
    index: usize,
    d: usize,
    acc: &mut [[L; V]; T],
) {
    let (meeting, dim) = (&met.run.meetings[index], met.run.kv.dim());
    let (values, next) = (met.values(index), met.next(index, head));
    // SAFETY: by the caller's word.
    unsafe {
        let weights = met.run.scores_of(meeting).add(head * BLOCK);
        for slot in usize::from(meeting.first)..usize::from(meeting.end) {
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
    }
}
