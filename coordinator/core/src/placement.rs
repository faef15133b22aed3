//! Which worker gets which agent: a cost function over leases, load and shared prefixes.
//!
//! A round stays on one worker while its sequences and KV fit there, since the worker then reads
//! the shared prefix once; what does not fit goes to the least loaded. A job stays in the numeric
//! class of its first placement, unless its policy allows another and none of the first is left.
//! The work grows with running jobs and workers, not with finished jobs.

use std::collections::BTreeMap;

use conclave_proto::v1::{AgentState, Assign};

use crate::{
    agent::Agent,
    job::Job,
    payload::{MissingBlob, Payloads},
    spec::Policy,
    state::State,
    view,
    worker::Worker,
};

/// Tokens of a KV block.
const BLOCK_TOKENS: u64 = 16;

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

/// A worker and what is placed on it, this call's suggestions included.
struct Slot<'a> {
    worker: &'a Worker,
    /// What it said it runs and queues: only weighed, since it lags behind the state.
    said: u32,
    /// Attempts placed on it.
    agents: u32,
    /// KV blocks that the placed attempts may fill.
    blocks: u64,
    /// Attempts by job.
    jobs: BTreeMap<&'a str, u32>,
}

impl Slot<'_> {
    fn free(&self) -> u32 {
        self.worker.max_sequences.max(1).saturating_sub(self.agents)
    }

    /// How many more agents of this size fit; a lone one always does, so that a job that is too
    /// large for every worker is refused by one instead of waiting for ever.
    fn fits(&self, job: &Job, agent: &Agent) -> u32 {
        let free = self.free();
        if self.worker.kv_blocks == 0 {
            return free;
        }
        let prefix = if self.jobs.contains_key(job.id.as_str()) {
            0
        } else {
            prefix_blocks(job)
        };
        let left = u64::from(self.worker.kv_blocks).saturating_sub(self.blocks + prefix);
        let count = u32::try_from(left / own_blocks(agent)).unwrap_or(u32::MAX);
        count.max(u32::from(self.agents == 0)).min(free)
    }

    /// Load in millionths of its sequences.
    fn load(&self) -> u64 {
        u64::from(self.agents.max(self.said)) * 1_000_000
            / u64::from(self.worker.max_sequences.max(1))
    }
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
/// same assignments. `loads` is keyed by worker id. Agents that fit nowhere go on waiting, and so
/// does a job whose spec is a blob that is not here: it holds up no other.
pub fn place(state: &State, loads: &BTreeMap<String, Load>, blobs: &dyn Payloads) -> Placed {
    let mut slots = slots(state, loads);
    let mut placed = Placed::default();
    for job in state.active_jobs() {
        let waiting: Vec<&Agent> = job
            .agents
            .iter()
            .filter(|a| a.state == AgentState::Queued)
            .collect();
        if !waiting.is_empty() && job.prepared.is_some() {
            let done = place_job(job, waiting, &mut slots, blobs, &mut placed.assigns);
            placed.missing.extend(done.err());
        }
    }
    placed
}

fn slots<'a>(state: &'a State, loads: &BTreeMap<String, Load>) -> Vec<Slot<'a>> {
    let live = state.workers().filter(|w| !w.draining);
    let mut slots: Vec<Slot<'a>> = live
        .filter_map(|worker| {
            let load = loads.get(&worker.worker_id)?;
            let said = load.running.saturating_add(load.waiting);
            Some(Slot {
                worker,
                said,
                agents: 0,
                blocks: 0,
                jobs: BTreeMap::new(),
            })
        })
        .collect();
    for job in state.active_jobs() {
        for agent in job.agents.iter().filter(|a| a.holds_worker()) {
            let Some(on) = &agent.placement else { continue };
            let slot = slots.iter_mut().find(|s| {
                s.worker.worker_id == on.worker_id && s.worker.incarnation == on.incarnation
            });
            if let Some(slot) = slot {
                charge(slot, job, agent);
            }
        }
    }
    slots
}

/// Books an agent and its blocks on a worker; the job's prompt with its first one.
fn charge<'a>(slot: &mut Slot<'a>, job: &'a Job, agent: &Agent) {
    let count = slot.jobs.entry(job.id.as_str()).or_insert(0);
    if *count == 0 {
        slot.blocks += prefix_blocks(job);
    }
    *count += 1;
    slot.blocks += own_blocks(agent);
    slot.agents += 1;
}

fn place_job<'a>(
    job: &'a Job,
    waiting: Vec<&'a Agent>,
    slots: &mut [Slot<'a>],
    blobs: &dyn Payloads,
    assigns: &mut Vec<Assign>,
) -> Result<(), MissingBlob> {
    let mut class = job.numeric_class.clone();
    if !class.is_empty() && !slots.iter().any(|s| serves(s, job, &class)) {
        let policy = Policy::of(&view::spec(job, blobs)?);
        if !policy.allow_inexact {
            return Ok(());
        }
        class.clear();
    }
    let mut left = waiting.len() as u32;
    for agent in waiting {
        let best = slots
            .iter_mut()
            .filter(|slot| serves(slot, job, &class) && slot.fits(job, agent) > 0)
            .min_by_key(|slot| cost(slot, job, agent, left));
        let Some(slot) = best else { break };
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
        charge(slot, job, agent);
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

/// Smaller is better, field by field: not where the last attempt failed; where the job already
/// runs; where all that is left of the round fits; the least loaded; by name, to be the same
/// everywhere.
fn cost<'a>(
    slot: &Slot<'a>,
    job: &Job,
    agent: &Agent,
    left: u32,
) -> (bool, bool, u32, u64, &'a str) {
    let worker: &'a Worker = slot.worker;
    let failed_here = agent.failures > 0
        && agent
            .placement
            .as_ref()
            .is_some_and(|p| p.worker_id == worker.worker_id);
    let apart = !slot.jobs.contains_key(job.id.as_str());
    let missing = left.saturating_sub(slot.fits(job, agent));
    (failed_here, apart, missing, slot.load(), &worker.worker_id)
}

#[cfg(test)]
mod tests;
