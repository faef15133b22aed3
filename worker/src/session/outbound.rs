//! What the leader is told, and in which order.

use std::time::{Duration, Instant};

use conclave_proto::v1::{Heartbeat, Hello, WorkerMessage, worker_message};

use super::{LinkState, Session};
use crate::backend::Backend;

/// Text is sent at most this often, so that a step's many tokens travel together.
const PROGRESS_EVERY: Duration = Duration::from_millis(30);

impl<B: Backend> Session<B> {
    pub(super) fn hello(&mut self, now: Instant) -> Hello {
        let (running, finished) = self.desk.hello(now);
        Hello {
            worker_id: self.parts.worker_id.clone(),
            incarnation: self.parts.incarnation.clone(),
            models: self
                .parts
                .backends
                .iter()
                .map(|backend| backend.model())
                .collect(),
            max_sequences: self.parts.max_sequences,
            kv_blocks: self
                .parts
                .backends
                .iter()
                .map(|backend| backend.limits().blocks)
                .sum(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            running,
            finished,
            term: self.fence.term(),
            draining: self.desk.draining() || self.engine_gone,
            cluster_id: self.fence.cluster_id().to_owned(),
        }
    }

    /// Fills what room the stream has: replies and results, then the heartbeat, then text.
    pub(super) fn pump(&mut self, now: Instant) {
        let LinkState::Up(link) = &self.link else {
            return;
        };
        let outbound = link.outbound.clone();
        while let Ok(permit) = outbound.try_reserve() {
            let Some(message) = self.message_to_send(now) else {
                return;
            };
            permit.send(WorkerMessage {
                message: Some(message),
            });
        }
    }

    fn message_to_send(&mut self, now: Instant) -> Option<worker_message::Message> {
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + self.heartbeat_every;
            return Some(worker_message::Message::Heartbeat(self.heartbeat()));
        }
        if let Some(message) = self.desk.next_message(now) {
            return Some(message);
        }
        if now < self.progress_at {
            return None;
        }
        let progress = self.desk.next_progress();
        if progress.is_some() && !self.desk.has_progress() {
            self.progress_at = now + PROGRESS_EVERY;
        }
        progress
    }

    fn heartbeat(&self) -> Heartbeat {
        let status = &self.parts.engine.status;
        let (running, waiting, kv_blocks_free) = status.load();
        Heartbeat {
            steps: status.steps(),
            has_work: status.has_work(),
            running,
            waiting,
            kv_blocks_free,
            refused_files: self.parts.dialer.refused_files(),
        }
    }
}
