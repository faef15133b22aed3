//! What only a leader does: decide, place, speak to workers, renew leases, move time, forget.
//!
//! A [`Leader`] is one term of leading. The shell tells it what happens (entries applied, time
//! passed, words of workers, what became of its proposals), then carries out the [`Act`]s that
//! [`Leader::acts`] returns, in their order. Time comes in as data: `now_ms` of any monotonic
//! clock of this process, and Unix milliseconds of the wall clock.
//!
//! Every word of a leader leaves through [`Leader::acts`]; so that is where law 5 stands: a leader
//! that stood still keeps its acts back until its leadership is confirmed.

mod act;
mod clock;
mod decisions;
mod looks;
mod quotas;
mod retention;
mod roster;
mod time;
mod wall;
mod workers;

use std::collections::{BTreeMap, VecDeque};

use conclave_proto::v1::{
    Ack, AttemptKey, Cancel, CreateCluster, Tick, command::Command as Body,
    coordinator_message::Message as ToWorker,
};

pub use act::{Act, Purpose};
pub use wall::{LEAP_MS, reached};
pub use workers::Sign;

use crate::{
    effect::{Effect, Reply},
    payload::{MissingBlob, Payloads},
    quota::{Gate, Quotas},
    state::State,
    view,
};
use clock::Clock;
use decisions::{Decisions, Placements};
use looks::NoModel;
use roster::Roster;
use wall::Wall;

/// How long a proposal of the leader's own may take before it counts as lost, ms.
pub const PROPOSAL_MS: u64 = 5_000;
/// Period of a worker's heartbeats, ms.
pub const WORKER_BEAT_MS: u64 = 1_000;

/// What a leader is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A gap in the clock longer than this may have seen another leader, ms: the shortest
    /// election timeout.
    pub election_ms: u64,
    /// How long an ended job is kept, ms.
    pub retention_ms: i64,
    /// Bytes of ended jobs kept for one tenant; the oldest go first.
    pub retention_bytes: u64,
    /// Longest context of a round that travels inside the log, bytes.
    pub inline_limit: usize,
    /// What tenants may have; [`Leader::set_quotas`] changes it.
    pub quotas: Quotas,
}

/// What a leader looks at while it thinks.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// The replicated state.
    pub state: &'a State,
    /// Blobs of this replica.
    pub payloads: &'a dyn Payloads,
    /// Monotonic time of this process, ms.
    pub now_ms: u64,
    /// The wall clock, Unix ms.
    pub unix_ms: i64,
}

impl Moment<'_> {
    /// The wall clock, never behind the replicated one.
    fn wall_ms(&self) -> i64 {
        self.state.unix_ms().max(self.unix_ms)
    }
}

/// One term of leading.
#[derive(Debug)]
pub struct Leader {
    term: u64,
    settings: Settings,
    begun_ms: u64,
    serving: bool,
    clock: Clock,
    wall: Wall,
    /// What the cluster begins with, and whether it is still to be said.
    founding: Option<CreateCluster>,
    owes_founding: bool,
    /// Live leases are owed a full time to live (law 3).
    owes_leases: bool,
    effects: VecDeque<Effect>,
    /// Effects that wait for a payload.
    later: Vec<Effect>,
    decisions: Decisions,
    placements: Placements,
    roster: Roster,
    /// Turns submissions away, and says how many agents may run.
    gate: Gate,
    /// Results that were accepted and are to be paid for.
    accepted: Vec<AttemptKey>,
    /// Leases to renew, by worker: of this incarnation.
    renew: BTreeMap<String, String>,
    /// Replicated time: when it last moved, and whether it does.
    moved_ms: u64,
    moving: bool,
    /// Ticks that were proposed.
    ticks: u64,
    /// What the last tick brought, Unix ms.
    moved_unix_ms: i64,
    expired_ms: u64,
    /// Jobs whose model no worker here serves.
    no_model: BTreeMap<String, NoModel>,
    /// Every unprepared job is looked at, every draining worker.
    look_round: bool,
    acts: Vec<Act>,
}

