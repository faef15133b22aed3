//! The state as the API and the workers see it.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::v1::{
    self as proto, AgentState, AgentStatus, AttemptKey, Draft, JobEvent, JobSpec, JobState,
    Prepare, Role, Start, Usage, WorkerStatus, job_event,
};

use prost::Message as _;

use crate::{
    agent::Agent,
    contemplate::expand,
    job::Job,
    payload::{self, MissingBlob, Payloads},
    state::State,
    worker::Worker,
};

/// Bytes of a shown job besides its spec, its answer and its agents: names, sums, a signed head, a reason.
const FRAME: usize = 4 << 10;
/// Bytes that go round one agent and its draft.
const NEST: usize = 32;

/// Which drafts a shown job brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drafts {
    /// Those of agents from this number on.
    pub from: u32,
    /// As many as fit into a message of so many bytes, one at least; which is next says `Job.next_draft`.
    pub most: usize,
}

impl Drafts {
    /// Every one.
    pub const ALL: Self = Self {
        from: 0,
        most: usize::MAX,
    };
}

/// The longest draft of which one fits into a message of `most` bytes beside all else that a job shows, its
/// answer, as long again, among it.
pub fn longest_draft(most: usize) -> usize {
    most / 8 * 3
}

/// The job as `GetJob` returns it. The audit head is not signed here: the shell holds the key
/// ([`crate::audit::signed_bytes`]). Without `drafts`, agents come without what they wrote.
///
/// # Errors
/// A payload is a blob that is not here.
pub fn job(
    job: &Job,
    blobs: &dyn Payloads,
    drafts: Option<Drafts>,
) -> Result<proto::Job, MissingBlob> {
    let mut spec = spec(job, blobs)?;
    if spec.model.is_empty() {
        // Which of the cluster's models "the only one" was.
        job.model().clone_into(&mut spec.model);
    }
    let aggregator = spec
        .policy
        .as_ref()
        .map(|p| p.aggregator())
        .unwrap_or_default();
    let expanded = expand::reader_of(aggregator, job).is_some();
    let mut page = Page::new(job, &spec, drafts);
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
            draft: draft.and_then(|draft| page.take(agent.spec.agent, draft)),
            ..agent.status()
        });
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
        next_draft: page.next,
        expanded,
    })
}

/// The drafts of a message as it is filled.
struct Page {
    from: Option<u32>,
    /// Bytes that are left.
    room: usize,
    any: bool,
    /// The first agent whose draft found no room; 0: none.
    next: u32,
}

impl Page {
    fn new(job: &Job, spec: &JobSpec, drafts: Option<Drafts>) -> Self {
        let agents = job.agents.iter().map(|a| a.status().encoded_len() + NEST);
        let answer = job.answer.as_ref().map_or(0, prost::Message::encoded_len);
        let rest = spec.encoded_len() + answer + job.message.len() + FRAME;
        let most = drafts.map_or(0, |drafts| drafts.most);
        Self {
            from: drafts.map(|drafts| drafts.from),
            room: most.saturating_sub(rest + agents.sum::<usize>()),
            any: false,
            next: 0,
        }
    }

    /// The draft, if it is asked for and there is room.
    fn take(&mut self, agent: u32, draft: Draft) -> Option<Draft> {
        let asked = self.from.is_some_and(|from| agent >= from);
        if !asked || self.next != 0 {
            return None;
        }
        let bytes = draft.encoded_len();
        if self.any && bytes > self.room {
            self.next = agent;
            return None;
        }
        self.any = true;
        self.room = self.room.saturating_sub(bytes);
        Some(draft)
    }
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

/// Workers that hold a lease, as `ListWorkers` returns them; one that drains, until nothing runs there: it leaves,
/// and its lease only has to run out.
pub fn workers(state: &State) -> Vec<WorkerStatus> {
    let shown = state.workers().map(|worker| worker_status(state, worker));
    shown.filter(|w| !w.draining || w.agents > 0).collect()
}

/// A person refused the job's answer: it is FAILED, and nothing went wrong.
pub fn was_rejected(job: &proto::Job) -> bool {
    job.state() == JobState::Failed && job.message.starts_with(crate::commands::review::REJECTED)
}

fn worker_status(state: &State, worker: &Worker) -> WorkerStatus {
    WorkerStatus {
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
        // Told by the leader, who hears it.
        refused_files: Vec::new(),
    }
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
    use conclave_proto::v1::{Budget, DrainWorker, command::Command as Body};

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
    fn a_shown_job_brings_what_fits_and_names_what_is_next() {
        let mut world = World::with_job(&choice(width(6)));
        world.go("j");
        for agent in 1..=5 {
            let draft = Draft {
                thought: "t".repeat(10_000),
                ..crate::testkit::draft("y", 1)
            };
            world.hand_in("j", agent, &draft);
        }
        let of = world.job("j");
        let all = job(of, &InlineOnly, Some(Drafts::ALL)).expect("all is inline");
        assert_eq!(all.next_draft, 0);
        let (most, mut from, mut pages) = (36_000, 0, Vec::new());
        loop {
            let drafts = Some(Drafts { from, most });
            let shown = job(of, &InlineOnly, drafts).expect("all is inline");
            assert!(shown.encoded_len() <= most, "{}", shown.encoded_len());
            assert_eq!(shown.usage, all.usage, "sums are of all");
            let with = shown.agents.iter().filter(|a| a.draft.is_some());
            let numbers: Vec<u32> = with.map(|a| a.agent).collect();
            pages.push(numbers);
            from = shown.next_draft;
            if from == 0 {
                break;
            }
        }
        assert_eq!(pages, [vec![1, 2, 3], vec![4, 5]]);
        let one = Some(Drafts { from: 2, most: 1 });
        let one = job(of, &InlineOnly, one).expect("all is inline");
        assert!(one.agents[1].draft.is_some(), "one goes at any rate");
        assert_eq!(one.next_draft, 3);
        let none = job(of, &InlineOnly, None).expect("all is inline");
        assert!(none.agents.iter().all(|a| a.draft.is_none()) && none.next_draft == 0);
    }

    #[test]
    fn a_worker_that_drains_is_listed_while_something_runs_there() {
        let mut world = World::with_job(&choice(width(1)));
        world.go("j");
        let listed = |world: &World| {
            let of = |w: &WorkerStatus| (w.worker_id.clone(), w.draining, w.agents);
            workers(&world.state).iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(listed(&world), [("w1".to_owned(), false, 1)]);
        world.apply(Body::DrainWorker(DrainWorker {
            worker_id: "w1".into(),
            incarnation: "i1".into(),
        }));
        assert_eq!(listed(&world), [("w1".to_owned(), true, 1)]);
        world.hand_in("j", 1, &crate::testkit::draft("y", 1));
        assert_eq!(listed(&world), []);
        assert!(world.state.worker("w1").is_some(), "its lease lasts");
    }

    #[test]
    fn a_worker_is_told_how_long_the_deadline_leaves_it() {
        assert_eq!(told(700, 0), 700);
        assert_eq!(told(700, 300), 400);
        assert_eq!(told(700, 900), 1, "what is late is not without a deadline");
        assert_eq!(told(0, 0), 0);
    }
}
