//! What the leader says, and what follows from it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use conclave_proto::v1::{CoordinatorMessage, NotLeader, Prepared, Welcome, coordinator_message};
use conclave_worker_core::SeqId;
use conclave_worker_core::fence::Welcomed;
use uuid::Uuid;

use super::desk::{Action, Planned};
use super::{LinkState, Session, Worked};
use crate::backend::{Backend, transient};
use crate::engine_thread::{Command, SeqEvent};

/// Bounds of the heartbeat that the leader may ask for.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));

impl<B: Backend> Session<B> {
    pub(super) fn message(&mut self, message: CoordinatorMessage) {
        use coordinator_message::Message as M;
        let term = message.term;
        let word = match message.message {
            Some(M::Welcome(welcome)) => return self.welcome(&welcome, term),
            Some(M::NotLeader(not_leader)) => return self.sent_on(&not_leader, term),
            word => word,
        };
        if let Err(seen) = self.fence.hear(term) {
            return self.refuse_term(term, seen);
        }
        let action = match word {
            Some(M::Prepare(prepare)) => self.desk.prepare(prepare),
            Some(M::Start(start)) => self.desk.start(start, Instant::now()),
            Some(M::Cancel(cancel)) => self.desk.cancel(cancel),
            Some(M::Ack(ack)) => {
                self.desk.acknowledge(ack.keys);
                None
            }
            Some(M::Resend(resend)) => {
                self.desk.resend(resend);
                None
            }
            // Handled above.
            Some(M::Welcome(_) | M::NotLeader(_)) => None,
            None => {
                tracing::debug!("a message of a kind that this version does not know");
                None
            }
        };
        if let Some(action) = action {
            self.act(action);
        }
    }

    /// The coordinator of `term` leads no more, and may not know.
    fn refuse_term(&mut self, term: u64, seen: u64) {
        tracing::warn!(term, seen, "refused a coordinator of an older term");
        self.lose("stale_term");
    }

    /// A coordinator that does not lead names the one that does.
    fn sent_on(&mut self, not_leader: &NotLeader, term: u64) {
        let NotLeader {
            leader,
            members,
            cluster_id,
        } = not_leader;
        if self.fence.is_past(cluster_id) {
            return self.lose("past_cluster");
        }
        self.fence.hear_of(cluster_id, term);
        self.members.learn(members);
        self.members.hint(leader);
        self.lose("not_leader");
    }

    fn welcome(&mut self, welcome: &Welcome, term: u64) {
        let before = self.fence.cluster_id().to_owned();
        let Welcome {
            cluster_id,
            came_from,
            ..
        } = welcome;
        match self.fence.welcome(cluster_id, came_from, term) {
            Welcomed::Again => self.welcomed(welcome),
            Welcomed::Elsewhere => self.begin_anew(welcome, &before),
            Welcomed::OlderTerm(seen) => self.refuse_term(term, seen),
            Welcomed::Past => self.refuse_past(cluster_id),
        }
    }

    /// What is left of a cluster that another one replaced.
    fn refuse_past(&mut self, cluster_id: &str) {
        let coordinator = self.peer().to_owned();
        self.lose("past_cluster");
        let failures = self.members.failures();
        if failures.is_power_of_two() {
            tracing::warn!(
                coordinator,
                cluster_id,
                follows = self.fence.cluster_id(),
                failures,
                "refused a coordinator of a cluster that another one replaced: stop it; if that cluster \
                 is to go on after all, restart this worker"
            );
        }
    }

    /// Who is at the other end; empty without a link.
    fn peer(&self) -> &str {
        match &self.link {
            LinkState::Greeting(link, _) | LinkState::Up(link) => &link.address,
            LinkState::Waiting(_) | LinkState::Dialing(_) => "",
        }
    }