impl Leader {
    /// A term that has just begun. `founding` is what the cluster begins with, in case that it
    /// has not begun: should this leader die before it is committed, the next one's counts.
    pub fn new(
        term: u64,
        settings: Settings,
        founding: Option<CreateCluster>,
        now_ms: u64,
    ) -> Leader {
        Leader {
            term,
            gate: Gate::new(settings.quotas.clone()),
            accepted: Vec::new(),
            settings,
            begun_ms: now_ms,
            serving: false,
            clock: Clock::new(now_ms),
            wall: Wall::default(),
            owes_founding: founding.is_some(),
            founding,
            owes_leases: true,
            effects: VecDeque::new(),
            later: Vec::new(),
            decisions: Decisions::default(),
            placements: Placements::default(),
            roster: Roster::default(),
            renew: BTreeMap::new(),
            moved_ms: now_ms,
            moving: false,
            ticks: 0,
            moved_unix_ms: 0,
            expired_ms: now_ms,
            no_model: BTreeMap::new(),
            look_round: false,
            acts: Vec::new(),
        }
    }

    /// The term that it leads.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// An entry of its term was applied: it may take sessions.
    pub fn serving(&self) -> bool {
        self.serving
    }

    /// It serves, and its clock did not stand still: what it says leaves at once.
    pub fn speaks(&self) -> bool {
        self.serving && !self.clock.stood_still()
    }

    /// After an entry of its own term was applied, a leader carries out all that the state says is
    /// outstanding (law 2). Returns how many effects that are; `None` if it is too early, or done.
    /// Call it with every tick, too: a leader that doubts its clock hears of the others' first.
    pub fn begin_serving(&mut self, moment: &Moment<'_>) -> Option<usize> {
        if self.serving || moment.state.applied_term() != self.term {
            return None;
        }
        let moment = &self.believed(moment);
        if self.awaits_clocks(moment.now_ms) {
            return None;
        }
        self.serving = true;
        self.effects = moment.state.outstanding().into();
        self.pay_debts(moment);
        Some(self.effects.len())
    }

    /// Adds what applying an entry asked for. Before it serves there is nothing to add: the state
    /// says it all.
    pub fn effects(&mut self, effects: Vec<Effect>) {
        if self.serving {
            self.effects.extend(effects);
        }
    }

    /// A payload arrived: what waited for one is tried again.
    pub fn blob_arrived(&mut self, state: &State) {
        self.effects.extend(self.later.drain(..));
        self.decisions
            .ask(state.needs_decision().map(str::to_owned));
        self.placements.ask();
        self.look_round = true;
    }

    /// A proposal of this term was applied.
    pub fn applied(&mut self, purpose: Purpose, reply: &Reply) {
        match purpose {
            Purpose::Found | Purpose::FullLeases | Purpose::Nothing => {}
            // Its end asks anew, whatever became of it.
            Purpose::Decide { job_id } => self.decisions.applied(job_id),
            Purpose::Place if *reply == Reply::Ok => self.placements.ended(),
            // What placement saw holds no more, and no effect may tell: the agent still waits.
            Purpose::Place => self.placements.failed(),
            Purpose::Tick { number } => self.placements.passed(number),
            Purpose::Register { session } => self.registered(session, reply),
            Purpose::Result { worker_id, key } => {
                if *reply == Reply::Ok {
                    self.accepted.push(key);
                } else {
                    // Nobody wants it any more: the worker may forget it.
                    let keys = vec![key];
                    self.effects.push_back(Effect::Ack { worker_id, keys });
                }
            }
        }
    }

