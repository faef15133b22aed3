//! What attempts hold of the workers that they run on: derived from the jobs, so that placement need not
//! look at every job that runs.

use std::collections::{BTreeMap, BTreeSet};

use super::{own_blocks, prefix_blocks};
use crate::job::Job;

/// One process of a worker: its id and its incarnation.
pub(crate) type Process = (String, String);

/// What is placed on a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    /// Attempts.
    pub agents: u32,
    /// KV blocks that they may fill.
    pub blocks: u64,
}

/// What every running job holds, by job and by process.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Holdings {
    by_job: BTreeMap<String, BTreeMap<Process, Held>>,
    /// By worker, then by incarnation.
    by_worker: BTreeMap<String, BTreeMap<String, Held>>,
}

impl Holdings {
    /// The job is as it is now; one that holds nothing is forgotten. Returns the workers that another
    /// share is held of than before.
    pub(crate) fn update(&mut self, job_id: &str, job: Option<&Job>) -> BTreeSet<String> {
        let now = job.map(held_by).unwrap_or_default();
        if now.is_empty() && !self.by_job.contains_key(job_id) {
            return BTreeSet::new();
        }
        let before = self.by_job.get(job_id);
        if before == Some(&now) {
            return BTreeSet::new();
        }
        let before = before.cloned().unwrap_or_default();
        for (process, held) in &before {
            self.release(process, *held);
        }
        for ((worker, incarnation), held) in &now {
            let of_worker = self.by_worker.entry(worker.clone()).or_default();
            let sum = of_worker.entry(incarnation.clone()).or_default();
            sum.agents += held.agents;
            sum.blocks += held.blocks;
        }
        let changed = |(process, held): &(&Process, &Held)| {
            now.get(process) != Some(held) || before.get(process) != Some(held)
        };
        let touched = before.iter().chain(&now).filter(changed);
        let touched = touched.map(|((worker, _), _)| worker.clone()).collect();
        if now.is_empty() {
            self.by_job.remove(job_id);
        } else {
            self.by_job.insert(job_id.to_owned(), now);
        }
        touched
    }

    fn release(&mut self, (worker, incarnation): &Process, held: Held) {
        let Some(of_worker) = self.by_worker.get_mut(worker) else {
            return;
        };
        if let Some(sum) = of_worker.get_mut(incarnation) {
            sum.agents -= held.agents;
            sum.blocks -= held.blocks;
            if sum.agents == 0 {
                of_worker.remove(incarnation);
            }
        }
        if of_worker.is_empty() {
            self.by_worker.remove(worker);
        }
    }

    /// The processes that the job has attempts on.
    pub(crate) fn of_job(&self, job_id: &str) -> impl Iterator<Item = &Process> {
        self.by_job.get(job_id).into_iter().flat_map(BTreeMap::keys)
    }

    /// What is placed on a process.
    pub(crate) fn on(&self, worker_id: &str, incarnation: &str) -> Held {
        let of_worker = self.by_worker.get(worker_id);
        let held = of_worker.and_then(|of_worker| of_worker.get(incarnation));
        held.copied().unwrap_or_default()
    }
}

/// The job's prompt counts once a process.
fn held_by(job: &Job) -> BTreeMap<Process, Held> {
    let mut held = BTreeMap::new();
    for agent in job.agents.iter().filter(|agent| agent.holds_worker()) {
        let Some(on) = &agent.placement else { continue };
        let process = (on.worker_id.clone(), on.incarnation.clone());
        let sum: &mut Held = held.entry(process).or_default();
        if sum.agents == 0 {
            sum.blocks += prefix_blocks(job);
        }
        sum.agents += 1;
        sum.blocks += own_blocks(agent);
    }
    held
}
