//! What raft says is to be done, in the order of the core's words: send, write, send what waited, apply,
//! answer; and a coordinator's own snapshots.

use conclave_coordinator_core::{
    Applied, Effect,
    codec::{self, CodecError},
    node::{Committed, Keep, Output, Payload, Role, snapshot_of},
    snapshot,
};
use conclave_proto::v1::Command;
use raft::eraftpb::{Message as RaftMessage, MessageType, Snapshot};

use super::{
    coordinator::{Coordinator, Moment, Stop},
    cx::{Addr, Cx, Event, Input, Told, Wire},
    invariants::Draining,
    waiters::Waiter,
};

/// Pause after a snapshot that could not be saved, ms.
const SAVE_AGAIN_MS: u64 = 3_000;

impl Coordinator {
    /// The first half of the core's order: send, write. False while a write is under way.
    pub(super) fn carry(&mut self, mut output: Output, cx: &mut Cx) -> Result<bool, Stop> {
        self.send_all(std::mem::take(&mut output.messages), cx);
        let persist = std::mem::take(&mut output.persist);
        cx.ledger.written(self.id, &persist.entries);
        let received = persist.snapshot.clone();
        let sync = persist.must_sync || received.is_some();
        if !persist.is_empty() {
            let installs = received.is_some();
            self.disk.write(persist)?;
            self.reach(Moment::Written)?;
            if installs {
                self.reach(Moment::Installing)?;
            }
        }
        output.persist.snapshot = received;
        if sync {
            let took = if cx.rng.below(64) == 0 {
                cx.rng.between(20, 400)
            } else {
                cx.rng.between(0, 3)
            };
            let took = took + self.disk.drag_ms(cx);
            self.writing = Some(output);
            cx.after(took, Event::Node(self.id, self.boot, Input::Synced));
            return Ok(false);
        }
        self.finish(output, cx)?;
        Ok(true)
    }

    /// The second half: send what waited for the write, apply, answer.
    pub(super) fn finish(&mut self, output: Output, cx: &mut Cx) -> Result<(), Stop> {
        if let Some(snapshot) = &output.persist.snapshot {
            self.state = self.disk.state_of(snapshot, self.speaks)?;
            self.snapshot_index = snapshot.get_metadata().index;
            cx.coverage.hit("deeds", "snapshot installed");
            let (id, at) = (self.id, self.snapshot_index);
            cx.tell(|| format!("node {id}: installs a snapshot of {at}"));
            cx.ledger.installed(self.id, &self.state);
            self.fetch(self.state.live_blobs().into_keys(), cx);
        }
        self.send_all(output.after_persist, cx);
        self.node.persisted(output.number);
        if output.persist.snapshot.is_some() {
            self.node.applied(self.state.applied_index());
        }
        if !output.committed.is_empty() {
            for entry in output.committed {
                if entry.index > self.state.applied_index() {
                    self.apply(entry, cx)?;
                }
            }
            self.node.applied(self.state.applied_index());
            self.begin_serving(cx);
        }
        for read in output.reads {
            self.reads.confirmed(&read.context, read.index);
        }
        if output.leadership.is_some() {
            self.leadership_changed(cx);
        }
        Ok(())
    }

    pub(super) fn send_all(&mut self, messages: Vec<RaftMessage>, cx: &mut Cx) {
        for message in messages {
            let to = message.to;
            cx.ledger.promised(self.id, &message);
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let mut bytes = None;
            if snapshot {
                let data = message.get_snapshot().get_data();
                bytes = snapshot::manifest_up_to(data, self.speaks)
                    .ok()
                    .and_then(|m| self.disk.get(&m).cloned());
                self.node.report_snapshot(to, bytes.is_some());
                cx.coverage.hit("deeds", "snapshot sent");
            }
            let wire = Wire::Raft(Box::new(message), bytes);
            cx.send(self.addr(), Addr::Node(to), wire);
        }
    }

    pub(super) fn apply(&mut self, entry: Committed, cx: &mut Cx) -> Result<(), Stop> {
        cx.ledger.committed(self.id, &entry);
        let Committed {
            index,
            term,
            payload,
        } = entry;
        match payload {
            Payload::Empty => self.state.skip(index, term),
            Payload::Command { context, data } => {
                let command = self.command(&data)?;
                cx.ledger.meets(self.id, self.speaks, &self.state, &command);
                let doomed = Draining::before(&self.state, &command);
                let applied = self.state.apply(index, term, &command);
                cx.lost_drains(self.id, &doomed, &self.state);
                let honest_ms = cx.unix_ms();
                cx.ledger.time(self.id, self.state.unix_ms(), honest_ms);
                cx.applied(self.id, &self.state, &command, &applied);
                self.applied(&context, applied, cx);
            }
            Payload::Conf { change, .. } => {
                self.state.skip(index, term);
                let done = self.node.apply_conf(&change).is_ok();
                let (id, conf) = (self.id, self.node.conf_state());
                cx.tell(|| format!("node {id}: members {conf:?} ({done})"));
                cx.coverage.hit("deeds", "change of members applied");
            }
        }
        cx.ledger.state_at(self.id, &self.state);
        Ok(())
    }