    fn welcomed(&mut self, welcome: &Welcome) {
        let (least, most) = HEARTBEAT_BOUNDS;
        if welcome.heartbeat_ms > 0 {
            self.heartbeat_every = Duration::from_millis(welcome.heartbeat_ms).clamp(least, most);
        }
        self.heartbeat_at = Instant::now();
        self.members.learn(&welcome.members);
        self.members.welcomed();
        let state = std::mem::replace(&mut self.link, LinkState::Waiting(Instant::now()));
        self.link = match state {
            LinkState::Greeting(link, _) | LinkState::Up(link) => {
                tracing::info!(
                    address = link.address,
                    term = self.fence.term(),
                    "welcomed: this worker takes work"
                );
                self.parts.status.up.store(true, Ordering::Relaxed);
                self.metrics.connected(true);
                LinkState::Up(link)
            }
            other @ (LinkState::Waiting(_) | LinkState::Dialing(_)) => other,
        };
    }

    /// The cluster was restored or recovered: another one, which knows the same jobs. What this
    /// worker runs and holds for the old one may go by names that the new one gives to other work, so
    /// it is let go, and the worker says hello as a new incarnation.
    fn begin_anew(&mut self, welcome: &Welcome, before: &str) {
        tracing::info!(
            before,
            cluster_id = welcome.cluster_id,
            attempts = self.desk.running(),
            results = self.desk.unacknowledged(),
            "another cluster took the place of the one before: its attempts are cancelled and its results \
             forgotten; the new one starts them again"
        );
        self.parts.incarnation = Uuid::now_v7().to_string();
        self.journal.begin_anew();
        for action in self.desk.begin_anew(&self.parts.incarnation) {
            self.act(action);
        }
        let leader = self.peer().to_owned();
        self.members.begin_anew(&leader, &welcome.members);
        self.lose("another_cluster");
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Plan { seq, model, start } => {
                let backend = Arc::clone(&self.parts.backends[model]);
                self.journal.begins(seq, &start, &backend.model().name);
                let fault = move || {
                    Worked::Planned(seq, model, Err(transient("planning the agent panicked")))
                };
                let work = move || Worked::Planned(seq, model, backend.plan(seq, &start));
                if !self.blocking.run(work, fault) {
                    let (_, ended) = self
                        .desk
                        .planned(seq, Some(transient("the worker is busy")));
                    self.tell(ended);
                }
            }
            Action::Prepare { model, prepare } => {
                let backend = Arc::clone(&self.parts.backends[model]);
                let retry = Prepared {
                    job_id: prepare.job_id.clone(),
                    retry: true,
                    ..Prepared::default()
                };
                let busy = retry.clone();
                let work = move || Worked::Prepared(backend.prepare(&prepare));
                if !self.blocking.run(work, || Worked::Prepared(retry)) {
                    self.desk.prepared(busy);
                }
            }
            Action::Cancel(seq) => self.command(seq, Command::Cancel(seq)),
        }
    }

    pub(super) fn worked(&mut self, worked: Worked<B::Plan>) {
        match worked {
            Worked::Prepared(prepared) => self.desk.prepared(prepared),
            Worked::Planned(seq, _, Err(error)) => {
                let (_, ended) = self.desk.planned(seq, Some(error));
                self.tell(ended);
            }
            Worked::Planned(seq, model, Ok((request, plan))) => {
                let (verdict, _) = self.desk.planned(seq, None);
                self.journal.planned(seq);
                if verdict == Planned::Drop {
                    return;
                }
                self.command(
                    seq,
                    Command::Start {
                        model,
                        request,
                        plan,
                    },
                );
                if verdict == Planned::GoAndCancel {
                    self.command(seq, Command::Cancel(seq));
                }
            }
        }
    }

    /// Tells the engine. The queue is sized so that it is full only if the engine is stuck.
    fn command(&mut self, seq: SeqId, command: Command<B::Plan>) {
        let cancel = matches!(command, Command::Cancel(_));
        if let Err(error) = self.parts.engine.commands.try_send(command) {
            tracing::error!(%error, "the engine takes no commands");
            if !cancel {
                let outcome = Err(transient("the engine takes no commands"));
                let ended = self.desk.engine(SeqEvent::Ended { seq, outcome });
                self.tell(ended);
            }
        }
    }
}
