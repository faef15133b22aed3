//! Expand: where the first answer is uncertain, one more chair reads the disputed drafts in full.
//!
//! What agents read of each other is compressed (`distill`). That saves most of their tokens, and costs where
//! drafts disagree for a reason that the summary left out. So a job that asks for it has those drafts opened: at most
//! once, within its budget and the model's context. The first answer is superseded; the decision says so, and what it
//! was made of stays in the audit.

use conclave_proto::v1::{
    AgentSpec, Aggregator, Answer, Draft, Expand, JobState, Role, decide::Next,
};

use super::{
    Context, Step, aggregate, budget, confidence, distill, prompt, propose, round,
    situation::Situation,
};
use crate::{
    agent::Agent,
    job::Job,
    payload::{MissingBlob, Payloads},
    spec::EXPAND_MARGIN,
};

/// What an ended job has of expanding; counted by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expansion {
    /// Its answer was not in doubt, or there was none.
    None,
    /// Its votes left the answer open, and it had not asked for more.
    WouldHelp,
    /// A chair read the disputed drafts in full.
    Done,
}

/// What the job has of expanding.
///
/// # Errors
/// A payload is a blob that is not here.
pub fn of(job: &Job, payloads: &dyn Payloads) -> Result<Expansion, MissingBlob> {
    if !matches!(job.state, JobState::Done | JobState::Degraded) {
        return Ok(Expansion::None);
    }
    let now_unix_ms = job.ended_unix_ms;
    let s = Situation::load(
        job,
        &Context {
            payloads,
            now_unix_ms,
        },
    )?;
    let open = |answer: &Answer| lead(answer).is_some_and(|(lead, _)| lead < micro(EXPAND_MARGIN));
    Ok(if reader_of(s.policy.aggregator, job).is_some() {
        Expansion::Done
    } else if s.policy.expand.is_none()
        && !s.policy.free_text
        && job.answer.as_ref().is_some_and(open)
    {
        Expansion::WouldHelp
    } else {
        Expansion::None
    })
}

/// The round of one chair on the disputed drafts; `None` if nobody asked for it, nothing is in doubt, it was done
/// already, or the budget or the model's context has no room for it.
pub(super) fn start(s: &Situation<'_>) -> Option<Step> {
    let expand = s.policy.expand?;
    if reader_of(s.policy.aggregator, s.job).is_some() || !budget::pays_reader(s) {
        return None;
    }
    let (first, _) = aggregate::answer(s);
    let first = first?;
    let doubt = doubt(s, expand, &first)?;
    let context = context(s, &first)?;
    let author = first.agent.map_or_else(String::new, |agent| {
        format!(", agent {agent}'s, is superseded")
    });
    let agents = vec![reader(s)];
    let round = round::start(s, JobState::Aggregating, context, agents, 1);
    Some(Step {
        reason: format!("expands: {doubt}; the first answer{author}"),
        votes: first.votes,
        next: Next::StartRound(round),
    })
}

/// The chair that the disputed drafts were given to: the one behind that of synthesis, or the only one.
pub(crate) fn reader_of(aggregator: Aggregator, job: &Job) -> Option<&Agent> {
    let mut chairs = job.agents.iter().filter(|a| a.spec.role() == Role::Chair);
    let before = usize::from(aggregator == Aggregator::Synthesis);
    chairs.nth(before)
}

/// Whether the agent is that chair.
pub(super) fn is_reader(s: &Situation<'_>, agent: &Agent) -> bool {
    let reader = reader_of(s.policy.aggregator, s.job);
    reader.is_some_and(|reader| reader.spec.agent == agent.spec.agent)
}

/// Why the answer is uncertain, if it is.
fn doubt(s: &Situation<'_>, expand: Expand, answer: &Answer) -> Option<String> {
    let percent = |micro: i64| format!("{}.{} %", micro / 10_000, micro / 1_000 % 10);
    if let (false, Some((lead, most)), Some(margin)) =
        (s.policy.free_text, lead(answer), expand.margin)
        && lead < micro(margin)
    {
        return Some(format!(
            "the votes are open ({} for the first form, a lead of {})",
            percent(most),
            percent(lead)
        ));
    }
    let below = expand.confidence_below?;
    let lowest = s.draft(answer.agent?)?.lowest_window_micro;
    (lowest < micro(below)).then(|| {
        let nats = lowest as f64 / 1e6;
        format!("its lowest confidence is {nats:.3} nats, below {below}")
    })
}

/// The lead of the first form over the second, and the first's share, in millionths of all weight; `None` without
/// votes.
fn lead(answer: &Answer) -> Option<(i64, i64)> {
    let mut weights: Vec<i64> = answer.votes.iter().map(|v| v.weight_micro).collect();
    weights.sort_unstable_by(|a, b| b.cmp(a));
    let total: i128 = weights.iter().map(|w| i128::from(*w)).sum();
    let share = |weight: i64| i64::try_from(i128::from(weight) * 1_000_000 / total).ok();
    match weights[..] {
        [first, ..] if total > 0 => {
            let second = weights.get(1).copied().unwrap_or(0);
            Some((share(first - second)?, share(first)?))
        }
        _ => None,
    }
}

fn micro(number: f32) -> i64 {
    (f64::from(number) * 1e6).round() as i64
}

/// The chair that reads them.
fn reader(s: &Situation<'_>) -> AgentSpec {
    let thought_tokens = s.policy.chair_thought_tokens();
    let base = propose::thinker(s, Role::Chair, 0);
    let sources = s.pool();
    AgentSpec {
        tail: prompt::EXPAND.into(),
        thought_tokens,
        confidence: Some(confidence::never_stopping(s.policy.confidence)),
        sources: sources.iter().map(|(a, _)| a.spec.agent).collect(),
        cue: match thought_tokens {
            0 => String::new(),
            _ => base.cue.clone(),
        },
        ..base
    }
}

/// The drafts that voted for the answer as they were read before, the disputed ones in full; `None` if there are
/// none, or no room to show more of them than was shown before.
fn context(s: &Situation<'_>, first: &Answer) -> Option<String> {
    let drafts = s.pool();
    let disputes = |draft: &Draft| s.policy.free_text || draft.canonical != first.canonical;
    let count = drafts.iter().filter(|(_, d)| disputes(d)).count() as u32;
    if drafts.len() < 2 || count == 0 {
        return None;
    }
    let compressed = distill::workspace(s);
    let agreed = drafts.len() as u32 - count;
    let taken = u64::from(agreed) * u64::from(s.policy.workspace_tokens) + s.policy.reader_tokens();
    // A part of a draft may have more tokens a byte than the whole: an eighth is for that.
    let each = distill::room_each(s, taken, count).map_or(u32::MAX, |each| each - each / 8);
    if each <= s.policy.workspace_tokens {
        return None;
    }
    let entries: Vec<String> = drafts
        .iter()
        .zip(compressed)
        .map(|((_, draft), short)| match disputes(draft) {
            true => distill::in_full(draft, each),
            false => short,
        })
        .collect();
    Some(prompt::workspace(&entries))
}
