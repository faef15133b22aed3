//! What a job answers where nothing fails: one state, no network, no engine, every agent's tokens by
//! the mock's own rule.

use std::collections::BTreeMap;

use conclave_coordinator_core::{
    State, codec,
    contemplate::{self, Context},
    payload::{self, InlineOnly},
    placement::{self, Load},
    quota::Quotas,
    view,
};
use conclave_proto::v1::{
    AttemptFinished, AttemptKey, JobSpec, JobState, ModelInfo, PrepareDone, Prepared,
    RegisterWorker, Start, SubmitJobCommand, attempt_finished, command::Command as Body,
};
use conclave_worker_core::SeqId;
use prost::Message as _;

use super::{mind, worker::CONTEXT};

const JOB: &str = "oracle";

/// The answer of an effective spec.
///
/// # Errors
/// The job does not come to an answer.
pub(super) fn answer(spec: &JobSpec) -> Result<String, String> {
    let state = ended(spec)?;
    let job = state.job(JOB).ok_or("the job was refused")?;
    let text = job.answer.as_ref().map(|a| a.text.clone());
    text.ok_or_else(|| format!("no answer: {}", job.message))
}

/// The state once the job of an effective spec has ended, or waits for its reviewer.
fn ended(spec: &JobSpec) -> Result<State, String> {
    let mut state = State::new();
    begin(&mut state, spec);
    for _ in 0..10_000 {
        let job = state.job(JOB).ok_or("the job was refused")?;
        if job.is_final() || job.state == JobState::AwaitingReview {
            return Ok(state);
        }
        let context = Context {
            payloads: &InlineOnly,
            now_unix_ms: 0,
        };
        let next = contemplate::next(job, &context).map_err(|e| e.to_string())?;
        if let Some(decide) = next {
            apply(&mut state, Body::Decide(decide));
            continue;
        }
        let loads = BTreeMap::from([("w".to_owned(), Load::default())]);
        for assign in placement::place(&state, &loads, &Quotas::default(), &InlineOnly).assigns {
            let key = AttemptKey {
                job_id: JOB.into(),
                agent: assign.agent,
                attempt: assign.attempt,
            };
            apply(&mut state, Body::Assign(assign));
            hand_in(&mut state, key)?;
        }
    }
    Err("the faultless run does not end".into())
}

/// A job that has ended, for the tests of laws: exact, and sealed.
#[cfg(test)]
pub(super) fn job() -> conclave_coordinator_core::job::Job {
    let state = ended(&question(2)).expect("it ends");
    state.job(JOB).cloned().expect("it is there")
}

/// A state in which so many agents of one job run, and the job's id.
#[cfg(test)]
pub(super) fn running(agents: u32) -> (State, String) {
    let mut state = State::new();
    begin(&mut state, &question(agents));
    let context = Context {
        payloads: &InlineOnly,
        now_unix_ms: 0,
    };
    let job = state.job(JOB).expect("it is there");
    let next = contemplate::next(job, &context).expect("all is inline");
    apply(&mut state, Body::Decide(next.expect("a first round")));
    let loads = BTreeMap::from([("w".to_owned(), Load::default())]);
    for assign in placement::place(&state, &loads, &Quotas::default(), &InlineOnly).assigns {
        apply(&mut state, Body::Assign(assign));
    }
    (state, JOB.to_owned())
}

/// An effective spec of so many proposers.
#[cfg(test)]
fn question(width: u32) -> JobSpec {
    use conclave_coordinator_core::spec::{self, Defaults};
    use conclave_proto::v1::{ContemplationPolicy, Message, Mode};
    let asked = JobSpec {
        mode: Mode::Contemplating as i32,
        messages: vec![Message {
            role: "user".into(),
            content: "question".into(),
        }],
        policy: Some(ContemplationPolicy {
            width: Some(width),
            refine_rounds: Some(0),
            exact: true,
            ..ContemplationPolicy::default()
        }),
        seed: Some(7),
        ..JobSpec::default()
    };
    spec::effective(&asked, &Defaults::new(1)).expect("a good spec")
}

fn apply(state: &mut State, body: Body) {
    state.apply(state.applied_index() + 1, 1, &codec::command(body));
}

fn begin(state: &mut State, spec: &JobSpec) {
    let model = ModelInfo {
        name: "mock".into(),
        digest: vec![7; 32],
        numeric_class: "mock".into(),
        context_tokens: CONTEXT,
    };
    let register = RegisterWorker {
        worker_id: "w".into(),
        incarnation: "i".into(),
        models: vec![model],
        max_sequences: 64,
        ..RegisterWorker::default()
    };
    apply(state, Body::RegisterWorker(register));
    let submit = SubmitJobCommand {
        job_id: JOB.into(),
        idempotency_key: JOB.into(),
        spec: Some(payload::inline(spec.encode_to_vec())),
        ..SubmitJobCommand::default()
    };
    apply(state, Body::SubmitJob(submit));
    let start = Start {
        messages: spec.messages.clone(),
        ..Start::default()
    };
    let prepared = Prepared {
        job_id: JOB.into(),
        prompt_tokens: mind::prompt(&start).len() as u32,
        model_digest: vec![7; 32],
        numeric_class: "mock".into(),
        model: "mock".into(),
        context_tokens: CONTEXT,
        ..Prepared::default()
    };
    let done = PrepareDone {
        prepared: Some(prepared),
    };
    apply(state, Body::PrepareDone(done));
}

fn hand_in(state: &mut State, key: AttemptKey) -> Result<(), String> {
    let start = view::start(state, &key, 0, &InlineOnly).map_err(|e| e.to_string())?;
    let start = start.ok_or("an attempt that was placed does not start")?;
    let plan = mind::plan(&start, SeqId(1));
    let prompt = &plan.request.tokens;
    let ids = plan.script.expected(prompt, plan.request.max_tokens);
    let draft = mind::draft(&start, prompt.len(), &ids, 0, false);
    let finished = AttemptFinished {
        key: Some(key),
        incarnation: "i".into(),
        result: Some(attempt_finished::Result::Draft(payload::inline(
            draft.encode_to_vec(),
        ))),
        unix_ms: 0,
    };
    apply(state, Body::AttemptFinished(finished));
    Ok(())
}
