//! What only a leader does: decide, place, speak to workers, move time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use conclave_coordinator_core::{
    Effect, MissingBlob, Reply, State,
    contemplate::{self, Context},
    job::Job,
    payload, placement, view,
};
use conclave_proto::{
    INLINE_LIMIT,
    v1::{
        Ack, AttemptFinished, Cancel, CreateCluster, Decide, DrainWorker, ExpireJobs, PrepareDone,
        Prepared, RegisterWorker, RenewLeases, Resend, SetMemberAddress, Tick, Welcome,
        WorkerLease, attempt_finished, command::Command as Body,
        coordinator_message::Message as ToWorker, decide,
    },
};

use super::{
    Input,
    task::{Task, unix_ms},
    waiters::Waiter,
};
use crate::{
    dispatch::{Look, Outcome, SessionInput},
    metrics,
};

/// Period of replicated time while there is work.
const TIME: Duration = Duration::from_millis(500);
/// Period of looking for jobs that are too old.
const EXPIRE: Duration = Duration::from_secs(10);
/// How long a proposal of the leader's own may take before it is made anew.
const OWN: Duration = Duration::from_secs(5);
/// How long a job waits for a worker that serves its model, while others are here.
const MODEL: Duration = Duration::from_secs(3);
/// When another worker is asked after one could not look at a prompt.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Jobs forgotten with one command.
const EXPIRE_BATCH: usize = 256;
/// Period of a worker's heartbeats, milliseconds.
const WORKER_BEAT_MS: u64 = 1_000;

/// A term of leading.
pub struct Lead {
    /// The term.
    pub term: u64,
    serving: bool,
    paused: bool,
    effects: Vec<Effect>,
    /// Effects that wait for a payload.
    later: Vec<Effect>,
    decide: BTreeSet<String>,
    decide_later: BTreeSet<String>,
    deciding: BTreeSet<String>,
    place: bool,
    place_later: bool,
    placing: usize,
    renew: BTreeMap<String, String>,
    time: Instant,
    ticking: bool,
    expire: Instant,
    no_model: BTreeMap<String, Instant>,
}

impl Lead {
    /// A term that has just begun.
    pub fn new(term: u64, now: Instant) -> Self {
        Self {
            term,
            serving: false,
            paused: false,
            effects: Vec::new(),
            later: Vec::new(),
            decide: BTreeSet::new(),
            decide_later: BTreeSet::new(),
            deciding: BTreeSet::new(),
            place: false,
            place_later: false,
            placing: 0,
            renew: BTreeMap::new(),
            time: now,
            ticking: false,
            expire: now,
            no_model: BTreeMap::new(),
        }
    }

    /// An entry of this term was applied, and the clock did not stand still.
    pub fn serving(&self) -> bool {
        self.serving
    }

    /// Says nothing to workers until leadership is confirmed.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Leadership was confirmed.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Adds what applying asked for.
    pub fn effects(&mut self, effects: Vec<Effect>) {
        self.effects.extend(effects);
    }

    /// A payload arrived: what waited for one is tried again.
    pub fn look_again(&mut self, state: &State) {
        self.effects.append(&mut self.later);
        self.decide
            .extend(state.needs_decision().map(str::to_owned));
        self.place = true;
    }

    /// A decision was applied, or came too late: the job's change asks anew.
    pub fn decision_applied(&mut self, job_id: String) {
        self.deciding.remove(&job_id);
        self.decide.insert(job_id);
    }

    /// A decision was not taken: the next tick asks again.
    pub fn decision_failed(&mut self, job_id: String) {
        self.deciding.remove(&job_id);
        self.decide_later.insert(job_id);
    }

    /// A placement was applied.
    pub fn placement_applied(&mut self) {
        self.placing = self.placing.saturating_sub(1);
    }

    /// A placement was not taken: the next tick places again.
    pub fn placement_failed(&mut self) {
        self.placement_applied();
        self.place_later = true;
    }
}

impl Task {
    /// After an entry of its own term, a leader carries out all that the state
    /// says is outstanding (law 2).
    pub(super) fn begin_serving(&mut self) {
        let Some(lead) = self.lead.as_mut().filter(|lead| !lead.serving) else {
            return;
        };
        if self.state.applied_term() != lead.term {
            return;
        }
        lead.serving = true;
        lead.effects = self.state.outstanding();
        tracing::info!(
            term = lead.term,
            outstanding = lead.effects.len(),
            "leading"
        );
        let born = !self.state.cluster_id().is_empty();
        let workers = self.state.workers().next().is_some();
        if !born {
            self.create_cluster();
        }
        if workers {
            let tick = Tick {
                elapsed_ms: 0,
                unix_ms: unix_ms(),
                new_term: true,
            };
            self.own(Body::Tick(tick), Waiter::Nobody);
        }
    }