    /// The command in an entry, as this program reads it.
    fn command(&self, data: &[u8]) -> Result<Command, Stop> {
        codec::decode_up_to(data, self.speaks).map_err(|error| match error {
            CodecError::TooNew { .. } => Stop::TooNew(error.to_string()),
            other => Stop::Broken(other.to_string()),
        })
    }

    pub(super) fn applied(&mut self, context: &[u8], applied: Applied, cx: &mut Cx) {
        let waiter = self.waiters.take(context).map(|(waiter, _)| waiter);
        let (blobs, effects): (Vec<_>, Vec<_>) = applied
            .effects
            .into_iter()
            .partition(|effect| matches!(effect, Effect::FetchBlob { .. }));
        let hashes = blobs.into_iter().filter_map(|effect| match effect {
            Effect::FetchBlob { hash, .. } => Some(hash),
            _ => None,
        });
        self.fetch(hashes.collect::<Vec<_>>(), cx);
        if let Some(leader) = &mut self.leader {
            leader.effects(effects);
        }
        match waiter {
            Some(Waiter::Call(from, number)) => {
                let told = Told::Applied(applied.reply);
                cx.send(self.addr(), from, Wire::Told(number, Box::new(told)));
            }
            Some(Waiter::Leader(term, purpose)) => {
                if let Some(leader) = self.leader_of(term) {
                    leader.applied(purpose, &applied.reply);
                }
            }
            Some(Waiter::Nobody) | None => {}
        }
    }

    pub(super) fn leadership_changed(&mut self, cx: &mut Cx) {
        self.leadership = self.node.leadership();
        let new = self.leadership;
        let leads = new.role == Role::Leader;
        if leads && self.leader_of(new.term).is_some() {
            return;
        }
        if self.leader.take().is_some() {
            self.dismiss_workers(cx);
            self.close_feeds(cx);
        }
        if leads {
            cx.ledger.leads(self.id, new.term);
            cx.coverage.hit("deeds", "leader elected");
            let id = self.id;
            cx.tell(|| format!("node {id}: leads term {}", new.term));
            self.lead(new.term, cx);
        }
    }

    pub(super) fn save_when_due(&mut self, cx: &mut Cx) {
        let behind = self
            .state
            .applied_index()
            .saturating_sub(self.snapshot_index);
        let waits = self.saving.is_some() || cx.now < self.save_after;
        if waits || behind < self.snapshot_every {
            return;
        }
        let (manifest, bytes) = snapshot::encode(&self.state);
        self.saving = Some((manifest, bytes, self.node.conf_state()));
        let took = cx.rng.between(1, 300) + self.disk.drag_ms(cx);
        cx.after(took, Event::Node(self.id, self.boot, Input::Saved));
        cx.coverage.hit("deeds", "snapshot taken");
        self.snapshot_every = cx.rng.between(20, 200);
    }

    pub(super) fn saved(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        let Some((manifest, bytes, conf_state)) = self.saving.take() else {
            return Ok(());
        };
        if manifest.index <= self.snapshot_index {
            return Ok(());
        }
        let snapshot: Snapshot = snapshot_of(&manifest, conf_state);
        let (index, keep) = (manifest.index, Keep::entries(self.snapshot_every / 2));
        if self.disk.put(manifest, bytes).is_err() {
            cx.fault("no room for a snapshot");
            self.save_after = cx.now + SAVE_AGAIN_MS;
            return Ok(());
        }
        self.reach(Moment::Saved)?;
        let most = Keep::entries(4 * self.snapshot_every);
        let keep_from = self.node.keep_from(index, keep, most);
        self.snapshot_index = index;
        self.disk.compact(snapshot.clone(), keep_from)?;
        self.reach(Moment::Compacted)?;
        self.disk.forget_before(index);
        self.node.compact(snapshot, keep_from);
        self.blobs.sweep_due = true;
        self.fetch_missing(cx);
        Ok(())
    }
}
