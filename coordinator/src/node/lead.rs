//! The leader's hands: what [`Leader`] says is to be done is done here. What it
//! decides, and when, stands in the core.

use std::time::{Duration, Instant};

use conclave_coordinator_core::{
    lead::{Act, Leader, Moment, PROPOSAL_MS, Settings},
    quota::Quotas,
};
use conclave_proto::v1::{
    CreateCluster, Decide, SetLogVersion, SetMemberAddress, command::Command as Body,
    coordinator_message::Message as ToWorker, decide,
};

use super::{
    Input,
    task::{Task, unix_ms},
    waiters::{Waiter, Wanted},
};
use crate::{config::Config, metrics};

/// How long a proposal of the leader's own may take before it counts as lost.
const OWN: Duration = Duration::from_millis(PROPOSAL_MS);
/// Period of counting workers and jobs, for metrics.
const COUNT: Duration = Duration::from_millis(500);

/// A leader's view of this node now. A macro, since it borrows some of the
/// task's fields beside the leader itself.
macro_rules! moment {
    ($task:expr) => {
        Moment {
            state: &$task.state,
            payloads: &$task.blobs.local,
            now_ms: $task.now_ms(),
            unix_ms: unix_ms(),
        }
    };
}
pub(super) use moment;

/// What the configuration says to a leader.
fn settings(config: &Config, quotas: &Quotas) -> Settings {
    let hours = i64::try_from(config.retention_hours).unwrap_or(i64::MAX);
    Settings {
        election_ms: config.election_ms,
        retention_ms: hours.saturating_mul(3_600_000),
        retention_bytes: config.retention_bytes,
        inline_limit: conclave_proto::INLINE_LIMIT,
        quotas: quotas.clone(),
    }
}

impl Task {
    /// A term of leading begins.
    pub(super) fn lead(&mut self, term: u64) {
        let born = !self.state.cluster_id().is_empty();
        let founding = if born { None } else { self.founding() };
        let settings = settings(&self.config, &self.quotas);
        let leader = Leader::new(term, settings, founding, self.now_ms());
        self.leader = Some(leader);
        self.begin_serving();
    }

    /// The first leader gives the cluster its keys; should it die before they
    /// are committed, the next one does.
    fn founding(&self) -> Option<CreateCluster> {
        let (mut signing_seed, mut salt_key) = ([0_u8; 32], [0_u8; 32]);
        let random =
            getrandom::fill(&mut signing_seed).and_then(|()| getrandom::fill(&mut salt_key));
        if let Err(error) = random {
            tracing::error!(%error, "no randomness for the cluster's keys");
            return None;
        }
        Some(CreateCluster {
            cluster_id: self.identity.cluster_id().unwrap_or_default().to_owned(),
            signing_seed: signing_seed.to_vec(),
            salt_key: salt_key.to_vec(),
            unix_ms: 0,
        })
    }

    /// After an entry of its own term, a leader serves.
    pub(super) fn begin_serving(&mut self) {
        let moment = moment!(self);
        let Some(leader) = &mut self.leader else {
            return;
        };
        if let Some(outstanding) = leader.begin_serving(&moment) {
            tracing::info!(term = leader.term(), outstanding, "leading");
            if let Some(traces) = &mut self.traces {
                traces.begin(&self.state);
            }
            if !self.state.cluster_id().is_empty() {
                // A cluster that was begun anew knows no addresses yet.
                self.note_members();
            }
        }
    }

    /// The leader's share of a tick.
    pub(super) fn lead_tick(&mut self, now: Instant) {
        self.begin_serving();
        let moment = moment!(self);
        let Some(leader) = &mut self.leader else {
            return;
        };
        leader.tick(&moment);
        if now - self.counted_at >= COUNT {
            self.counted_at = now;
            let leases = self.state.workers().count();
            metrics::workers(&self.label, leases, self.sessions.len());
            crate::api::convert::count_live(&self.label, &self.state);
            self.count_tenants();
        }
    }

    /// Carries out what the leader says; true if raft has something to do now.
    pub(super) fn lead_on(&mut self) -> bool {
        let mut proposed = false;
        loop {
            self.look_at_clock();
            let moment = moment!(self);
            let acts = match &mut self.leader {
                Some(leader) => leader.acts(&moment),
                None => Vec::new(),
            };
            if acts.is_empty() {
                return proposed;
            }
            for act in acts {
                proposed |= matches!(
                    act,
                    Act::Propose { .. } | Act::NoteMembers | Act::Confirm { .. }
                );
                self.act(act);
            }
        }
    }

    fn act(&mut self, act: Act) {
        let term = self.leadership.term;
        match act {
            Act::Propose { body, purpose } => {
                if let Body::RenewLeases(renew) = &body {
                    metrics::leases_renewed(renew.leases.len());
                }
                let founds = matches!(body, Body::CreateCluster(_));
                let waiter = Waiter::Leader { term, purpose };
                self.propose(body, waiter, Instant::now() + OWN);
                if founds {
                    self.begin_with_newest_version();
                }
            }
            Act::Send { session, message } => self.send_in(session, message),
            Act::Welcome { session } => self.welcome(session),
            Act::Close { session } => self.sessions.close(session),
            Act::Fetch { hash } => self.fetch(vec![hash]),
            Act::Broken { hash } => {
                tracing::error!(hash = hex::encode(hash), "a payload does not decode");
            }
            Act::StoreContext {
                job_id,
                decide,
                bytes,
            } => self.store_context(job_id, *decide, bytes),
            Act::AttemptBegins { key } => self.attempt_begins(&key),
            Act::JobChanged { job_id } => self.job_changed(&job_id),
            Act::JobEnded { job_id } => self.job_ended(&job_id),
            Act::NoteMembers => self.note_members(),
            Act::AskClocks => self.ask_clocks(),
            Act::Confirm { pause } => self.reads.insist(Wanted::Leader { term, pause }),
        }
    }

    /// All of a new cluster is of this program: nobody needs to go back behind
    /// it. Should it be lost, `cluster upgrade` does the same.
    fn begin_with_newest_version(&mut self) {
        let log_version = self.config.max_log_version;
        if log_version > self.state.log_version() {
            let body = Body::SetLogVersion(SetLogVersion { log_version });
            self.propose(body, Waiter::Nobody, Instant::now() + OWN);
        }
    }

    /// Sends on a session; the leader forgets one that does not read.
    pub(super) fn send_in(&mut self, session: u64, message: ToWorker) {
        let sent = self.sessions.send(session, self.leadership.term, message);
        if !sent && let Some(leader) = &mut self.leader {
            leader.closed(session);
        }
    }

    /// A round's shared context above the inline limit becomes a blob first.
    fn store_context(&self, job_id: String, mut decide: Decide, bytes: Vec<u8>) {
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
                    tracing::warn!(job = job_id, %status, "a round's context was not stored");
                    None
                }
            };
            let stored = Input::ContextStored {
                term,
                job_id,
                decide,
            };
            // Unheard, the decision counts as lost after a while.
            let _ = handle.send(stored, Instant::now() + OWN).await;
        });
    }

    /// Writes down members that listen elsewhere than the state says.
    fn note_members(&mut self) {
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
                let body = Body::SetMemberAddress(set);
                self.propose(body, Waiter::Nobody, Instant::now() + OWN);
            }
        }
    }

    /// This term of leading, if it still lasts: an earlier one's proposals may
    /// come to an end later.
    pub(super) fn leader_of(&mut self, term: u64) -> Option<&mut Leader> {
        self.leader.as_mut().filter(|leader| leader.term() == term)
    }

    /// Monotonic time of this process, milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
