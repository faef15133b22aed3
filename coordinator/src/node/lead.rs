//! What only a leader does: decide, place, speak to workers, move time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use conclave_coordinator_core::{
    Effect, MissingBlob, State,
    contemplate::{self, Context},
    payload, placement, view,
};
use conclave_proto::{
    INLINE_LIMIT,
    v1::{
        Ack, Cancel, Decide, Tick, command::Command as Body,
        coordinator_message::Message as ToWorker, decide,
    },
};

use super::{
    Input,
    task::{Task, unix_ms},
    waiters::Waiter,
};
use crate::metrics;

/// How long a proposal of the leader's own may take before it is made anew.
const OWN: Duration = Duration::from_secs(5);
/// How long a decision may be under way, its payload included, before it
/// counts as lost.
const DECIDE: Duration = Duration::from_secs(20);

/// A term of leading.
pub struct Lead {
    /// The term.
    pub term: u64,
    /// When it began.
    pub(super) begun: Instant,
    pub(super) serving: bool,
    pub(super) paused: bool,
    effects: Vec<Effect>,
    /// Effects that wait for a payload.
    later: Vec<Effect>,
    pub(super) decide: BTreeSet<String>,
    pub(super) decide_later: BTreeSet<String>,
    /// Decisions under way, and when they count as lost.
    deciding: BTreeMap<String, Instant>,
    pub(super) place: bool,
    pub(super) place_later: bool,
    placing: usize,
    pub(super) renew: BTreeMap<String, String>,
    pub(super) time: Instant,
    pub(super) ticking: bool,
    pub(super) expire: Instant,
    /// Jobs whose model no worker here serves: the model, and since when.
    pub(super) no_model: BTreeMap<String, (String, Instant)>,
}

impl Lead {
    /// A term that has just begun.
    pub fn new(term: u64, now: Instant) -> Self {
        Self {
            term,
            begun: now,
            serving: false,
            paused: false,
            effects: Vec::new(),
            later: Vec::new(),
            decide: BTreeSet::new(),
            decide_later: BTreeSet::new(),
            deciding: BTreeMap::new(),
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

    /// Decisions that nothing was heard of are made anew.
    pub fn forget_lost(&mut self, now: Instant) {
        let lost = self.deciding.extract_if(.., |_, until| *until <= now);
        self.decide_later.extend(lost.map(|(job_id, _)| job_id));
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

    pub(super) fn own(&mut self, body: Body, waiter: Waiter) {
        self.propose(body, waiter, Instant::now() + OWN);
    }

    /// Decides, places and speaks; true if anything was proposed.
    pub(super) fn lead_on(&mut self) -> bool {
        self.look_at_clock();
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
            } => match view::start(&self.state, &key, self.now_unix_ms(), &self.blobs.local) {
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

    pub(super) fn wait_for(&self, missing: &MissingBlob) {
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
        if contemplate::expand::would_expand(job) {
            metrics::would_expand();
        }
        if let Ok(job) = view::job(job, &self.blobs.local, false) {
            crate::api::convert::count_ended(&job);
        }
    }

    /// Asks what the job does next and proposes it; one decision at a time.
    fn decide(&mut self, job_id: String) {
        let Some(lead) = &mut self.lead else { return };
        let Some(job) = self.state.job(&job_id).filter(|job| job.needs_decision()) else {
            return;
        };
        if lead.deciding.contains_key(&job_id) {
            // Its end asks anew.
            return;
        }
        let context = Context {
            payloads: &self.blobs.local,
            now_unix_ms: self.state.unix_ms().max(unix_ms()),
        };
        match contemplate::next(job, &context) {
            Ok(None) => {}
            Ok(Some(decide)) => {
                let term = lead.term;
                lead.deciding
                    .insert(job_id.clone(), Instant::now() + DECIDE);
                match large_context(&decide) {
                    None => self.own(Body::Decide(decide), Waiter::Decide { term, job_id }),
                    Some(bytes) => self.decide_large(job_id, decide, bytes),
                }
            }
            Err(missing) => self.wait_for(&missing),
        }
    }

    /// A round's shared context above the inline limit becomes a blob first.
    fn decide_large(&self, job_id: String, mut decide: Decide, bytes: Vec<u8>) {
        let (blobs, handle) = (self.blobs.clone(), self.handle.clone());
        let term = self.leadership.term;
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
                .send(
                    Input::Decision {
                        term,
                        job_id,
                        decide,
                    },
                    Instant::now() + OWN,
                )
                .await;
        });
    }

    /// A decision's context is stored (or was not).
    pub(super) fn decided(&mut self, term: u64, job_id: String, decide: Option<Decide>) {
        let Some(lead) = self.lead.as_mut().filter(|lead| lead.term == term) else {
            return;
        };
        match decide {
            Some(decide) => self.own(Body::Decide(decide), Waiter::Decide { term, job_id }),
            None => lead.decision_failed(job_id),
        }
    }

    /// The leader's clock, never behind the replicated one.
    fn now_unix_ms(&self) -> i64 {
        self.state.unix_ms().max(unix_ms())
    }

    /// Places agents that wait. The next placement looks at the state after
    /// this one, so it waits until all of this one is applied.
    fn place(&mut self) {
        let Some(lead) = self.lead.as_mut().filter(|l| l.place && l.placing == 0) else {
            return;
        };
        lead.place = false;
        let term = lead.term;
        let placed = placement::place(&self.state, &self.sessions.loads(), &self.blobs.local);
        lead.placing = placed.assigns.len();
        for assign in placed.assigns {
            self.own(Body::Assign(assign), Waiter::Place { term });
        }
        // A job that waits for its payload holds up no other.
        for missing in &placed.missing {
            self.wait_for(missing);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_that_nothing_is_heard_of_is_made_anew() {
        let now = Instant::now();
        let mut lead = Lead::new(1, now);
        lead.deciding.insert("lost".to_owned(), now + DECIDE);
        lead.deciding.insert("young".to_owned(), now + DECIDE * 2);
        lead.forget_lost(now);
        assert!(lead.decide_later.is_empty());
        lead.forget_lost(now + DECIDE);
        assert_eq!(lead.decide_later.first().map(String::as_str), Some("lost"));
        assert_eq!(lead.deciding.len(), 1);
    }
}
