//! The simulated hands that carry out what raft says, in the core's order; and a coordinator's own
//! snapshots.

use conclave_coordinator_core::{
    Applied, Effect, State,
    codec::{self, CodecError},
    node::{
        Committed, Keep, Node, NodeError, Output, ReadState, Role,
        carry::{self, Hands, Written},
        snapshot_of,
    },
    snapshot,
};
use conclave_proto::v1::Command;
use raft::eraftpb::{ConfState, Message as RaftMessage, MessageType, Snapshot};

use super::{
    coordinator::{Coordinator, Moment, Stop},
    cx::{Addr, Cx, Event, Input, Told, Wire},
    invariants::Draining,
    waiters::Waiter,
    words,
};

/// Pause after a snapshot that could not be saved, ms.
const SAVE_AGAIN_MS: u64 = 3_000;

/// A coordinator, and the world that it is in while it works.
struct AtWork<'a>(&'a mut Coordinator, &'a mut Cx);

impl Hands for AtWork<'_> {
    type Stop = Stop;

    fn node(&mut self) -> &mut Node {
        &mut self.0.node
    }

    fn state(&mut self) -> &mut State {
        &mut self.0.state
    }

    fn send(&mut self, messages: Vec<RaftMessage>) {
        let AtWork(me, cx) = self;
        for message in messages {
            let to = message.to;
            cx.ledger.promised(me.id, &message);
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let mut bytes = None;
            if snapshot {
                let data = message.get_snapshot().get_data();
                bytes = snapshot::manifest_up_to(data, me.speaks)
                    .ok()
                    .and_then(|m| me.disk.get(&m).cloned());
                me.node.report_snapshot(to, bytes.is_some());
                cx.coverage.hit("deeds", "snapshot sent");
            }
            let wire = Wire::Raft(Box::new(message), bytes);
            cx.send(me.addr(), Addr::Node(to), wire);
        }
    }

    fn replace(&mut self, state: State) {
        let AtWork(me, cx) = self;
        me.snapshot_index = state.applied_index();
        me.state = state;
        cx.coverage.hit("deeds", "snapshot installed");
        let (id, at) = (me.id, me.snapshot_index);
        cx.tell(|| format!("coordinator {id}: installs a snapshot of {at}"));
        cx.ledger.installed(me.id, &me.state);
        me.fetch(me.state.live_blobs().into_keys(), cx);
    }

    fn apply(&mut self, entry: Committed) -> Result<(), Stop> {
        self.1.ledger.committed(self.0.id, &entry);
        carry::apply(self, entry)?;
        self.1.ledger.state_at(self.0.id, &self.0.state);
        Ok(())
    }

    fn command(
        &mut self,
        (index, term): (u64, u64),
        context: &[u8],
        data: &[u8],
    ) -> Result<(), Stop> {
        let AtWork(me, cx) = self;
        let command = me.command(data)?;
        cx.ledger.meets(me.id, me.speaks, &me.state, &command);
        let doomed = Draining::before(&me.state, &command);
        let applied = me.state.apply(index, term, &command);
        cx.lost_drains(me.id, &doomed, &me.state);
        let honest_ms = cx.unix_ms();
        cx.ledger.time(me.id, me.state.unix_ms(), honest_ms);
        cx.applied(me.id, &me.state, &command, &applied);
        me.tell(context, applied, cx);
        Ok(())
    }

    fn members_changed(&mut self, _: &[u8], result: Result<ConfState, NodeError>) {
        let AtWork(me, cx) = self;
        let (id, conf) = (me.id, me.node.conf_state());
        cx.tell(|| {
            let members = words::members(&conf);
            match result {
                Ok(_) => format!("coordinator {id}: the cluster has {members}"),
                Err(why) => format!("coordinator {id}: no change of {members}: {why}"),
            }
        });
        cx.coverage.hit("deeds", "change of members applied");
    }

    fn applied(&mut self) {
        self.0.begin_serving(self.1);
    }

    fn confirmed(&mut self, reads: Vec<ReadState>) {
        for read in reads {
            self.0.reads.confirmed(&read.context, read.index);
        }
    }

    fn leadership_changed(&mut self) {
        let AtWork(me, cx) = self;
        me.leadership = me.node.leadership();
        let new = me.leadership;
        let leads = new.role == Role::Leader;
        if leads && me.leader_of(new.term).is_some() {
            return;
        }
        if me.leader.take().is_some() {
            me.dismiss_workers(cx);
            me.close_feeds(cx);
        }
        if leads {
            cx.ledger.leads(me.id, new.term);
            cx.coverage.hit("deeds", "leader elected");
            let id = me.id;
            cx.tell(|| format!("coordinator {id}: leads term {}", new.term));
            me.lead(new.term, cx);
        }
    }
}

impl Coordinator {
    /// Sends and writes. False while the write is under way.
    pub(super) fn carry(&mut self, output: Output, cx: &mut Cx) -> Result<bool, Stop> {
        let (persist, written) = carry::begin(&mut AtWork(self, cx), output);
        cx.ledger.written(self.id, &persist.entries);
        let snapshot = persist.snapshot.clone();
        let sync = persist.must_sync || snapshot.is_some();
        if !persist.is_empty() {
            let installs = snapshot.is_some();
            self.disk.write(persist)?;
            self.reach(Moment::Written)?;
            if installs {
                self.reach(Moment::Installing)?;
            }
        }
        if sync {
            let took = if cx.rng.below(64) == 0 {
                cx.rng.between(20, 400)
            } else {
                cx.rng.between(0, 3)
            };
            let took = took + self.disk.drag_ms(cx);
            self.writing = Some((written, snapshot));
            cx.after(took, Event::Node(self.id, self.boot, Input::Synced));
            return Ok(false);
        }
        self.finish(written, snapshot, cx)?;
        Ok(true)
    }

    /// What follows the write.
    pub(super) fn finish(
        &mut self,
        written: Written,
        snapshot: Option<Snapshot>,
        cx: &mut Cx,
    ) -> Result<(), Stop> {
        let read = |snapshot: Snapshot| self.disk.state_of(&snapshot, self.speaks);
        let received = snapshot.map(read).transpose()?;
        carry::finish(&mut AtWork(self, cx), written, received)
    }

    /// The command in an entry, as this program reads it.
    fn command(&self, data: &[u8]) -> Result<Command, Stop> {
        codec::decode_up_to(data, self.speaks).map_err(|error| match error {
            CodecError::TooNew { .. } | CodecError::Foreign => Stop::TooNew(error.to_string()),
            other => Stop::Broken(other.to_string()),
        })
    }

    /// An entry's effects go where they belong; whoever waits for it hears its reply.
    fn tell(&mut self, context: &[u8], applied: Applied, cx: &mut Cx) {
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
        // Some keep nothing for members that lag.
        let keep = match self.snapshot_every % 3 {
            0 => 0,
            _ => self.snapshot_every / 2,
        };
        let (index, keep) = (manifest.index, Keep::entries(keep));
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