    /// The first leader gives the cluster its keys; should it die before they
    /// are committed, the next one does.
    fn create_cluster(&mut self) {
        let (mut signing_seed, mut salt_key) = ([0_u8; 32], [0_u8; 32]);
        let random =
            getrandom::fill(&mut signing_seed).and_then(|()| getrandom::fill(&mut salt_key));
        if let Err(error) = random {
            tracing::error!(%error, "no randomness for the cluster's keys");
            return;
        }
        let create = CreateCluster {
            cluster_id: self.identity.cluster_id().unwrap_or_default().to_owned(),
            signing_seed: signing_seed.to_vec(),
            salt_key: salt_key.to_vec(),
            unix_ms: unix_ms(),
        };
        self.own(Body::CreateCluster(create), Waiter::Nobody);
        self.note_addresses();
    }

    /// Writes down members that listen elsewhere than the state says.
    fn note_addresses(&mut self) {
        let conf = self.node.conf_state();
        for node_id in conf.voters.iter().chain(&conf.learners).copied() {
            let Some(address) = self.network.address(node_id) else {
                continue;
            };
            if self.state.members().get(&node_id) != Some(&address) {
                let set = SetMemberAddress {
                    node_id,
                    address,
                    removed: false,
                };
                self.own(Body::SetMemberAddress(set), Waiter::Nobody);
            }
        }
    }

    fn own(&mut self, body: Body, waiter: Waiter) {
        self.propose(body, waiter, Instant::now() + OWN);
    }

    /// Decides, places and speaks; true if anything was proposed.
    pub(super) fn lead_on(&mut self) -> bool {
        let ready = self
            .lead
            .as_ref()
            .is_some_and(|lead| lead.serving && !lead.paused);
        if !ready {
            return false;
        }
        let effects = self
            .lead
            .as_mut()
            .map(|l| std::mem::take(&mut l.effects))
            .unwrap_or_default();
        for effect in effects {
            self.act(effect);
        }
        let before = self.waiters.len();
        let jobs = self
            .lead
            .as_mut()
            .map(|l| std::mem::take(&mut l.decide))
            .unwrap_or_default();
        for job_id in jobs {
            self.decide(job_id);
        }
        self.place();
        self.waiters.len() > before
    }

