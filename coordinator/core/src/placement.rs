//! Which worker gets which agent: a cost function over leases, load and shared prefixes.
//!
//! A round stays on one worker while its sequences and KV fit there, since the worker then reads
//! the shared prefix once; what does not fit goes to the least loaded. A job stays in the numeric
//! class of its first placement, unless its policy allows another and none of the first is left.
//! Jobs are taken round the tenants, a tenant's oldest first.
//! The work grows with the agents that wait; not with workers, nor with jobs that run or have ended.

mod field;
pub(crate) mod holdings;
pub(crate) mod order;
mod turns;

use std::collections::BTreeMap;

use conclave_proto::v1::{AgentState, Assign};

use self::{
    field::Field,
    holdings::{Held, Holdings},
    turns::Turns,
};
use crate::{
    agent::Agent,
    job::Job,
    payload::{MissingBlob, Payloads},
    quota::Quotas,
    spec::Policy,
    state::State,
    view,
    worker::Worker,
};

/// Tokens of a KV block.
const BLOCK_TOKENS: u64 = 16;
/// The load of a worker whose sequences are all taken.
const FULL: u64 = 1_000_000;

/// A connected worker's own words about its load (from its latest heartbeat). Workers without an
/// entry have no session here and get nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sequences that decode.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// KV blocks of 16 tokens that are free.
    pub kv_blocks_free: u32,
}

/// What connected workers said of their load last: asked for as placement comes to them.
pub trait Loads {
    /// The worker's latest words; `None`: it has no session here, or takes nothing new.
    fn load(&self, worker_id: &str) -> Option<Load>;
}

impl Loads for BTreeMap<String, Load> {
    fn load(&self, worker_id: &str) -> Option<Load> {
        self.get(worker_id).copied()
    }
}

/// A worker and what is placed on it, this call's suggestions included.
struct Slot<'a> {
    worker: &'a Worker,
    /// What it said it runs and queues: only weighed, since it lags behind the state.
    said: u32,
    held: Held,
}

impl<'a> Slot<'a> {
    /// `None`: nothing may be placed on it.
    fn of(state: &State, worker: &'a Worker, loads: &dyn Loads) -> Option<Slot<'a>> {
        if worker.draining {
            return None;
        }
        let load = loads.load(&worker.worker_id)?;
        Some(Slot {
            worker,
            said: load.running.saturating_add(load.waiting),
            held: state.holdings.on(&worker.worker_id, &worker.incarnation),
        })
    }

    fn free(&self) -> u32 {
        self.worker
            .max_sequences
            .max(1)
            .saturating_sub(self.held.agents)
    }

    /// How many more agents of this size fit, of a job that has agents `here` or not; a lone one
    /// always does, so that a job that is too large for every worker is refused by one instead of
    /// waiting for ever.
    fn fits(&self, job: &Job, agent: &Agent, here: bool) -> u32 {
        let free = self.free();
        if self.worker.kv_blocks == 0 {
            return free;
        }
        let prefix = if here { 0 } else { prefix_blocks(job) };
        let left = u64::from(self.worker.kv_blocks).saturating_sub(self.held.blocks + prefix);
        let count = u32::try_from(left / own_blocks(agent)).unwrap_or(u32::MAX);
        count.max(u32::from(self.held.agents == 0)).min(free)
    }

    /// Load in millionths of its sequences.
    fn load(&self) -> u64 {
        millionths(self.held.agents.max(self.said), self.worker)
    }

    /// Books an agent and its blocks; the job's prompt with its first one here.
    fn charge(&mut self, job: &Job, agent: &Agent, here: bool) {
        if !here {
            self.held.blocks += prefix_blocks(job);
        }
        self.held.blocks += own_blocks(agent);
        self.held.agents += 1;
    }
}

fn millionths(agents: u32, worker: &Worker) -> u64 {
    u64::from(agents) * FULL / u64::from(worker.max_sequences.max(1))
}

/// What the state says of a worker's load, in millionths of its sequences: its place in the
/// [`order::Order`].
pub(crate) fn load_of(worker: &Worker, holdings: &Holdings) -> u64 {
    let held = holdings.on(&worker.worker_id, &worker.incarnation);
    millionths(held.agents, worker)
}

/// Blocks of the prompt that all agents of a job share.
fn prefix_blocks(job: &Job) -> u64 {
    u64::from(job.prepared.as_ref().map_or(0, |p| p.prompt_tokens)).div_ceil(BLOCK_TOKENS)
}

/// Blocks that an agent may fill by itself: what it generates, its tail, the open block.
fn own_blocks(agent: &Agent) -> u64 {
    let tail = agent.spec.tail.len() as u64 / 4;
    (agent.reserved_tokens() + tail).div_ceil(BLOCK_TOKENS) + 1
}

/// What [`place`] comes to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Placed {
    /// Commands to propose.
    pub assigns: Vec<Assign>,
    /// Payloads that jobs wait for; the jobs were passed over.
    pub missing: Vec<MissingBlob>,
}

