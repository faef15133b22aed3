//! A leader in a box, for tests: a state, and what a shell would propose.

pub(crate) mod history;
pub(crate) mod old_log;

use std::collections::BTreeMap;

use conclave_proto::v1::{
    AgentState, AnswerKind, AttemptError, AttemptFinished, AttemptKey, Choices, Command,
    ContemplationPolicy, CreateCluster, Decide, Draft, ErrorKind, JobSpec, JobState, Message, Mode,
    ModelInfo, PrepareDone, Prepared, RegisterWorker, StopReason, SubmitJobCommand, Tick, Usage,
    answer_kind::Kind, attempt_finished::Result as Outcome, command::Command as Body,
};
use prost::Message as _;

use crate::{
    Applied, Effect, Reply, State, codec,
    contemplate::{self, Context},
    job::Job,
    payload::{self, InlineOnly},
    placement::{self, Load},
    quota::Quotas,
    spec::{self, Defaults},
};

pub(crate) struct World {
    pub state: State,
    /// Everything applied, for replay.
    pub log: Vec<(u64, Command)>,
    pub now: i64,
}

/// A question with a policy, eight agents and a chair by default.
pub(crate) fn question(policy: ContemplationPolicy) -> JobSpec {
    JobSpec {
        mode: Mode::Contemplating as i32,
        messages: vec![Message {
            role: "user".into(),
            content: "What is 6 x 7?".into(),
        }],
        policy: Some(policy),
        ..JobSpec::default()
    }
}

/// The same with two choices: majority votes.
pub(crate) fn choice(policy: ContemplationPolicy) -> JobSpec {
    let options = vec!["yes".into(), "no".into()];
    let kind = Some(Kind::Choices(Choices { options }));
    JobSpec {
        answer: Some(AnswerKind { kind }),
        ..question(policy)
    }
}

pub(crate) fn width(width: u32) -> ContemplationPolicy {
    ContemplationPolicy {
        width: Some(width),
        ..ContemplationPolicy::default()
    }
}

/// A valid draft; its canonical form is its answer.
pub(crate) fn draft(answer: &str, confidence_micro: i64) -> Draft {
    Draft {
        thought: "So 6 x 7 = 42.".into(),
        answer: answer.into(),
        canonical: answer.into(),
        valid: true,
        confidence_micro,
        usage: Some(Usage {
            prompt_tokens: 20,
            cached_tokens: 16,
            thought_tokens: 10,
            answer_tokens: 5,
        }),
        stop: StopReason::End as i32,
        ..Draft::default()
    }
}

impl World {
    /// A cluster without workers.
    pub(crate) fn new() -> World {
        let mut world = World {
            state: State::new(),
            log: Vec::new(),
            now: 1_000,
        };
        world.apply(Body::CreateCluster(CreateCluster {
            cluster_id: "c".into(),
            signing_seed: vec![1; 32],
            salt_key: vec![2; 32],
            unix_ms: 1_000,
        }));
        world
    }

    /// A cluster with one worker that runs 8 sequences, and a prepared job `j`.
    pub(crate) fn with_job(spec: &JobSpec) -> World {
        let mut world = World::new();
        world.register("w1", "i1", 8);
        world.submit("j", spec);
        world.prepare("j");
        world
    }

    pub(crate) fn apply(&mut self, body: Body) -> Applied {
        let index = self.state.applied_index() + 1;
        let command = codec::command(body);
        self.log.push((index, command.clone()));
        self.state.apply(index, 1, &command)
    }

    pub(crate) fn submit(&mut self, id: &str, spec: &JobSpec) -> Applied {
        self.submit_as("t", id, spec)
    }

    pub(crate) fn submit_as(&mut self, tenant: &str, id: &str, spec: &JobSpec) -> Applied {
        let effective = spec::effective(spec, &Defaults::new(9)).expect("a good spec");
        let deadline_ms = effective.budget.map_or(0, |b| b.deadline_ms) as i64;
        self.apply(Body::SubmitJob(SubmitJobCommand {
            job_id: id.into(),
            tenant: tenant.into(),
            idempotency_key: format!("key-{id}"),
            request_digest: vec![1],
            spec: Some(payload::inline(effective.encode_to_vec())),
            unix_ms: self.now,
            deadline_unix_ms: if deadline_ms == 0 {
                0
            } else {
                self.now + deadline_ms
            },
        }))
    }

    pub(crate) fn prepare(&mut self, id: &str) -> Applied {
        self.apply(Body::PrepareDone(PrepareDone {
            prepared: Some(Prepared {
                job_id: id.into(),
                prompt_tokens: 20,
                model: "m".into(),
                numeric_class: "a".into(),
                context_tokens: 4096,
                ..Prepared::default()
            }),
        }))
    }

