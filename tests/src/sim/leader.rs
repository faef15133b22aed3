//! What only a leader does: decide, place, speak to workers, move time.

use std::collections::{BTreeMap, BTreeSet};

use conclave_coordinator_core::{
    Effect,
    contemplate::{self, Context},
    payload::InlineOnly,
    placement, view,
};
use conclave_proto::v1::{
    Ack, Cancel, CreateCluster, ExpireJobs, RenewLeases, Tick, WorkerLease,
    command::Command as Body, coordinator_message::Message as ToWorker,
};

use super::{coordinator::Coordinator, cx::Cx, waiters::Waiter};

/// How long a proposal of the leader's own may take before it is made anew, ms.
const OWN_MS: u64 = 5_000;
/// How long a decision may be under way before it counts as lost, ms.
const DECIDE_MS: u64 = 20_000;
/// Period of replicated time while there is work, ms.
const TIME_MS: u64 = 500;
/// Period of looking for jobs that are too old, ms.
const EXPIRE_MS: u64 = 10_000;
/// Ended jobs are kept so long, ms.
pub(super) const RETENTION_MS: i64 = 45_000;

/// A term of leading.
pub(super) struct Lead {
    pub term: u64,
    pub serving: bool,
    pub paused: bool,
    pub effects: Vec<Effect>,
    pub place: bool,
    pub renew: BTreeMap<String, String>,
    decide: BTreeSet<String>,
    decide_later: BTreeSet<String>,
    deciding: BTreeMap<String, u64>,
    place_later: bool,
    placing: usize,
    time: u64,
    ticking: bool,
    expire: u64,
}

impl Lead {
    pub(super) fn new(term: u64, now: u64) -> Lead {
        Lead {
            term,
            serving: false,
            paused: false,
            effects: Vec::new(),
            place: false,
            renew: BTreeMap::new(),
            decide: BTreeSet::new(),
            decide_later: BTreeSet::new(),
            deciding: BTreeMap::new(),
            place_later: false,
            placing: 0,
            time: now,
            ticking: false,
            expire: now,
        }
    }

    pub(super) fn decision_applied(&mut self, job_id: String) {
        self.deciding.remove(&job_id);
        self.decide.insert(job_id);
    }

    pub(super) fn decision_failed(&mut self, job_id: String) {
        self.deciding.remove(&job_id);
        self.decide_later.insert(job_id);
    }

    pub(super) fn placement_applied(&mut self) {
        self.placing = self.placing.saturating_sub(1);
    }

    pub(super) fn placement_failed(&mut self) {
        self.placement_applied();
        self.place_later = true;
    }
}

impl Coordinator {
    /// Proposes for the leader itself.
    pub(super) fn own(&mut self, body: Body, waiter: Waiter, cx: &mut Cx) {
        self.propose(body, waiter, OWN_MS, cx);
    }

    /// A leader serves once an entry of its own term is applied: all that its state says is
    /// outstanding is carried out (law 2), and live leases get their full time (law 3).
    pub(super) fn begin_serving(&mut self, cx: &mut Cx) {
        let Some(lead) = self.lead.as_mut().filter(|lead| !lead.serving) else {
            return;
        };
        if self.state.applied_term() != lead.term {
            return;
        }
        lead.serving = true;
        lead.effects = self.state.outstanding();
        let (id, outstanding) = (self.id, lead.effects.len());
        cx.tell(|| format!("node {id}: serves, {outstanding} effects outstanding"));
        if self.state.cluster_id().is_empty() {
            let create = CreateCluster {
                cluster_id: "sim".into(),
                signing_seed: vec![1; 32],
                salt_key: vec![2; 32],
                unix_ms: self.unix_ms(cx),
            };
            self.own(Body::CreateCluster(create), Waiter::Nobody, cx);
        }
        if self.state.workers().next().is_some() {
            let tick = Tick {
                elapsed_ms: 0,
                unix_ms: self.unix_ms(cx),
                new_term: true,
            };
            self.own(Body::Tick(tick), Waiter::Nobody, cx);
        }
    }

    /// Carries out what applying asked for; true if something was proposed.
    pub(super) fn lead_on(&mut self, cx: &mut Cx) -> bool {
        let Some(lead) = self.lead.as_mut().filter(|l| l.serving && !l.paused) else {
            return false;
        };
        for effect in std::mem::take(&mut lead.effects) {
            self.act(effect, cx);
        }
        let before = self.waiters.len();
        let Some(lead) = &mut self.lead else {
            return false;
        };
        for job_id in std::mem::take(&mut lead.decide) {
            self.decide(job_id, cx);
        }
        self.place(cx);
        self.waiters.len() > before
    }