/// Workers for agents that wait, as commands to propose. Pure: the same state and loads give the
/// same assignments. Agents that fit nowhere go on waiting, and so does a job whose spec is a blob
/// that is not here: it holds up no other. So do those that would be more than a tenant's quota.
pub fn place(state: &State, loads: &dyn Loads, quotas: &Quotas, blobs: &dyn Payloads) -> Placed {
    let mut placed = Placed::default();
    let mut turns = Turns::new(state, quotas);
    let mut field = Field::new(state, loads);
    while let Some(turn) = turns.next() {
        if field.is_full() {
            break;
        }
        let before = placed.assigns.len();
        if let Some(job) = state.job(turn.job_id).filter(|job| job.prepared.is_some()) {
            let queued = |agent: &&Agent| agent.state == AgentState::Queued;
            let waiting = job.agents.iter().filter(queued).take(turn.room).collect();
            let done = place_job(job, waiting, &mut field, blobs, &mut placed.assigns);
            placed.missing.extend(done.err());
        }
        turns.placed(turn, placed.assigns.len() - before);
    }
    placed
}

fn place_job(
    job: &Job,
    waiting: Vec<&Agent>,
    field: &mut Field<'_>,
    blobs: &dyn Payloads,
    assigns: &mut Vec<Assign>,
) -> Result<(), MissingBlob> {
    let mut class = job.numeric_class.clone();
    if !class.is_empty() && !field.any_serves(job, &class) {
        let policy = Policy::of(&view::spec(job, blobs)?);
        if !policy.allow_inexact {
            return Ok(());
        }
        class.clear();
    }
    let mut here = field.here(job);
    let mut left = waiting.len() as u32;
    for agent in waiting {
        let Some(at) = field.best(job, agent, &class, &here, left) else {
            break;
        };
        let slot = &mut field.slots[at];
        let Some(model) = slot.worker.model(job.model()) else {
            break;
        };
        class.clone_from(&model.numeric_class);
        assigns.push(Assign {
            job_id: job.id.clone(),
            agent: agent.spec.agent,
            attempt: agent.attempt + 1,
            worker_id: slot.worker.worker_id.clone(),
            incarnation: slot.worker.incarnation.clone(),
            numeric_class: class.clone(),
        });
        slot.charge(job, agent, here.contains(&at));
        if !here.contains(&at) {
            here.push(at);
        }
        left -= 1;
    }
    Ok(())
}

/// The worker runs the job's model, in this class if one is set.
fn serves(slot: &Slot<'_>, job: &Job, class: &str) -> bool {
    let digest = job.prepared.as_ref().map_or(&[][..], |p| &p.model_digest);
    slot.worker.model(job.model()).is_some_and(|model| {
        (class.is_empty() || model.numeric_class == class)
            && (digest.is_empty() || model.digest == digest)
    })
}

#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;
