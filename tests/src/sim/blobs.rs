//! Payloads by hash on a coordinator (law 9): fsynced on a majority before their hash is proposed,
//! fetched from whoever has them where they are missing, dropped when nothing names them. In the order
//! of the shell's `transport/blobs.rs` and `node/upkeep.rs`.

use std::collections::{BTreeMap, BTreeSet};

use conclave_coordinator_core::payload::{self, Payloads};
use conclave_proto::v1::{
    AttemptResult, Decide, Payload, SubmitJobCommand, command::Command as Body, decide::Next,
};

use super::{
    coordinator::Coordinator,
    cx::{Addr, Cx, Event, Input, Told, Wire},
    disk::Full,
    waiters::Waiter,
};

/// blake3 of a payload.
pub(super) type Hash = [u8; 32];

/// How long a payload may take to reach a majority, ms.
const SPREAD_MS: u64 = 5_000;
/// When the next member is asked for a payload that the last one did not give, ms.
const ASK_AGAIN_MS: u64 = 600;
/// Age below which an unnamed payload may be on its way into the log, ms.
const YOUNG_MS: u64 = 30_000;

/// Payloads of one folder, and when each was put there last.
#[derive(Debug, Default)]
pub(super) struct Blobs(BTreeMap<Hash, (Vec<u8>, u64)>);

impl Payloads for Blobs {
    fn blob(&self, hash: &[u8]) -> Option<Vec<u8>> {
        let hash: Hash = hash.try_into().ok()?;
        self.0.get(&hash).map(|(bytes, _)| bytes.clone())
    }
}

impl Blobs {
    pub(super) fn has(&self, hash: &Hash) -> bool {
        self.0.contains_key(hash)
    }

    /// Makes one young; false if it is not here.
    fn renew(&mut self, hash: &Hash, now: u64) -> bool {
        let found = self.0.get_mut(hash);
        found.map(|(_, at)| *at = now).is_some()
    }

    /// Durable from here on; one that is known is young again.
    pub(super) fn put(&mut self, hash: Hash, bytes: Vec<u8>, now: u64) {
        self.0.insert(hash, (bytes, now));
    }

    /// Drops what is neither named nor young; returns it.
    fn retain(&mut self, now: u64, live: &BTreeMap<Hash, u64>) -> Vec<Hash> {
        let dead = |hash: &Hash, at: u64| !live.contains_key(hash) && at + YOUNG_MS <= now;
        let gone = self.0.extract_if(.., |hash, (_, at)| dead(hash, *at));
        gone.map(|(hash, _)| hash).collect()
    }
}

/// What a payload was stored for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A client's submission.
    Submit(Addr, u64, Box<SubmitJobCommand>),
    /// A worker's draft: session, and the result without it.
    Draft(u64, Box<AttemptResult>),
    /// A round's context, of this term's leader.
    Context(u64, String, Box<Decide>),
}

impl Purpose {
    /// What it is called that such a payload is on a majority.
    fn stored(&self) -> &'static str {
        match self {
            Purpose::Submit(..) => "a spec on a majority",
            Purpose::Draft(..) => "a draft on a majority",
            Purpose::Context(..) => "a context on a majority",
        }
    }
}

/// A payload on its way to a majority.
#[derive(Debug)]
struct Spread {
    hash: Hash,
    length: u64,
    have: BTreeSet<u64>,
    until: u64,
    purpose: Purpose,
}

/// Whom a write of a payload is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    /// A spread of this node's own.
    Own(u64),
    /// A peer's, which waits for the word that it is durable.
    Peer(u64, u64),
    /// It was missing here.
    Fetched,
}

/// What a coordinator has under way with payloads.
#[derive(Debug, Default)]
pub(super) struct BlobNet {
    /// When the process started.
    started: u64,
    /// What nothing names is to be dropped.
    pub(super) sweep_due: bool,
    next: u64,
    spreads: BTreeMap<u64, Spread>,
    /// Being written: lost if the process dies.
    storing: BTreeMap<u64, (Hash, Vec<u8>, Store)>,
    /// Missing here: when the next member is asked, and which.
    fetching: BTreeMap<Hash, (u64, usize)>,
}

impl BlobNet {
    /// Of a process that starts now.
    pub(super) fn new(now: u64) -> BlobNet {
        BlobNet {
            started: now,
            ..BlobNet::default()
        }
    }

    /// How many are under way.
    pub(super) fn under_way(&self) -> usize {
        self.spreads.len() + self.storing.len() + self.fetching.len()
    }
}

