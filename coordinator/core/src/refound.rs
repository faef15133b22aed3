//! A cluster goes on as another one: begun on a saved snapshot, or by one member of a cluster that
//! lost its quorum.
//!
//! Whoever belonged to the cluster before may still run. So the new one takes another id
//! (messages and folders of the old members are refused), a term far above (so that no entry of
//! the old log is newer), what it came out of (its workers obey no leader of that), and no
//! worker: their attempts start again elsewhere, and a worker that says hello with another
//! cluster's attempts is told to forget them.
//!
//! Jobs, keys of clients, audit chains and the signing key go on: what a client was told stays true.

use conclave_proto::v1::{LineageKind, LineageRecord, MemberRecord};

use crate::{
    commands::{At, Loss, lose_attempt},
    placement::order::Order,
    state::State,
};

/// The first log version whose state holds a lineage.
pub const LINEAGE_VERSION: u32 = 2;
/// How far the new cluster's term is above the last one known: farther than elections of what is
/// left of the old cluster will ever carry it.
pub const TERM_JUMP: u64 = 1_000_000;
/// Why attempts end that the old cluster had placed.
const REASON: &str = "the cluster was begun anew";

/// What the new cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refounding {
    /// How it comes about.
    pub kind: LineageKind,
    /// Minted; never the old one's.
    pub cluster_id: String,
    /// Its first voter.
    pub node_id: u64,
    /// The highest term known of the old cluster.
    pub term: u64,
    /// By the clock of whoever does it, Unix ms.
    pub unix_ms: i64,
    /// Entries taken over that were not known to be committed.
    pub unconfirmed: u64,
}

impl State {
    /// Becomes the first state of another cluster, at the next index and a term far above.
    ///
    /// Every attempt that the old cluster had placed ends; it does not count against its agent.
    pub fn refound(&mut self, new: &Refounding) {
        let left_behind = self
            .members
            .iter()
            .filter(|(id, _)| **id != new.node_id)
            .map(|(id, address)| MemberRecord {
                node_id: *id,
                address: address.clone(),
            })
            .collect();
        self.lineage.push(LineageRecord {
            kind: new.kind as i32,
            from_cluster_id: std::mem::replace(&mut self.cluster_id, new.cluster_id.clone()),
            cluster_id: new.cluster_id.clone(),
            index: self.applied_index,
            term: self.applied_term,
            unix_ms: new.unix_ms,
            node_id: new.node_id,
            unconfirmed: new.unconfirmed,
            left_behind,
        });
        self.members.clear();
        self.workers.clear();
        self.order = Order::default();
        self.log_version = self.log_version.max(LINEAGE_VERSION);
        let index = self.applied_index + 1;
        self.skip(index, new.term.max(self.applied_term) + TERM_JUMP);
        self.requeue_placed(At { index });
    }

    fn requeue_placed(&mut self, at: At) {
        let placed: Vec<(String, u32)> = self
            .active_jobs()
            .flat_map(|job| job.agents.iter().map(move |agent| (job, agent)))
            .filter(|(_, agent)| agent.holds_worker())
            .map(|(job, agent)| (job.id.clone(), agent.spec.agent))
            .collect();
        let now = self.unix_ms;
        for (job_id, number) in placed {
            if let Some(job) = self.jobs.get_mut(&job_id) {
                // What follows is derived again by the first leader (law 2).
                let _ = lose_attempt(job, at, now, number, Loss::Drained, REASON);
            }
            self.reindex(&job_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{AgentState, CancelJobCommand, command::Command as Body};

    use super::*;
    use crate::{
        Effect, snapshot,
        testkit::{World, choice, draft, width},
    };

    fn anew(kind: LineageKind) -> Refounding {
        Refounding {
            kind,
            cluster_id: "new".into(),
            node_id: 7,
            term: 40,
            unix_ms: 5,
            unconfirmed: 3,
        }
    }

    #[test]
    fn jobs_and_keys_go_on_and_what_ran_starts_again_without_blame() {
        let mut world = World::with_job(&choice(width(2)));
        world.go("j");
        world.hand_in("j", 1, &draft("y", 1));
        let (seed, index) = (
            world.state.signing_seed().to_vec(),
            world.state.applied_index(),
        );
        world.state.refound(&anew(LineageKind::Restored));
        let state = &world.state;
        assert_eq!(state.cluster_id(), "new");
        assert_eq!(state.signing_seed(), seed, "old signatures still verify");
        assert!(state.key("t", "key-j").is_some());
        assert_eq!(state.applied_index(), index + 1);
        assert_eq!(state.applied_term(), 40 + TERM_JUMP);
        assert!(state.workers().next().is_none() && state.members().is_empty());
        assert_eq!(world.agents("j", AgentState::Done), [1]);
        assert_eq!(world.agents("j", AgentState::Queued), [2]);
        assert_eq!(world.job("j").agents[1].failures, 0);
        assert!(world.state.outstanding().contains(&Effect::Place));
        let job = world.job("j");
        let records = crate::audit::export(job, &crate::payload::InlineOnly).unwrap();
        crate::audit::verify_complete(&records, Some(&job.audit.head())).unwrap();
    }

    #[test]
    fn an_ended_job_whose_workers_stay_behind_is_sealed() {
        let mut world = World::with_job(&choice(width(2)));
        world.go("j");
        world.apply(Body::CancelJob(CancelJobCommand {
            job_id: "j".into(),
            ..CancelJobCommand::default()
        }));
        assert!(!world.job("j").audit.is_sealed());
        world.state.refound(&anew(LineageKind::Recovered));
        assert!(world.job("j").audit.is_sealed());
        assert!(!world.state.needs_ticks());
    }

    #[test]
    fn the_lineage_is_kept_and_needs_a_program_that_knows_it() {
        let mut world = World::with_job(&choice(width(1)));
        let before = world.state.cluster_id().to_owned();
        world.state.refound(&anew(LineageKind::Restored));
        world.state.refound(&Refounding {
            cluster_id: "newer".into(),
            ..anew(LineageKind::Recovered)
        });
        let (manifest, bytes) = snapshot::encode(&world.state);
        assert_eq!(manifest.log_version, LINEAGE_VERSION);
        let state = snapshot::decode(&manifest, &bytes).unwrap();
        assert_eq!(state, world.state);
        let from: Vec<_> = state.lineage().iter().map(|l| &l.from_cluster_id).collect();
        assert_eq!(from, [&before, "new"]);
        assert_eq!(state.lineage()[1].unconfirmed, 3);
    }
}
