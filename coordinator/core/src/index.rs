//! Derived from the jobs: what is asked with every tick costs what it finds, not what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use conclave_proto::v1::{AgentState, JobState};

use crate::{agent::Agent, job::Job, payload};

/// A job's id, shared by what names it here.
type Name = Arc<str>;

/// Jobs by what may still happen to them, by tenant and age, and the payloads that they name.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Index {
    /// Jobs that something may still happen to.
    active: BTreeMap<Name, Standing>,
    /// How many of them are in each state.
    states: BTreeMap<JobState, usize>,
    live: usize,
    ticking: usize,
    /// Agents that wait, and that run.
    agents: (usize, usize),
    unprepared: BTreeSet<Name>,
    deadlines: BTreeSet<(i64, Name)>,
    tenants: BTreeMap<String, Tenant>,
    blobs: Blobs,
}

/// What an active job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    state: JobState,
    /// It has not ended.
    live: bool,
    /// Its prompt has not been looked at.
    unprepared: bool,
    /// Agents that wait for a worker.
    queued: usize,
    /// Agents that run.
    running: usize,
    /// An attempt holds a worker.
    held: bool,
    /// When it is to end, Unix ms.
    deadline: Option<i64>,
}

/// The jobs of one tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Tenant {
    jobs: BTreeSet<Name>,
    /// Those that nothing more happens to, the oldest end first.
    ended: BTreeSet<(i64, Name)>,
    /// Bytes of their payloads.
    bytes: u64,
}

/// Payloads that are blobs: how long each is, and how many jobs name it.
#[derive(Debug, Clone, PartialEq, Default)]
struct Blobs {
    named: BTreeMap<[u8; 32], (u64, usize)>,
    of_job: BTreeMap<Name, BTreeMap<[u8; 32], u64>>,
}

impl Standing {
    fn of(job: &Job) -> Standing {
        let count = |state| job.agents.iter().filter(|a| a.state == state).count();
        let deadline = job.needs_decision() && job.deadline_unix_ms > 0;
        Standing {
            state: job.state,
            live: !job.is_final(),
            unprepared: job.needs_prepare(),
            queued: count(AgentState::Queued),
            running: count(AgentState::Running),
            held: job.agents.iter().any(Agent::holds_worker),
            deadline: deadline.then_some(job.deadline_unix_ms),
        }
    }

    /// Leases or its deadline matter to it.
    fn ticks(&self) -> bool {
        self.unprepared || self.queued > 0 || self.held || self.deadline.is_some()
    }
}

impl Index {
    /// The job is as it is now.
    pub(crate) fn update(&mut self, job: &Job) {
        let name = self.name(job);
        let now = job.is_active().then(|| Standing::of(job));
        self.stand(&name, now);
        self.blobs.update(&name, job);
        if now.is_some() {
            return;
        }
        if let Some(tenant) = self.tenants.get_mut(&job.tenant)
            && tenant.ended.insert((job.ended_unix_ms, name))
        {
            tenant.bytes += size(job);
        }
    }

    /// The job is gone; `job` is what it was.
    pub(crate) fn forget(&mut self, job: &Job) {
        let name = self.name(job);
        self.stand(&name, None);
        self.blobs.forget(&name);
        let Some(tenant) = self.tenants.get_mut(&job.tenant) else {
            return;
        };
        tenant.jobs.remove(&name);
        if tenant.ended.remove(&(job.ended_unix_ms, name)) {
            tenant.bytes -= size(job);
        }
        if tenant.jobs.is_empty() {
            self.tenants.remove(&job.tenant);
        }
    }

    /// The job's id, as its tenant's jobs share it.
    fn name(&mut self, job: &Job) -> Name {
        let tenant = match self.tenants.get_mut(&job.tenant) {
            Some(tenant) => tenant,
            None => self.tenants.entry(job.tenant.clone()).or_default(),
        };
        if let Some(name) = tenant.jobs.get(job.id.as_str()) {
            return name.clone();
        }
        let name = Name::from(job.id.as_str());
        tenant.jobs.insert(name.clone());
        name
    }

