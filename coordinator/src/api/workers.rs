//! Worker sessions: the stream's side of [`crate::dispatch`].

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_coordinator_core::view;
use conclave_proto::v1::{
    AttemptError, AttemptResult, CoordinatorMessage, ErrorKind, Hello, NotLeader, Progress, Resend,
    WorkerMessage, attempt_finished, attempt_result, coordinator_message::Message as ToWorker,
    worker_message::Message as FromWorker, workers_server::Workers,
};
use futures::Stream;
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, convert};
use crate::{
    auth::Role,
    dispatch::{OUTBOX, Outbox, SessionInput},
    node::{Input, NodeError, NodeStatus},
};

/// How long a worker may take to say hello.
const HELLO: Duration = Duration::from_secs(5);
/// How long a worker waits here for the end of an election; less than it waits for a welcome.
const ELECTION: Duration = Duration::from_secs(2);
/// How long the loop may be too busy to take a session's message, and the worker to take a last one.
const SEND: Duration = Duration::from_secs(5);
/// How long a draft's payload may take to reach a majority.
const SPREAD: Duration = Duration::from_secs(5);

/// The longest message of a session, bytes, unless calls may have longer ones: as long as workers send. A draft
/// that is too long for a reply is told so, and not by a session that breaks with every try.
pub const SESSION_BYTES: usize = 16 << 20;
/// Of why an attempt failed, so much is kept.
const ERROR_BYTES: usize = 4 << 10;

/// Serves `conclave.v1.Workers`.
#[derive(Clone)]
pub struct WorkersService(pub Arc<Api>);

