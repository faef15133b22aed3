//! A client: submits one job with its key, waits, is told nothing, asks again; may cancel; looks until
//! the job has ended.

use conclave_coordinator_core::{
    Reply, job, payload,
    spec::{self, Defaults},
};
use conclave_proto::v1::{
    Aggregator, AnswerKind, Budget, CancelJobCommand, Choices, ContemplationPolicy, Distill,
    EarlyAgreement, Expand, JobSpec, JobState, Message, Mode, OnUnreachable, ReviewJobCommand,
    SubmitJobCommand, Verdict, answer_kind::Kind, command::Command as Body,
};
use prost::Message as _;

use super::{
    attempts::{HOPELESS, INVALID, POISON},
    cx::{Addr, Ask, Cx, Event, Told, Wire},
    rng::Rng,
    words,
};

/// A call without an answer is given up after this, ms: its outcome is unknown.
const PATIENCE_MS: u64 = 3_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Cancels a job that there is not: its id was mistyped.
    Stray,
    Submit,
    Cancel,
    Look,
    Review,
    Over,
}

/// One client and its job.
pub(super) struct Client {
    number: u32,
    key: String,
    digest: Vec<u8>,
    spec: JobSpec,
    cancels: bool,
    phase: Phase,
    job_id: String,
    leader: u64,
    /// The call under way, when it is given up, and the least a read must show.
    call: Option<(u64, u64, usize)>,
    /// A submission was sent, and what became of it was not told.
    unknown: bool,
    /// It was told that the job is cancelled or reviewed.
    ended: bool,
    /// It, or somebody with it, will watch the job.
    watches: bool,
}

/// One of three words.
fn choices() -> AnswerKind {
    let options = ["yes", "no", "perhaps"].map(str::to_owned).to_vec();
    AnswerKind {
        kind: Some(Kind::Choices(Choices { options })),
    }
}

/// For drafts short enough that two of them in full fit into the memory of the smallest worker. Drawn from nothing,
/// so that the rest stays as it is.
fn expanding(seed: u64, free_text: bool) -> Option<Expand> {
    seed.is_multiple_of(2).then_some(Expand {
        margin: (!free_text).then_some(1.0),
        confidence_below: free_text.then_some(1.0),
    })
}

/// A question; numbers choose its policy.
fn question(rng: &mut Rng) -> JobSpec {
    let exact = rng.below(3) > 0;
    let width = rng.between(1, 4) as u32;
    let kind = match rng.below(20) {
        0 => POISON,
        1 => INVALID,
        2 => HOPELESS,
        _ => "question",
    };
    let rounds = rng.below(2) as u32;
    let mut policy = ContemplationPolicy {
        width: Some(width),
        refine_rounds: Some(rounds),
        workspace_tokens: Some(16),
        exact,
        review: rng.below(10) == 0,
        ..ContemplationPolicy::default()
    };
    if rng.below(4) == 0 {
        policy.set_distill(Distill::Agent);
    }
    if rng.below(3) == 0 {
        policy.set_on_unreachable(OnUnreachable::Fail);
    }
    policy.set_aggregator(match rng.below(4) {
        0 => Aggregator::Majority,
        1 => Aggregator::ConfidenceWeighted,
        2 => Aggregator::BestOf,
        _ => Aggregator::Synthesis,
    });
    let mut deadline_ms = 0;
    if !exact {
        policy.quorum = Some(rng.between(1, u64::from(width)) as u32);
        policy.early_agreement = (width > 1).then_some(EarlyAgreement { drafts: 2 });
        if rng.below(4) == 0 {
            deadline_ms = rng.between(500, 20_000);
        }
    }
    let mut mode = Mode::Contemplating;
    let mut thought = rng.between(0, 24) as u32;
    if width == 1 && rounds == 0 {
        // One agent alone: that may be asked for in other words, too.
        mode = [Mode::Contemplating, Mode::Thinking, Mode::Instant][rng.below(3) as usize];
        thought *= u32::from(mode != Mode::Instant);
        policy.set_aggregator(Aggregator::Majority);
        policy.set_distill(Distill::Unspecified);
    }
    let answer = (rng.below(2) == 0).then(choices);
    let seed = rng.next();
    if width == 2 && thought <= 12 {
        policy.expand = expanding(seed, answer.is_none());
    }
    JobSpec {
        mode: mode as i32,
        messages: vec![Message {
            role: "user".into(),
            content: format!("{kind} {:x}", rng.next()).repeat(rng.between(1, 4) as usize),
        }],
        policy: Some(policy),
        budget: Some(Budget {
            thought_tokens: Some(thought),
            answer_tokens: Some(rng.between(2, 12) as u32),
            deadline_ms,
            ..Budget::default()
        }),
        answer,
        seed: Some(seed),
        ..JobSpec::default()
    }
}