    /// What the job waits for from now on; `None`: nothing more happens to it.
    fn stand(&mut self, name: &Name, now: Option<Standing>) {
        let before = self.active.get(name).copied();
        if before == now {
            return;
        }
        if let Some(before) = before {
            if let Some(jobs) = self.states.get_mut(&before.state) {
                *jobs -= 1;
            }
            self.states.retain(|_, jobs| *jobs > 0);
            self.live -= usize::from(before.live);
            self.ticking -= usize::from(before.ticks());
            self.agents.0 -= before.queued;
            self.agents.1 -= before.running;
            self.unprepared.remove(name);
            if let Some(at) = before.deadline {
                self.deadlines.remove(&(at, name.clone()));
            }
        }
        let Some(now) = now else {
            self.active.remove(name);
            return;
        };
        *self.states.entry(now.state).or_default() += 1;
        self.live += usize::from(now.live);
        self.ticking += usize::from(now.ticks());
        self.agents.0 += now.queued;
        self.agents.1 += now.running;
        if now.unprepared {
            self.unprepared.insert(name.clone());
        }
        if let Some(at) = now.deadline {
            self.deadlines.insert((at, name.clone()));
        }
        self.active.insert(name.clone(), now);
    }

    /// Jobs that something may still happen to, in the order of ids.
    pub(crate) fn active(&self) -> impl Iterator<Item = &str> {
        self.active.keys().map(Name::as_ref)
    }

    /// How many of them are in this state.
    pub(crate) fn in_state(&self, state: JobState) -> usize {
        self.states.get(&state).copied().unwrap_or_default()
    }

    /// Their agents that wait for a worker, and those that run.
    pub(crate) fn agents(&self) -> (usize, usize) {
        self.agents
    }

    /// How many have not ended.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// How many there are to which leases or deadlines matter.
    pub(crate) fn ticking(&self) -> usize {
        self.ticking
    }

    /// Jobs whose prompt has not been looked at.
    pub(crate) fn unprepared(&self) -> impl Iterator<Item = &str> {
        self.unprepared.iter().map(Name::as_ref)
    }

    /// Deadlines, Unix ms, and whose they are, the earliest first.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = (i64, &str)> {
        self.deadlines.iter().map(|(at, name)| (*at, name.as_ref()))
    }

    /// The tenant's jobs, in the order of ids.
    pub(crate) fn of_tenant(&self, tenant: &str) -> impl DoubleEndedIterator<Item = &str> {
        let jobs = self.tenants.get(tenant).into_iter();
        jobs.flat_map(|tenant| &tenant.jobs).map(Name::as_ref)
    }

    /// Every tenant with a job.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    /// Hash and length of every blob that a job names.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = ([u8; 32], u64)> {
        let named = self.blobs.named.iter();
        named.map(|(hash, (length, _))| (*hash, *length))
    }

    /// Some job names this blob.
    pub(crate) fn names_blob(&self, hash: &[u8; 32]) -> bool {
        self.blobs.named.contains_key(hash)
    }
}

impl Tenant {
    /// Jobs that nothing more happens to, with when they ended, Unix ms; the oldest end first.
    pub(crate) fn ended(&self) -> impl Iterator<Item = (i64, &str)> {
        self.ended.iter().map(|(at, name)| (*at, name.as_ref()))
    }

    /// Bytes of their payloads.
    pub(crate) fn ended_bytes(&self) -> u64 {
        self.bytes
    }
}

impl Blobs {
    fn update(&mut self, name: &Name, job: &Job) {
        let now: BTreeMap<_, _> = job.payloads().filter_map(payload::blob_ref).collect();
        let before = self.of_job.get(name);
        if before.map_or(now.is_empty(), |before| *before == now) {
            return;
        }
        self.forget(name);
        for (hash, length) in &now {
            self.named.entry(*hash).or_insert((*length, 0)).1 += 1;
        }
        if !now.is_empty() {
            self.of_job.insert(name.clone(), now);
        }
    }

    fn forget(&mut self, name: &Name) {
        for hash in self.of_job.remove(name).unwrap_or_default().into_keys() {
            if let Some((_, jobs)) = self.named.get_mut(&hash) {
                *jobs -= 1;
                if *jobs == 0 {
                    self.named.remove(&hash);
                }
            }
        }
    }
}

/// Bytes of a job's payloads.
pub(crate) fn size(job: &Job) -> u64 {
    job.payloads().map(payload::length).sum()
}

/// Ids of the first `most` of jobs of several tenants, by the time of their end.
pub(crate) fn oldest<'a>(ended: impl Iterator<Item = (i64, &'a str)>, most: usize) -> Vec<String> {
    let mut ended: Vec<_> = ended.collect();
    ended.sort_unstable();
    let ids = ended.into_iter().take(most);
    ids.map(|(_, id)| id.to_owned()).collect()
}