type Messages = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Workers for WorkersService {
    type SessionStream = Messages;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Messages>, Status> {
        self.0.auth.require(request.metadata(), &[Role::Worker])?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let session = Session::new(self.0.clone(), outbox);
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

struct Session {
    api: Arc<Api>,
    id: u64,
    /// Empty before it said hello.
    worker_id: String,
    outbox: Outbox,
    /// Cancelled when the loop drops the session.
    dropped: CancellationToken,
    /// The last text asked for again: not asked for twice.
    asked: Option<Resend>,
}

/// Ends when the node's loop stands still, or is gone.
async fn stands_still(status: &mut watch::Receiver<NodeStatus>) {
    let _ = status.wait_for(|s| s.stuck).await;
}

/// Whether the worker was welcomed last by another cluster, whose terms and attempts mean nothing here.
fn is_foreign(hello: &Hello, status: &NodeStatus) -> bool {
    !hello.cluster_id.is_empty() && status.cluster_id.as_ref() != Some(&hello.cluster_id)
}

impl Session {
    fn new(api: Arc<Api>, outbox: Outbox) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            api,
            id,
            worker_id: String::new(),
            outbox,
            dropped: CancellationToken::new(),
            asked: None,
        }
    }

    async fn run(mut self, mut messages: Streaming<WorkerMessage>) {
        let result = self.talk(&mut messages).await;
        let session = self.id;
        let _ = self.tell(SessionInput::Closed { session }).await;
        self.api.told.forget(session);
        if let Err(status) = result {
            // A worker that is gone, or hangs, does not read this.
            let _ = timeout(SEND, self.outbox.send(Err(status))).await;
        }
    }

    async fn talk(&mut self, messages: &mut Streaming<WorkerMessage>) -> Result<(), Status> {
        let first = timeout(HELLO, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("a session begins with Hello"))??;
        let Some(FromWorker::Hello(mut hello)) = first.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("a session begins with Hello"));
        };
        if hello.worker_id.is_empty() || hello.incarnation.is_empty() {
            return Err(Status::invalid_argument(
                "Hello: worker_id and incarnation are required",
            ));
        }
        self.until_led(&hello).await;
        if !self.may_lead(&hello) {
            return self.refuse().await;
        }
        let mut finished = mem::take(&mut hello.finished);
        if is_foreign(&hello, &self.api.node.status().borrow()) {
            // Another cluster's: they name other work here. Its worker is told whose this is.
            finished.clear();
        }
        self.worker_id.clone_from(&hello.worker_id);
        // The loop needs the keys only; the results follow one by one.
        hello.finished = finished
            .iter()
            .map(|r| AttemptResult {
                key: r.key.clone(),
                ..AttemptResult::default()
            })
            .collect();
        let outbox = self.outbox.clone();
        self.tell(SessionInput::Opened {
            session: self.id,
            hello: Box::new(hello),
            outbox,
            guard: self.dropped.clone().drop_guard(),
        })
        .await?;
        for result in finished {
            self.finished(result).await?;
        }
        let mut status = self.api.node.status();
        loop {
            let message = tokio::select! {
                message = messages.message() => message?,
                // Its loop ends no session; who leads elsewhere waits for the worker.
                () = stands_still(&mut status) => return self.refuse().await,
                // The loop dropped the session, or the worker left: it is to come back.
                () = self.dropped.cancelled() => return Ok(()),
                () = self.outbox.closed() => return Ok(()),
                () = self.api.closing.cancelled() => return self.refuse().await,
            };
            let Some(message) = message else {
                return Ok(());
            };
            self.take(message).await?;
        }
    }

    /// A worker that has seen a higher term of this cluster belongs to another leader (law 5).
    fn may_lead(&self, hello: &Hello) -> bool {
        let status = self.api.node.status();
        let status = status.borrow();
        status.serving && (hello.term <= status.term || is_foreign(hello, &status))
    }

    /// Waits, a while at most, until it is known who leads. A worker that is turned away during an election
    /// comes back by its own clock: it would place nothing for longer than the election takes.
    async fn until_led(&self, hello: &Hello) {
        let mut status = self.api.node.status();
        let led = status.wait_for(|status| {
            let elsewhere = status.leader_id != 0 && !status.leads();
            let ends = status.stuck || status.stopped.is_some() || status.cluster_id.is_none();
            let known = status.serving || elsewhere;
            ends || known && (status.term >= hello.term || is_foreign(hello, status))
        });
        tokio::select! {
            _ = timeout(ELECTION, led) => {}
            () = self.api.closing.cancelled() => {}
            () = self.outbox.closed() => {}
        }
    }

    async fn refuse(&self) -> Result<(), Status> {
        let status = self.api.node.now();
        let leader = if status.leads() { 0 } else { status.leader_id };
        let refusal = NotLeader {
            leader: self.api.network.address(leader).unwrap_or_default(),
            members: self.api.network.addresses().into_values().collect(),
            cluster_id: status.cluster_id.unwrap_or_default(),
        };
        let message = CoordinatorMessage {
            term: status.term,
            message: Some(ToWorker::NotLeader(refusal)),
        };
        let _ = timeout(SEND, self.outbox.send(Ok(message))).await;
        Ok(())
    }

    async fn take(&mut self, message: WorkerMessage) -> Result<(), Status> {
        let session = self.id;
        match message.message {
            Some(FromWorker::Hello(_)) => Err(Status::invalid_argument(
                "Hello comes once, at the beginning",
            )),
            Some(FromWorker::Prepared(prepared)) => {
                self.tell(SessionInput::Prepared { prepared }).await
            }
            Some(FromWorker::Progress(progress)) => {
                self.progress(progress);
                Ok(())
            }
            Some(FromWorker::Result(result)) => self.finished(result).await,
            Some(FromWorker::Heartbeat(mut beat)) => {
                let files = mem::take(&mut beat.refused_files);
                self.api.told.hear(session, &self.worker_id, files);
                self.tell(SessionInput::Alive { session, beat }).await
            }
            Some(FromWorker::Draining(_)) => self.tell(SessionInput::Draining { session }).await,
            None => Err(Status::invalid_argument("a message without content")),
        }
    }

    /// Text goes to the feed, past the loop.
    fn progress(&mut self, progress: Progress) {
        let (Some(key), Some(delta)) = (progress.key, progress.delta) else {
            return;
        };
        let Some(offset) = self.api.feeds.push(&key, delta) else {
            return;
        };
        let resend = Resend {
            key: Some(key),
            offset,
        };
        if self.asked.as_ref() == Some(&resend) {
            return;
        }
        self.asked = Some(resend.clone());
        let term = self.api.node.status().borrow().term;
        let message = CoordinatorMessage {
            term,
            message: Some(ToWorker::Resend(resend)),
        };
        // A full outbox ends the session elsewhere; text can be asked for later.
        let _ = self.outbox.try_send(Ok(message));
    }

    /// A draft that is too long for the log is on a majority before its hash
    /// is proposed. A worker keeps its result until it is acknowledged.
    async fn finished(&self, result: AttemptResult) -> Result<(), Status> {
        let Some(key) = result.key else {
            return Err(Status::invalid_argument("a result without a key"));
        };
        let outcome = match result.result {
            Some(attempt_result::Result::Draft(draft)) => self.draft(draft.encode_to_vec()).await?,
            Some(attempt_result::Result::Error(mut error)) => {
                let end = error.message.floor_char_boundary(ERROR_BYTES);
                error.message.truncate(end);
                attempt_finished::Result::Error(error)
            }
            None => return Err(Status::invalid_argument("a result without a body")),
        };
        let incarnation = result.incarnation;
        self.tell(SessionInput::Finished {
            session: self.id,
            key,
            incarnation,
            result: outcome,
        })
        .await
    }

    /// A draft as the log has it. One that no reply could hold is a failure that says so: no other attempt
    /// would be shorter.
    async fn draft(&self, bytes: Vec<u8>) -> Result<attempt_finished::Result, Status> {
        let most = self.api.config.max_message_bytes;
        let longest = view::longest_draft(most);
        if bytes.len() > longest {
            let message = format!(
                "the draft has {} bytes, {longest} may be where a message has {most} (max_message_bytes): ask \
                 for fewer tokens, or set that higher",
                bytes.len()
            );
            return Ok(attempt_finished::Result::Error(AttemptError {
                kind: ErrorKind::Permanent as i32,
                message,
            }));
        }
        let payload = self.api.blobs.payload(bytes, SPREAD).await?;
        Ok(attempt_finished::Result::Draft(payload))
    }

    async fn tell(&self, input: SessionInput) -> Result<(), Status> {
        let deadline = Instant::now() + SEND;
        match self.api.node.send(Input::Session(input), deadline).await {
            Ok(()) => Ok(()),
            Err(NodeError::Busy) => Err(Status::unavailable("the node is busy: say hello again")),
            Err(error) => Err(convert::node_error(error)),
        }
    }
}
