//! Commands in words, for the story and the counters.

use conclave_coordinator_core::{Reply, Stale};
use conclave_proto::v1::{
    AgentState, AttemptKey, Command, JobState, Mode, attempt_finished, command::Command as Body,
    decide::Next,
};
use raft::eraftpb::ConfState;

/// A command's kind and what it is about.
pub(super) fn of(command: &Command) -> (&'static str, String) {
    match &command.command {
        Some(Body::CreateCluster(c)) => ("CreateCluster", c.cluster_id.clone()),
        Some(Body::SubmitJob(c)) => {
            let (job, key) = (&c.job_id, &c.idempotency_key);
            ("SubmitJob", format!("of {key} as job {job}"))
        }
        Some(Body::PrepareDone(c)) => {
            let prepared = c.prepared.clone().unwrap_or_default();
            (
                "PrepareDone",
                match prepared.error.as_str() {
                    "" => format!("of job {}", prepared.job_id),
                    error => format!("of job {}, refused: {error}", prepared.job_id),
                },
            )
        }
        Some(Body::Decide(c)) => {
            let next = next(c.next.as_ref());
            (
                "Decide",
                format!("job {} at revision {}: {next}", c.job_id, c.revision),
            )
        }
        Some(Body::Assign(c)) => {
            let to = process(&c.worker_id, &c.incarnation);
            let what = attempt(&c.job_id, c.agent, c.attempt);
            ("Assign", format!("{what} to {to}"))
        }
        Some(Body::AttemptFinished(c)) => {
            let result = match &c.result {
                Some(attempt_finished::Result::Draft(_)) => "a draft".to_owned(),
                Some(attempt_finished::Result::Error(e)) => format!("the error \"{}\"", e.message),
                None => "nothing".to_owned(),
            };
            let key = key(c.key.as_ref());
            (
                "AttemptFinished",
                format!("{key} by incarnation {} with {result}", c.incarnation),
            )
        }
        Some(Body::CancelJob(c)) => ("CancelJob", c.job_id.clone()),
        Some(Body::ReviewJob(c)) => ("ReviewJob", c.job_id.clone()),
        Some(Body::RegisterWorker(c)) => {
            let running: Vec<String> = c.running.iter().map(|k| key(Some(k))).collect();
            let who = process(&c.worker_id, &c.incarnation);
            let has = match running.is_empty() {
                true => "runs nothing".to_owned(),
                false => format!("runs or keeps {}", running.join(", ")),
            };
            ("RegisterWorker", format!("{who}, {has}"))
        }
        Some(Body::RenewLeases(c)) => {
            let who: Vec<_> = c.leases.iter().map(|l| l.worker_id.as_str()).collect();
            ("RenewLeases", format!("of {}", who.join(", ")))
        }
        Some(Body::DrainWorker(c)) => ("DrainWorker", process(&c.worker_id, &c.incarnation)),
        Some(Body::Tick(c)) => {
            let term = if c.new_term { ", a new term" } else { "" };
            ("Tick", format!("of {} ms{term}", c.elapsed_ms))
        }
        Some(Body::ExpireJobs(c)) => ("ExpireJobs", c.job_ids.join(", ")),
        Some(Body::SetLogVersion(c)) => ("SetLogVersion", format!("to {}", c.log_version)),
        Some(Body::SetMemberAddress(c)) => {
            ("SetMemberAddress", format!("of coordinator {}", c.node_id))
        }
        None => ("nothing", String::new()),
    }
}

/// What a job does next.
fn next(next: Option<&Next>) -> String {
    match next {
        Some(Next::StartRound(r)) => {
            format!(
                "round {} of {} agents, {}",
                r.round,
                r.agents.len(),
                state(r.state())
            )
        }
        Some(Next::EndJob(e)) if e.message.is_empty() => format!("ends {}", state(e.state())),
        Some(Next::EndJob(e)) => format!("ends {}, \"{}\"", state(e.state()), e.message),
        Some(Next::AwaitReview(_)) => "waits for its reviewer".to_owned(),
        None => String::new(),
    }
}

/// A job's state as people say it.
pub(super) fn state(state: JobState) -> &'static str {
    state.as_str_name().trim_start_matches("JOB_STATE_")
}

/// A job's mode as people say it.
pub(super) fn mode(mode: Mode) -> &'static str {
    mode.as_str_name().trim_start_matches("MODE_")
}

/// An agent's state as people say it.
pub(super) fn agent(state: AgentState) -> &'static str {
    state.as_str_name().trim_start_matches("AGENT_STATE_")
}

/// What came of a command, as people say it.
pub(super) fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Ok => "done".to_owned(),
        Reply::Submitted {
            existing: false, ..
        } => "accepted".to_owned(),
        Reply::Submitted { job_id, .. } => format!("its key is known, of job {job_id}"),
        Reply::Conflict { job_id } => {
            format!("refused, its key is of job {job_id} and another request")
        }
        Reply::Stale(Stale::Revision) => "too late, the job has another revision".to_owned(),
        Reply::Stale(Stale::Attempt) => "too late, that attempt is over".to_owned(),
        Reply::Stale(Stale::Incarnation) => "too late, that incarnation is gone".to_owned(),
        Reply::NotFound => "refused, there is no such thing".to_owned(),
        Reply::Rejected { why } => format!("refused, {why}"),
    }
}

/// The members of a cluster as people say it.
pub(super) fn members(conf: &ConfState) -> String {
    let list = |ids: &[u64]| {
        ids.iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let voters = list(&conf.voters);
    match conf.learners.as_slice() {
        [] => format!("voters {voters}"),
        learners => format!("voters {voters}; learners {}", list(learners)),
    }
}

fn attempt(job_id: &str, agent: u32, attempt: u32) -> String {
    format!("job {job_id} agent {agent} attempt {attempt}")
}

fn process(worker_id: &str, incarnation: &str) -> String {
    format!("worker {worker_id} incarnation {incarnation}")
}

fn key(key: Option<&AttemptKey>) -> String {
    key.map_or_else(String::new, |k| attempt(&k.job_id, k.agent, k.attempt))
}
