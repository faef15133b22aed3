//! The replicated state and `apply`.

use std::collections::BTreeMap;

use conclave_proto::v1::{
    AgentState, AttemptKey, Command, JobState, LineageRecord, command::Command as Body,
};

use crate::{
    agent::Agent,
    commands::{self, At},
    effect::{Applied, Effect, Reply},
    index::{self, Index},
    job::Job,
    jobs::Jobs,
    keys::{Key, Keys},
    placement::{self, holdings::Holdings, order::Order},
    tenants::{Share, Tenants},
    worker::Worker,
};

/// Everything that is replicated. Equal on every replica at equal index. A clone shares the jobs, and
/// costs an allocation or two for each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub(crate) log_version: u32,
    pub(crate) cluster_id: String,
    pub(crate) signing_seed: Vec<u8>,
    pub(crate) salt_key: Vec<u8>,
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    pub(crate) lease_clock_ms: u64,
    pub(crate) unix_ms: i64,
    pub(crate) jobs: Jobs,
    pub(crate) workers: BTreeMap<String, Worker>,
    pub(crate) keys: Keys,
    pub(crate) members: BTreeMap<u64, String>,
    pub(crate) lineage: Vec<LineageRecord>,
    /// Derived: jobs by what may still happen to them, by tenant and age.
    pub(crate) index: Index,
    /// Derived: what running attempts hold of workers.
    pub(crate) holdings: Holdings,
    /// Derived: workers by what is placed on them.
    pub(crate) order: Order,
    /// Derived: what each tenant has under way.
    pub(crate) tenants: Tenants,
}

impl State {
    /// The state before the first entry.
    pub fn new() -> State {
        State {
            log_version: 1,
            ..State::default()
        }
    }

    /// What a snapshot is made of: a clone without what is derived, to be encoded and nothing else. It is
    /// made on the node's loop.
    pub fn to_save(&self) -> State {
        State {
            log_version: self.log_version,
            cluster_id: self.cluster_id.clone(),
            signing_seed: self.signing_seed.clone(),
            salt_key: self.salt_key.clone(),
            applied_index: self.applied_index,
            applied_term: self.applied_term,
            lease_clock_ms: self.lease_clock_ms,
            unix_ms: self.unix_ms,
            jobs: self.jobs.clone(),
            workers: self.workers.clone(),
            keys: self.keys.to_save(),
            members: self.members.clone(),
            lineage: self.lineage.clone(),
            index: Index::default(),
            holdings: Holdings::default(),
            order: Order::default(),
            tenants: Tenants::default(),
        }
    }

    /// Applies one committed command. Deterministic; checks and records, decides nothing.
    /// `index` and `term` are those of its log entry.
    pub fn apply(&mut self, index: u64, term: u64, command: &Command) -> Applied {
        debug_assert!(index > self.applied_index, "entries apply once, in order");
        self.applied_index = index;
        self.applied_term = term;
        let at = At { index };
        match &command.command {
            Some(Body::CreateCluster(c)) => commands::cluster::create(self, c),
            Some(Body::SetMemberAddress(c)) => commands::cluster::set_member(self, c),
            Some(Body::SetLogVersion(c)) => commands::cluster::set_log_version(self, c),
            Some(Body::SubmitJob(c)) => commands::submit::apply(self, at, c),
            Some(Body::PrepareDone(c)) => commands::prepare::apply(self, at, c),
            Some(Body::Decide(c)) => commands::decide::apply(self, at, c),
            Some(Body::Assign(c)) => commands::assign::apply(self, at, c),
            Some(Body::AttemptFinished(c)) => commands::attempt::apply(self, at, c),
            Some(Body::CancelJob(c)) => commands::cancel::apply(self, at, c),
            Some(Body::ReviewJob(c)) => commands::review::apply(self, at, c),
            Some(Body::RegisterWorker(c)) => commands::register::apply(self, at, c),
            Some(Body::RenewLeases(c)) => commands::lease::renew(self, c),
            Some(Body::DrainWorker(c)) => commands::lease::drain(self, c),
            Some(Body::Tick(c)) => commands::tick::apply(self, at, c),
            Some(Body::ExpireJobs(c)) => commands::expire::apply(self, c),
            None => Applied::only(Reply::Rejected {
                why: "an empty command".into(),
            }),
        }
    }