    fn act(&mut self, effect: Effect, cx: &mut Cx) {
        match effect {
            Effect::Prepare { job_id } => self.prepare(&job_id, cx),
            Effect::Place => {
                if let Some(lead) = &mut self.lead {
                    lead.place = true;
                }
            }
            Effect::Start {
                worker_id,
                incarnation,
                key,
            } => {
                let now = self.state.unix_ms().max(self.unix_ms(cx));
                if let Ok(Some(start)) = view::start(&self.state, &key, now, &InlineOnly) {
                    let start = ToWorker::Start(start);
                    self.speak_to(&worker_id, Some(&incarnation), start, cx);
                }
            }
            Effect::Cancel {
                worker_id,
                incarnation,
                key,
                reason,
            } => {
                let cancel = ToWorker::Cancel(Cancel {
                    key: Some(key),
                    reason,
                });
                self.speak_to(&worker_id, Some(&incarnation), cancel, cx);
            }
            Effect::Ack { worker_id, keys } => {
                self.speak_to(&worker_id, None, ToWorker::Ack(Ack { keys }), cx);
            }
            Effect::JobChanged { job_id } => {
                if let Some(lead) = &mut self.lead {
                    lead.decide.insert(job_id);
                }
            }
            Effect::JobEnded { .. } | Effect::FetchBlob { .. } => {}
        }
    }

    fn decide(&mut self, job_id: String, cx: &mut Cx) {
        let now = self.state.unix_ms().max(self.unix_ms(cx));
        let Some(lead) = &mut self.lead else { return };
        let Some(job) = self.state.job(&job_id).filter(|j| j.needs_decision()) else {
            return;
        };
        if lead.deciding.contains_key(&job_id) {
            return;
        }
        let context = Context {
            payloads: &InlineOnly,
            now_unix_ms: now,
        };
        if let Ok(Some(decide)) = contemplate::next(job, &context) {
            let term = lead.term;
            lead.deciding.insert(job_id.clone(), cx.now + DECIDE_MS);
            self.own(Body::Decide(decide), Waiter::Decide(term, job_id), cx);
        }
    }

    fn place(&mut self, cx: &mut Cx) {
        let Some(lead) = self.lead.as_mut().filter(|l| l.place && l.placing == 0) else {
            return;
        };
        lead.place = false;
        let term = lead.term;
        let placed = placement::place(&self.state, &self.sessions.loads(), &InlineOnly);
        lead.placing = placed.assigns.len();
        for assign in placed.assigns {
            self.own(Body::Assign(assign), Waiter::Place(term), cx);
        }
    }

    /// The leader's share of a tick: time, leases, deadlines, expiry.
    pub(super) fn lead_tick(&mut self, cx: &mut Cx) {
        let unix_ms = self.unix_ms(cx);
        let Some(lead) = self.lead.as_mut().filter(|l| l.serving && !l.paused) else {
            return;
        };
        let lost = lead.deciding.extract_if(.., |_, until| *until <= cx.now);
        lead.decide.extend(lost.map(|(job_id, _)| job_id));
        lead.decide.append(&mut lead.decide_later);
        lead.place |= std::mem::take(&mut lead.place_later);
        if self.state.next_deadline().is_some_and(|at| at <= unix_ms) {
            let due = self.state.needs_decision().map(str::to_owned);
            lead.decide.extend(due);
        }
        let unprepared: Vec<_> = self.state.unprepared().map(|j| j.id.clone()).collect();
        for job_id in unprepared {
            self.prepare(&job_id, cx);
        }
        let state = &self.state;
        let needed = |id: &str| state.job(id).is_some_and(|job| job.needs_prepare());
        self.sessions.retain_looks(needed);
        self.move_time(cx);
        self.expire(cx);
    }

    /// Replicated time moves while something depends on it (law 3).
    fn move_time(&mut self, cx: &mut Cx) {
        let unix_ms = self.unix_ms(cx);
        let Some(lead) = &mut self.lead else { return };
        let gone = self
            .state
            .workers()
            .any(|w| !self.sessions.connected(&w.worker_id, &w.incarnation));
        if !gone && !self.state.needs_ticks() {
            lead.ticking = false;
            return;
        }
        let since = cx.now - lead.time;
        if lead.ticking && since < TIME_MS {
            return;
        }
        let elapsed_ms = if lead.ticking {
            since.min(TIME_MS * 2)
        } else {
            0
        };
        lead.ticking = true;
        lead.time = cx.now;
        let renew = std::mem::take(&mut lead.renew);
        if !renew.is_empty() {
            let lease = |(worker_id, incarnation)| WorkerLease {
                worker_id,
                incarnation,
            };
            let leases: Vec<_> = renew.into_iter().map(lease).collect();
            self.own(
                Body::RenewLeases(RenewLeases { leases }),
                Waiter::Nobody,
                cx,
            );
        }
        let tick = Tick {
            elapsed_ms,
            unix_ms,
            new_term: false,
        };
        self.own(Body::Tick(tick), Waiter::Nobody, cx);
    }

    /// Forgets ended jobs that are too old.
    fn expire(&mut self, cx: &mut Cx) {
        let Some(lead) = self
            .lead
            .as_mut()
            .filter(|l| cx.now - l.expire >= EXPIRE_MS)
        else {
            return;
        };
        lead.expire = cx.now;
        let job_ids = self.state.expirable(RETENTION_MS, 256);
        if !job_ids.is_empty() {
            self.own(Body::ExpireJobs(ExpireJobs { job_ids }), Waiter::Nobody, cx);
        }
    }
}
