//! `recover --force-single`: the quorum is lost for good, and one member that
//! is left goes on alone, as a new cluster.
//!
//! The member's log is taken to its end. Entries behind the last commit index
//! that it knows of may have been committed by members that are gone, and been
//! confirmed to a client: keeping them loses nothing that was promised. What
//! only the others had is lost.

use std::{
    io,
    path::{Path, PathBuf},
};

use conclave_coordinator_core::{
    State, codec,
    node::{Payload, Restored, committed},
    refound::Refounding,
    snapshot,
};
use conclave_proto::v1::{LineageKind, command::Command as Body};
use raft::eraftpb::{ConfChangeType, ConfChangeV2, ConfState};

use super::{WriteError, mint_cluster, restored_of, write_founding};
use crate::{
    disk::{
        absolve,
        identity::{Identity, IdentityError},
        log_store::{LogError, LogStore},
        snapshots::{SnapshotError, Snapshots},
    },
    node::task::unix_ms,
};

/// Why a member cannot go on alone. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is no member's folder.
    #[error("{0} holds no member of a cluster: name the data folder of a stopped member")]
    Blank(PathBuf),
    /// It is alone already.
    #[error(
        "{folder}: this member is the only voter of cluster {cluster_id}, so nothing is lost: \
         start it with `conclave coordinator --data-dir {folder}`"
    )]
    Alone {
        /// The folder.
        folder: PathBuf,
        /// Its cluster.
        cluster_id: String,
    },
    /// The folder's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The folder's log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The folder's snapshots.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot's content.
    #[error(transparent)]
    State(#[from] snapshot::SnapshotError),
    /// An entry of the log.
    #[error("entry {index}: {source}")]
    Entry {
        /// Which.
        index: u64,
        /// What is wrong with it.
        source: codec::CodecError,
    },
    /// The file system refuses.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The new beginning could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A stopped member, opened and locked, and what going on alone would mean.
pub struct Survivor {
    folder: PathBuf,
    log: LogStore,
    snapshots: Snapshots,
    state: State,
    /// A recovery before this one wrote the log and not the identity.
    unfinished: bool,
    /// What may be lost.
    pub loss: Loss,
    /// Last, so that the lock goes when all else is closed.
    identity: Identity,
}

/// What is known of the cluster from this member alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The cluster that lost its quorum.
    pub cluster_id: String,
    /// This member.
    pub node_id: u64,
    /// This member does not vote.
    pub learner: bool,
    /// The others: id, address (may be empty), whether they vote.
    pub others: Vec<(u64, String, bool)>,
    /// The highest term that it has seen.
    pub term: u64,
    /// The highest entry that it knows to be committed.
    pub committed: u64,
    /// The last entry of its log.
    pub last: u64,
    /// What the entries between the two are, by name.
    pub unconfirmed: Vec<(u64, &'static str)>,
    /// Jobs that go on or have ended.
    pub jobs: usize,
    /// Jobs that have not ended.
    pub live_jobs: usize,
    /// Payloads that the state names and that are not in this folder.
    pub missing_payloads: usize,
    /// Why no member of the cluster may run on this folder any more, if that was found.
    pub doubt: Option<String>,
    /// The replicated wall clock at the end of the log, Unix ms: what this
    /// member does not have happened behind it.
    pub unix_ms: i64,
}

/// The cluster that a survivor began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The new cluster.
    pub cluster_id: String,
    /// Its only voter.
    pub node_id: u64,
    /// Index and term that it begins at.
    pub index: u64,
    /// See `index`.
    pub term: u64,
}

impl Survivor {
    /// Opens a stopped member's folder, and reads its log to the end.
    ///
    /// # Errors
    /// [`RecoverError`]: in use, blank, alone already, or damaged.
    pub fn open(folder: &Path) -> Result<Self, RecoverError> {
        let io = |e| RecoverError::Io(folder.to_owned(), e);
        // Opening would make what is not there.
        if !folder.join("identity.json").exists() && !folder.join("raft").exists() {
            return Err(RecoverError::Blank(folder.to_owned()));
        }
        let (identity, doubt) = Identity::open_doubtful(folder)?;
        let Some(cluster_id) = identity.cluster_id().map(str::to_owned) else {
            return Err(RecoverError::Blank(folder.to_owned()));
        };
        let snapshots = Snapshots::open(folder).map_err(io)?;
        let (log, recovered) = LogStore::open(folder, true)?;
        if recovered.is_blank() {
            return Err(RecoverError::Blank(folder.to_owned()));
        }
        log.claim(identity.node_id())?;
        let restored = restored_of(recovered);
        let Read {
            state,
            conf,
            unconfirmed,
        } = read(&restored, &snapshots)?;
        let node_id = identity.node_id();
        let unfinished = state.cluster_id() != cluster_id && !state.lineage().is_empty();
        if conf.voters == [node_id] && !unfinished {
            return Err(RecoverError::Alone {
                folder: folder.to_owned(),
                cluster_id,
            });
        }
        let blobs = crate::disk::blobs::Blobs::open(folder).map_err(io)?;
        let loss = Loss {
            cluster_id,
            node_id,
            learner: !conf.voters.contains(&node_id),
            others: others(&conf, node_id, &state),
            term: restored.hard_state.term,
            committed: restored.hard_state.commit.max(restored.applied),
            last: state.applied_index(),
            unconfirmed,
            jobs: state.all_jobs().count(),
            live_jobs: state.all_jobs().filter(|job| !job.is_final()).count(),
            missing_payloads: state.live_blobs().keys().filter(|h| !blobs.has(h)).count(),
            doubt,
            unix_ms: state.unix_ms(),
        };
        Ok(Self {
            folder: folder.to_owned(),
            log,
            snapshots,
            state,
            unfinished,
            loss,
            identity,
        })
    }

