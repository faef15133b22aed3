//! The leader's hands: what the core's [`Leader`] says is to be done is done here.

use std::collections::BTreeMap;

use conclave_coordinator_core::{
    lead::{Act, Leader, Moment, PROPOSAL_MS, Settings},
    quota::{Limits, Quotas},
};
use conclave_proto::v1::{
    CreateCluster, SetMemberAddress, Welcome, command::Command as Body,
    coordinator_message::Message as ToWorker,
};

use super::{
    blobs::Purpose,
    coordinator::{Coordinator, ELECTION_MS},
    cx::{Cx, Event},
    waiters::{Waiter, Wanted},
};

/// Ended jobs are kept so long, ms.
pub(super) const RETENTION_MS: i64 = 45_000;
/// So many bytes of ended jobs are kept for a tenant.
const RETENTION_BYTES: u64 = 1 << 30;

impl Coordinator {
    /// What the leader sees now.
    pub(super) fn moment(&self, cx: &Cx) -> Moment<'_> {
        Moment {
            state: &self.state,
            payloads: &self.disk.blobs,
            now_ms: cx.now,
            unix_ms: self.unix_ms(cx),
        }
    }

    /// Runs the leader, if there is one, on what it sees now.
    pub(super) fn with_leader<T>(
        &mut self,
        cx: &Cx,
        run: impl FnOnce(&mut Leader, &Moment<'_>) -> T,
    ) -> Option<T> {
        let mut leader = self.leader.take()?;
        let done = run(&mut leader, &self.moment(cx));
        self.leader = Some(leader);
        Some(done)
    }

    /// A term of leading begins.
    pub(super) fn lead(&mut self, term: u64, cx: &mut Cx) {
        let limits = Limits {
            running_agents: cx.running_agents,
            ..Limits::default()
        };
        let settings = Settings {
            election_ms: ELECTION_MS,
            retention_ms: RETENTION_MS,
            retention_bytes: RETENTION_BYTES,
            inline_limit: cx.inline_limit,
            quotas: Quotas::new(limits, BTreeMap::new()),
        };
        let founding = CreateCluster {
            cluster_id: "sim".into(),
            signing_seed: vec![1; 32],
            salt_key: vec![2; 32],
            unix_ms: 0,
        };
        self.leader = Some(Leader::new(term, settings, Some(founding), cx.now));
        self.begin_serving(cx);
    }

    /// After an entry of its own term, a leader serves.
    pub(super) fn begin_serving(&mut self, cx: &mut Cx) {
        let begun = self.with_leader(cx, |leader, moment| leader.begin_serving(moment));
        if let Some(outstanding) = begun.flatten() {
            let id = self.id;
            cx.tell(|| format!("coordinator {id}: serves, {outstanding} effects outstanding"));
        }
    }

    /// The leader's share of a tick.
    pub(super) fn lead_tick(&mut self, cx: &mut Cx) {
        self.begin_serving(cx);
        self.with_leader(cx, |leader, moment| leader.tick(moment));
    }

    /// Was this process standing still? Then the leader asks to be confirmed (law 5).
    pub(super) fn look_at_clock(&mut self, cx: &mut Cx) {
        let gap = self.leader.as_mut().and_then(|l| l.look_at_clock(cx.now));
        if gap.is_some() {
            cx.coverage
                .hit("deeds", "a leader that stood still asks first");
        }
    }

    /// Carries out what the leader says; true if raft has something to do now.
    pub(super) fn lead_on(&mut self, cx: &mut Cx) -> bool {
        let mut proposed = false;
        loop {
            let acts = self.with_leader(cx, |leader, moment| leader.acts(moment));
            let acts = acts.unwrap_or_default();
            if acts.is_empty() {
                return proposed;
            }
            for act in acts {
                proposed |= matches!(act, Act::Propose { .. } | Act::Confirm { .. });
                self.act(act, cx);
            }
        }
    }

    fn act(&mut self, act: Act, cx: &mut Cx) {
        let term = self.leadership.term;
        match act {
            Act::Propose { body, purpose } => {
                if let Body::Tick(tick) = &body
                    && tick.new_term
                {
                    cx.coverage.hit("deeds", "leases get a full time to live");
                }
                self.look_at_leases(&body, cx);
                let waiter = Waiter::Leader(term, purpose);
                self.propose(body, waiter, PROPOSAL_MS, cx);
            }
            Act::Send { session, message } => {
                match &message {
                    ToWorker::Ack(ack) => cx.ledger.acked(&self.state, &ack.keys),
                    ToWorker::Start(start) => {
                        let key = start.key.clone().unwrap_or_default();
                        cx.ledger.starts(&self.state, &key);
                    }
                    _ => {}
                }
                self.send_in(session, message, cx);
            }
            Act::Welcome { session } => {
                self.send_in(session, ToWorker::Welcome(Welcome::default()), cx);
            }
            Act::Close { session } => self.close_session(session, cx),
            Act::Confirm { pause } => self.reads.insist(Wanted::Leader(term, pause)),
            Act::Fetch { hash } => self.fetch([hash], cx),
            Act::Broken { hash } => {
                let what = format!(
                    "coordinator {}: payload {hash:02x?} does not decode",
                    self.id
                );
                cx.ledger.hold("what was written can be read", Err(what));
            }
            Act::StoreContext {
                job_id,
                decide,
                bytes,
            } => self.with_payload(bytes, Purpose::Context(term, job_id, decide), cx),
            Act::AttemptBegins { key } => self.attempt_begins(&key, cx),
            Act::JobChanged { job_id } => self.ring(&job_id, cx),
            Act::JobEnded { job_id } => self.job_ended(&job_id, cx),
            Act::NoteMembers => self.note_members(cx),
            Act::AskClocks => self.ask_clocks(cx),
        }
    }

    /// Lets the world know of leases that a tick will end.
    fn look_at_leases(&self, body: &Body, cx: &mut Cx) {
        let Body::Tick(tick) = body else { return };
        let clock = self.state.lease_clock_ms() + tick.elapsed_ms;
        let workers = self.state.workers().filter(|_| !tick.new_term);
        for worker in workers.filter(|w| w.expires_ms <= clock && !w.draining) {
            if let Some(Ok(number)) = worker.worker_id.strip_prefix('w').map(str::parse) {
                cx.after(0, Event::LeaseEnds(number));
            }
        }
    }

    /// Proposes where members listen, if the state does not say so.
    fn note_members(&mut self, cx: &mut Cx) {
        let conf = self.node.conf_state();
        for node_id in conf.voters.into_iter().chain(conf.learners) {
            let address = format!("node-{node_id}");
            if self.state.members().get(&node_id) != Some(&address) {
                let set = SetMemberAddress {
                    node_id,
                    address,
                    removed: false,
                };
                let body = Body::SetMemberAddress(set);
                self.propose(body, Waiter::Nobody, PROPOSAL_MS, cx);
            }
        }
    }

    /// This term of leading, if it still lasts.
    pub(super) fn leader_of(&mut self, term: u64) -> Option<&mut Leader> {
        self.leader.as_mut().filter(|leader| leader.term() == term)
    }
}
