//! What a job may still spend. Every agent's most is reserved when it is created; what it did not
//! use, and what a cancelled one left, comes back.

use super::situation::Situation;
use crate::agent::Agent;

/// Tokens that the agent has used, or may yet use.
fn committed(s: &Situation<'_>, agent: &Agent) -> u64 {
    if !agent.is_final() || agent.stopping {
        return agent.reserved_tokens();
    }
    s.draft(agent.spec.agent)
        .and_then(|d| d.usage.as_ref())
        .map_or(0, |u| u.thought_tokens + u.answer_tokens)
}

/// Tokens left; `None` if there is no bound.
pub(super) fn remaining(s: &Situation<'_>) -> Option<u64> {
    let total = s.policy.total_tokens;
    if total == 0 {
        return None;
    }
    let used: u64 = s.job.agents.iter().map(|a| committed(s, a)).sum();
    Some(total.saturating_sub(used))
}

/// How many agents of this cost the budget pays for, at most `wanted`, keeping the chair's share.
pub(super) fn affordable(s: &Situation<'_>, wanted: u32, cost: u64) -> u32 {
    match remaining(s) {
        None => wanted,
        Some(left) => {
            let count = left.saturating_sub(s.policy.chair_tokens()) / cost.max(1);
            wanted.min(u32::try_from(count).unwrap_or(u32::MAX))
        }
    }
}

/// The chair can be paid.
pub(super) fn pays_chair(s: &Situation<'_>) -> bool {
    remaining(s).is_none_or(|left| left >= s.policy.chair_tokens())
}

/// One who reads drafts in full can be paid.
pub(super) fn pays_reader(s: &Situation<'_>) -> bool {
    remaining(s).is_none_or(|left| left >= s.policy.reader_tokens())
}
