//! The first round: agents on one prompt. What differs, seed and hint, comes after the shared
//! prefix.

use conclave_proto::v1::{AgentSpec, JobState, Mode, Role, decide::Next};

use super::{Step, budget, prompt, round, situation::Situation};
use crate::spec::Policy;

/// The job's proposers: as many as the policy wants and the budget pays for.
pub(super) fn start(s: &Situation<'_>) -> Step {
    let policy = &s.policy;
    // The spec was checked to pay for one.
    let width = budget::affordable(s, policy.width, policy.agent_tokens()).max(1);
    let agents = (0..width)
        .map(|index| AgentSpec {
            tail: hint(policy, index).to_owned(),
            ..thinker(s, Role::Proposer, index)
        })
        .collect();
    let quorum = policy.quorum.min(width);
    let round = round::start(s, JobState::Proposing, String::new(), agents, quorum);
    let reason = if width < policy.width {
        format!("the budget pays for {width} of {} proposers", policy.width)
    } else {
        String::new()
    };
    Step {
        reason,
        votes: Vec::new(),
        next: Next::StartRound(round),
    }
}

/// The hint of one proposer. An agent that does not think gets only hints that its caller chose.
fn hint(policy: &Policy, index: u32) -> &str {
    let turn = |n: usize| index as usize % n.max(1);
    if !policy.strategies.is_empty() {
        return &policy.strategies[turn(policy.strategies.len())];
    }
    if policy.mode == Mode::Instant || policy.thought_tokens == 0 {
        return "";
    }
    prompt::STRATEGIES[turn(prompt::STRATEGIES.len())]
}

/// An agent with the job's own budget and sampling, without a tail.
pub(super) fn thinker(s: &Situation<'_>, role: Role, index: u32) -> AgentSpec {
    let policy = &s.policy;
    let round = s.next_round();
    let thinks = policy.thought_tokens > 0;
    AgentSpec {
        agent: s.next_agent() + index,
        role: role as i32,
        round,
        index,
        seed: seed(policy.seed, round, role, index),
        tail: String::new(),
        thought_tokens: policy.thought_tokens,
        answer_tokens: policy.answer_tokens,
        sampling: Some(policy.sampling.clone()),
        confidence: Some(policy.confidence),
        answer: (!policy.free_text).then(|| policy.answer.clone()),
        thinking_penalty: policy.thinking_penalty,
        sources: Vec::new(),
        cue: if thinks {
            prompt::CUE.into()
        } else {
            String::new()
        },
    }
}

/// An agent's seed: the first 8 bytes of blake3(job seed, round, role, index), little-endian.
pub(super) fn seed(job: u64, round: u32, role: Role, index: u32) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&job.to_le_bytes());
    hasher.update(&round.to_le_bytes());
    hasher.update(&(role as u32).to_le_bytes());
    hasher.update(&index.to_le_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
