//! The jobs that the clients submit, and what of an answer no fault may change.

use std::collections::BTreeMap;

use conclave_proto::v1::{
    AgentState, Aggregator, Budget, ContemplationPolicy, Job, JobSpec, Message, Mode, Sampling,
    Usage,
};

/// Label that names a job's key, so that a doubled one is found in a list.
pub const KEY: &str = "chaos-key";

/// One kind of job.
#[derive(Debug, Clone)]
pub struct Kind {
    /// What it does.
    pub name: &'static str,
    /// Its spec, without labels.
    pub spec: JobSpec,
    /// Whether its result is the same wherever and however it ran.
    pub exact: bool,
}

/// What must not depend on faults: the answer, and every accepted draft's
/// tokens and log-probability bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Essence {
    /// The answer's text.
    pub answer: String,
    drafts: BTreeMap<u32, (Vec<u32>, Vec<u8>, String)>,
}

/// The essence of an ended job; `None` without an answer.
pub fn essence(job: &Job) -> Option<Essence> {
    let drafts = job.agents.iter().filter_map(|agent| {
        let draft = agent.draft.clone()?;
        let essence = (draft.token_ids, draft.logprob_digest, draft.answer);
        Some((agent.agent, essence))
    });
    Some(Essence {
        answer: job.answer.clone()?.text,
        drafts: drafts.collect(),
    })
}

/// Whether the job's usage is the sum of its drafts', each counted once.
pub fn usage_is_the_sum(job: &Job) -> bool {
    let mut sum = Usage::default();
    let drafts = job.agents.iter().filter_map(|agent| agent.draft.as_ref());
    for usage in drafts.filter_map(|draft| draft.usage.as_ref()) {
        sum.prompt_tokens += usage.prompt_tokens;
        sum.cached_tokens += usage.cached_tokens;
        sum.thought_tokens += usage.thought_tokens;
        sum.answer_tokens += usage.answer_tokens;
    }
    job.usage.unwrap_or_default() == sum
}

/// Whether every agent handed in one draft.
pub fn is_complete(job: &Job) -> bool {
    let done = |agent: &conclave_proto::v1::AgentStatus| {
        agent.state() == AgentState::Done && agent.draft.is_some()
    };
    !job.agents.is_empty() && job.agents.iter().all(done)
}

fn spec(question: &str, mode: Mode, policy: ContemplationPolicy, tokens: (u32, u32)) -> JobSpec {
    JobSpec {
        mode: mode.into(),
        messages: vec![Message {
            role: "user".into(),
            content: question.into(),
        }],
        sampling: Some(Sampling {
            temperature: Some(0.8),
            ..Sampling::default()
        }),
        policy: Some(policy),
        budget: Some(Budget {
            thought_tokens: Some(tokens.0),
            answer_tokens: Some(tokens.1),
            ..Budget::default()
        }),
        seed: Some(20_261_122),
        ..JobSpec::default()
    }
}

/// The kinds of the workload: short, so that many run through each fault.
pub fn kinds() -> Vec<Kind> {
    let policy = |width, aggregator: Aggregator, exact| ContemplationPolicy {
        width: Some(width),
        aggregator: aggregator.into(),
        exact,
        ..ContemplationPolicy::default()
    };
    let refine = ContemplationPolicy {
        refine_rounds: Some(1),
        ..policy(2, Aggregator::Majority, true)
    };
    let some = ContemplationPolicy {
        quorum: Some(2),
        ..policy(3, Aggregator::Majority, false)
    };
    let chair = policy(3, Aggregator::Synthesis, true);
    let long = policy(4, Aggregator::Synthesis, true);
    let deep = Mode::Contemplating;
    let kind = |name, spec, exact| Kind { name, spec, exact };
    vec![
        kind(
            "chair",
            spec("Which river flows through Vienna?", deep, chair, (12, 8)),
            true,
        ),
        kind(
            "refine",
            spec("Is seven a prime number?", deep, refine, (12, 8)),
            true,
        ),
        kind(
            "quorum",
            spec("Name a colour of the rainbow.", deep, some, (12, 8)),
            false,
        ),
        kind(
            "long",
            spec("Name three rivers of Europe.", deep, long, (48, 16)),
            true,
        ),
    ]
}
