//! What attempts hold of the workers that they run on: derived from the jobs, so that placement need not
//! look at every job that runs.

use std::collections::BTreeMap;

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
    by_process: BTreeMap<Process, Held>,
}

impl Holdings {
    /// The job is as it is now; one that holds nothing is forgotten.
    pub(crate) fn update(&mut self, job_id: &str, job: Option<&Job>) {
        let now = job.map(held_by).unwrap_or_default();
        if now.is_empty() && !self.by_job.contains_key(job_id) {
            return;
        }
        let before = self.by_job.get(job_id);
        if before == Some(&now) {
            return;
        }
        for (process, held) in before.into_iter().flatten() {
            if let Some(sum) = self.by_process.get_mut(process) {
                sum.agents -= held.agents;
                sum.blocks -= held.blocks;
                if sum.agents == 0 {
                    self.by_process.remove(process);
                }
            }
        }
        for (process, held) in &now {
            let sum = self.by_process.entry(process.clone()).or_default();
            sum.agents += held.agents;
            sum.blocks += held.blocks;
        }
        if now.is_empty() {
            self.by_job.remove(job_id);
        } else {
            self.by_job.insert(job_id.to_owned(), now);
        }
    }

    /// The processes that the job has attempts on.
    pub(crate) fn of_job(&self, job_id: &str) -> impl Iterator<Item = &Process> {
        self.by_job.get(job_id).into_iter().flat_map(BTreeMap::keys)
    }

    /// Every process with an attempt, in the order of (worker, incarnation).
    pub(crate) fn processes(&self) -> impl Iterator<Item = (&Process, &Held)> {
        self.by_process.iter()
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