impl Coordinator {
    /// Makes a payload of the bytes, and goes on with it: at once if they are few, else when they are
    /// on a majority.
    pub(super) fn with_payload(&mut self, bytes: Vec<u8>, purpose: Purpose, cx: &mut Cx) {
        if bytes.len() <= cx.inline_limit {
            return self.stored(Some(payload::inline(bytes)), purpose, cx);
        }
        let hash = *blake3::hash(&bytes).as_bytes();
        let voters = self.node.conf_state().voters;
        self.blobs.next += 1;
        let id = self.blobs.next;
        let spread = Spread {
            hash,
            length: bytes.len() as u64,
            have: BTreeSet::new(),
            until: cx.now + SPREAD_MS,
            purpose,
        };
        self.blobs.spreads.insert(id, spread);
        for voter in voters.into_iter().filter(|voter| *voter != self.id) {
            let put = Wire::PutBlob(id, bytes.clone());
            cx.send(self.addr(), Addr::Node(voter), put);
        }
        if self.store(hash, bytes, Store::Own(id), cx).is_err() {
            self.spread_failed(id, cx);
        }
    }

    /// Writes a payload, which takes a while.
    fn store(&mut self, hash: Hash, bytes: Vec<u8>, for_: Store, cx: &mut Cx) -> Result<(), Full> {
        self.disk.take_room(bytes.len() as u64)?;
        self.blobs.next += 1;
        let id = self.blobs.next;
        self.blobs.storing.insert(id, (hash, bytes, for_));
        let took = cx.rng.between(0, 60) + self.disk.drag_ms(cx);
        cx.after(took, Event::Node(self.id, self.boot, Input::Stored(id)));
        Ok(())
    }

    /// A payload that was being written is durable.
    pub(super) fn blob_stored(&mut self, id: u64, cx: &mut Cx) {
        let Some((hash, bytes, for_)) = self.blobs.storing.remove(&id) else {
            return;
        };
        cx.ledger.blob_stored(self.id, hash, &bytes);
        self.disk.blobs.put(hash, bytes, cx.now);
        match for_ {
            Store::Own(spread) => self.has_it(self.id, spread, cx),
            Store::Peer(peer, spread) => {
                cx.send(self.addr(), Addr::Node(peer), Wire::HasBlob(spread));
            }
            Store::Fetched => cx.coverage.hit("deeds", "payload fetched"),
        }
        self.blobs.fetching.remove(&hash);
        if let Some(leader) = &mut self.leader {
            leader.blob_arrived(&self.state);
        }
    }

    /// A member has the payload of a spread, durably. The voters as of now count: they may be others
    /// than those that it was sent to.
    fn has_it(&mut self, member: u64, id: u64, cx: &mut Cx) {
        let voters = self.node.conf_state().voters;
        let Some(spread) = self.blobs.spreads.get_mut(&id) else {
            return;
        };
        spread.have.insert(member);
        let have = voters.iter().filter(|v| spread.have.contains(v)).count();
        if have <= voters.len() / 2 {
            return;
        }
        if let Some(done) = self.blobs.spreads.remove(&id) {
            cx.coverage.hit("deeds", done.purpose.stored());
            let named = payload::blob(done.hash, done.length);
            self.stored(Some(named), done.purpose, cx);
        }
    }

    fn spread_failed(&mut self, id: u64, cx: &mut Cx) {
        if let Some(lost) = self.blobs.spreads.remove(&id) {
            cx.coverage.hit("deeds", "payload on no majority");
            self.stored(None, lost.purpose, cx);
        }
    }

    /// The payload may be proposed, or could not be stored.
    fn stored(&mut self, stored: Option<Payload>, purpose: Purpose, cx: &mut Cx) {
        match (purpose, stored) {
            (Purpose::Submit(from, number, mut command), Some(stored)) => {
                command.spec = Some(stored);
                let mut body = Body::SubmitJob(*command);
                self.with_leader(cx, |leader, moment| leader.stamp(&mut body, moment));
                self.propose(body, Waiter::Call(from, number), 5_000, cx);
            }
            (Purpose::Submit(from, number, _), None) => {
                // Nothing was proposed.
                cx.send(self.addr(), from, Wire::Told(number, Box::new(Told::Busy)));
            }
            (Purpose::Draft(session, result), Some(stored)) => {
                self.finished(session, *result, stored, cx);
            }
            // The worker keeps its result, and says hello again.
            (Purpose::Draft(session, _), None) => self.break_session(session, cx),
            (Purpose::Context(term, job_id, mut decide), stored) => {
                let decide = stored.map(|stored| {
                    if let Some(Next::StartRound(round)) = &mut decide.next {
                        round.context = Some(stored);
                    }
                    *decide
                });
                if let Some(leader) = self.leader_of(term) {
                    leader.context_stored(job_id, decide);
                }
            }
        }
    }

