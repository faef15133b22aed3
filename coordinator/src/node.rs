//! The node as everybody else in the process sees it: what it may be asked,
//! what it says of itself. Its loop is [`task`].

pub mod carry;
mod clocks;
pub mod contact;
mod describe;
mod handle;
mod journal;
pub mod lead;
pub mod lookout;
mod lost;
mod membership;
mod quotas;
pub mod storage;
pub mod task;
mod upkeep;
pub mod waiters;
pub mod watchdog;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use conclave_coordinator_core::{
    Reply, State,
    quota::{Quotas, Refusal},
};
use conclave_proto::v1::{Decide, LineageRecord, LostWorker, command::Command as Body};
use tokio::sync::oneshot;

pub use handle::Handle;

use crate::dispatch::SessionInput;

/// A member as the configuration has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberInfo {
    /// Where it listens.
    pub address: String,
    /// It replicates and does not vote.
    pub learner: bool,
}

/// What part a node plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeRole {
    /// Of no cluster yet.
    #[default]
    Blank,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Replicates and does not vote.
    Learner,
    /// Was taken out of its cluster.
    Removed,
}

impl NodeRole {
    /// The word in `StatusResponse.role`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
            Self::Removed => "removed",
        }
    }
}

/// What the node says of itself after each turn of its loop. Whoever waits for changes of it hears of all but
/// those of `commit`, `applied`, `live_jobs` and `keys`, which move with every entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeStatus {
    /// Raft id, never 0.
    pub node_id: u64,
    /// `None` while blank.
    pub cluster_id: Option<String>,
    /// What part it plays.
    pub role: NodeRole,
    /// Raft term.
    pub term: u64,
    /// 0: none known.
    pub leader_id: u64,
    /// It leads, has applied an entry of its own term, and may speak to workers.
    pub serving: bool,
    /// Highest committed entry.
    pub commit: u64,
    /// Highest applied entry.
    pub applied: u64,
    /// Voters and learners.
    pub members: BTreeMap<u64, MemberInfo>,
    /// Members that the leader has not heard from lately; known to the leader only.
    pub silent: Vec<u64>,
    /// The cluster's audit key; empty before there is one.
    pub public_key: Vec<u8>,
    /// The log version that the cluster uses.
    pub log_version: u32,
    /// The clusters that this one came out of, oldest first.
    pub lineage: Vec<LineageRecord>,
    /// Jobs that have not ended.
    pub live_jobs: usize,
    /// Idempotency keys that are kept.
    pub keys: usize,
    /// Why its quotas file cannot be used as it is, if it cannot.
    pub quotas_refused: Option<String>,
    /// Workers that were lost lately, as this node saw it, the newest last; also those that came back.
    pub lost_workers: Arc<Vec<LostWorker>>,
    /// It is being shut down.
    pub leaving: bool,
    /// Its loop does not move: the disk hangs, most likely.
    pub stuck: bool,
    /// It and a leader have not reached each other for too long: who does not answer. See [`contact`].
    pub cut_off: Option<String>,
    /// Why the loop ended.
    pub stopped: Option<String>,
}

/// Why the node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Only the leader does this.
    #[error("this node does not lead")]
    NotLeader,
    /// The node is in no cluster.
    #[error("this node belongs to no cluster yet: create one with `conclave cluster init`")]
    Blank,
    /// The deadline passed and nothing was proposed or read.
    #[error("the cluster did not answer in time; {0}")]
    NoQuorum(String),
    /// The deadline passed after proposing: it may yet be done.
    #[error("the proposal was not confirmed in time and may yet commit")]
    Unknown,
    /// A queue is full.
    #[error("the node is busy")]
    Busy,
    /// The caller's tenant has all that it may have; nothing was proposed.
    #[error("{0}")]
    OverQuota(Refusal),
    /// The request contradicts the node's or the cluster's state.
    #[error("{0}")]
    Refused(String),
    /// The node's loop has ended.
    #[error("the node has stopped")]
    Stopped,
}

/// One command to replicate.
pub struct Proposal {
    /// What is to be applied.
    pub body: Body,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Told once the command was applied, or will not be waited for.
    pub reply: oneshot::Sender<Result<Reply, NodeError>>,
}

