//! The state as the API and the workers see it.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::v1::{
    self as proto, AgentState, AgentStatus, AttemptKey, Draft, JobEvent, JobSpec, Prepare, Role,
    Start, Usage, WorkerStatus, job_event,
};

use crate::{
    agent::Agent,
    job::Job,
    payload::{self, MissingBlob, Payloads},
    state::State,
};

/// The job as `GetJob` returns it. The audit head is not signed here: the shell holds the key
/// ([`crate::audit::signed_bytes`]). Without `drafts`, agents come without what they wrote.
///
/// # Errors
/// A payload is a blob that is not here.
pub fn job(job: &Job, blobs: &dyn Payloads, drafts: bool) -> Result<proto::Job, MissingBlob> {
    let mut usage = Usage::default();
    let mut tokens_by_role = BTreeMap::new();
    let mut agents = Vec::with_capacity(job.agents.len());
    for agent in &job.agents {
        let draft = draft(agent, blobs)?;
        if let Some(used) = draft.as_ref().and_then(|d| d.usage.as_ref()) {
            add(&mut usage, used);
            let generated = used.thought_tokens + used.answer_tokens;
            *tokens_by_role
                .entry(role_name(agent.spec.role()).to_owned())
                .or_insert(0) += generated;
        }
        agents.push(AgentStatus {
            draft: draft.filter(|_| drafts),
            ..agent.status()
        });
    }
    let mut spec = spec(job, blobs)?;
    if spec.model.is_empty() {
        // Which of the cluster's models "the only one" was.
        job.model().clone_into(&mut spec.model);
    }
    Ok(proto::Job {
        job_id: job.id.clone(),
        tenant: job.tenant.clone(),
        spec: Some(spec),
        state: job.state as i32,
        round: job.round,
        agents,
        answer: job.answer.clone(),
        usage: Some(usage),
        message: job.message.clone(),
        submitted_unix_ms: job.submitted_unix_ms,
        ended_unix_ms: job.ended_unix_ms,
        audit: Some(job.audit.head()),
        replay: job.replay as i32,
        tokens_by_role,
    })
}

/// The job's effective spec.
///
/// # Errors
/// It is a blob that is not here.
pub fn spec(job: &Job, blobs: &dyn Payloads) -> Result<JobSpec, MissingBlob> {
    payload::decode(&job.spec, blobs)
}

/// What the agent handed in, if it did.
///
/// # Errors
/// It is a blob that is not here.
pub fn draft(agent: &Agent, blobs: &dyn Payloads) -> Result<Option<Draft>, MissingBlob> {
    agent
        .draft
        .as_ref()
        .map(|draft| payload::decode(draft, blobs))
        .transpose()
}

/// A state event for watchers: an agent that is done comes with its draft, without the ids.
///
/// # Errors
/// The draft is a blob that is not here.
pub fn event(job: &Job, event: &JobEvent, blobs: &dyn Payloads) -> Result<JobEvent, MissingBlob> {
    let mut event = event.clone();
    if let Some(job_event::Event::Agent(status)) = &mut event.event {
        let current = job.agent(status.agent).filter(|agent| {
            agent.attempt == status.attempt
                && matches!(status.state(), AgentState::Done | AgentState::Cancelled)
        });
        if let Some(agent) = current {
            status.draft = draft(agent, blobs)?.map(|d| Draft {
                token_ids: Vec::new(),
                ..d
            });
        }
    }
    Ok(event)
}

/// The `Prepare` message of a job.
///
/// # Errors
/// Its spec is a blob that is not here.
pub fn prepare(state: &State, job: &Job, blobs: &dyn Payloads) -> Result<Prepare, MissingBlob> {
    Ok(Prepare {
        job_id: job.id.clone(),
        spec: Some(spec(job, blobs)?),
        salt: state.salt(&job.tenant),
    })
}

/// The `Start` message of an attempt; `None` if it is no longer the agent's current one.
/// `now_unix_ms` is the leader's clock: the worker is told how long the job's deadline leaves it.
///
/// # Errors
/// A payload is a blob that is not here.
pub fn start(
    state: &State,
    key: &AttemptKey,
    now_unix_ms: i64,
    blobs: &dyn Payloads,
) -> Result<Option<Start>, MissingBlob> {
    let Some(job) = state.job(&key.job_id) else {
        return Ok(None);
    };
    let running = |a: &&Agent| a.attempt == key.attempt && a.state == AgentState::Running;
    let Some(agent) = job.agent(key.agent).filter(running) else {
        return Ok(None);
    };
    let context = match job
        .round_record(agent.spec.round)
        .and_then(|r| r.context.as_ref())
    {
        Some(context) => String::from_utf8_lossy(&payload::read(context, blobs)?).into_owned(),
        None => String::new(),
    };
    Ok(Some(Start {
        key: Some(key.clone()),
        spec: Some(agent.spec.clone()),
        model: job.model().to_owned(),
        messages: spec(job, blobs)?.messages,
        context,
        salt: state.salt(&job.tenant),
        tenant: job.tenant.clone(),
        incarnation: agent
            .placement
            .as_ref()
            .map_or_else(String::new, |p| p.incarnation.clone()),
        deadline_ms: time_left(job, now_unix_ms),
    }))
}

