//! The largest logits of a row, without sorting the row.

use conclave_kernels::logits::{self, BLOCK, LANES};

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// Its logit, after all changes.
    pub logit: f32,
    /// Its id.
    pub id: u32,
}

impl Candidate {
    /// Orders candidates: larger logits first, then smaller ids. An integer, because sorting those is fast.
    pub fn order(&self) -> u64 {
        // Adding 0 makes of the two zeros one. Of the bits of a float the order is that of its sign and
        // magnitude; flipped, that of integers.
        let bits = (self.logit + 0.0).to_bits();
        let ascending = match bits >> 31 {
            0 => bits | 1 << 31,
            _ => !bits,
        };
        u64::from(!ascending) << 32 | u64::from(self.id)
    }
}

/// A row's maxima, part by part, and memory to work on them: what most of the row need not be read for.
#[derive(Debug, Default)]
pub(crate) struct Maxima {
    /// Of the parts of the row, see [`logits::maxima`].
    parts: Vec<f32>,
    /// The same of `parts`.
    coarse: Vec<f32>,
    sorted: Vec<f32>,
}

impl Maxima {
    /// Reads a row; gives its largest logit, minus infinity if there is none. A NaN is passed over.
    pub fn read(&mut self, row: &[f32]) -> f32 {
        logits::maxima(row, &mut self.parts);
        logits::maxima(&self.parts, &mut self.coarse);
        let larger = |max, &logit| if logit > max { logit } else { max };
        self.coarse.iter().fold(f32::NEG_INFINITY, larger)
    }

    /// The first place of the row's largest logit, as [`Maxima::read`] has given it.
    pub fn place_of(&self, max: f32, row: &[f32]) -> Option<usize> {
        let blocks = self.parts.as_chunks::<LANES>().0.iter();
        let holds =
            |parts: &[f32; LANES]| parts.iter().fold(false, |any, &part| any | (part == max));
        let block = BLOCK * blocks.into_iter().position(holds)?;
        let rest = row.get(block..)?;
        Some(block + rest.iter().position(|&logit| logit == max)?)
    }

    /// A logit that at least `k` of the row reach: the `k`th of the parts' maxima; minus infinity if there are
    /// fewer parts.
    fn bar(&mut self, k: usize) -> f32 {
        // The coarser ones are worse as a bar, but if k is small enough not by much.
        let maxima = match 4 * k <= self.coarse.len() {
            true => &self.coarse,
            false => &self.parts,
        };
        if k == 0 || k > maxima.len() {
            return f32::NEG_INFINITY;
        }
        self.sorted.clear();
        self.sorted.extend_from_slice(maxima);
        let (_, bar, _) = self
            .sorted
            .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        *bar
    }
}

/// Puts the `k` first candidates of `row` (by [`Candidate::order`]) into `out`, in order. `maxima` has read the
/// row. Tokens below `floor`, at minus infinity or NaN are no candidates.
///
/// Only parts whose maximum reaches a bar that `k` candidates reach are looked into; candidates are thinned out
/// whenever twice `k` have come together, which raises the bar.
pub(crate) fn largest(
    row: &[f32],
    maxima: &mut Maxima,
    floor: f32,
    k: usize,
    out: &mut Vec<Candidate>,
) {
    out.clear();
    let room = 2 * k.min(row.len()) + 64;
    let mut bar = maxima.bar(k).max(floor);
    let blocks = maxima.parts.as_chunks::<LANES>().0.iter();
    for (index, (parts, block)) in blocks.zip(row.chunks(BLOCK)).enumerate() {
        // Nearly all blocks hold nothing: one vector comparison each.
        if !parts.iter().fold(false, |any, &max| any | (max >= bar)) {
            continue;
        }
        for (lane, &max) in parts.iter().enumerate() {
            if max < bar {
                continue;
            }
            for at in (lane..block.len()).step_by(LANES) {
                let (logit, id) = (block[at], (index * BLOCK + at) as u32);
                if logit >= bar && logit > f32::NEG_INFINITY {
                    out.push(Candidate { logit, id });
                }
            }
            if out.len() + LANES > room {
                bar = thin(out, k).max(bar);
            }
        }
    }
    if out.len() > k {
        thin(out, k);
    }
    out.sort_unstable_by_key(Candidate::order);
}

/// Keeps the `k` first of more than `k`; gives the smallest logit kept.
fn thin(out: &mut Vec<Candidate>, k: usize) -> f32 {
    if k == 0 || out.len() <= k {
        return f32::NEG_INFINITY;
    }
    let (_, last, _) = out.select_nth_unstable_by_key(k - 1, Candidate::order);
    let bar = last.logit;
    out.truncate(k);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The pruned selection is the head of a full sort, ties by id included.
        #[test]
        fn largest_is_the_head_of_the_sorted_row(
            row in prop::collection::vec(-20i8..20, 1..3000),
            k in 1usize..200,
            floor in prop::option::of(-20i8..20),
        ) {
            let logits: Vec<f32> = row
                .iter()
                .map(|&x| match x {
                    -20 => f32::NEG_INFINITY,
                    -19 => -0.0,
                    x => f32::from(x) / 4.0,
                })
                .collect();
            let floor = floor.map_or(f32::NEG_INFINITY, |f| f32::from(f) / 4.0);
            let mut expected: Vec<Candidate> = logits
                .iter()
                .enumerate()
                .filter(|(_, logit)| **logit > f32::NEG_INFINITY && **logit >= floor)
                .map(|(id, &logit)| Candidate { logit, id: id as u32 })
                .collect();
            expected.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap().then(a.id.cmp(&b.id)));
            expected.truncate(k);
            let (mut maxima, mut out) = (Maxima::default(), Vec::new());
            maxima.read(&logits);
            largest(&logits, &mut maxima, floor, k, &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
