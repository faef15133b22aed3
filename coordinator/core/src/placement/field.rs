//! The workers that may be placed on, the least loaded first at hand.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{Load, Slot, holdings::Held, serves};
use crate::{agent::Agent, job::Job, state::State};

/// Workers that could take an agent which are weighed for it, the least loaded ones, unless one has
/// room for all that is left of the round: then that one, and no more.
const LOOK: usize = 64;

/// Workers that are connected and do not drain, by id.
pub(super) struct Field<'a> {
    pub slots: Vec<Slot<'a>>,
    state: &'a State,
    /// Loads and places in `slots`. Loads only grow while agents are placed: an entry that is out of
    /// date stands too far in front, and is put right when it is met. Full ones are left out.
    queue: BinaryHeap<Reverse<(u64, usize)>>,
}

/// What a choice is made by. Smaller is better, field by field: not where the last attempt failed;
/// where the job already runs; where all that is left of the round fits; the least loaded; by name,
/// to be the same everywhere.
type Cost = (bool, bool, u32, u64, usize);

impl<'a> Field<'a> {
    pub(super) fn new(state: &'a State, loads: &BTreeMap<String, Load>) -> Field<'a> {
        // All three are in the order of worker ids.
        let mut loads = loads.iter().peekable();
        let mut holdings = state.holdings.processes().peekable();
        let mut slots: Vec<Slot<'a>> = Vec::with_capacity(loads.len());
        for worker in state.workers().filter(|w| !w.draining) {
            let id = &worker.worker_id;
            while loads.next_if(|(load, _)| *load < id).is_some() {}
            let Some((_, load)) = loads.next_if(|(load, _)| *load == id) else {
                continue;
            };
            let process = (id.as_str(), worker.incarnation.as_str());
            let before = |(on, _): &(&(String, String), &Held)| (&*on.0, &*on.1) < process;
            while holdings.next_if(before).is_some() {}
            let held = holdings
                .peek()
                .filter(|(on, _)| (&*on.0, &*on.1) == process);
            slots.push(Slot {
                worker,
                said: load.running.saturating_add(load.waiting),
                held: held.map_or_else(Held::default, |(_, held)| **held),
            });
        }
        let queued = slots.iter().enumerate().filter(|(_, slot)| slot.free() > 0);
        let queue = queued
            .map(|(at, slot)| Reverse((slot.load(), at)))
            .collect();
        Field {
            slots,
            state,
            queue,
        }
    }

    /// No worker has room for one more agent.
    pub(super) fn is_full(&mut self) -> bool {
        while let Some(Reverse((_, at))) = self.queue.peek() {
            if self.slots[*at].free() > 0 {
                return false;
            }
            self.queue.pop();
        }
        true
    }

    /// The slots that the job has attempts on.
    pub(super) fn here(&self, job: &Job) -> Vec<usize> {
        let find = |(worker, incarnation): &(String, String)| {
            let by_id = |slot: &Slot<'_>| slot.worker.worker_id.as_str().cmp(worker);
            let at = self.slots.binary_search_by(by_id).ok()?;
            (self.slots[at].worker.incarnation == *incarnation).then_some(at)
        };
        self.state
            .holdings
            .of_job(&job.id)
            .filter_map(find)
            .collect()
    }

    /// The slot that this agent is best placed on; `left` agents of its round are still to be.
    pub(super) fn best(
        &mut self,
        job: &Job,
        agent: &Agent,
        class: &str,
        here: &[usize],
        left: u32,
    ) -> Option<usize> {
        let cost = |slots: &[Slot<'_>], at: usize, here: bool| -> Option<Cost> {
            let slot = &slots[at];
            let fits = slot.fits(job, agent, here);
            if fits == 0 || !serves(slot, job, class) {
                return None;
            }
            let failed_here = agent.failures > 0
                && agent
                    .placement
                    .as_ref()
                    .is_some_and(|p| p.worker_id == slot.worker.worker_id);
            Some((
                failed_here,
                !here,
                left.saturating_sub(fits),
                slot.load(),
                at,
            ))
        };
        let stay = here.iter().filter_map(|at| cost(&self.slots, *at, true));
        let mut best = stay.min();
        if best.is_some_and(|(failed_here, ..)| !failed_here) {
            return best.map(|(.., at)| at);
        }
        let (mut looked, mut met) = (0, Vec::new());
        while looked < LOOK
            && let Some(Reverse((load, at))) = self.queue.pop()
        {
            let slot = &self.slots[at];
            if slot.free() == 0 {
                continue;
            }
            if slot.load() != load {
                self.queue.push(Reverse((slot.load(), at)));
                continue;
            }
            met.push(Reverse((load, at)));
            if here.contains(&at) {
                continue;
            }
            let Some(apart) = cost(&self.slots, at, false) else {
                continue;
            };
            looked += 1;
            best = Some(best.map_or(apart, |best| best.min(apart)));
            let (failed_here, _, missing, ..) = apart;
            if !failed_here && missing == 0 {
                break;
            }
        }
        self.queue.extend(met);
        best.map(|(.., at)| at)
    }
}
