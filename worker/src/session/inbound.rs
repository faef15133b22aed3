//! What the leader says, and what follows from it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use conclave_proto::v1::{CoordinatorMessage, Prepared, Welcome, coordinator_message};
use conclave_worker_core::SeqId;
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
        if message.term < self.term {
            tracing::warn!(
                term = message.term,
                seen = self.term,
                "refused a coordinator of an older term"
            );
            return self.lose("stale_term");
        }
        self.term = message.term;
        let action = match message.message {
            Some(M::Welcome(welcome)) => return self.welcomed(&welcome),
            Some(M::NotLeader(not_leader)) => {
                self.members.learn(&not_leader.members);
                self.members.hint(&not_leader.leader);
                return self.lose("not_leader");
            }
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
            None => {
                tracing::debug!("a message of a kind that this version does not know");
                None
            }
        };
        if let Some(action) = action {
            self.act(action);
        }
    }

    fn welcomed(&mut self, welcome: &Welcome) {
        if self.is_foreign(&welcome.cluster_id) {
            return self.begin_anew(&welcome.cluster_id);
        }
        self.cluster_id.clone_from(&welcome.cluster_id);
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
                tracing::info!(address = link.address, term = self.term, "welcomed");
                self.parts.status.up.store(true, Ordering::Relaxed);
                self.metrics.connected(true);
                LinkState::Up(link)
            }
            other @ (LinkState::Waiting(_) | LinkState::Dialing(_)) => other,
        };
    }

    fn is_foreign(&self, cluster_id: &str) -> bool {
        !self.cluster_id.is_empty() && !cluster_id.is_empty() && self.cluster_id != cluster_id
    }

    /// The cluster was restored or recovered: another one, which knows the same jobs. What this
    /// worker runs and holds for the old one may go by names that the new one gives to other work.
    fn begin_anew(&mut self, cluster_id: &str) {
        tracing::warn!(
            before = self.cluster_id,
            cluster_id,
            "another cluster took the place of the one before: its attempts are forgotten"
        );
        cluster_id.clone_into(&mut self.cluster_id);
        self.parts.incarnation = Uuid::now_v7().to_string();
        for action in self.desk.begin_anew(&self.parts.incarnation) {
            self.act(action);
        }
        self.lose("another_cluster");
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Plan { seq, model, start } => {
                let backend = Arc::clone(&self.parts.backends[model]);
                let fault = move || {
                    Worked::Planned(seq, model, Err(transient("planning the agent panicked")))
                };
                let work = move || Worked::Planned(seq, model, backend.plan(seq, &start));
                if !self.blocking.run(work, fault) {
                    let (_, ended) = self
                        .desk
                        .planned(seq, Some(transient("the worker is busy")));
                    self.count(ended);
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
                self.count(ended);
            }
            Worked::Planned(seq, model, Ok((request, plan))) => {
                let (verdict, _) = self.desk.planned(seq, None);
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
                self.count(ended);
            }
        }
    }
}
