//! From drafts to the answer.

use conclave_proto::v1::{
    AgentSpec, AgentState, Aggregator, Answer, Draft, EndJob, JobState, Role, Vote, decide::Next,
};

use super::{
    Step, budget, confidence, distill, expand, prompt, propose, refine, round, situation::Situation,
};
use crate::agent::Agent;

/// Votes per canonical form, one million a draft; most first, then the form that was voted for
/// first.
pub(super) fn count(drafts: &[(&Agent, &Draft)]) -> Vec<Vote> {
    tally(drafts, |_| 1_000_000)
}

fn tally(drafts: &[(&Agent, &Draft)], weight: impl Fn(&Draft) -> i64) -> Vec<Vote> {
    let mut votes: Vec<Vote> = Vec::new();
    for (agent, draft) in drafts {
        let number = agent.spec.agent;
        let found = votes.iter_mut().find(|v| v.canonical == draft.canonical);
        if let Some(vote) = found {
            vote.agents.push(number);
            vote.weight_micro = vote.weight_micro.saturating_add(weight(draft));
        } else {
            votes.push(Vote {
                canonical: draft.canonical.clone(),
                agents: vec![number],
                weight_micro: weight(draft),
            });
        }
    }
    // Stable: equal weights stay in the order of their first voters.
    votes.sort_by_key(|v| std::cmp::Reverse(v.weight_micro));
    votes
}

/// The most confident draft; the first one of equals.
fn most_confident<'a, 'b>(
    drafts: impl IntoIterator<Item = &'b (&'a Agent, &'a Draft)>,
) -> Option<(&'a Agent, &'a Draft)>
where
    'a: 'b,
{
    let key = |(agent, draft): &&(&Agent, &Draft)| {
        (draft.confidence_micro, std::cmp::Reverse(agent.spec.agent))
    };
    drafts.into_iter().max_by_key(key).copied()
}

/// The answer by vote or by confidence, without a model call. A tied vote goes to the form with the
/// most confident draft.
fn by_drafts(drafts: &[(&Agent, &Draft)], aggregator: Aggregator) -> Option<Answer> {
    let weigh = |draft: &Draft| match aggregator {
        Aggregator::ConfidenceWeighted => confidence::weight(draft),
        _ => 1_000_000,
    };
    let votes = tally(drafts, weigh);
    let most = votes.first()?.weight_micro;
    let leads = |draft: &Draft| {
        votes
            .iter()
            .any(|v| v.weight_micro == most && v.canonical == draft.canonical)
    };
    let (agent, draft) = match aggregator {
        Aggregator::BestOf => most_confident(drafts)?,
        _ => most_confident(drafts.iter().filter(|(_, d)| leads(d)))?,
    };
    Some(Answer {
        text: draft.answer.trim().to_owned(),
        canonical: draft.canonical.clone(),
        aggregator: aggregator as i32,
        votes,
        agent: Some(agent.spec.agent),
        edited: false,
    })
}

/// A chair is asked for, has something to choose from, and can be paid.
pub(super) fn chair_is_due(s: &Situation<'_>) -> bool {
    s.policy.aggregator == Aggregator::Synthesis && s.pool().len() > 1 && budget::pays_chair(s)
}

/// The round of one chair on the workspace.
pub(super) fn start_chair(s: &Situation<'_>) -> Step {
    let drafts = s.pool();
    let thought_tokens = s.policy.chair_thought_tokens();
    let base = propose::thinker(s, Role::Chair, 0);
    let chair = AgentSpec {
        tail: prompt::CHAIR.into(),
        thought_tokens,
        confidence: Some(confidence::never_stopping(s.policy.confidence)),
        sources: drafts.iter().map(|(a, _)| a.spec.agent).collect(),
        cue: if thought_tokens > 0 {
            base.cue.clone()
        } else {
            String::new()
        },
        ..base
    };
    let context = prompt::workspace(&distill::workspace(s));
    let round = round::start(s, JobState::Aggregating, context, vec![chair], 1);
    Step {
        reason: String::new(),
        votes: count(&drafts),
        next: Next::StartRound(round),
    }
}

/// A chair's answer, if it handed one in that counts; else why not.
fn by_chair(s: &Situation<'_>, chair: &Agent) -> Result<Answer, String> {
    let drafts = s.pool();
    match s.draft(chair.spec.agent) {
        Some(draft) if chair.state == AgentState::Done => {
            if draft.answer.trim().is_empty() || !(draft.valid || s.policy.free_text) {
                Err("the chair's answer is not valid".into())
            } else {
                Ok(Answer {
                    text: draft.answer.trim().to_owned(),
                    canonical: draft.canonical.clone(),
                    aggregator: Aggregator::Synthesis as i32,
                    votes: count(&drafts),
                    agent: Some(chair.spec.agent),
                    edited: false,
                })
            }
        }
        _ if chair.error.is_empty() => Err("the chair handed nothing in".into()),
        _ => Err(format!("the chair failed ({})", chair.error)),
    }
}