    fn act(&mut self, effect: Effect) {
        let term = self.leadership.term;
        match effect {
            Effect::Prepare { job_id } => self.prepare(&job_id),
            Effect::Place => {
                if let Some(lead) = &mut self.lead {
                    lead.place = true;
                }
            }
            Effect::Start {
                worker_id,
                incarnation,
                key,
            } => match view::start(&self.state, &key, &self.blobs.local) {
                Ok(Some(start)) => {
                    self.feeds.of(&key.job_id).begin(key.agent, key.attempt);
                    let start = ToWorker::Start(start);
                    self.sessions.send(&worker_id, &incarnation, term, start);
                }
                Ok(None) => {}
                Err(missing) => {
                    self.wait_for(&missing);
                    let effect = Effect::Start {
                        worker_id,
                        incarnation,
                        key,
                    };
                    self.lead
                        .iter_mut()
                        .for_each(|l| l.later.push(effect.clone()));
                }
            },
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
                self.sessions.send(&worker_id, &incarnation, term, cancel);
            }
            Effect::Ack { worker_id, keys } => {
                self.sessions
                    .send_any(&worker_id, term, ToWorker::Ack(Ack { keys }));
            }
            Effect::JobChanged { job_id } => {
                self.feeds.changed(&job_id);
                if let Some(lead) = &mut self.lead {
                    lead.decide.insert(job_id);
                }
            }
            Effect::JobEnded { job_id } => self.job_ended(&job_id),
            Effect::FetchBlob { hash, .. } => self.fetch(vec![hash]),
        }
    }

    fn wait_for(&self, missing: &MissingBlob) {
        match missing {
            MissingBlob::Absent { hash } => {
                self.fetch(hash.as_slice().try_into().into_iter().collect());
            }
            MissingBlob::Broken { .. } => tracing::error!(%missing, "a payload does not decode"),
        }
    }

    fn job_ended(&mut self, job_id: &str) {
        self.feeds.ended(job_id);
        let Some(job) = self.state.job(job_id) else {
            return;
        };
        if let Ok(job) = view::job(job, &self.blobs.local, false) {
            crate::api::convert::count_ended(&job);
        }
    }

    /// Has a worker look at the job's prompt.
    fn prepare(&mut self, job_id: &str) {
        let Some(job) = self.state.job(job_id).filter(|job| job.needs_prepare()) else {
            return;
        };
        let prepare = match view::prepare(&self.state, job, &self.blobs.local) {
            Ok(prepare) => prepare,
            Err(missing) => return self.wait_for(&missing),
        };
        let model = prepare
            .spec
            .as_ref()
            .map(|s| s.model.clone())
            .unwrap_or_default();
        let (term, now) = (self.leadership.term, Instant::now());
        let message = || Some(ToWorker::Prepare(prepare));
        let look = self.sessions.look(job_id, &model, term, now, message);
        let Some(lead) = &mut self.lead else { return };
        let Look::NoModel(served) = look else {
            lead.no_model.remove(job_id);
            return;
        };
        let since = *lead.no_model.entry(job_id.to_owned()).or_insert(now);
        if now - since < MODEL {
            return;
        }
        lead.no_model.remove(job_id);
        let wanted = if model.is_empty() {
            "the job names no model and there are several".to_owned()
        } else {
            format!("no worker serves the model `{model}`")
        };
        let error = format!("{wanted}; served: {}", served.join(", "));
        let prepared = Prepared {
            job_id: job_id.to_owned(),
            error,
            ..Prepared::default()
        };
        let done = PrepareDone {
            prepared: Some(prepared),
        };
        self.own(Body::PrepareDone(done), Waiter::Nobody);
    }

    /// Asks what the job does next and proposes it; one decision at a time.
    fn decide(&mut self, job_id: String) {
        let Some(lead) = &mut self.lead else { return };
        let Some(job) = self.state.job(&job_id).filter(|job| job.needs_decision()) else {
            return;
        };
        if lead.deciding.contains(&job_id) {
            // Its end asks anew.
            return;
        }
        let now_unix_ms = self.state.unix_ms().max(unix_ms());
        let context = Context {
            payloads: &self.blobs.local,
            now_unix_ms,
        };
        match contemplate::next(job, &context) {
            Ok(None) => {}
            Ok(Some(decide)) => {
                lead.deciding.insert(job_id.clone());
                match large_context(&decide) {
                    None => self.own(Body::Decide(decide), Waiter::Decide(job_id)),
                    Some(bytes) => self.decide_large(job_id, decide, bytes),
                }
            }
            Err(missing) => self.wait_for(&missing),
        }
    }

    /// A round's shared context above the inline limit becomes a blob first.
    fn decide_large(&self, job_id: String, mut decide: Decide, bytes: Vec<u8>) {
        let (blobs, handle) = (self.blobs.clone(), self.handle.clone());
        self.runtime.spawn(async move {
            let decide = match blobs.payload(bytes, OWN).await {
                Ok(payload) => {
                    if let Some(decide::Next::StartRound(round)) = &mut decide.next {
                        round.context = Some(payload);
                    }
                    Some(decide)
                }
                Err(status) => {
                    tracing::warn!(job_id, %status, "a round's context was not stored");
                    None
                }
            };
            let _ = handle
                .send(Input::Decision { job_id, decide }, Instant::now() + OWN)
                .await;
        });
    }

    /// A decision's context is stored (or was not).
    pub(super) fn decided(&mut self, job_id: String, decide: Option<Decide>) {
        match decide {
            Some(decide) => self.own(Body::Decide(decide), Waiter::Decide(job_id)),
            None => self
                .lead
                .iter_mut()
                .for_each(|l| l.decision_failed(job_id.clone())),
        }
    }

    /// Places agents that wait. The next placement looks at the state after
    /// this one, so it waits until all of this one is applied.
    fn place(&mut self) {
        let Some(lead) = self.lead.as_mut().filter(|l| l.place && l.placing == 0) else {
            return;
        };
        lead.place = false;
        match placement::place(&self.state, &self.sessions.loads(), &self.blobs.local) {
            Ok(assigns) => {
                lead.placing = assigns.len();
                for assign in assigns {
                    self.own(Body::Assign(assign), Waiter::Place);
                }
            }
            Err(missing) => self.wait_for(&missing),
        }
    }

    /// The leader's share of a tick: time, leases, deadlines, expiry.
    pub(super) fn lead_tick(&mut self, now: Instant) {
        let Some(lead) = self.lead.as_mut().filter(|l| l.serving && !l.paused) else {
            return;
        };
        lead.decide.append(&mut lead.decide_later);
        lead.place |= std::mem::take(&mut lead.place_later);
        if self.state.next_deadline().is_some_and(|at| at <= unix_ms()) {
            lead.decide
                .extend(self.state.needs_decision().map(str::to_owned));
        }
        let unprepared: Vec<_> = self.state.unprepared().map(|job| job.id.clone()).collect();
        for job_id in unprepared {
            self.prepare(&job_id);
        }
        let state = &self.state;
        self.sessions
            .retain_looks(&|id| state.job(id).is_some_and(Job::needs_prepare));
        self.move_time(now);
        self.expire(now);
    }

    /// Replicated time moves while something depends on it (law 3).
    fn move_time(&mut self, now: Instant) {
        let Some(lead) = &mut self.lead else { return };
        if !self.state.needs_ticks() {
            lead.ticking = false;
            return;
        }
        let since = now - lead.time;
        if lead.ticking && since < TIME {
            return;
        }
        // After a pause time begins anew; and a tick is worth one period at most.
        let elapsed = if lead.ticking {
            since.min(TIME * 2)
        } else {
            Duration::ZERO
        };
        lead.ticking = true;
        lead.time = now;
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(0);
        let renew = std::mem::take(&mut lead.renew);
        if !renew.is_empty() {
            metrics::leases_renewed(renew.len());
            let lease = |(worker_id, incarnation)| WorkerLease {
                worker_id,
                incarnation,
            };
            let leases = renew.into_iter().map(lease).collect();
            self.own(Body::RenewLeases(RenewLeases { leases }), Waiter::Nobody);
        }
        let tick = Tick {
            elapsed_ms,
            unix_ms: unix_ms(),
            new_term: false,
        };
        self.own(Body::Tick(tick), Waiter::Nobody);
        self.count();
    }

    /// Forgets ended jobs that are too old, or too many bytes for one tenant;
    /// and writes down members that listen elsewhere now.
    fn expire(&mut self, now: Instant) {
        let Some(lead) = self.lead.as_mut().filter(|l| now - l.expire >= EXPIRE) else {
            return;
        };
        lead.expire = now;
        let retention = i64::try_from(self.config.retention_hours).unwrap_or(i64::MAX);
        let retention_ms = retention.saturating_mul(3_600_000);
        let mut job_ids = self.state.expirable(retention_ms, EXPIRE_BATCH);
        let over = too_many_bytes(&self.state, self.config.retention_bytes, EXPIRE_BATCH);
        job_ids.extend(over);
        job_ids.sort();
        job_ids.dedup();
        if !job_ids.is_empty() {
            self.own(Body::ExpireJobs(ExpireJobs { job_ids }), Waiter::Nobody);
        }
        self.note_addresses();
        self.count();
    }

    fn count(&self) {
        metrics::workers(self.state.workers().count(), self.sessions.len());
        crate::api::convert::count_live(&self.state);
    }

    /// Something of a worker's session. Without the lead there are none.
    pub(super) fn session(&mut self, input: SessionInput) {
        let serving = self.lead.as_ref().is_some_and(Lead::serving);
        match input {
            SessionInput::Opened {
                session,
                hello,
                outbox,
            } => {
                self.sessions.open(session, &hello, outbox);
                if !serving {
                    return self.dismiss_workers();
                }
                let finished = hello.finished.iter().filter_map(|r| r.key.clone());
                let register = RegisterWorker {
                    running: hello.running.iter().cloned().chain(finished).collect(),
                    worker_id: hello.worker_id,
                    incarnation: hello.incarnation,
                    models: hello.models,
                    max_sequences: hello.max_sequences,
                    kv_blocks: hello.kv_blocks,
                    version: hello.version,
                };
                self.own(Body::RegisterWorker(register), Waiter::Hello { session });
                if hello.draining {
                    self.draining(session);
                }
            }
            SessionInput::Closed { session } => self.sessions.close(session),
            _ if !serving => {}
            SessionInput::Prepared { session, prepared } => self.prepared(session, prepared),
            SessionInput::Finished {
                session,
                key,
                incarnation,
                outcome,
            } => {
                let Some(worker_id) = self.sessions.get(session).map(|s| s.worker_id.clone())
                else {
                    return;
                };
                let result = match outcome {
                    Outcome::Draft(draft) => attempt_finished::Result::Draft(draft),
                    Outcome::Error(error) => attempt_finished::Result::Error(error),
                };
                let finished = AttemptFinished {
                    key: Some(key.clone()),
                    incarnation,
                    result: Some(result),
                    unix_ms: unix_ms(),
                };
                self.own(
                    Body::AttemptFinished(finished),
                    Waiter::Result { worker_id, key },
                );
            }
            SessionInput::Alive {
                session,
                load,
                renew,
            } => self.alive(session, load, renew),
            SessionInput::Draining { session } => self.draining(session),
        }
    }

    fn draining(&mut self, session: u64) {
        let Some(session) = self.sessions.get(session) else {
            return;
        };
        let drain = DrainWorker {
            worker_id: session.worker_id.clone(),
            incarnation: session.incarnation.clone(),
        };
        self.own(Body::DrainWorker(drain), Waiter::Nobody);
    }

    fn prepared(&mut self, _session: u64, prepared: Prepared) {
        if prepared.retry {
            self.sessions
                .looked(&prepared.job_id, Some(Instant::now() + LOOK_AGAIN));
            return;
        }
        self.sessions.looked(&prepared.job_id, None);
        let done = PrepareDone {
            prepared: Some(prepared),
        };
        self.own(Body::PrepareDone(done), Waiter::Nobody);
    }

    fn alive(&mut self, session: u64, load: placement::Load, renew: bool) {
        let Some(known) = self.sessions.get_mut(session) else {
            return;
        };
        let freed = load.running + load.waiting < known.load.running + known.load.waiting;
        known.load = load;
        if !known.registered {
            return;
        }
        let (worker_id, incarnation) = (known.worker_id.clone(), known.incarnation.clone());
        let leased = self
            .state
            .worker(&worker_id)
            .is_some_and(|w| w.incarnation == incarnation);
        if !leased {
            // The lease ran out: the worker says hello again.
            return self.sessions.close(session);
        }
        let Some(lead) = &mut self.lead else { return };
        lead.place |= freed;
        if renew {
            lead.renew.insert(worker_id, incarnation);
        } else {
            metrics::lease_withheld();
        }
    }

    /// The worker is in the state: it may be spoken to.
    pub(super) fn welcome(&mut self, id: u64, reply: &Reply) {
        if *reply != Reply::Ok {
            tracing::warn!(?reply, "a worker was not registered");
            return self.sessions.close(id);
        }
        let term = self.leadership.term;
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.registered = true;
        tracing::info!(worker = session.worker_id, "worker registered");
        let running = std::mem::take(&mut session.running);
        let welcome = Welcome {
            heartbeat_ms: WORKER_BEAT_MS,
            lease_ttl_ms: conclave_coordinator_core::worker::LEASE_TTL_MS,
            leader: self.address.clone(),
            members: self.network.addresses().into_values().collect(),
        };
        self.sessions.send_to(id, term, ToWorker::Welcome(welcome));
        for key in running {
            // Text does not go through raft: a new leader asks for it.
            let resend = Resend {
                key: Some(key),
                offset: 0,
            };
            self.sessions.send_to(id, term, ToWorker::Resend(resend));
        }
        let unprepared: Vec<_> = self.state.unprepared().map(|job| job.id.clone()).collect();
        for job_id in unprepared {
            self.prepare(&job_id);
        }
    }
}

