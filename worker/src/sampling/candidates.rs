//! The largest logits of a row, without sorting the row.

use std::cmp::Ordering;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// Its logit, after all changes.
    pub logit: f32,
    /// Its id.
    pub id: u32,
}

impl Candidate {
    /// Larger logits first, then smaller ids: a total order as long as no logit is NaN.
    pub fn order(&self, other: &Self) -> Ordering {
        other
            .logit
            .partial_cmp(&self.logit)
            .unwrap_or(Ordering::Equal)
            .then(self.id.cmp(&other.id))
    }
}

/// Puts the `k` first candidates of `logits` (by [`Candidate::order`]) into `out`, in order. Tokens below
/// `floor`, at minus infinity or NaN are no candidates.
///
/// One pass that compares with the smallest logit still in the running; candidates are thinned out
/// whenever twice `k` have come together.
pub(crate) fn largest(logits: &[f32], floor: f32, k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    let room = 2 * k.min(logits.len()) + 64;
    let mut bar = floor;
    let mut id = 0;
    for chunk in logits.chunks(16) {
        // Nearly all chunks hold nothing: one vector comparison each.
        if chunk.iter().fold(false, |any, &logit| any | (logit >= bar)) {
            for (offset, &logit) in chunk.iter().enumerate() {
                if logit >= bar && logit > f32::NEG_INFINITY {
                    out.push(Candidate {
                        logit,
                        id: id + offset as u32,
                    });
                }
            }
            if out.len() + 16 > room {
                bar = thin(out, k).max(bar);
            }
        }
        id += chunk.len() as u32;
    }
    if out.len() > k {
        thin(out, k);
    }
    out.sort_unstable_by(Candidate::order);
}

/// Keeps the `k` first of more than `k`; gives the smallest logit kept.
fn thin(out: &mut Vec<Candidate>, k: usize) -> f32 {
    if k == 0 || out.len() <= k {
        return f32::NEG_INFINITY;
    }
    let (_, last, _) = out.select_nth_unstable_by(k - 1, Candidate::order);
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
            row in prop::collection::vec(-20i8..20, 1..900),
            k in 1usize..200,
            floor in prop::option::of(-20i8..20),
        ) {
            let logits: Vec<f32> = row
                .iter()
                .map(|&x| if x == -20 { f32::NEG_INFINITY } else { f32::from(x) / 4.0 })
                .collect();
            let floor = floor.map_or(f32::NEG_INFINITY, |f| f32::from(f) / 4.0);
            let mut expected: Vec<Candidate> = logits
                .iter()
                .enumerate()
                .filter(|(_, logit)| **logit > f32::NEG_INFINITY && **logit >= floor)
                .map(|(id, &logit)| Candidate { logit, id: id as u32 })
                .collect();
            expected.sort_by(Candidate::order);
            expected.truncate(k);
            let mut out = Vec::new();
            largest(&logits, floor, k, &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
