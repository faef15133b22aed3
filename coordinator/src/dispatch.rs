//! Worker sessions, as the node's loop keeps them.

use std::collections::BTreeMap;

use conclave_proto::v1::{
    AttemptKey, CoordinatorMessage, Heartbeat, Hello, Prepared, attempt_finished,
    coordinator_message::Message as ToWorker,
};
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tonic::Status;

/// Messages that wait for one worker; one that does not read them is cut off,
/// and reconciled when it comes back.
pub const OUTBOX: usize = 1024;

/// Where a session's messages go.
pub type Outbox = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// What a session tells the loop.
pub enum SessionInput {
    /// A worker said hello.
    Opened {
        /// Unique in this process.
        session: u64,
        /// Its first message.
        hello: Box<Hello>,
        /// The way back.
        outbox: Outbox,
        /// Ends the stream when the loop drops the session.
        guard: DropGuard,
    },
    /// A prompt was looked at.
    Prepared {
        /// The answer.
        prepared: Prepared,
    },
    /// An attempt ended.
    Finished {
        /// The session.
        session: u64,
        /// The attempt.
        key: AttemptKey,
        /// The process that ran it.
        incarnation: String,
        /// What came of it; a draft that is a blob is on a majority already.
        result: attempt_finished::Result,
    },
    /// A sign of life.
    Alive {
        /// The session.
        session: u64,
        /// Its load, and whether its steps move.
        beat: Heartbeat,
    },
    /// It takes nothing new.
    Draining {
        /// The session.
        session: u64,
    },
    /// The stream ended.
    Closed {
        /// The session.
        session: u64,
    },
}

/// One worker's open stream.
struct Stream {
    worker_id: String,
    outbox: Outbox,
    _guard: DropGuard,
}

/// The streams of a leader's sessions. Who is behind them, the leader knows.
#[derive(Default)]
pub struct Sessions {
    by_id: BTreeMap<u64, Stream>,
}

impl Sessions {
    /// Takes a new stream.
    pub fn open(&mut self, id: u64, worker_id: &str, outbox: Outbox, guard: DropGuard) {
        let stream = Stream {
            worker_id: worker_id.to_owned(),
            outbox,
            _guard: guard,
        };
        self.by_id.insert(id, stream);
    }

    /// Drops a stream; its worker says hello again.
    pub fn close(&mut self, id: u64) {
        self.by_id.remove(&id);
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// None is open.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Sends on one stream; false if there is none, or if its worker does not
    /// read: a full outbox ends it.
    pub fn send(&mut self, id: u64, term: u64, message: ToWorker) -> bool {
        let Some(stream) = self.by_id.get(&id) else {
            return false;
        };
        let message = CoordinatorMessage {
            term,
            message: Some(message),
        };
        let sent = stream.outbox.try_send(Ok(message)).is_ok();
        if !sent {
            let worker = &stream.worker_id;
            tracing::warn!(worker, "a worker does not read: session dropped");
            self.close(id);
        }
        sent
    }

    /// Tells every worker who leads now, and closes.
    pub fn dismiss(&mut self, term: u64, message: &ToWorker) {
        for stream in std::mem::take(&mut self.by_id).into_values() {
            let message = CoordinatorMessage {
                term,
                message: Some(message.clone()),
            };
            // A worker that does not hear it learns by its closed stream.
            let _ = stream.outbox.try_send(Ok(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{Ack, NotLeader};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn what_goes_to_a_worker_carries_the_term_it_was_said_in() {
        let mut sessions = Sessions::default();
        let (outbox, mut messages) = mpsc::channel(4);
        let guard = CancellationToken::new().drop_guard();
        sessions.open(1, "w1", outbox, guard);
        assert!(sessions.send(1, 7, ToWorker::Ack(Ack::default())));
        assert!(sessions.send(1, 8, ToWorker::Ack(Ack::default())));
        sessions.dismiss(9, &ToWorker::NotLeader(NotLeader::default()));
        for term in 7..=9 {
            let message = messages.try_recv().unwrap().unwrap();
            assert_eq!(message.term, term);
        }
        assert!(messages.try_recv().is_err() && sessions.is_empty());
    }
}