/// Milliseconds until the job's deadline, at least one; 0 without a deadline.
fn time_left(job: &Job, now_unix_ms: i64) -> u64 {
    match job.deadline_unix_ms {
        0 => 0,
        at => u64::try_from(at.saturating_sub(now_unix_ms))
            .unwrap_or(0)
            .max(1),
    }
}

/// Workers that hold a lease, as `ListWorkers` returns them.
pub fn workers(state: &State) -> Vec<WorkerStatus> {
    state
        .workers()
        .map(|worker| WorkerStatus {
            worker_id: worker.worker_id.clone(),
            incarnation: worker.incarnation.clone(),
            models: worker.models.iter().map(|m| m.name.clone()).collect(),
            max_sequences: worker.max_sequences,
            agents: state
                .placed_on(&worker.worker_id, &worker.incarnation)
                .count() as u32,
            draining: worker.draining,
            lease_remaining_ms: worker.expires_ms.saturating_sub(state.lease_clock_ms()) as i64,
            numeric_class: worker
                .models
                .first()
                .map_or_else(String::new, |m| m.numeric_class.clone()),
        })
        .collect()
}

/// Why no worker that holds a lease could take a job for `model` (empty: the cluster's only one), for
/// people; `None`: one could.
pub fn waits(state: &State, model: &str) -> Option<String> {
    if state.workers().any(|worker| worker.model(model).is_some()) {
        return None;
    }
    let models = state.workers().flat_map(|worker| &worker.models);
    let served: BTreeSet<&str> = models.map(|model| model.name.as_str()).collect();
    if served.is_empty() {
        return Some("no worker is here yet: it begins once one is".to_owned());
    }
    let wanted = match model {
        "" => "it names no model, and there are several".to_owned(),
        model => format!("no worker serves the model `{model}`"),
    };
    let served: Vec<&str> = served.into_iter().collect();
    Some(format!(
        "{wanted} (served: {}); unless one comes, it fails within seconds",
        served.join(", ")
    ))
}

/// The role's name in metrics and in `tokens_by_role`.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Proposer => "proposer",
        Role::Refiner => "refiner",
        Role::Distiller => "distiller",
        Role::Chair => "chair",
        Role::Unspecified => "unspecified",
    }
}

fn add(sum: &mut Usage, one: &Usage) {
    sum.prompt_tokens += one.prompt_tokens;
    sum.cached_tokens += one.cached_tokens;
    sum.thought_tokens += one.thought_tokens;
    sum.answer_tokens += one.answer_tokens;
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::Budget;

    use super::*;
    use crate::{
        payload::InlineOnly,
        testkit::{World, choice, width},
    };

    fn told(deadline_ms: u64, later_ms: i64) -> u64 {
        let budget = Budget {
            deadline_ms,
            ..Budget::default()
        };
        let mut world = World::with_job(&JobSpec {
            budget: Some(budget),
            ..choice(width(1))
        });
        world.go("j");
        let key = world.key("j", 1);
        let now = world.job("j").submitted_unix_ms + later_ms;
        let start = start(&world.state, &key, now, &InlineOnly).expect("all is inline");
        start.expect("it runs").deadline_ms
    }

    #[test]
    fn a_job_whose_model_nobody_serves_is_told_who_serves_what() {
        let mut world = World::new();
        let told = |world: &World, model: &str| waits(&world.state, model);
        let text = told(&world, "m").expect("nobody is here");
        assert!(text.contains("no worker is here yet"), "{text}");
        world.register("w1", "i1", 8);
        assert_eq!((told(&world, "m"), told(&world, "")), (None, None));
        let text = told(&world, "nope").expect("nobody serves it");
        assert!(
            text.contains("`nope`") && text.contains("(served: m)"),
            "{text}"
        );
    }

    #[test]
    fn what_does_not_run_is_not_started() {
        let mut world = World::with_job(&choice(width(1)));
        world.go("j");
        let key = world.key("j", 1);
        let starts = |world: &World| {
            let start = start(&world.state, &key, 0, &InlineOnly);
            start.expect("all is inline").is_some()
        };
        assert!(starts(&world));
        world.apply(conclave_proto::v1::command::Command::CancelJob(
            conclave_proto::v1::CancelJobCommand {
                job_id: "j".into(),
                ..Default::default()
            },
        ));
        assert!(!starts(&world), "it was cancelled meanwhile");
    }

    #[test]
    fn a_worker_is_told_how_long_the_deadline_leaves_it() {
        assert_eq!(told(700, 0), 700);
        assert_eq!(told(700, 300), 400);
        assert_eq!(told(700, 900), 1, "what is late is not without a deadline");
        assert_eq!(told(0, 0), 0);
    }
}