/// The bytes of a round's context if they are too long to travel in the log.
fn large_context(decide: &Decide) -> Option<Vec<u8>> {
    let Some(decide::Next::StartRound(round)) = &decide.next else {
        return None;
    };
    let context = round.context.as_ref()?;
    if payload::blob_ref(context).is_some() || payload::length(context) <= INLINE_LIMIT as u64 {
        return None;
    }
    payload::read(context, &payload::InlineOnly)
        .ok()
        .map(std::borrow::Cow::into_owned)
}

/// The oldest ended jobs of tenants that keep more than `limit` bytes.
fn too_many_bytes(state: &State, limit: u64, most: usize) -> Vec<String> {
    let size = |job: &Job| {
        let drafts = job.agents.iter().filter_map(|a| a.draft.as_ref());
        let contexts = job.rounds.iter().filter_map(|r| r.context.as_ref());
        drafts
            .chain(contexts)
            .chain([&job.spec])
            .map(payload::length)
            .sum::<u64>()
    };
    let mut kept: BTreeMap<&str, u64> = BTreeMap::new();
    let mut over = Vec::new();
    // Ids ascend with time: the newest are counted first.
    for job in state.all_jobs().rev().filter(|job| !job.is_active()) {
        let kept = kept.entry(&job.tenant).or_default();
        *kept += size(job);
        if *kept > limit {
            over.push(job.id.clone());
        }
    }
    over.reverse();
    over.truncate(most);
    over
}
