//! When a round is over.

use conclave_proto::v1::{AgentState, JobState, RoundRecord, StartRound};

use super::{aggregate, situation::Situation};
use crate::payload;

/// Where a round stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Drafts are still wanted, and may come.
    Waiting,
    /// Go on with what there is.
    Over { why: String },
    /// The quorum cannot be reached and the policy says to fail then.
    Hopeless { why: String },
}

/// A round to start: its agents, their shared context, what it waits for.
pub(super) fn start(
    s: &Situation<'_>,
    state: JobState,
    context: String,
    agents: Vec<conclave_proto::v1::AgentSpec>,
    quorum: u32,
) -> StartRound {
    let context = (!context.is_empty()).then(|| payload::inline(context.into_bytes()));
    StartRound {
        round: s.next_round(),
        state: state as i32,
        context,
        agents,
        quorum,
    }
}

/// Whether the round is over. A quorum counts drafts that were handed in, weak ones too: a branch
/// that was stopped for low confidence did its part.
pub(super) fn progress(s: &Situation<'_>, round: &RoundRecord) -> Progress {
    let done = s.accepted(round.round).len() as u32;
    let open = s
        .job
        .round_agents(round.round)
        .filter(|a| !a.is_final())
        .count() as u32;
    let all = s.job.round_agents(round.round).count() as u32;
    let thinking = matches!(round.state(), JobState::Proposing | JobState::Refining);
    let short = thinking && done + open < round.quorum;
    if short && s.policy.fail_unreachable {
        let failed = s
            .job
            .round_agents(round.round)
            .filter(|a| a.state == AgentState::Failed);
        let why = format!(
            "{} of {all} agents failed, {} drafts were asked for{}",
            failed.count(),
            round.quorum,
            s.first_error()
                .map(|e| format!(": {e}"))
                .unwrap_or_default()
        );
        return Progress::Hopeless { why };
    }
    if open == 0 {
        return Progress::Over {
            why: format!("all of {all} agents reported, {done} drafts"),
        };
    }
    if s.policy.exact || !thinking || short {
        return Progress::Waiting;
    }
    if done >= round.quorum {
        return Progress::Over {
            why: format!("quorum of {} of {all} drafts", round.quorum),
        };
    }
    match agreed(s, round.round) {
        Some(count) => Progress::Over {
            why: format!("{count} of {done} drafts agree early"),
        },
        None => Progress::Waiting,
    }
}

/// How many drafts of the round agree on one answer, if that is enough by the policy.
pub(super) fn agreed(s: &Situation<'_>, round: u32) -> Option<u32> {
    let needed = s.policy.early_agreement?;
    let votes = aggregate::count(&s.usable(round));
    let most = votes.iter().map(|v| v.agents.len() as u32).max()?;
    (most >= needed).then_some(most)
}
