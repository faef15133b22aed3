//! Expand: where a first answer is uncertain, a chair would read the disputed drafts in full.
//!
//! A seam. The place in [`super::next`] is where the answer is made (`aggregate::finish`): an
//! uncertain answer would start one more chair round there, at most once and within budget, and the
//! first answer would stay in the audit as superseded. Until drafts' KV can be spliced it only
//! counts: the shell adds one to a metric for each ended job that [`is_uncertain`] names.

use conclave_proto::v1::{Answer, JobState};

use crate::job::Job;

/// A lead over the runner-up below this share of all weight is uncertain, in millionths.
const MARGIN_MICRO: i64 = 200_000;

/// The votes leave the answer open.
pub fn is_uncertain(answer: &Answer) -> bool {
    let mut weights: Vec<i64> = answer.votes.iter().map(|v| v.weight_micro).collect();
    weights.sort_unstable_by(|a, b| b.cmp(a));
    let total: i64 = weights.iter().sum();
    match weights[..] {
        [first, second, ..] if total > 0 => {
            i128::from(first - second) * 1_000_000 < i128::from(MARGIN_MICRO) * i128::from(total)
        }
        _ => false,
    }
}

/// The job was answered, and would have been expanded.
pub fn would_expand(job: &Job) -> bool {
    matches!(job.state, JobState::Done | JobState::Degraded)
        && job.answer.as_ref().is_some_and(is_uncertain)
}
