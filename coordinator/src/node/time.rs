//! What a leader does because time passes: replicated time, leases, deadlines,
//! expiry; and the cluster's first words.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use conclave_coordinator_core::{State, job::Job, payload};
use conclave_proto::v1::{
    CreateCluster, ExpireJobs, RenewLeases, SetMemberAddress, Tick, WorkerLease,
    command::Command as Body,
};

use super::{
    task::{Task, unix_ms},
    waiters::Waiter,
};
use crate::metrics;

/// Period of replicated time while there is work.
const TIME: Duration = Duration::from_millis(500);
/// Period of looking for jobs that are too old.
const EXPIRE: Duration = Duration::from_secs(10);
/// Jobs forgotten with one command.
const EXPIRE_BATCH: usize = 256;

impl Task {
    /// The first leader gives the cluster its keys; should it die before they
    /// are committed, the next one does.
    pub(super) fn create_cluster(&mut self) {
        let (mut signing_seed, mut salt_key) = ([0_u8; 32], [0_u8; 32]);
        let random =
            getrandom::fill(&mut signing_seed).and_then(|()| getrandom::fill(&mut salt_key));
        if let Err(error) = random {
            tracing::error!(%error, "no randomness for the cluster's keys");
            return;
        }
        let create = CreateCluster {
            cluster_id: self.identity.cluster_id().unwrap_or_default().to_owned(),
            signing_seed: signing_seed.to_vec(),
            salt_key: salt_key.to_vec(),
            unix_ms: unix_ms(),
        };
        self.own(Body::CreateCluster(create), Waiter::Nobody);
        self.note_addresses();
    }

    /// Writes down members that listen elsewhere than the state says.
    fn note_addresses(&mut self) {
        let conf = self.node.conf_state();
        for node_id in conf.voters.iter().chain(&conf.learners).copied() {
            let Some(address) = self.network.address(node_id) else {
                continue;
            };
            if self.state.members().get(&node_id) != Some(&address) {
                let set = SetMemberAddress {
                    node_id,
                    address,
                    removed: false,
                };
                self.own(Body::SetMemberAddress(set), Waiter::Nobody);
            }
        }
    }

    /// The leader's share of a tick: time, leases, deadlines, expiry.
    pub(super) fn lead_tick(&mut self, now: Instant) {
        let Some(lead) = self.lead.as_mut().filter(|l| l.serving && !l.paused) else {
            return;
        };
        lead.forget_lost(now);
        lead.decide.append(&mut lead.decide_later);
        lead.place |= std::mem::take(&mut lead.place_later);
        if self.state.next_deadline().is_some_and(|at| at <= unix_ms()) {
            lead.decide
                .extend(self.state.needs_decision().map(str::to_owned));
        }
        let unprepared: Vec<_> = self.state.unprepared().map(|job| job.id.clone()).collect();
        for job_id in unprepared {
            self.prepare(&job_id);
        }
        let state = &self.state;
        self.sessions
            .retain_looks(&|id| state.job(id).is_some_and(Job::needs_prepare));
        self.move_time(now);
        self.expire(now);
    }

    /// Replicated time moves while something depends on it (law 3).
    fn move_time(&mut self, now: Instant) {
        let Some(lead) = &mut self.lead else { return };
        // A worker that is gone is forgotten, even if nothing else happens.
        let gone = self
            .state
            .workers()
            .any(|w| !self.sessions.connected(&w.worker_id, &w.incarnation));
        if !gone && !self.state.needs_ticks() {
            lead.ticking = false;
            return;
        }
        let since = now - lead.time;
        if lead.ticking && since < TIME {
            return;
        }
        // After a pause time begins anew; and a tick is worth one period at most.
        let elapsed = if lead.ticking {
            since.min(TIME * 2)
        } else {
            Duration::ZERO
        };
        lead.ticking = true;
        lead.time = now;
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(0);
        let renew = std::mem::take(&mut lead.renew);
        if !renew.is_empty() {
            metrics::leases_renewed(renew.len());
            let lease = |(worker_id, incarnation)| WorkerLease {
                worker_id,
                incarnation,
            };
            let leases = renew.into_iter().map(lease).collect();
            self.own(Body::RenewLeases(RenewLeases { leases }), Waiter::Nobody);
        }
        let tick = Tick {
            elapsed_ms,
            unix_ms: unix_ms(),
            new_term: false,
        };
        self.own(Body::Tick(tick), Waiter::Nobody);
        self.count();
    }

    /// Forgets ended jobs that are too old, or too many bytes for one tenant;
    /// and writes down members that listen elsewhere now.
    fn expire(&mut self, now: Instant) {
        let Some(lead) = self.lead.as_mut().filter(|l| now - l.expire >= EXPIRE) else {
            return;
        };
        lead.expire = now;
        let retention = i64::try_from(self.config.retention_hours).unwrap_or(i64::MAX);
        let retention_ms = retention.saturating_mul(3_600_000);
        let mut job_ids = self.state.expirable(retention_ms, EXPIRE_BATCH);
        let over = too_many_bytes(&self.state, self.config.retention_bytes, EXPIRE_BATCH);
        job_ids.extend(over);
        job_ids.sort();
        job_ids.dedup();
        if !job_ids.is_empty() {
            self.own(Body::ExpireJobs(ExpireJobs { job_ids }), Waiter::Nobody);
        }
        self.note_addresses();
        self.count();
    }

    fn count(&self) {
        let leases = self.state.workers().count();
        metrics::workers(&self.label, leases, self.sessions.len());
        crate::api::convert::count_live(&self.label, &self.state);
    }
}

/// The oldest ended jobs of tenants that keep more than `limit` bytes.
fn too_many_bytes(state: &State, limit: u64, most: usize) -> Vec<String> {
    let size = |job: &Job| {
        let drafts = job.agents.iter().filter_map(|a| a.draft.as_ref());
        let contexts = job.rounds.iter().filter_map(|r| r.context.as_ref());
        drafts
            .chain(contexts)
            .chain([&job.spec])
            .map(payload::length)
            .sum::<u64>()
    };
    let mut kept: BTreeMap<&str, u64> = BTreeMap::new();
    let mut over = Vec::new();
    // Ids ascend with time: the newest are counted first.
    for job in state.all_jobs().rev().filter(|job| !job.is_active()) {
        let kept = kept.entry(&job.tenant).or_default();
        *kept += size(job);
        if *kept > limit {
            over.push(job.id.clone());
        }
    }
    over.reverse();
    over.truncate(most);
    over
}