    /// Something about payloads, of a peer.
    pub(super) fn hear_of_blob(&mut self, peer: u64, wire: Wire, cx: &mut Cx) {
        match wire {
            Wire::PutBlob(spread, bytes) => {
                let hash = *blake3::hash(&bytes).as_bytes();
                // Without room the peer hears nothing, and asks others.
                let _ = self.store(hash, bytes, Store::Peer(peer, spread), cx);
            }
            Wire::HasBlob(spread) => self.has_it(peer, spread, cx),
            Wire::GetBlob(hash) => {
                let bytes = self.disk.blobs.blob(&hash);
                if let Some(bytes) = bytes {
                    cx.send(self.addr(), Addr::Node(peer), Wire::Blob(hash, bytes));
                }
            }
            Wire::Blob(hash, bytes) if self.blobs.fetching.contains_key(&hash) => {
                let _ = self.store(hash, bytes, Store::Fetched, cx);
            }
            _ => {}
        }
    }

    /// Looks for payloads that the state names and that are not here, until they are.
    pub(super) fn fetch(&mut self, hashes: impl IntoIterator<Item = Hash>, cx: &mut Cx) {
        for hash in hashes {
            if !self.disk.blobs.renew(&hash, cx.now) {
                self.blobs.fetching.entry(hash).or_insert((cx.now, 0));
            }
        }
        self.ask_for_blobs(cx);
    }

    /// After a snapshot: what the state names and is not here.
    pub(super) fn fetch_missing(&mut self, cx: &mut Cx) {
        let mut named = self.state.live_blobs();
        named.retain(|hash, _| !self.disk.blobs.has(hash));
        self.fetch(named.into_keys(), cx);
    }

    fn ask_for_blobs(&mut self, cx: &mut Cx) {
        if self.blobs.fetching.is_empty() {
            return;
        }
        let state = &self.state;
        self.blobs
            .fetching
            .retain(|hash, (_, turn)| *turn < 4 || state.names_blob(hash));
        let conf = self.node.conf_state();
        let members = conf.voters.iter().chain(&conf.learners).copied();
        let peers: Vec<u64> = members.filter(|id| *id != self.id).collect();
        if peers.is_empty() {
            return;
        }
        let (now, me) = (cx.now, Addr::Node(self.id));
        for (hash, (at, turn)) in &mut self.blobs.fetching {
            if *at <= now {
                *at = now + ASK_AGAIN_MS;
                let peer = peers[*turn % peers.len()];
                *turn += 1;
                cx.send(me, Addr::Node(peer), Wire::GetBlob(*hash));
            }
        }
    }

    /// Spreads that took too long have failed; what is missing is asked for again.
    pub(super) fn tick_blobs(&mut self, cx: &mut Cx) {
        let late = |s: &Spread| s.until <= cx.now;
        let late: Vec<u64> = self
            .blobs
            .spreads
            .iter()
            .filter_map(|(id, s)| late(s).then_some(*id))
            .collect();
        for id in late {
            self.spread_failed(id, cx);
        }
        self.ask_for_blobs(cx);
    }

    /// Drops payloads that nothing names, after a snapshot, once all that is known to be committed is
    /// applied; none until the process has run for as long as they are young.
    pub(super) fn drop_dead_blobs_when_due(&mut self, cx: &mut Cx) {
        let current = self.leadership.leader_id != 0
            && self.state.applied_index() >= self.node.commit_index();
        if !self.blobs.sweep_due || !current {
            return;
        }
        self.blobs.sweep_due = false;
        if self.blobs.started + YOUNG_MS > cx.now {
            return;
        }
        for hash in self.disk.blobs.retain(cx.now, &self.state.live_blobs()) {
            cx.ledger.blob_gone(self.id, &hash);
            cx.coverage.hit("deeds", "payload dropped");
        }
    }

    /// Payloads that are being written are lost with the process.
    pub(super) fn lose_blobs(&self, cx: &mut Cx) {
        for _ in &self.blobs.storing {
            cx.fault("payload lost before fsync");
        }
    }
}
