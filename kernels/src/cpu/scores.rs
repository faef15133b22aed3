//! Scores: query heads times the keys of blocks.

use super::blocks::{Meeting, Run, by_heads};
use super::dispatch::per_isa;
use super::lanes::{Lanes, softcap};
use super::stored::{Stored, StoredF16, StoredF32, ask};
use crate::attention::{BLOCK, KvDtype};

/// Where element `d` of query head `head` of a unit of `heads` lies: with registers for two blocks at once, copied
/// head after head; else element after element, so that the loops, which have no register to spare, count one
/// address up.
#[inline(always)]
const fn query_at<L: Lanes>(head: usize, d: usize, heads: usize, dim: usize) -> usize {
    match two_blocks_fit::<L>() {
        true => head * dim + d,
        false => d * heads + head,
    }
}

/// Whether there are registers for the scores of two blocks side by side.
const fn two_blocks_fit<L: Lanes>() -> bool {
    L::REGISTERS >= 32
}

per_isa! {
    /// Places `count` query heads, one after another at `from`, as those from `first` on of a unit of `heads`.
    pub(super) unsafe fn place_queries = place_queries_of(
        from: *const f32, count: usize, first: usize, heads: usize, dim: usize, to: *mut f32,
    );
}

/// # Safety
/// `from` has that many heads of `dim` elements, and `to` has room for the unit's.
#[inline(always)]
unsafe fn place_queries_of<L: Lanes>(
    from: *const f32,
    count: usize,
    first: usize,
    heads: usize,
    dim: usize,
    to: *mut f32,
) {
    // SAFETY: by the caller's word.
    unsafe {
        if two_blocks_fit::<L>() {
            to.add(first * dim)
                .copy_from_nonoverlapping(from, count * dim);
            return;
        }
        for head in 0..count {
            for d in 0..dim {
                *to.add(query_at::<L>(first + head, d, heads, dim)) = *from.add(head * dim + d);
            }
        }
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

#[inline(always)]
unsafe fn score_all<L: Lanes, S: Stored>(run: &Run<'_>) {
    let mut index = 0;
    while let Some(meeting) = run.meetings.get(index) {
        let next = run.meetings.get(index + 1);
        // Two blocks of the same heads side by side: what is loaded of a query serves both.
        let both = two_blocks_fit::<L>() && next.is_some_and(|next| next.has_rows_of(meeting));
        // SAFETY: by the caller's word; the meetings are there.
        index += unsafe {
            match both {
                true => score::<L, S, 2>(run, index),
                false => score::<L, S, 1>(run, index),
            }
        };
    }
}

/// The scores of `B` meetings of the same rows, the first of them number `index`. Gives `B`.
#[inline(always)]
unsafe fn score<L: Lanes, S: Stored, const B: usize>(run: &Run<'_>, index: usize) -> usize {
    let (keys, values) = (&run.kv.keys, &run.kv.values);
    let (mut blocks, mut next) = ([std::ptr::null(); B], [std::ptr::null(); B]);
    for (b, (block, next)) in blocks.iter_mut().zip(&mut next).enumerate() {
        *block = run.place::<S::Element>(keys, &run.meetings[index + b]);
        *next = run.ahead::<S::Element>(index + b, keys, (values, run.meetings));
    }
    let numbers = run.kv.dim() * BLOCK;
    // SAFETY: blocks are in the layer, and a head of a block has `dim * BLOCK` elements.
    unsafe {
        if run.is_wide::<L>(&run.meetings[index]) {
            let mut wide = [std::ptr::null(); B];
            for b in 0..B {
                wide[b] = S::widen::<L>(blocks[b], numbers, run.wide.add(b * numbers), next[b]);
            }
            score_heads::<L, StoredF32, B, false>(run, index, wide, next);
        } else {
            score_heads::<L, S, B, true>(run, index, blocks, next);
        }
    }
    B
}

/// All heads of the meetings, so that the blocks are still in the first-level cache for the next ones.
#[inline(always)]
unsafe fn score_heads<L: Lanes, S: Stored, const B: usize, const ASK: bool>(
    run: &Run<'_>,
    index: usize,
    keys: [*const S::Element; B],
    mut next: [*const u8; B],
) {
    let meetings = &run.meetings[index..index + B];
    let heads = usize::from(meetings[0].rows) * run.group;
    let mut scores = [std::ptr::null_mut(); B];
    for (scores, meeting) in scores.iter_mut().zip(meetings) {
        *scores = run.scores_of(meeting);
    }
    // SAFETY: by the caller's word.
    unsafe {
        let of = usize::from(meetings[0].row) * run.group;
        by_heads!(L::REGISTERS / B, heads, head, T => {
            let mut to = [std::ptr::null_mut(); B];
            for b in 0..B {
                to[b] = scores[b].add(head * BLOCK);
            }
            let at = query_at::<L>(of + head, 0, run.heads, run.kv.dim());
            let queries = run.queries.add(at);
            block_scores::<L, S, T, B, ASK>(run, queries, keys, to, next);
            // Only the first heads wait for memory; for the others the address is one in the cache.
            for b in 0..B {
                next[b] = keys[b].cast();
            }
        });
        for (scores, meeting) in scores.into_iter().zip(meetings) {
            if let Some(c) = run.softcap {
                cap::<L>(c, scores, heads);
            }
            hide_unseen::<L>(meeting, scores, heads);
        }
    }
}

/// Apart from what computes scores: the loops there stay short enough to keep their sums in registers.
#[inline(always)]
unsafe fn cap<L: Lanes>(c: f32, scores: *mut f32, heads: usize) {
    for head in 0..heads {
        // SAFETY: each head has 16 scores.
        unsafe {
            let to = scores.add(head * BLOCK);
            softcap(L::load(to), c).store(to);
        }
    }
}

/// Makes scores of slots that are not seen minus infinity.
#[inline(always)]
unsafe fn hide_unseen<L: Lanes>(meeting: &Meeting, scores: *mut f32, heads: usize) {
    let (first, end) = (usize::from(meeting.first), usize::from(meeting.end));
    if end - first == BLOCK {
        return;
    }
    for head in 0..heads {
        // SAFETY: each head has 16 scores.
        unsafe {
            let (to, unseen) = (scores.add(head * BLOCK), L::splat(f32::NEG_INFINITY));
            L::load(to).keep(first, end, unseen).store(to);
        }
    }
}

/// Whether sums over even and over odd dimensions, keys, and a query's number fit the registers.
const fn two_sums_fit<L: Lanes>(heads: usize, blocks: usize) -> bool {
    2 * heads * blocks + blocks < L::REGISTERS
}

/// Scores of the slots of `B` blocks for each of `T` heads, one head after another.
#[inline(always)]
unsafe fn block_scores<L: Lanes, S: Stored, const T: usize, const B: usize, const ASK: bool>(
    run: &Run<'_>,
    queries: *const f32,
    keys: [*const S::Element; B],
    scores: [*mut f32; B],
    next: [*const u8; B],
) {
    let dim = run.kv.dim();
    // SAFETY: indices are below `dim` in the queries and below `dim * BLOCK` in the keys.
    unsafe {
        let (mut even, mut odd) = ([[L::splat(0.0); B]; T], [[L::splat(0.0); B]; T]);
        if two_sums_fit::<L>(T, B) {
            for d in (0..dim - dim % 2).step_by(2) {
                add_products::<L, S, T, B>(keys, queries, d, run.heads, dim, &mut even);
                if ASK {
                    ask_all::<S, B>(next, d);
                }
                add_products::<L, S, T, B>(keys, queries, d + 1, run.heads, dim, &mut odd);
            }
            if dim % 2 == 1 {
                add_products::<L, S, T, B>(keys, queries, dim - 1, run.heads, dim, &mut even);
            }
        } else {
            even = every_second::<L, S, T, B, ASK>(
                keys,
                queries,
                dim.div_ceil(2),
                run.heads,
                dim,
                next,
            );
            for (t, even) in even.iter().enumerate() {
                for (even, scores) in even.iter().zip(scores) {
                    even.store(scores.add(t * BLOCK));
                }
            }
            let mut keys = keys;
            for keys in &mut keys {
                *keys = keys.add(BLOCK);
            }
            odd = every_second::<L, S, T, B, false>(
                keys,
                queries.add(query_at::<L>(0, 1, run.heads, dim)),
                dim / 2,
                run.heads,
                dim,
                next,
            );
            for (t, even) in even.iter_mut().enumerate() {
                for (even, scores) in even.iter_mut().zip(scores) {
                    *even = L::load(scores.add(t * BLOCK));
                }
            }
        }
        let scale = L::splat(run.scale);
        for (t, (even, odd)) in even.iter().zip(&odd).enumerate() {
            for ((even, odd), scores) in even.iter().zip(odd).zip(scores) {
                let score = even.add(*odd).mul(scale);
                score.store(scores.add(t * BLOCK));
            }
        }
    }
}

/// Sums over every second of the dimensions, `count` of them: both halves the same loop, which fits the registers.
#[inline(always)]
unsafe fn every_second<L: Lanes, S: Stored, const T: usize, const B: usize, const ASK: bool>(
    keys: [*const S::Element; B],
    queries: *const f32,
    count: usize,
    heads: usize,
    dim: usize,
    next: [*const u8; B],
) -> [[L; B]; T] {
    // SAFETY: by the caller's word.
    unsafe {
        let mut sums = [[L::splat(0.0); B]; T];
        for d in (0..2 * count).step_by(2) {
            add_products::<L, S, T, B>(keys, queries, d, heads, dim, &mut sums);
            if ASK {
                ask_all::<S, B>(next, d);
            }
        }
        sums
    }
}

/// Asks for the keys of two dimensions of each block.
#[inline(always)]
fn ask_all<S: Stored, const B: usize>(next: [*const u8; B], d: usize) {
    for next in next {
        ask::<S>(next, d * BLOCK, 2 * BLOCK);
    }
}

/// Dimension `d` of the keys of the blocks' slots times that of each head's query.
#[inline(always)]
unsafe fn add_products<L: Lanes, S: Stored, const T: usize, const B: usize>(
    keys: [*const S::Element; B],
    queries: *const f32,
    d: usize,
    heads: usize,
    dim: usize,
    sums: &mut [[L; B]; T],
) {
    // SAFETY: by the caller's word.
    unsafe {
        let mut vectors = [L::splat(0.0); B];
        for (vector, keys) in vectors.iter_mut().zip(keys) {
            *vector = S::load::<L>(keys.add(d * BLOCK));
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            let query = L::splat(*queries.add(query_at::<L>(t, d, heads, dim)));
            for (sum, keys) in sums.iter_mut().zip(vectors) {
                *sum = query.fma(keys, *sum);
            }
        }
    }
}