    /// Makes this member the only voter of a new cluster. A crash in the middle
    /// leaves a folder that no coordinator starts on, and that this finishes.
    ///
    /// # Errors
    /// [`RecoverError`] from the disk.
    pub fn go_on_alone(mut self) -> Result<Recovered, RecoverError> {
        let node_id = self.identity.node_id();
        if !self.unfinished {
            let new = Refounding {
                kind: LineageKind::Recovered,
                cluster_id: mint_cluster(),
                node_id,
                term: self.loss.term,
                unix_ms: unix_ms(),
                unconfirmed: self.loss.unconfirmed.len() as u64,
            };
            self.state.refound(&new);
            write_founding(&self.log, &self.snapshots, node_id, &self.state)?;
        }
        let cluster_id = self.state.cluster_id().to_owned();
        self.identity.rebind(&cluster_id)?;
        absolve(&self.folder).map_err(|e| RecoverError::Io(self.folder.clone(), e))?;
        tracing::info!(folder = %self.folder.display(), cluster_id, "a new cluster begins");
        Ok(Recovered {
            cluster_id,
            node_id,
            index: self.state.applied_index(),
            term: self.state.applied_term(),
        })
    }
}

/// A log taken to its end.
struct Read {
    state: State,
    conf: ConfState,
    unconfirmed: Vec<(u64, &'static str)>,
}

fn read(restored: &Restored, snapshots: &Snapshots) -> Result<Read, RecoverError> {
    let mut state = State::new();
    if let Some(snapshot) = &restored.snapshot {
        let manifest = snapshot::manifest(snapshot.get_data())?;
        state = snapshot::decode(&manifest, &snapshots.get(&manifest)?)?;
    }
    let mut conf = restored.conf_state.clone();
    let mut unconfirmed = Vec::new();
    for entry in &restored.entries {
        let (index, term) = (entry.index, entry.term);
        if index <= state.applied_index() {
            continue;
        }
        let payload = committed(entry.clone()).map_or(Payload::Empty, |c| c.payload);
        let name = match &payload {
            Payload::Empty => {
                state.skip(index, term);
                "a leader's first entry"
            }
            Payload::Command { data, .. } => {
                let command =
                    codec::decode(data).map_err(|source| RecoverError::Entry { index, source })?;
                state.apply(index, term, &command);
                command.command.as_ref().map_or("nothing", name_of)
            }
            Payload::Conf { change, .. } => {
                state.skip(index, term);
                apply_conf(&mut conf, change);
                "a change of members"
            }
        };
        if index > restored.hard_state.commit {
            unconfirmed.push((index, name));
        }
    }
    Ok(Read {
        state,
        conf,
        unconfirmed,
    })
}

/// Who the members are once `change` is applied.
fn apply_conf(conf: &mut ConfState, change: &ConfChangeV2) {
    for single in change.get_changes() {
        let id = single.node_id;
        conf.voters.retain(|voter| *voter != id);
        conf.learners.retain(|learner| *learner != id);
        match single.get_change_type() {
            ConfChangeType::AddNode => conf.voters.push(id),
            ConfChangeType::AddLearnerNode => conf.learners.push(id),
            ConfChangeType::RemoveNode => {}
        }
    }
}

fn others(conf: &ConfState, me: u64, state: &State) -> Vec<(u64, String, bool)> {
    let address = |id: u64| state.members().get(&id).cloned().unwrap_or_default();
    let voters = conf.voters.iter().map(|id| (*id, true));
    voters
        .chain(conf.learners.iter().map(|id| (*id, false)))
        .filter(|(id, _)| *id != me)
        .map(|(id, votes)| (id, address(id), votes))
        .collect()
}

fn name_of(body: &Body) -> &'static str {
    match body {
        Body::CreateCluster(_) => "the cluster's keys",
        Body::SubmitJob(_) => "a submission",
        Body::PrepareDone(_) => "a prompt's check",
        Body::Decide(_) => "a decision on a job",
        Body::Assign(_) => "a placement",
        Body::AttemptFinished(_) => "a result",
        Body::CancelJob(_) => "a cancellation",
        Body::ReviewJob(_) => "a review",
        Body::RegisterWorker(_) => "a worker's hello",
        Body::RenewLeases(_) => "leases",
        Body::DrainWorker(_) => "a worker's drain",
        Body::Tick(_) => "the clock",
        Body::ExpireJobs(_) => "the end of old jobs",
        Body::SetLogVersion(_) => "a new log version",
        Body::SetMemberAddress(_) => "a member's address",
    }
}