impl Client {
    /// Client `number` with a question of its own, or with the key of the one before it: then the same
    /// submission, or (rarely) another one under that key.
    pub(super) fn new(number: u32, before: Option<&Client>, rng: &mut Rng) -> Client {
        let twin = before.filter(|_| rng.below(5) == 0);
        let conflicting = rng.below(4) == 0;
        let asked = question(rng);
        let effective = spec::effective(&asked, &Defaults::new(1)).expect("a good spec");
        let (key, spec, digest) = match twin {
            Some(twin) if conflicting => (twin.key.clone(), effective, vec![1]),
            Some(twin) => (twin.key.clone(), twin.spec.clone(), twin.digest.clone()),
            None => (format!("key-{number}"), effective, vec![0]),
        };
        Client {
            number,
            key,
            digest,
            spec,
            cancels: rng.below(6) == 0,
            // Drawn from nothing, so that the rest stays as it is.
            phase: if number % 8 == 5 {
                Phase::Stray
            } else {
                Phase::Submit
            },
            job_id: String::new(),
            leader: 0,
            call: None,
            unknown: false,
            ended: false,
            watches: rng.below(2) == 0,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// The job that somebody begins to watch now, once.
    pub(super) fn begins_to_watch(&mut self) -> Option<String> {
        let begins = self.watches && !self.job_id.is_empty();
        self.watches &= !begins;
        begins.then(|| self.job_id.clone())
    }

    /// How it stands, for people.
    pub(super) fn describe(&self) -> String {
        let does = match self.phase {
            Phase::Stray => "cancels a job that is not there",
            Phase::Submit => "submits",
            Phase::Cancel => "cancels",
            Phase::Look => "waits for the end of",
            Phase::Review => "reviews",
            Phase::Over => "is done with",
        };
        format!("client {} {does} {} {}", self.number, self.key, self.job_id)
    }

    fn ask(&self) -> Ask {
        match self.phase {
            Phase::Submit => Ask::Propose(Body::SubmitJob(SubmitJobCommand {
                job_id: String::new(),
                tenant: "t".into(),
                idempotency_key: self.key.clone(),
                request_digest: self.digest.clone(),
                spec: Some(payload::inline(self.spec.encode_to_vec())),
                unix_ms: 0,
                deadline_unix_ms: self.spec.budget.map_or(0, |b| b.deadline_ms) as i64,
            })),
            Phase::Stray => Ask::Propose(Body::CancelJob(CancelJobCommand {
                job_id: format!("mistyped-{}", self.number),
                ..CancelJobCommand::default()
            })),
            Phase::Cancel => Ask::Propose(Body::CancelJob(CancelJobCommand {
                job_id: self.job_id.clone(),
                ..CancelJobCommand::default()
            })),
            Phase::Review => Ask::Propose(Body::ReviewJob(ReviewJobCommand {
                job_id: self.job_id.clone(),
                verdict: match self.number % 4 {
                    0 => Verdict::Edit,
                    1 => Verdict::Reject,
                    _ => Verdict::Approve,
                } as i32,
                text: "edited".into(),
                ..ReviewJobCommand::default()
            })),
            Phase::Look | Phase::Over => Ask::Get(self.job_id.clone()),
        }
    }

    /// Time passed: asks, or asks again.
    pub(super) fn wake(&mut self, nodes: &[u64], cx: &mut Cx) {
        if self.is_over() || self.call.is_some_and(|(_, until, _)| cx.now < until) {
            return;
        }
        if self.call.take().is_some() {
            cx.fault("client timed out");
            self.unknown |= self.phase == Phase::Submit;
            self.leader = 0;
        }
        let known = nodes.contains(&self.leader).then_some(self.leader);
        // Whoever looks asks anyone, now and then.
        let known = known.filter(|_| self.phase != Phase::Look || cx.rng.below(3) > 0);
        if let Some(node) = known.or_else(|| cx.rng.pick(nodes)) {
            let number = cx.number();
            let floor = cx.ledger.floor(&self.job_id);
            self.call = Some((number, cx.now + PATIENCE_MS, floor));
            let ask = Box::new(self.ask());
            cx.send(
                Addr::Client(self.number),
                Addr::Node(node),
                Wire::Call(number, ask),
            );
        }
        cx.after(PATIENCE_MS, Event::Client(self.number));
    }

    /// An answer came.
    pub(super) fn told(&mut self, from: u64, number: u64, told: Told, cx: &mut Cx) {
        let Some((_, _, floor)) = self.call.take_if(|(n, ..)| *n == number) else {
            return;
        };
        let mut pause = cx.rng.between(50, 400);
        self.leader = from;
        match told {
            Told::NotLeader(hint) => self.leader = hint,
            Told::Busy => {}
            Told::Unknown => self.unknown |= self.phase == Phase::Submit,
            Told::Applied(reply) => self.applied(reply, cx),
            Told::Job(None) => {
                cx.ledger.missing(&self.job_id);
                self.phase = Phase::Over;
            }
            Told::Job(Some((state, events))) => {
                let ended = job::is_final(state);
                cx.ledger
                    .read(&self.job_id, floor, events, self.ended, ended);
                self.phase = match state {
                    state if job::is_final(state) => Phase::Over,
                    JobState::AwaitingReview => Phase::Review,
                    _ => Phase::Look,
                };
                pause += 500;
            }
        }
        cx.after(pause, Event::Client(self.number));
    }

    fn applied(&mut self, reply: Reply, cx: &mut Cx) {
        self.phase = match (self.phase, reply) {
            (Phase::Submit, Reply::Submitted { job_id, existing }) => {
                cx.ledger.acknowledged(&self.key, &job_id);
                cx.coverage.hit("modes", words::mode(self.spec.mode()));
                match (self.unknown, existing) {
                    (true, true) => cx.coverage.hit("deeds", "a retry found its job"),
                    (true, false) => cx.coverage.hit("deeds", "a retry made its job"),
                    (false, true) => cx.coverage.hit("deeds", "a known key gave its job"),
                    (false, false) => {}
                }
                self.job_id = job_id;
                if self.cancels {
                    Phase::Cancel
                } else {
                    Phase::Look
                }
            }
            (Phase::Submit, Reply::Conflict { .. }) => {
                cx.coverage
                    .hit("deeds", "a known key refused another request");
                Phase::Over
            }
            (Phase::Submit | Phase::Stray, _) => Phase::Submit,
            (_, reply) => {
                self.ended |= reply == Reply::Ok;
                Phase::Look
            }
        };
    }
}
