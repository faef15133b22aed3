//! The end of a job for a person: how the drafts voted and what it cost.
use std::fmt::Write as _;

use conclave_proto::v1::{AgentState, Job, Role, StopReason, Vote};

use super::names;

/// Longest canonical form shown in a vote line, characters.
const CANONICAL: usize = 60;

/// Everything below the answer: votes, drafts, tokens by role, prefix hits and
/// the job's id. Ends without a line break.
pub fn of(job: &Job) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = votes(job, &mut text).and_then(|()| counts(job, &mut text));
    text.truncate(text.trim_end().len());
    text
}

fn votes(job: &Job, text: &mut String) -> std::fmt::Result {
    let Some(answer) = job
        .answer
        .as_ref()
        .filter(|answer| !answer.votes.is_empty())
    else {
        return Ok(());
    };
    writeln!(
        text,
        "votes     {}",
        names::aggregator(answer.aggregator())
            .to_lowercase()
            .replace('_', " ")
    )?;
    for vote in &answer.votes {
        let marker = if vote.canonical == answer.canonical {
            '*'
        } else {
            ' '
        };
        writeln!(text, "  {marker} {} {}", tally(vote), clip(&vote.canonical))?;
    }
    Ok(())
}

/// `3 votes (weight 3.00) by 1 4 7:`
fn tally(vote: &Vote) -> String {
    let agents: Vec<String> = vote
        .agents
        .iter()
        .map(|agent| format!("#{agent}"))
        .collect();
    let noun = if vote.agents.len() == 1 {
        "vote "
    } else {
        "votes"
    };
    format!(
        "{} {noun} weight {:.2} ({}):",
        vote.agents.len(),
        names::nats(vote.weight_micro),
        agents.join(" ")
    )
}

fn clip(canonical: &str) -> String {
    let flat: String = canonical.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= CANONICAL {
        return flat;
    }
    flat.chars().take(CANONICAL - 1).chain(['…']).collect()
}

fn counts(job: &Job, text: &mut String) -> std::fmt::Result {
    let done = |role| {
        job.agents
            .iter()
            .filter(|a| a.role() == role && a.state() == AgentState::Done)
            .count()
    };
    let all = |role| job.agents.iter().filter(|a| a.role() == role).count();
    let parts: Vec<String> = [Role::Proposer, Role::Distiller, Role::Refiner, Role::Chair]
        .into_iter()
        .filter(|role| all(*role) > 0)
        .map(|role| format!("{}/{} {}", done(role), all(role), plural(role, all(role))))
        .collect();
    if !parts.is_empty() {
        writeln!(text, "drafts    {}", parts.join(", "))?;
    }
    if let Some(usage) = job.usage.as_ref().filter(|usage| usage.prompt_tokens > 0) {
        let by_role: Vec<String> = job
            .tokens_by_role
            .iter()
            .map(|(role, tokens)| format!("{} {tokens}", role.to_lowercase()))
            .collect();
        writeln!(
            text,
            "tokens    {} generated ({} thought, {} answer){}{}",
            usage.thought_tokens + usage.answer_tokens,
            usage.thought_tokens,
            usage.answer_tokens,
            if by_role.is_empty() {
                ""
            } else {
                "; by role: "
            },
            by_role.join(", "),
        )?;
        writeln!(
            text,
            "prefix    {}",
            prefix(usage.cached_tokens, usage.prompt_tokens)
        )?;
    }
    if job.expanded {
        writeln!(
            text,
            "expanded  the first answer was uncertain: a chair read the disputed drafts in full"
        )?;
    }
    // Of a job without an answer the message is the error, which is shown anyway.
    if job.answer.is_some() && !job.message.is_empty() {
        writeln!(text, "note      {}", job.message)?;
    }
    if let Some(note) = cut(job) {
        writeln!(text, "note      {note}")?;
    }
    let seed = job.spec.as_ref().and_then(|spec| spec.seed);
    let seed = seed
        .map(|seed| format!("  seed {seed}"))
        .unwrap_or_default();
    writeln!(
        text,
        "job       {}  {}{seed}",
        job.job_id,
        names::job_state(job.state()).to_lowercase()
    )
}