    pub(crate) fn register(&mut self, worker: &str, incarnation: &str, slots: u32) -> Applied {
        self.register_as(worker, incarnation, slots, "a")
    }

    pub(crate) fn register_as(
        &mut self,
        worker: &str,
        incarnation: &str,
        slots: u32,
        class: &str,
    ) -> Applied {
        self.apply(Body::RegisterWorker(RegisterWorker {
            worker_id: worker.into(),
            incarnation: incarnation.into(),
            models: vec![ModelInfo {
                name: "m".into(),
                numeric_class: class.into(),
                context_tokens: 4096,
                ..ModelInfo::default()
            }],
            max_sequences: slots,
            kv_blocks: 4096,
            ..RegisterWorker::default()
        }))
    }

    pub(crate) fn job(&self, id: &str) -> &Job {
        self.state.job(id).expect("the job exists")
    }

    /// What the leader would propose for the job now.
    pub(crate) fn next(&self, id: &str) -> Option<Decide> {
        let cx = Context {
            payloads: &InlineOnly,
            now_unix_ms: self.now,
        };
        contemplate::next(self.job(id), &cx).expect("all is inline")
    }

    /// Lets the leader decide on the job until it waits.
    pub(crate) fn decide(&mut self, id: &str) {
        while let Some(decide) = self.next(id) {
            let applied = self.apply(Body::Decide(decide));
            assert_eq!(applied.reply, Reply::Ok, "a fresh decision is taken");
        }
    }

    /// Places what waits, on every live worker.
    pub(crate) fn place(&mut self) {
        let loads: BTreeMap<String, Load> = self
            .state
            .workers()
            .map(|w| (w.worker_id.clone(), Load::default()))
            .collect();
        for assign in placement::place(&self.state, &loads, &Quotas::default(), &InlineOnly).assigns
        {
            let applied = self.apply(Body::Assign(assign));
            assert_eq!(applied.reply, Reply::Ok, "a fresh assignment is taken");
        }
    }

    /// Decides and places.
    pub(crate) fn go(&mut self, id: &str) {
        self.decide(id);
        self.place();
    }

    pub(crate) fn key(&self, id: &str, agent: u32) -> AttemptKey {
        self.job(id).agent(agent).expect("the agent exists").key(id)
    }

    fn result(&mut self, id: &str, agent: u32, result: Outcome) -> Applied {
        let placed = self
            .job(id)
            .agent(agent)
            .expect("the agent exists")
            .placement
            .clone();
        self.apply(Body::AttemptFinished(AttemptFinished {
            key: Some(self.key(id, agent)),
            incarnation: placed.map_or_else(String::new, |p| p.incarnation),
            result: Some(result),
            unix_ms: self.now,
        }))
    }

    /// The agent's current attempt hands this in.
    pub(crate) fn hand_in(&mut self, id: &str, agent: u32, draft: &Draft) -> Applied {
        self.result(
            id,
            agent,
            Outcome::Draft(payload::inline(draft.encode_to_vec())),
        )
    }

    /// The agent's current attempt fails.
    pub(crate) fn fail(&mut self, id: &str, agent: u32, kind: ErrorKind) -> Applied {
        let error = AttemptError {
            kind: kind as i32,
            message: "broke".into(),
        };
        self.result(id, agent, Outcome::Error(error))
    }

    /// Every running agent of the job hands in the same answer.
    pub(crate) fn all_answer(&mut self, id: &str, answer: &str) {
        for agent in self.agents(id, AgentState::Running) {
            self.hand_in(id, agent, &draft(answer, 1_000_000));
        }
    }

    pub(crate) fn tick(&mut self, elapsed_ms: u64) -> Applied {
        self.now += elapsed_ms as i64;
        let unix_ms = self.now;
        self.apply(Body::Tick(Tick {
            elapsed_ms,
            unix_ms,
            new_term: false,
        }))
    }

    /// Numbers of the job's agents in this state.
    pub(crate) fn agents(&self, id: &str, state: AgentState) -> Vec<u32> {
        let job = self.job(id);
        job.agents
            .iter()
            .filter(|a| a.state == state)
            .map(|a| a.spec.agent)
            .collect()
    }

    pub(crate) fn is_in(&self, id: &str, state: JobState) -> bool {
        self.job(id).state == state
    }
}

/// The effects that cancel attempts, as agent numbers.
pub(crate) fn cancels(effects: &[Effect]) -> Vec<u32> {
    let cancel = |e: &Effect| match e {
        Effect::Cancel { key, .. } => Some(key.agent),
        _ => None,
    };
    effects.iter().filter_map(cancel).collect()
}