/// The answer as things are, of the last chair that has one or of the drafts, and what fell short of it.
pub(super) fn answer(s: &Situation<'_>) -> (Option<Answer>, Vec<String>) {
    let mut short = Vec::new();
    let agents = s.job.agents.iter().rev();
    for chair in agents.filter(|a| a.spec.role() == Role::Chair) {
        match by_chair(s, chair) {
            Ok(answer) => return (Some(answer), short),
            Err(why) if expand::is_reader(s, chair) => {
                short.push(format!(
                    "{why} over the drafts in full: the first answer stands"
                ));
            }
            Err(why) => short.push(format!("{why}: the drafts' majority answers")),
        }
    }
    let fallback = match s.policy.aggregator {
        Aggregator::Synthesis | Aggregator::Unspecified => Aggregator::Majority,
        other => other,
    };
    (by_drafts(&s.pool(), fallback), short)
}

/// Ends the job with the answer that its drafts give, and says what fell short.
pub(super) fn finish(s: &Situation<'_>) -> Step {
    end(s, shortfalls(s))
}

/// Ends the job now, whatever still runs, without another model call.
pub(super) fn cut_short(s: &Situation<'_>, why: &str) -> Step {
    end(s, vec![why.to_owned()])
}

/// Ends the job without an answer.
pub(super) fn failed(message: String) -> Step {
    let ending = EndJob {
        state: JobState::Failed as i32,
        answer: None,
        message,
    };
    Step {
        reason: String::new(),
        votes: Vec::new(),
        next: Next::EndJob(ending),
    }
}

fn end(s: &Situation<'_>, mut short: Vec<String>) -> Step {
    let (answer, fell_short) = answer(s);
    short.extend(fell_short);
    let Some(answer) = answer else {
        short.push(match s.first_error() {
            Some(error) => format!("no agent handed in a draft that counts: {error}"),
            None => format!(
                "no agent handed in a draft that counts{}",
                s.why_none_counts()
            ),
        });
        return failed(short.join("; "));
    };
    let message = short.join("; ");
    let votes = answer.votes.clone();
    if s.policy.review {
        return Step {
            reason: message,
            votes,
            next: Next::AwaitReview(answer),
        };
    }
    let state = if message.is_empty() {
        JobState::Done
    } else {
        JobState::Degraded
    };
    let ending = EndJob {
        state: state as i32,
        answer: Some(answer),
        message,
    };
    Step {
        reason: String::new(),
        votes,
        next: Next::EndJob(ending),
    }
}

/// What the policy asked for and the job did not get.
fn shortfalls(s: &Situation<'_>) -> Vec<String> {
    let mut short = Vec::new();
    if let Some(first) = s.thinking_rounds().next() {
        let made = s.job.round_agents(first.round).count() as u32;
        if made < s.policy.quorum {
            short.push(format!(
                "the token budget paid for {made} of {} proposers",
                s.policy.width
            ));
        }
    }
    for round in s.thinking_rounds() {
        let done = s.accepted(round.round).len() as u32;
        if done < round.quorum && round::agreed(s, round.round).is_none() {
            let error = s
                .first_error()
                .map(|e| format!(" ({e})"))
                .unwrap_or_default();
            short.push(format!(
                "round {} gave {done} of {} drafts{error}",
                round.round, round.quorum
            ));
        }
    }
    // Extraction stands in for a lost distiller; but an exact job then reads what it would not have read.
    let lost = |a: &&Agent| a.spec.role() == Role::Distiller && a.state == AgentState::Failed;
    if let Some(distiller) = s.job.agents.iter().find(lost).filter(|_| s.policy.exact) {
        let number = distiller.spec.agent;
        short.push(format!("distiller {number} failed ({})", distiller.error));
    }
    let refined = refine::rounds_done(s);
    if refined < s.policy.refine_rounds && !refine::is_settled(s) && !s.pool().is_empty() {
        short.push(format!(
            "the token budget paid for {refined} of {} refine rounds",
            s.policy.refine_rounds
        ));
    }
    let chaired = s.job.agents.iter().any(|a| a.spec.role() == Role::Chair);
    let wants_chair = s.policy.aggregator == Aggregator::Synthesis && s.pool().len() > 1;
    if wants_chair && !chaired {
        short.push("the token budget did not pay for the chair".into());
    }
    short
}
