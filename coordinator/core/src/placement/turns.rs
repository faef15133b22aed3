//! Whose agents are placed next: round the tenants, so that one which floods holds up nobody else.

use std::collections::BTreeMap;

use crate::{quota::Quotas, state::State};

/// A tenant's waiting jobs that were not offered yet.
type Jobs<'a> = Box<dyn Iterator<Item = &'a str> + 'a>;

/// Tenants with agents that wait. The next turn is that of whoever runs the fewest agents; of equals,
/// of the oldest job. One that runs as many as its quota allows has no turn.
pub(super) struct Turns<'a> {
    queue: BTreeMap<(u64, &'a str), Waiting<'a>>,
    quotas: &'a Quotas,
}

struct Waiting<'a> {
    tenant: &'a str,
    jobs: Jobs<'a>,
}

/// One job's turn.
pub(super) struct Turn<'a> {
    /// The job.
    pub job_id: &'a str,
    /// How many of its agents may be placed.
    pub room: usize,
    running: u64,
    waiting: Waiting<'a>,
}

impl<'a> Turns<'a> {
    pub(super) fn new(state: &'a State, quotas: &'a Quotas) -> Turns<'a> {
        let mut turns = Turns {
            queue: BTreeMap::new(),
            quotas,
        };
        for (tenant, share, jobs) in state.tenants.waiting() {
            let jobs: Jobs<'a> = Box::new(jobs);
            turns.queue(share.running_agents, Waiting { tenant, jobs });
        }
        turns
    }

    /// Queues a tenant for its next job.
    fn queue(&mut self, running: u64, mut waiting: Waiting<'a>) {
        if self.room(waiting.tenant, running) > 0
            && let Some(job_id) = waiting.jobs.next()
        {
            self.queue.insert((running, job_id), waiting);
        }
    }

    fn room(&self, tenant: &str, running: u64) -> usize {
        let most = self.quotas.of(tenant).running_agents;
        most.map_or(usize::MAX, |most| most.saturating_sub(running) as usize)
    }

    /// The next job.
    pub(super) fn next(&mut self) -> Option<Turn<'a>> {
        let ((running, job_id), waiting) = self.queue.pop_first()?;
        Some(Turn {
            job_id,
            room: self.room(waiting.tenant, running),
            running,
            waiting,
        })
    }

    /// So many of the job's agents were placed.
    pub(super) fn placed(&mut self, turn: Turn<'a>, agents: usize) {
        self.queue(turn.running + agents as u64, turn.waiting);
    }
}