    /// A proposal of this term was not taken, or nothing was heard of it in time: what matters is
    /// made anew with the next tick.
    pub fn failed(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Found => self.owes_founding = true,
            Purpose::FullLeases => self.owes_leases = true,
            Purpose::Decide { job_id } => self.decisions.failed(job_id),
            Purpose::Place => self.placements.lost(),
            // The worker says hello again.
            Purpose::Register { session } => self.close(session),
            // The worker keeps its result and sends it again; the rest is asked of the state with
            // every tick.
            Purpose::Result { .. } | Purpose::Tick { .. } | Purpose::Nothing => {}
        }
    }

    /// What is to be done now, in this order. A leader that does not serve yet, or stood still,
    /// says nothing but that it asks to be confirmed (law 5), or for the others' clocks (law 3); what
    /// it had to say is kept.
    pub fn acts(&mut self, moment: &Moment<'_>) -> Vec<Act> {
        self.look_at_clock(moment.now_ms);
        let moment = &self.believed(moment);
        if let Some(ask) = self.ask_clocks(moment) {
            return vec![ask];
        }
        if let Some(pause) = self.clock.question() {
            return vec![Act::Confirm { pause }];
        }
        if !self.speaks() {
            return Vec::new();
        }
        while let Some(effect) = self.effects.pop_front() {
            self.carry_out(effect, moment);
        }
        if std::mem::take(&mut self.look_round) {
            self.drain_workers(moment);
            self.prepare_all(moment);
        }
        self.charge(moment);
        self.decide(moment);
        self.place(moment);
        std::mem::take(&mut self.acts)
    }

    fn carry_out(&mut self, effect: Effect, moment: &Moment<'_>) {
        match effect {
            Effect::Prepare { job_id } => self.prepare(&job_id, moment),
            Effect::Place => self.placements.ask(),
            Effect::Start {
                worker_id,
                incarnation,
                key,
            } => {
                let start = view::start(moment.state, &key, moment.wall_ms(), moment.payloads);
                match start {
                    Ok(Some(start)) => {
                        self.acts.push(Act::AttemptBegins { key });
                        self.send(&worker_id, Some(&incarnation), ToWorker::Start(start));
                    }
                    Ok(None) => {}
                    Err(missing) => {
                        self.wait_for(missing);
                        self.later.push(Effect::Start {
                            worker_id,
                            incarnation,
                            key,
                        });
                    }
                }
            }
            Effect::Cancel {
                worker_id,
                incarnation,
                key,
                reason,
            } => {
                let key = Some(key);
                let cancel = ToWorker::Cancel(Cancel { key, reason });
                self.send(&worker_id, Some(&incarnation), cancel);
            }
            Effect::Ack { worker_id, keys } => {
                self.send(&worker_id, None, ToWorker::Ack(Ack { keys }));
            }
            Effect::JobChanged { job_id } => {
                self.decisions.ask([job_id.clone()]);
                self.acts.push(Act::JobChanged { job_id });
            }
            Effect::JobEnded { job_id } => self.acts.push(Act::JobEnded { job_id }),
            Effect::FetchBlob { hash, .. } => self.acts.push(Act::Fetch { hash }),
        }
    }

    /// Proposes what a new leader owes: a cluster's keys, if it has none, and a full time to live
    /// for leases that it could not renew.
    fn pay_debts(&mut self, moment: &Moment<'_>) {
        if std::mem::take(&mut self.owes_founding)
            && moment.state.cluster_id().is_empty()
            && let Some(founding) = &self.founding
        {
            let create = CreateCluster {
                unix_ms: moment.unix_ms,
                ..founding.clone()
            };
            self.propose(Body::CreateCluster(create), Purpose::Found);
            self.acts.push(Act::NoteMembers);
        }
        if std::mem::take(&mut self.owes_leases) && moment.state.workers().next().is_some() {
            let tick = Tick {
                elapsed_ms: 0,
                unix_ms: moment.unix_ms,
                new_term: true,
            };
            self.propose(Body::Tick(tick), Purpose::FullLeases);
        }
    }

    fn propose(&mut self, body: Body, purpose: Purpose) {
        self.acts.push(Act::Propose { body, purpose });
    }

    fn wait_for(&mut self, missing: MissingBlob) {
        self.acts.push(match missing {
            MissingBlob::Absent { hash } => match hash.try_into() {
                Ok(hash) => Act::Fetch { hash },
                Err(hash) => Act::Broken { hash },
            },
            MissingBlob::Broken { hash } => Act::Broken { hash },
        });
    }
}

#[cfg(test)]
mod tests;
