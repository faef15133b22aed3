//! What raft says is to be done: write, send, apply, answer.

use std::time::Instant;

use conclave_coordinator_core::{
    Applied, Effect, Reply, State, codec,
    lead::Purpose,
    node::{
        Committed, Node, NodeError as CoreError, Output, ReadState, Role,
        carry::{self, Hands},
    },
};
use conclave_proto::v1::command::Command as Body;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Message as RaftMessage, MessageType};

use super::{
    NodeError,
    storage::{Fatal, speakable},
    task::Task,
    waiters::{Waiter, Wanted},
};
use crate::metrics;

impl Task {
    /// Carries out all that raft has ready; true if there was anything.
    pub(super) fn carry_out(&mut self) -> Result<bool, Fatal> {
        let mut moved = false;
        while let Some(output) = self.node.ready() {
            self.carry(output)?;
            moved = true;
        }
        for wanted in self.reads.ready(self.state.applied_index()) {
            match wanted {
                Wanted::Caller(read) => (read.run)(Ok(&self.state)),
                Wanted::Leader { term, pause } => {
                    if let Some(leader) = self.leader_of(term) {
                        leader.confirmed(pause);
                        moved = true;
                    }
                }
            }
        }
        Ok(moved)
    }

    fn carry(&mut self, output: Output) -> Result<(), Fatal> {
        let (persist, written) = carry::begin(self, output);
        let received = self.storage.persist(persist)?;
        if let Some(state) = &received {
            speakable(state.log_version(), self.config.max_log_version)?;
        }
        carry::finish(self, written, received)
    }

    /// Workers that hold a lease and do not drain, before a tick.
    fn leased(&self, body: Option<&Body>) -> Vec<String> {
        if !matches!(body, Some(Body::Tick(_))) {
            return Vec::new();
        }
        let stay = self.state.workers().filter(|worker| !worker.draining);
        stay.map(|worker| worker.worker_id.clone()).collect()
    }

    fn count_lost(&mut self, held: &[String]) {
        let lost = self.lost.note(held, &self.state);
        if self.leader.is_none() {
            return;
        }
        metrics::leases_lost(lost);
        for worker in held.iter().filter(|id| self.state.worker(id).is_none()) {
            tracing::warn!(
                worker,
                "a worker's lease ran out: what it ran starts again elsewhere; look whether it runs and \
                 reaches this node"
            );
        }
    }

    fn note_member(&self, body: Option<&Body>) {
        if let Some(Body::SetMemberAddress(set)) = body {
            if set.removed {
                self.network.forget(set.node_id);
            } else if set.node_id != self.identity.node_id() {
                self.network.learn(set.node_id, &set.address);
            }
        }
    }

    /// An entry's effects go where they belong; whoever waits for it hears its reply.
    fn tell(&mut self, context: &[u8], applied: Applied) {
        let (blobs, effects): (Vec<_>, Vec<_>) = applied
            .effects
            .into_iter()
            .partition(|e| matches!(e, Effect::FetchBlob { .. }));
        let hashes = blobs.into_iter().filter_map(|e| match e {
            Effect::FetchBlob { hash, .. } => Some(hash),
            _ => None,
        });
        self.fetch(hashes.collect());
        let waiter = self.waiter_of(context);
        if let Some(leader) = &mut self.leader {
            leader.effects(effects);
        }
        match waiter {
            Some(Waiter::Call(reply)) => {
                self.publish_counts();
                let _ = reply.send(Ok(applied.reply));
            }
            Some(Waiter::Leader { term, purpose }) => {
                if applied.reply != Reply::Ok && matches!(purpose, Purpose::Register { .. }) {
                    tracing::warn!(reply = ?applied.reply, "a worker was not registered");
                }
                if let Some(leader) = self.leader_of(term) {
                    leader.applied(purpose, &applied.reply);
                }
            }
            Some(Waiter::Change(done)) => {
                let _ = done.send(Ok(()));
            }
            Some(Waiter::Nobody) | None => {}
        }
    }

