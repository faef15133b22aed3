//! The way to the node's loop: queues with deadlines, and what it says of itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use conclave_coordinator_core::{Reply, State};
use conclave_proto::v1::command::Command as Body;
use raft::eraftpb::Message as RaftMessage;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Done, Follower, Input, NodeError, NodeStatus, Proposal, Read, ReadFn};

/// How long after a caller's deadline the loop may answer it: it looks at
/// deadlines once a tick.
const SLACK: Duration = Duration::from_millis(250);

/// The way to the node's loop; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    raft: mpsc::Sender<RaftMessage>,
    status: watch::Receiver<NodeStatus>,
}

impl Handle {
    /// Joins the loop's queues.
    pub fn new(
        inputs: mpsc::Sender<Input>,
        raft: mpsc::Sender<RaftMessage>,
        status: watch::Receiver<NodeStatus>,
    ) -> Self {
        Self {
            inputs,
            raft,
            status,
        }
    }

    /// What the node says of itself, and changes of it.
    pub fn status(&self) -> watch::Receiver<NodeStatus> {
        self.status.clone()
    }

    /// What the node says of itself now.
    pub fn now(&self) -> NodeStatus {
        self.status.borrow().clone()
    }

    /// Queues a raft message; false if the queue is full and it was dropped.
    pub fn step(&self, message: RaftMessage) -> bool {
        self.raft.try_send(message).is_ok()
    }

    /// Queues an input, waiting for room until `deadline`.
    ///
    /// # Errors
    /// [`NodeError::Busy`] without room, [`NodeError::Stopped`].
    pub async fn send(&self, input: Input, deadline: Instant) -> Result<(), NodeError> {
        match tokio::time::timeout_at(deadline.into(), self.inputs.send(input)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(NodeError::Stopped),
            Err(_) => Err(NodeError::Busy),
        }
    }

    /// Queues what the loop must hear, however busy it is: it would wait for ever
    /// for what was dropped. Ends with the loop at the latest.
    pub async fn tell(&self, input: Input) {
        // A loop that has ended waits for nothing.
        let _ = self.inputs.send(input).await;
    }

    /// Replicates a command and returns what applying it answered.
    ///
    /// # Errors
    /// [`NodeError`]; `Unknown` means that it may yet be applied.
    pub async fn propose(&self, body: Body, wait: Duration) -> Result<Reply, NodeError> {
        let deadline = Instant::now() + wait;
        let (reply, answer) = oneshot::channel();
        self.send(
            Input::Propose(Proposal {
                body,
                deadline,
                reply,
            }),
            deadline,
        )
        .await?;
        answered(answer, deadline, NodeError::Unknown, || NodeError::Unknown).await
    }

    /// Reads the state, linearizably or as it is here.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn read<T: Send + 'static>(
        &self,
        linear: bool,
        wait: Duration,
        read: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let deadline = Instant::now() + wait;
        let (reply, answer) = oneshot::channel();
        let run: ReadFn = Box::new(move |state| {
            // A caller that went away needs no answer.
            let _ = reply.send(state.map(read));
        });
        self.send(
            Input::Read(Read {
                linear,
                deadline,
                run,
            }),
            deadline,
        )
        .await?;
        answered(answer, deadline, NodeError::Stopped, stands_still).await
    }

    /// Asks for something that is answered with `Ok` or an error.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn ask(
        &self,
        wait: Duration,
        input: impl FnOnce(Instant, Done) -> Input,
    ) -> Result<(), NodeError> {
        let deadline = Instant::now() + wait;
        let (done, answer) = oneshot::channel();
        self.send(input(deadline, done), deadline).await?;
        answered(answer, deadline, NodeError::Stopped, || NodeError::Unknown).await
    }

    /// How far each member is; empty where this node does not lead.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn progress(&self, wait: Duration) -> Result<BTreeMap<u64, Follower>, NodeError> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + wait;
        self.send(Input::Progress(reply), deadline).await?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(answer) => answer.map_err(|_| NodeError::Stopped),
            Err(_) => Err(stands_still()),
        }
    }
}

/// What the loop answers, or `late` where it does not: it may hang in its disk,
/// and then it looks at no deadline.
async fn answered<T>(
    answer: oneshot::Receiver<Result<T, NodeError>>,
    deadline: Instant,
    gone: NodeError,
    late: impl FnOnce() -> NodeError,
) -> Result<T, NodeError> {
    match tokio::time::timeout_at((deadline + SLACK).into(), answer).await {
        Ok(answer) => answer.unwrap_or(Err(gone)),
        Err(_) => Err(late()),
    }
}

/// Nothing was read: the loop does not move.
fn stands_still() -> NodeError {
    NodeError::NoQuorum("this node's loop stands still: its disk hangs, or is too slow".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_loop_must_hear_waits_for_room_and_not_beyond_its_end() {
        let (inputs, mut queue) = mpsc::channel(1);
        let status = watch::Sender::new(NodeStatus::default());
        let handle = Handle::new(inputs, mpsc::channel(1).0, status.subscribe());
        handle.tell(Input::Leaving).await;
        let mut told = std::pin::pin!(handle.tell(Input::BlobArrived));
        assert!(futures::poll!(told.as_mut()).is_pending());
        let refused = handle.send(Input::Leaving, Instant::now()).await;
        assert_eq!(refused, Err(NodeError::Busy));
        assert!(matches!(queue.recv().await, Some(Input::Leaving)));
        told.await;
        assert!(matches!(queue.recv().await, Some(Input::BlobArrived)));
        handle.tell(Input::Leaving).await;
        let told = handle.tell(Input::BlobArrived);
        drop(queue);
        told.await;
    }
}
