//! What tenants used lately, read from the state: a new leader knows of it what its predecessor knew,
//! as far as it is replicated.

use std::collections::BTreeSet;

use conclave_proto::v1::{AgentState, Usage, job_event};
use prost::Message as _;

use super::{Now, bucket::Bucket};
use crate::{
    agent::Agent,
    job::Job,
    payload::{self, InlineOnly, Payloads},
    state::State,
};

/// How far back is looked, ms. A full bucket is earned in a minute; a debt may be older, and of one that is
/// older than this the rest is forgiven.
const WINDOW_MS: i64 = 600_000;
/// Most jobs of one tenant that are looked at, the newest: this is done on the node's loop.
const MOST_JOBS: usize = 10_000;

/// Of a `Draft`, what it used; the rest is passed over.
#[derive(Clone, PartialEq, prost::Message)]
struct Used {
    #[prost(message, optional, tag = "7")]
    usage: Option<Usage>,
}

/// A bucket as the last minutes left it, if it was full before.
pub(super) fn bucket(tenant: &str, limit: u64, state: &State, now: Now) -> Bucket {
    let mut spent: Vec<(i64, u64)> = state
        .jobs(tenant)
        .rev()
        .take(MOST_JOBS)
        .flat_map(|job| lately(job, now.unix_ms))
        .collect();
    spent.sort_unstable();
    let now_ms = i64::try_from(now.now_ms).unwrap_or(i64::MAX);
    let mut bucket = Bucket::full(limit, now_ms.saturating_sub(WINDOW_MS));
    for (unix_ms, tokens) in spent {
        let age_ms = now.unix_ms.saturating_sub(unix_ms);
        bucket.fill(limit, now_ms.saturating_sub(age_ms));
        bucket.take(tokens);
    }
    bucket.fill(limit, now_ms);
    bucket
}

/// When the job's agents handed in their drafts, Unix ms, and what these used.
fn lately(job: &Job, now_unix_ms: i64) -> Vec<(i64, u64)> {
    let since = now_unix_ms.saturating_sub(WINDOW_MS);
    if !job.is_active() && job.ended_unix_ms < since {
        // Stragglers that reported afterwards are few.
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut spent = Vec::new();
    let events = job.events.iter().rev();
    for event in events.take_while(|event| event.unix_ms >= since) {
        let Some(job_event::Event::Agent(status)) = &event.event else {
            continue;
        };
        // An agent that is stopped says so once more when it hands in.
        let ended = matches!(status.state(), AgentState::Done | AgentState::Cancelled);
        if ended
            && seen.insert(status.agent)
            && let Some(agent) = job.agent(status.agent)
        {
            spent.push((event.unix_ms, used(agent, None)));
        }
    }
    spent
}

/// Tokens that were computed for an agent's draft: the generated ones, and the prompt's as far as no
/// cache had them. Of a draft that cannot be read, what the agent might generate at most; without
/// `blobs` those that travel by hash are not read.
pub(super) fn used(agent: &Agent, blobs: Option<&dyn Payloads>) -> u64 {
    let Some(draft) = &agent.draft else {
        return 0;
    };
    let bytes = payload::read(draft, blobs.unwrap_or(&InlineOnly));
    let decoded = bytes.ok().and_then(|bytes| Used::decode(&*bytes).ok());
    match decoded.and_then(|used| used.usage) {
        Some(usage) => {
            let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
            computed
                .saturating_add(usage.thought_tokens)
                .saturating_add(usage.answer_tokens)
        }
        None => agent.reserved_tokens(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::draft;

    #[test]
    fn a_drafts_usage_is_read_without_the_rest_of_it() {
        let draft = draft("yes", 1);
        let used = Used::decode(&*draft.encode_to_vec()).expect("a draft");
        assert_eq!(used.usage, draft.usage, "the field's number");
    }
}
