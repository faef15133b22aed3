//! Refine rounds: agents read the question and the workspace, not each other's traces
//! (Parallel-Distill-Refine, arXiv 2510.01123).

use conclave_proto::v1::{AgentSpec, JobState, Role, decide::Next};

use super::{Step, aggregate, budget, distill, prompt, propose, round, situation::Situation};

/// Refine rounds so far.
pub(super) fn rounds_done(s: &Situation<'_>) -> u32 {
    s.job
        .rounds
        .iter()
        .filter(|r| r.state() == JobState::Refining)
        .count() as u32
}

/// The drafts of the last thinking round already agree: refining is skipped.
pub(super) fn is_settled(s: &Situation<'_>) -> bool {
    s.thinking_rounds()
        .next_back()
        .is_some_and(|r| round::agreed(s, r.round).is_some())
}

/// Another refine round is wanted, has drafts to read, and can be paid.
pub(super) fn is_due(s: &Situation<'_>) -> bool {
    rounds_done(s) < s.policy.refine_rounds
        && !is_settled(s)
        && !s.pool().is_empty()
        && width(s) > 0
}

fn width(s: &Situation<'_>) -> u32 {
    let first = s.job.rounds.first().map_or(0, |r| r.round);
    let proposers = s.job.round_agents(first).count() as u32;
    budget::affordable(s, proposers, s.policy.agent_tokens())
}

/// The round of refiners on the drafts of the last thinking round.
pub(super) fn start(s: &Situation<'_>) -> Step {
    let drafts = s.pool();
    let sources: Vec<u32> = drafts.iter().map(|(a, _)| a.spec.agent).collect();
    let width = width(s);
    let agents: Vec<AgentSpec> = (0..width)
        .map(|index| AgentSpec {
            tail: prompt::REFINE.into(),
            sources: sources.clone(),
            ..propose::thinker(s, Role::Refiner, index)
        })
        .collect();
    let context = prompt::workspace(&distill::workspace(s));
    let quorum = s.policy.quorum.min(width);
    let round = round::start(s, JobState::Refining, context, agents, quorum);
    Step {
        reason: String::new(),
        votes: aggregate::count(&drafts),
        next: Next::StartRound(round),
    }
}
