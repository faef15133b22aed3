//! What the node says of itself.

use conclave_coordinator_core::{lead::Leader, node::Role};

use super::{MemberInfo, NodeRole, NodeStatus, task::Task};
use crate::metrics;

impl NodeStatus {
    /// It serves, and a quorum of the voters answered it lately.
    pub fn hears_quorum(&self) -> bool {
        let voter = |id: &&u64| self.members.get(id).is_some_and(|m| !m.learner);
        let voters = self.members.keys().filter(voter).count();
        let silent = self.silent.iter().filter(voter).count();
        self.serving && voters > 2 * silent
    }

    /// More differs than how much is in the log and in the state. Every call waits for news: with each
    /// entry they would all be woken.
    fn is_news_after(&self, old: &Self) -> bool {
        let counted = Self {
            commit: self.commit,
            applied: self.applied,
            live_jobs: self.live_jobs,
            keys: self.keys,
            ..old.clone()
        };
        *self != counted || self.unready().is_some() != old.unready().is_some()
    }

    /// Why `/readyz` says no; `None` when it says yes.
    pub fn unready(&self) -> Option<String> {
        if let Some(why) = &self.stopped {
            return Some(format!("the node stopped: {why}"));
        }
        if self.leaving {
            return Some("this node is being shut down".to_owned());
        }
        if self.stuck {
            return Some(
                "this node's loop stands still: its disk hangs, or is far too slow".into(),
            );
        }
        match self.role {
            NodeRole::Blank => Some("this node belongs to no cluster yet".to_owned()),
            NodeRole::Removed => Some(
                "this node was removed from its cluster: stop it, or add it again (`conclave cluster add`): \
                 it is told everything anew"
                    .to_owned(),
            ),
            _ if self.cut_off.is_some() => self.cut_off.clone(),
            _ if self.leader_id == 0 => Some("no leader is known".to_owned()),
            _ if self.applied == 0 || self.members.values().all(|m| m.learner) => {
                Some("nothing has come from the leader yet".to_owned())
            }
            NodeRole::Leader if !self.serving => {
                Some("this node leads and has not confirmed it yet".to_owned())
            }
            _ if self.applied < self.commit => Some(format!(
                "applied {} of {} entries",
                self.applied, self.commit
            )),
            _ => None,
        }
    }

    /// True if it knows no leader, or reaches none.
    pub fn leaderless(&self) -> bool {
        self.leader_id == 0 || self.cut_off.is_some()
    }

    /// True if this node leads.
    pub fn leads(&self) -> bool {
        self.role == NodeRole::Leader
    }
}

impl Task {
    pub(super) fn publish(&mut self) {
        self.pulse.beat();
        let mut status = self.describe();
        self.status.send_if_modified(|old| {
            // Not the loop's to say.
            status.cut_off.clone_from(&old.cut_off);
            let news = status.is_news_after(old);
            *old = status;
            news
        });
    }

    /// What bounds submissions, before one of them is answered: whoever heard the answer counts with it, and
    /// the turn may go on for long. It is no news.
    pub(super) fn publish_counts(&self) {
        let (live_jobs, keys) = (self.state.live_jobs(), self.state.key_count());
        self.status.send_if_modified(|status| {
            (status.live_jobs, status.keys) = (live_jobs, keys);
            false
        });
    }

    fn describe(&mut self) -> NodeStatus {
        if self.public_key.is_empty() {
            self.public_key = crate::api::audit::public_key(self.state.signing_seed());
        }
        let applied = self.state.applied_index();
        let me = self.identity.node_id();
        let conf = self.node.conf_state();
        let info = |id: u64, learner: bool| {
            let known = self.network.address(id);
            let address = known.or_else(|| self.state.members().get(&id).cloned());
            (
                id,
                MemberInfo {
                    address: address.unwrap_or_default(),
                    learner,
                },
            )
        };
        let voters = conf.voters.iter().map(|id| info(*id, false));
        let members = voters
            .chain(conf.learners.iter().map(|id| info(*id, true)))
            .collect();
        let progress = self.node.progress();
        NodeStatus {
            node_id: me,
            cluster_id: self.identity.cluster_id().map(str::to_owned),
            role: self.role(!conf.voters.is_empty()),
            term: self.leadership.term,
            leader_id: self.leadership.leader_id,
            serving: self.leader.as_ref().is_some_and(Leader::serving),
            commit: self.node.commit_index(),
            applied,
            members,
            silent: progress
                .iter()
                .filter(|p| !p.active)
                .map(|p| p.id)
                .collect(),
            public_key: self.public_key.clone(),
            log_version: self.state.log_version(),
            lineage: self.state.lineage().to_vec(),
            live_jobs: self.state.live_jobs(),
            keys: self.state.key_count(),
            quotas_refused: self.quotas_refused.clone(),
            lost_workers: self.lost.shown(),
            leaving: self.leaving,
            stuck: false,
            cut_off: None,
            stopped: None,
        }
    }

    fn role(&self, has_members: bool) -> NodeRole {
        if self.identity.cluster_id().is_none() {
            return NodeRole::Blank;
        }
        match self.leadership.role {
            // It was gone before it could hear of it; added anew, it would hear of that.
            _ if self.removed == Some(self.node.commit_index()) => NodeRole::Removed,
            Role::Leader => NodeRole::Leader,
            Role::Candidate => NodeRole::Candidate,
            Role::Learner => NodeRole::Learner,
            Role::Outside if has_members => NodeRole::Removed,
            Role::Follower | Role::Outside => NodeRole::Follower,
        }
    }

    /// What stands between this node and an answer, for people.
    pub(super) fn missing(&self) -> String {
        let silent = &self.status.borrow().silent;
        if self.leadership.role == Role::Leader && !silent.is_empty() {
            return format!("members without an answer: {}", self.name_members(silent));
        }
        if self.leadership.leader_id == 0 {
            return "no leader is known".to_owned();
        }
        format!(
            "the leader ({}) did not confirm",
            self.name_members(&[self.leadership.leader_id])
        )
    }

    pub(super) fn gauges(&self) {
        let doubts = self.leader.as_ref().and_then(Leader::doubts_clock);
        metrics::clock_ahead(&self.label, doubts.unwrap_or_default());
        let voters = self.node.conf_state().voters;
        let progress = self.node.progress();
        let active = progress.iter().filter(|p| !p.learner && p.active);
        metrics::raft(
            &self.label,
            metrics::RaftGauges {
                has_leader: self.leadership.leader_id != 0,
                is_leader: self.leadership.role == Role::Leader,
                term: self.leadership.term,
                commit: self.node.commit_index(),
                applied: self.state.applied_index(),
                snapshot: self.storage.snapshot_index,
                pending: self.waiters.len(),
                voters: voters.len(),
                voters_active: active.count(),
                log_bytes: self.node.log_size().bytes,
            },
        );
        metrics::kept(&self.label, self.state.job_count(), self.state.key_count());
        if let Some(free) = crate::disk::free_bytes(&self.config.data_dir) {
            metrics::disk(&self.label, free, self.config.disk_reserve_bytes);
        }
    }

    pub(super) fn name_members(&self, ids: &[u64]) -> String {
        let name = |id: &u64| {
            let address = self
                .network
                .address(*id)
                .unwrap_or_else(|| "address unknown".to_owned());
            format!("{id:016x} at {address}")
        };
        ids.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}
