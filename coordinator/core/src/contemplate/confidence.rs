//! DeepConf's confidence (arXiv 2508.15260) as a weight: minus the mean log-probability of the top
//! k tokens, averaged over windows. High where the model is sure.

use conclave_proto::v1::{ConfidencePolicy, Draft};

/// What a draft weighs in a vote by confidence, millionths of a nat; at least 1, so that every
/// voter counts.
pub(super) fn weight(draft: &Draft) -> i64 {
    draft.confidence_micro.max(1)
}

/// The policy for agents that must not be stopped as weak: nobody else does what they do.
pub(super) fn never_stopping(policy: ConfidencePolicy) -> ConfidencePolicy {
    ConfidencePolicy {
        stop_below: None,
        ..policy
    }
}