    /// Who waits for this entry, now that it is applied.
    fn waiter_of(&mut self, context: &[u8]) -> Option<Waiter> {
        let (waiter, since) = self.waiters.take(context)?;
        metrics::proposal_done(since.elapsed());
        Some(waiter)
    }
}

impl Hands for Task {
    type Stop = Fatal;

    fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    fn state(&mut self) -> &mut State {
        &mut self.state
    }

    fn send(&mut self, messages: Vec<RaftMessage>) {
        let Some(lanes) = &mut self.lanes else { return };
        let mut dropped = 0;
        for message in messages {
            let to = message.to;
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let sent = match message.write_to_bytes() {
                Ok(bytes) => lanes.send(to, bytes),
                Err(error) => {
                    tracing::error!(%error, "a raft message does not encode");
                    false
                }
            };
            if snapshot {
                // The receiver fetches the state itself. If it does not get it,
                // it refuses the next entries, and is sent a snapshot again.
                self.node.report_snapshot(to, sent);
            } else if !sent {
                dropped += 1;
                self.node.report_unreachable(to);
            }
        }
        if dropped > 0 {
            metrics::messages_dropped(dropped);
        }
    }

    fn replace(&mut self, state: State) {
        self.state = state;
        metrics::snapshot_installed();
        self.learn_members();
        self.fetch(self.state.live_blobs().into_keys().collect());
    }

    fn command(
        &mut self,
        (index, term): (u64, u64),
        context: &[u8],
        data: &[u8],
    ) -> Result<(), Fatal> {
        let command = codec::decode(data)?;
        speakable(codec::needs(&command), self.config.max_log_version)?;
        let held = self.leased(command.command.as_ref());
        let applied = self.state.apply(index, term, &command);
        self.count_lost(&held);
        self.note_member(command.command.as_ref());
        if self.leader.is_some() {
            self.log_applied(command.command.as_ref(), &applied.reply);
        }
        self.tell(context, applied);
        Ok(())
    }

    fn members_changed(&mut self, context: &[u8], result: Result<ConfState, CoreError>) {
        if let Err(error) = &result {
            tracing::warn!(%error, "a change of members was refused");
        }
        if let Some(Waiter::Change(done)) = self.waiter_of(context) {
            let refused = |e: CoreError| NodeError::Refused(e.to_string());
            let _ = done.send(result.map(|_| ()).map_err(refused));
        }
        let conf = self.node.conf_state();
        let member = |id| conf.voters.contains(&id) || conf.learners.contains(&id);
        if let Some(lanes) = &mut self.lanes {
            lanes.retain(&member);
        }
    }

    fn apply_all(&mut self, entries: Vec<Committed>) -> Result<(), Fatal> {
        let (started, count) = (Instant::now(), entries.len());
        carry::apply_all(self, entries)?;
        metrics::applied(count, started.elapsed());
        Ok(())
    }

    fn applied(&mut self) {
        self.begin_serving();
    }

    fn confirmed(&mut self, reads: Vec<ReadState>) {
        for read in reads {
            self.reads.confirmed(&read.context, read.index);
        }
    }

    fn leadership_changed(&mut self) {
        let old = self.leadership;
        self.leadership = self.node.leadership();
        let new = self.leadership;
        if new.leader_id != 0 && new.leader_id != old.leader_id {
            metrics::leader_changed();
            self.removed = None;
            let leader = format_args!("{:016x}", new.leader_id);
            tracing::info!(%leader, term = new.term, "a leader is known");
        }
        let leads = new.role == Role::Leader;
        let same = self.leader_of(new.term).is_some();
        if leads && same {
            return;
        }
        if self.leader.take().is_some() {
            self.dismiss_workers();
            self.feeds.close();
            // Whoever leads now counts them.
            metrics::nothing_led(&self.label);
            self.no_tenants();
            if let Some(traces) = &mut self.traces {
                traces.end();
            }
        }
        if leads {
            self.lead(new.term);
        }
    }
}
