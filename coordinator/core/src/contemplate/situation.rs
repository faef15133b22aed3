//! A job with its payloads read: what `next` decides on.

use std::collections::BTreeMap;

use conclave_proto::v1::{AgentState, Draft, JobState, RoundRecord, StopReason};

use super::Context;
use crate::{agent::Agent, job::Job, payload::MissingBlob, spec::Policy, view};

/// A job, its policy and everything its agents handed in.
pub(super) struct Situation<'a> {
    pub job: &'a Job,
    pub policy: Policy,
    /// By agent number; cut drafts too.
    drafts: BTreeMap<u32, Draft>,
    now_unix_ms: i64,
}

impl<'a> Situation<'a> {
    pub(super) fn load(job: &'a Job, cx: &Context<'_>) -> Result<Situation<'a>, MissingBlob> {
        let spec = view::spec(job, cx.payloads)?;
        let mut drafts = BTreeMap::new();
        for agent in &job.agents {
            if let Some(draft) = view::draft(agent, cx.payloads)? {
                drafts.insert(agent.spec.agent, draft);
            }
        }
        let policy = Policy::of(&spec);
        Ok(Situation {
            job,
            policy,
            drafts,
            now_unix_ms: cx.now_unix_ms,
        })
    }

    pub(super) fn deadline_passed(&self) -> bool {
        self.job.deadline_unix_ms > 0 && self.now_unix_ms >= self.job.deadline_unix_ms
    }

    pub(super) fn last_round(&self) -> Option<&'a RoundRecord> {
        self.job.rounds.last()
    }

    /// The number that the next round gets, from 0.
    pub(super) fn next_round(&self) -> u32 {
        self.job.rounds.last().map_or(0, |r| r.round + 1)
    }

    /// The number that the next agent gets.
    pub(super) fn next_agent(&self) -> u32 {
        self.job.agents.len() as u32 + 1
    }

    /// Rounds whose drafts can become the answer.
    pub(super) fn thinking_rounds(&self) -> impl DoubleEndedIterator<Item = &'a RoundRecord> {
        self.job
            .rounds
            .iter()
            .filter(|r| matches!(r.state(), JobState::Proposing | JobState::Refining))
    }

    /// The agent's draft, whatever became of it.
    pub(super) fn draft(&self, agent: u32) -> Option<&Draft> {
        self.drafts.get(&agent)
    }

    /// Drafts accepted in a round, in the order of their agents.
    pub(super) fn accepted(&self, round: u32) -> Vec<(&'a Agent, &Draft)> {
        self.job
            .round_agents(round)
            .filter(|a| a.state == AgentState::Done)
            .filter_map(|a| Some((a, self.draft(a.spec.agent)?)))
            .collect()
    }

    /// Accepted drafts that may vote: valid, not empty, not stopped as weak. Free text falls back to
    /// weak ones where there is nothing else; a constrained answer never to an invalid one.
    pub(super) fn usable(&self, round: u32) -> Vec<(&'a Agent, &Draft)> {
        let mut drafts = self.accepted(round);
        drafts.retain(|(_, d)| !d.answer.trim().is_empty() && (d.valid || self.policy.free_text));
        let strong = |d: &Draft| d.valid && d.stop() != StopReason::LowConfidence;
        if drafts.iter().any(|(_, d)| strong(d)) {
            drafts.retain(|(_, d)| strong(d));
        }
        drafts
    }

    /// The drafts that an answer would be made of now: those of the latest round that has any.
    pub(super) fn pool(&self) -> Vec<(&'a Agent, &Draft)> {
        self.thinking_rounds()
            .rev()
            .map(|r| self.usable(r.round))
            .find(|drafts| !drafts.is_empty())
            .unwrap_or_default()
    }

    /// What became of the drafts of a job of which none counts, as `: 2 stopped ...`; empty
    /// without drafts.
    pub(super) fn why_none_counts(&self) -> String {
        let (mut weak, mut cut, mut invalid, mut empty) = (0, 0, 0, 0);
        for draft in self.drafts.values() {
            match draft.stop() {
                StopReason::LowConfidence => weak += 1,
                StopReason::Length => cut += 1,
                _ if draft.answer.trim().is_empty() => empty += 1,
                _ => invalid += 1,
            }
        }
        let reasons = [
            (weak, "stopped for low confidence"),
            (cut, "cut at the answer budget before a valid answer"),
            (invalid, "with an answer of the wrong form"),
            (empty, "without an answer"),
        ];
        let reasons: Vec<String> = reasons
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        match reasons.is_empty() {
            true => String::new(),
            false => format!(": {}", reasons.join(", ")),
        }
    }

    /// Why the first failed agent of the job failed, to explain that there is no answer.
    pub(super) fn first_error(&self) -> Option<&'a str> {
        self.job
            .agents
            .iter()
            .map(|a| a.error.as_str())
            .find(|e| !e.is_empty())
    }
}
