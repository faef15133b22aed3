//! What a span says of a draft: sizes and counts, and nothing that was written.

use conclave_proto::v1::{Draft, StopReason, Usage};

use crate::{names, span::Span};

impl Span {
    /// Tokens, why generating ended, confidence, validity.
    #[must_use]
    pub fn with_draft(self, draft: &Draft) -> Self {
        let usage = draft.usage.unwrap_or_default();
        let reason = finish_reason(draft.stop()).map(|reason| [reason]);
        self.with_usage(&usage)
            .with_some(
                names::FINISH_REASONS,
                reason.as_ref().map(<[_; 1]>::as_slice),
            )
            .with(names::CONFIDENCE, nats(draft.confidence_micro))
            .with(names::VALID, draft.valid)
    }

    /// Tokens.
    #[must_use]
    pub fn with_usage(self, usage: &Usage) -> Self {
        self.with(names::INPUT_TOKENS, usage.prompt_tokens)
            .with(names::CACHED_TOKENS, usage.cached_tokens)
            .with(
                names::OUTPUT_TOKENS,
                usage.thought_tokens + usage.answer_tokens,
            )
            .with(names::REASONING_TOKENS, usage.thought_tokens)
    }
}

/// In the conventions' words where they have one.
fn finish_reason(stop: StopReason) -> Option<&'static str> {
    Some(match stop {
        StopReason::End | StopReason::StopString | StopReason::Grammar => "stop",
        StopReason::Length => "length",
        StopReason::LowConfidence => "low_confidence",
        StopReason::Cancelled => "cancelled",
        StopReason::Unspecified => return None,
    })
}

#[allow(clippy::cast_precision_loss, reason = "attributes are f64")]
fn nats(micro: i64) -> f64 {
    micro as f64 / 1e6
}