    /// Passes over an entry without a command: the empty one of a new leader, or a change of
    /// configuration.
    pub fn skip(&mut self, index: u64, term: u64) {
        debug_assert!(index > self.applied_index, "entries apply once, in order");
        self.applied_index = index;
        self.applied_term = term;
    }

    /// Everything that a new leader must carry out, derived from the state (law 2). Call it after
    /// the first entry of its own term has been applied.
    pub fn outstanding(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut place = false;
        for job in self.active_jobs() {
            if job.needs_prepare() {
                effects.push(Effect::Prepare {
                    job_id: job.id.clone(),
                });
            }
            for agent in &job.agents {
                place |= agent.state == AgentState::Queued;
                effects.extend(undelivered(job, agent));
            }
            if job.needs_decision() {
                effects.push(Effect::JobChanged {
                    job_id: job.id.clone(),
                });
            }
        }
        if place {
            effects.push(Effect::Place);
        }
        effects
    }

    /// The job of this id.
    pub fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.get(id)
    }

    /// The tenant's jobs, oldest first; reversible for newest first.
    pub fn jobs(&self, tenant: &str) -> impl DoubleEndedIterator<Item = &Job> {
        let ids = self.index.of_tenant(tenant);
        ids.filter_map(|id| self.jobs.get(id))
    }

    /// Every job, in the order of ids.
    pub fn all_jobs(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs that something may still happen to; as many as are running, not as many as there are.
    pub fn active_jobs(&self) -> impl Iterator<Item = &Job> {
        self.index.active().filter_map(|id| self.jobs.get(id))
    }

    /// How many jobs have not ended.
    pub fn live_jobs(&self) -> usize {
        self.index.live()
    }

    /// How many jobs are in this state, those that have ended and are sealed left out.
    pub fn jobs_in(&self, state: JobState) -> usize {
        self.index.in_state(state)
    }

    /// How many agents wait for a worker, and how many run.
    pub fn agents_at_work(&self) -> (usize, usize) {
        self.index.agents()
    }

    /// What a tenant has under way.
    pub fn share(&self, tenant: &str) -> Share {
        self.tenants.share(tenant)
    }

    /// Every tenant that has something under way, by name.
    pub fn shares(&self) -> impl Iterator<Item = (&str, Share)> {
        self.tenants.shares()
    }

    /// Ids of jobs that the leader should ask [`crate::contemplate::next`] about.
    pub fn needs_decision(&self) -> impl Iterator<Item = &str> {
        self.active_jobs()
            .filter(|job| job.needs_decision())
            .map(|job| job.id.as_str())
    }

    /// Jobs whose prompt no worker has looked at.
    pub fn unprepared(&self) -> impl Iterator<Item = &Job> {
        let ids = self.index.unprepared();
        ids.filter_map(|id| self.jobs.get(id))
    }

    /// Agents whose current attempt is placed on this process and has not reported.
    pub fn placed_on<'a>(
        &'a self,
        worker_id: &'a str,
        incarnation: &'a str,
    ) -> impl Iterator<Item = (&'a Job, &'a Agent)> {
        self.active_jobs()
            .flat_map(|job| job.agents.iter().map(move |a| (job, a)))
            .filter(move |(_, agent)| {
                agent.holds_worker()
                    && agent
                        .placement
                        .as_ref()
                        .is_some_and(|p| p.worker_id == worker_id && p.incarnation == incarnation)
            })
    }

    /// Workers that hold a lease, by id.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// The worker of this id, if it holds a lease.
    pub fn worker(&self, id: &str) -> Option<&Worker> {
        self.workers.get(id)
    }

    /// What an idempotency key stands for.
    pub fn key(&self, tenant: &str, key: &str) -> Option<&Key> {
        self.keys.get(tenant, key)
    }

    /// How many idempotency keys are kept.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// How many jobs are kept, ended ones included.
    pub fn job_count(&self) -> usize {
        self.jobs.len()
    }

    /// Node ids and addresses.
    pub fn members(&self) -> &BTreeMap<u64, String> {
        &self.members
    }

    /// The clusters that this one came out of, oldest first.
    pub fn lineage(&self) -> &[LineageRecord] {
        &self.lineage
    }

    /// Empty before `CreateCluster`.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Ed25519 seed of the key that signs audit heads; empty before `CreateCluster`.
    pub fn signing_seed(&self) -> &[u8] {
        &self.signing_seed
    }

    /// The newest log version that may be proposed.
    pub fn log_version(&self) -> u32 {
        self.log_version
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Term of the last applied entry.
    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }

    /// Replicated wall clock: the maximum that any command brought, Unix ms.
    pub fn unix_ms(&self) -> i64 {
        self.unix_ms
    }

    /// Replicated monotone clock of the leases, ms.
    pub fn lease_clock_ms(&self) -> u64 {
        self.lease_clock_ms
    }

    /// The leader should propose ticks: something waits for a worker or runs on one, so that leases
    /// matter, or has a deadline. An idle cluster proposes none, nor does an answer that waits for
    /// its reviewer.
    pub fn needs_ticks(&self) -> bool {
        self.index.ticking() > 0
    }

    /// The earliest deadline of a running job, Unix ms.
    pub fn next_deadline(&self) -> Option<i64> {
        self.index.deadlines().next().map(|(at, _)| at)
    }

    /// Running jobs whose deadline has come by `unix_ms`, the earliest first.
    pub fn overdue(&self, unix_ms: i64) -> impl Iterator<Item = &str> {
        let due = move |(at, _): &(i64, &str)| *at <= unix_ms;
        self.index.deadlines().take_while(due).map(|(_, id)| id)
    }

    /// Ended and sealed jobs that are older than `retention_ms` at `now_unix_ms`, oldest first, to
    /// propose in `ExpireJobs`.
    pub fn expirable(&self, now_unix_ms: i64, retention_ms: i64, limit: usize) -> Vec<String> {
        let due = now_unix_ms.saturating_sub(retention_ms);
        let old = self.index.tenants().flat_map(|tenant| {
            let ended = tenant.ended();
            ended.take_while(|(at, _)| *at <= due).take(limit)
        });
        index::oldest(old, limit)
    }

    /// Hash and length of every blob that the state refers to.
    pub fn live_blobs(&self) -> BTreeMap<[u8; 32], u64> {
        self.index.blobs().collect()
    }

    /// Something in the state refers to this blob.
    pub fn names_blob(&self, hash: &[u8; 32]) -> bool {
        self.index.names_blob(hash)
    }

    /// The trust region's salt for a tenant, 32 bytes; decided here, never by the caller.
    pub fn salt(&self, tenant: &str) -> Vec<u8> {
        let key: [u8; 32] = *blake3::hash(&self.salt_key).as_bytes();
        blake3::keyed_hash(&key, tenant.as_bytes())
            .as_bytes()
            .to_vec()
    }

    /// Moves replicated wall time forward, never back.
    pub(crate) fn advance_unix(&mut self, unix_ms: i64) -> i64 {
        self.unix_ms = self.unix_ms.max(unix_ms);
        self.unix_ms
    }

    /// Keeps what is derived true after a job changed.
    pub(crate) fn reindex(&mut self, job_id: &str) {
        let Some(job) = self.jobs.get(job_id) else {
            return;
        };
        self.index.update(job);
        self.tenants.update(job);
        for worker_id in self.holdings.update(job_id, Some(job)) {
            self.reorder(&worker_id);
        }
    }

    /// Forgets a job that nothing more happens to.
    pub(crate) fn forget(&mut self, job_id: &str) {
        if let Some(job) = self.jobs.remove(job_id) {
            self.keys.orphan(&job.tenant, &job.idempotency_key, job_id);
            self.index.forget(&job);
        }
    }

    /// Keeps a worker's place true after it came, went, or got something to do.
    pub(crate) fn reorder(&mut self, worker_id: &str) {
        let worker = self.workers.get(worker_id);
        let load = worker.map(|worker| placement::load_of(worker, &self.holdings));
        self.order.set(worker_id, load);
    }
}

/// The start or cancel that the agent's worker may not have got.
pub(crate) fn undelivered(job: &Job, agent: &Agent) -> Option<Effect> {
    let placement = agent.placement.clone()?;
    let key: AttemptKey = agent.key(&job.id);
    if agent.stopping {
        return Some(Effect::Cancel {
            worker_id: placement.worker_id,
            incarnation: placement.incarnation,
            key,
            reason: "no longer needed".into(),
        });
    }
    (agent.state == AgentState::Running).then_some(Effect::Start {
        worker_id: placement.worker_id,
        incarnation: placement.incarnation,
        key,
    })
}

#[cfg(test)]
mod tests;