/// Runs on the replicated state inside the loop; must be quick.
pub type ReadFn = Box<dyn FnOnce(Result<&State, NodeError>) + Send>;

/// One read of the replicated state.
pub struct Read {
    /// Confirmed by ReadIndex first; otherwise of whatever is applied here.
    pub linear: bool,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Called exactly once.
    pub run: ReadFn,
}

/// What a caller of a membership change waits on.
pub type Done = oneshot::Sender<Result<(), NodeError>>;

/// What the loop is asked by the rest of the process.
pub enum Input {
    /// Replicate a command.
    Propose(Proposal),
    /// May this tenant submit one more job? Asked before anything is stored for it.
    Admit {
        /// The tenant.
        tenant: String,
        /// Told at once.
        done: Done,
    },
    /// What tenants may have from now on; or why the file cannot be used: what it said before goes on.
    Quotas(Result<Quotas, String>),
    /// Read the state.
    Read(Read),
    /// Something of a worker's session.
    Session(SessionInput),
    /// Create a cluster with this node as its first voter.
    Init {
        /// The new cluster.
        cluster_id: String,
        /// Told once the node leads.
        done: Done,
    },
    /// Bind a blank node to the cluster that invited it.
    Bind {
        /// The inviting cluster.
        cluster_id: String,
        /// Told once it is durable.
        done: Done,
    },
    /// Add, promote or remove a member.
    Change {
        /// The member.
        node_id: u64,
        /// What becomes of it.
        change: Change,
        /// The voters as of which this was found to be safe: with others it is
        /// [`NodeError::Busy`]. `None`: whoever they are.
        checked: Option<BTreeSet<u64>>,
        /// When the caller stops waiting.
        deadline: Instant,
        /// Told once the change is applied.
        done: Done,
    },
    /// Hand leadership to a member (0: to the one most caught up).
    Transfer {
        /// The member, or 0.
        node_id: u64,
        /// Even to one that lags behind.
        force: bool,
        /// Told once the transfer began.
        done: Done,
    },
    /// How far each member is; answered by the leader.
    Progress(oneshot::Sender<BTreeMap<u64, Follower>>),
    /// A payload that was missing is here now.
    BlobArrived,
    /// A round's context is stored and named in its decision; `None` if it
    /// could not be.
    ContextStored {
        /// The term that asked for it.
        term: u64,
        /// The job.
        job_id: String,
        /// What is to be proposed.
        decide: Option<Decide>,
    },
    /// What a majority of the voters' clocks has reached, `None` if too few answered.
    Clocks {
        /// The term that asked for it.
        term: u64,
        /// Unix ms.
        reached_ms: Option<i64>,
    },
    /// The lane to this member was lost, and messages with it.
    Unreachable(u64),
    /// Nothing listens where this member listened: its process has ended.
    Gone(u64),
    /// A leader said that this node is no member any more.
    Removed,
    /// This node is about to be shut down: it is ready for nothing more.
    Leaving,
    /// A snapshot of this node's own is on disk, or could not be saved.
    SnapshotSaved(storage::Saved),
}

/// What becomes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It replicates without a vote.
    AddLearner,
    /// It votes.
    Promote,
    /// It is out.
    Remove,
}

/// A member as the leader knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Follower {
    /// Highest entry that it is known to hold.
    pub match_index: u64,
    /// Heard from lately.
    pub active: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_a_fresh_and_a_leaving_replica_are_not_ready() {
        let voter = MemberInfo::default();
        let ready = NodeStatus {
            role: NodeRole::Leader,
            leader_id: 1,
            serving: true,
            commit: 5,
            applied: 5,
            members: BTreeMap::from([(1, voter)]),
            ..NodeStatus::default()
        };
        assert_eq!(ready.unready(), None);
        let not = |change: fn(&mut NodeStatus)| {
            let mut status = ready.clone();
            change(&mut status);
            assert!(status.unready().is_some(), "{status:?}");
        };
        not(|s| s.members.clear());
        not(|s| (s.applied, s.commit) = (0, 0));
        not(|s| s.applied = 4);
        not(|s| s.serving = false);
        not(|s| s.leaving = true);
        not(|s| s.leader_id = 0);
        not(|s| s.stuck = true);
        not(|s| s.cut_off = Some("a test".to_owned()));
        not(|s| s.stopped = Some("a test".to_owned()));
    }
}
