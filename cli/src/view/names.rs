//! Enum values as people and programs read them.
use conclave_proto::v1::{AgentState, Aggregator, JobState, Mode, Replay, Role, StopReason};

/// The wire's name without its type prefix: `JOB_STATE_DONE` is `DONE`.
fn tail<'a>(full: &'a str, prefix: &str) -> &'a str {
    full.strip_prefix(prefix).unwrap_or(full)
}

/// A job's state, e.g. `PROPOSING`.
pub fn job_state(state: JobState) -> &'static str {
    tail(state.as_str_name(), "JOB_STATE_")
}

/// An agent's state, e.g. `RUNNING`.
pub fn agent_state(state: AgentState) -> &'static str {
    tail(state.as_str_name(), "AGENT_STATE_")
}

/// A role, e.g. `PROPOSER`.
pub fn role(role: Role) -> &'static str {
    tail(role.as_str_name(), "ROLE_")
}

/// Why an agent stopped, e.g. `LENGTH`.
pub fn stop(stop: StopReason) -> &'static str {
    tail(stop.as_str_name(), "STOP_REASON_")
}

/// How drafts became an answer, e.g. `MAJORITY`.
pub fn aggregator(aggregator: Aggregator) -> &'static str {
    tail(aggregator.as_str_name(), "AGGREGATOR_")
}

/// How many agents think, e.g. `CONTEMPLATING`.
pub fn mode(mode: Mode) -> &'static str {
    tail(mode.as_str_name(), "MODE_")
}

/// Whether the job stayed in one numeric class, e.g. `EXACT`.
pub fn replay(replay: Replay) -> &'static str {
    tail(replay.as_str_name(), "REPLAY_")
}

/// Confidence in nats, as humans compare it.
pub fn nats(micro: i64) -> f64 {
    // Exact for every value a mean log-probability can take.
    micro as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_drop_the_wire_prefix() {
        assert_eq!(job_state(JobState::AwaitingReview), "AWAITING_REVIEW");
        assert_eq!(role(Role::Chair), "CHAIR");
        assert_eq!(
            aggregator(Aggregator::ConfidenceWeighted),
            "CONFIDENCE_WEIGHTED"
        );
        assert_eq!(mode(Mode::Contemplating), "CONTEMPLATING");
        assert_eq!(stop(StopReason::LowConfidence), "LOW_CONFIDENCE");
    }
}
