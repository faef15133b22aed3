//! Commands in words, for the story and the counters.

use conclave_proto::v1::{
    AgentState, AttemptKey, Command, JobState, attempt_finished, command::Command as Body,
    decide::Next,
};

/// A command's kind and what it is about.
pub(super) fn of(command: &Command) -> (&'static str, String) {
    match &command.command {
        Some(Body::CreateCluster(c)) => ("CreateCluster", c.cluster_id.clone()),
        Some(Body::SubmitJob(c)) => {
            let (job, key) = (&c.job_id, &c.idempotency_key);
            ("SubmitJob", format!("{key} as {job}"))
        }
        Some(Body::PrepareDone(c)) => {
            let prepared = c.prepared.clone().unwrap_or_default();
            (
                "PrepareDone",
                format!("{} {}", prepared.job_id, prepared.error),
            )
        }
        Some(Body::Decide(c)) => {
            let next = next(c.next.as_ref());
            (
                "Decide",
                format!("{} at revision {}: {next}", c.job_id, c.revision),
            )
        }
        Some(Body::Assign(c)) => {
            let key = (&c.job_id, c.agent, c.attempt);
            (
                "Assign",
                format!("{key:?} to {} {}", c.worker_id, c.incarnation),
            )
        }
        Some(Body::AttemptFinished(c)) => {
            let result = match &c.result {
                Some(attempt_finished::Result::Draft(_)) => "a draft".to_owned(),
                Some(attempt_finished::Result::Error(e)) => e.message.clone(),
                None => String::new(),
            };
            let key = key(c.key.as_ref());
            (
                "AttemptFinished",
                format!("{key} of {}: {result}", c.incarnation),
            )
        }
        Some(Body::CancelJob(c)) => ("CancelJob", c.job_id.clone()),
        Some(Body::ReviewJob(c)) => ("ReviewJob", c.job_id.clone()),
        Some(Body::RegisterWorker(c)) => {
            let running: Vec<String> = c.running.iter().map(|k| key(Some(k))).collect();
            let who = format!("{} {}", c.worker_id, c.incarnation);
            ("RegisterWorker", format!("{who}, has {running:?}"))
        }
        Some(Body::RenewLeases(c)) => {
            let who: Vec<_> = c.leases.iter().map(|l| l.worker_id.as_str()).collect();
            ("RenewLeases", who.join(" "))
        }
        Some(Body::DrainWorker(c)) => ("DrainWorker", format!("{} {}", c.worker_id, c.incarnation)),
        Some(Body::Tick(c)) => {
            let term = if c.new_term { ", a new term" } else { "" };
            ("Tick", format!("{} ms{term}", c.elapsed_ms))
        }
        Some(Body::ExpireJobs(c)) => ("ExpireJobs", c.job_ids.join(" ")),
        Some(Body::SetLogVersion(c)) => ("SetLogVersion", c.log_version.to_string()),
        Some(Body::SetMemberAddress(c)) => ("SetMemberAddress", c.node_id.to_string()),
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
        Some(Next::EndJob(e)) => format!("ends {} {}", state(e.state()), e.message),
        Some(Next::AwaitReview(_)) => "waits for its reviewer".to_owned(),
        None => String::new(),
    }
}

/// A job's state as people say it.
pub(super) fn state(state: JobState) -> &'static str {
    state.as_str_name().trim_start_matches("JOB_STATE_")
}

/// An agent's state as people say it.
pub(super) fn agent(state: AgentState) -> &'static str {
    state.as_str_name().trim_start_matches("AGENT_STATE_")
}

fn key(key: Option<&AttemptKey>) -> String {
    key.map_or_else(String::new, |k| {
        format!("{:?}", (&k.job_id, k.agent, k.attempt))
    })
}