/// That the answer shown ends where its budget did.
fn cut(job: &Job) -> Option<String> {
    let agent = job.answer.as_ref().filter(|answer| !answer.edited)?.agent?;
    let author = job.agents.iter().find(|status| status.agent == agent)?;
    let draft = author.draft.as_ref()?;
    if draft.stop() != StopReason::Length {
        return None;
    }
    let budget = job.spec.as_ref()?.budget.as_ref()?.answer_tokens;
    let budget = budget.map_or_else(String::new, |tokens| format!(" of {tokens} tokens"));
    Some(format!(
        "(cut at the answer budget{budget}; --answer-tokens raises it)"
    ))
}

fn prefix(cached: u64, prompt: u64) -> String {
    let share = if prompt == 0 {
        0.0
    } else {
        100.0 * cached as f64 / prompt as f64
    };
    format!("{cached} of {prompt} prompt tokens came from the cache ({share:.0}%)")
}

fn plural(role: Role, count: usize) -> String {
    let name = names::role(role).to_lowercase();
    if count == 1 { name } else { format!("{name}s") }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{
        AgentStatus, Aggregator, Answer, Budget, Draft, JobSpec, JobState, Usage,
    };

    use super::*;

    #[test]
    fn an_answer_cut_at_its_budget_says_so() {
        let mut draft = Draft::default();
        draft.set_stop(StopReason::Length);
        let mut job = Job {
            spec: Some(JobSpec {
                budget: Some(Budget {
                    answer_tokens: Some(48),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            answer: Some(Answer {
                agent: Some(3),
                ..Default::default()
            }),
            agents: vec![AgentStatus {
                agent: 3,
                draft: Some(draft),
                ..Default::default()
            }],
            ..Default::default()
        };
        let note = "cut at the answer budget of 48 tokens; --answer-tokens raises it";
        assert!(of(&job).contains(note), "{}", of(&job));
        job.agents[0].draft = Some(Draft::default());
        assert!(!of(&job).contains("cut at"), "{}", of(&job));
    }

    #[test]
    fn the_summary_tells_votes_tokens_and_prefix_hits() {
        let agent = |number, role, state| {
            let mut status = AgentStatus {
                agent: number,
                ..Default::default()
            };
            status.set_role(role);
            status.set_state(state);
            status
        };
        let vote = |canonical: &str, agents: &[u32]| Vote {
            canonical: canonical.into(),
            agents: agents.to_vec(),
            weight_micro: 1_000_000 * agents.len() as i64,
        };
        let mut answer = Answer {
            text: "391".into(),
            canonical: "391".into(),
            votes: vec![vote("391", &[1, 2]), vote(&"long ".repeat(40), &[3])],
            ..Default::default()
        };
        answer.set_aggregator(Aggregator::ConfidenceWeighted);
        let mut job = Job {
            job_id: "j1".into(),
            answer: Some(answer),
            agents: vec![
                agent(1, Role::Proposer, AgentState::Done),
                agent(2, Role::Proposer, AgentState::Cancelled),
                agent(3, Role::Chair, AgentState::Done),
            ],
            usage: Some(Usage {
                prompt_tokens: 100,
                cached_tokens: 75,
                thought_tokens: 20,
                answer_tokens: 10,
            }),
            tokens_by_role: [("PROPOSER".to_owned(), 25), ("CHAIR".to_owned(), 5)].into(),
            ..Default::default()
        };
        job.set_state(JobState::Done);
        let text = of(&job);
        assert!(text.contains("votes     confidence weighted"), "{text}");
        assert!(
            text.contains("* 2 votes weight 2.00 (#1 #2): 391"),
            "{text}"
        );
        assert!(text.contains('…'), "{text}");
        assert!(text.contains("1/2 proposers, 1/1 chair"), "{text}");
        assert!(
            text.contains("30 generated (20 thought, 10 answer); by role: chair 5, proposer 25"),
            "{text}"
        );
        assert!(
            text.contains("75 of 100 prompt tokens came from the cache (75%)"),
            "{text}"
        );
        assert!(text.ends_with("job       j1  done"), "{text}");
        assert!(!text.contains("expanded"), "{text}");
        job.expanded = true;
        assert!(of(&job).contains("read the disputed drafts in full"));
    }
}
