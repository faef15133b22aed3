//! The line-by-line view: one line a change, for logs, pipes and screen readers.
use conclave_proto::v1::AgentState;

use super::{
    names,
    progress::{Change, Progress},
};

/// The line that tells of `change`, if there is one to tell.
pub fn line(progress: &Progress, change: &Change) -> Option<String> {
    match change {
        Change::Quiet => None,
        Change::State(state) => Some(format!("job {}", names::job_state(*state).to_lowercase())),
        Change::Message => Some(format!("job message: {}", progress.message)),
        Change::Reset(agent) => {
            let attempt = progress.agents.get(agent).map_or(0, |row| row.attempt);
            Some(format!("agent {agent} starts over: attempt {attempt}"))
        }
        Change::Agent(agent) => {
            let row = progress.agents.get(agent)?;
            let mut text = format!(
                "agent {agent} {} {}",
                names::role(row.role).to_lowercase(),
                names::agent_state(row.state).to_lowercase(),
            );
            // Queued, it has left the worker that it was on.
            let placed = row.state != AgentState::Queued;
            if placed && !row.worker.is_empty() {
                text.push_str(&format!(" on {} (attempt {})", row.worker, row.attempt));
            }
            let ended = placed && row.state != AgentState::Running;
            if ended && row.tokens > 0 {
                text.push_str(&format!(", {} tokens", row.tokens));
            }
            if let Some(speed) = row.tokens_per_second().filter(|_| ended) {
                text.push_str(&format!(", {speed:.1} tokens/s"));
            }
            if let Some(micro) = row.confidence_micro.filter(|_| ended) {
                text.push_str(&format!(", confidence {:.2}", names::nats(micro)));
            }
            // Running again, why the last attempt ended is history.
            if row.state != AgentState::Running && !row.error.is_empty() {
                text.push_str(&format!(": {}", row.error));
            }
            Some(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use conclave_proto::v1::{
        AgentStatus, Draft, JobEvent, JobState, Role, Usage, job_event::Event,
        watch_job_response::Update,
    };

    use super::*;

    #[test]
    fn a_finished_agent_tells_tokens_and_confidence() {
        let mut status = AgentStatus {
            agent: 4,
            attempt: 1,
            worker: "w2".into(),
            ..Default::default()
        };
        status.set_role(Role::Proposer);
        status.set_state(AgentState::Done);
        let usage = Usage {
            thought_tokens: 30,
            answer_tokens: 12,
            ..Default::default()
        };
        status.draft = Some(Draft {
            confidence_micro: 11_500_000,
            usage: Some(usage),
            ..Default::default()
        });
        let mut progress = Progress::default();
        let update = Update::Event(JobEvent {
            index: 1,
            unix_ms: 0,
            event: Some(Event::Agent(status)),
        });
        let change = progress.apply(&update, Duration::ZERO);
        assert_eq!(
            line(&progress, &change).as_deref(),
            Some("agent 4 proposer done on w2 (attempt 1), 42 tokens, confidence 11.50")
        );
    }

    #[test]
    fn an_attempt_tells_nothing_of_the_one_before() {
        let mut progress = Progress::default();
        let told = |progress: &mut Progress, state, attempt, error: &str| {
            let mut status = AgentStatus {
                agent: 2,
                attempt,
                worker: "w1".into(),
                error: error.into(),
                ..Default::default()
            };
            status.set_role(Role::Proposer);
            status.set_state(state);
            let update = Update::Event(JobEvent {
                index: 1,
                unix_ms: 0,
                event: Some(Event::Agent(status)),
            });
            let change = progress.apply(&update, Duration::ZERO);
            line(progress, &change)
        };
        let lost = "the worker's lease ran out";
        assert_eq!(
            told(&mut progress, AgentState::Queued, 2, lost).as_deref(),
            Some("agent 2 proposer queued: the worker's lease ran out")
        );
        assert_eq!(
            told(&mut progress, AgentState::Running, 2, lost).as_deref(),
            Some("agent 2 proposer running on w1 (attempt 2)")
        );
    }

    #[test]
    fn quiet_changes_print_nothing() {
        assert_eq!(line(&Progress::default(), &Change::Quiet), None);
        assert_eq!(
            line(&Progress::default(), &Change::State(JobState::Done)).as_deref(),
            Some("job done")
        );
    }
}
