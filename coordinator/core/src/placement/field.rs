//! The workers that may be placed on, the least loaded first at hand.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    iter::Peekable,
};

use super::{FULL, Loads, Slot, serves};
use crate::{agent::Agent, job::Job, state::State};

/// Workers that could take an agent which are weighed for it, the least loaded ones, unless one has
/// room for all that is left of the round: then that one, and no more.
pub(super) const LOOK: usize = 64;

/// Workers that are connected and do not drain. Only those that are asked for are looked at: one call
/// places a few agents among many workers.
pub(super) struct Field<'a> {
    state: &'a State,
    loads: &'a dyn Loads,
    /// Those that were looked at, and what was placed on them since.
    pub slots: Vec<Slot<'a>>,
    /// Places in `slots`; `None`: not connected, or draining.
    known: BTreeMap<&'a str, Option<usize>>,
    /// Workers that were not come to yet, by what the state says of their load. What they say of
    /// themselves may be more, never less.
    rest: Peekable<Box<dyn Iterator<Item = (u64, &'a str)> + 'a>>,
    /// The others that have room. Loads only grow while agents are placed: an entry that is out of
    /// date stands too far in front, and is put right when it is met.
    queue: BinaryHeap<Queued<'a>>,
}

/// Load, id, and place in `slots`; the least is the greatest of a heap.
type Queued<'a> = Reverse<(u64, &'a str, usize)>;

/// What a choice is made by. Smaller is better, field by field: not where the last attempt failed;
/// where the job already runs; where all that is left of the round fits; the least loaded; by name,
/// to be the same everywhere.
pub(super) type Cost<'a> = (bool, bool, u32, u64, &'a str);

impl<'a> Field<'a> {
    pub(super) fn new(state: &'a State, loads: &'a dyn Loads) -> Field<'a> {
        // Behind the first that is full, all are.
        let room = state.order.iter().take_while(|(load, _)| *load < FULL);
        let rest: Box<dyn Iterator<Item = _>> = Box::new(room);
        Field {
            state,
            loads,
            slots: Vec::new(),
            known: BTreeMap::new(),
            rest: rest.peekable(),
            queue: BinaryHeap::new(),
        }
    }

    /// No worker has room for one more agent.
    pub(super) fn is_full(&mut self) -> bool {
        let least = self.pop();
        self.queue.extend(least.map(Reverse));
        least.is_none()
    }

    /// The worker's place in `slots`, if it may be placed on.
    fn slot(&mut self, worker_id: &str) -> Option<usize> {
        if let Some(known) = self.known.get(worker_id) {
            return *known;
        }
        let worker = self.state.worker(worker_id)?;
        let slot = Slot::of(self.state, worker, self.loads);
        let at = slot.map(|slot| {
            self.slots.push(slot);
            self.slots.len() - 1
        });
        self.known.insert(&worker.worker_id, at);
        at
    }

    /// Some worker could run the job in this class, now or once it has room.
    pub(super) fn any_serves(&mut self, job: &Job, class: &str) -> bool {
        let (state, loads) = (self.state, self.loads);
        let mut slots = state.workers().filter_map(|w| Slot::of(state, w, loads));
        self.slots.iter().any(|slot| serves(slot, job, class))
            || slots.any(|slot| serves(&slot, job, class))
    }

    /// The slots that the job has attempts on.
    pub(super) fn here(&mut self, job: &Job) -> Vec<usize> {
        let state = self.state;
        let find = |(worker, incarnation): &(String, String)| {
            let at = self.slot(worker)?;
            (self.slots[at].worker.incarnation == *incarnation).then_some(at)
        };
        state.holdings.of_job(&job.id).filter_map(find).collect()
    }

    /// The least loaded worker that has room, taken out of the queue.
    fn pop(&mut self) -> Option<(u64, &'a str, usize)> {
        loop {
            let queued = self.queue.peek().map(|Reverse((load, id, _))| (*load, *id));
            let first = self.rest.peek().copied();
            let from_rest = first.is_some_and(|first| queued.is_none_or(|queued| first < queued));
            let (load, id, at) = if from_rest {
                let (load, id) = self.rest.next()?;
                let Some(at) = self.slot(id) else { continue };
                (load, id, at)
            } else {
                let Reverse(entry) = self.queue.pop()?;
                entry
            };
            let slot = &self.slots[at];
            if slot.free() == 0 {
                continue;
            }
            if slot.load() == load {
                return Some((load, id, at));
            }
            self.queue.push(Reverse((slot.load(), id, at)));
        }
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
        let stay = here.iter().filter_map(|at| {
            let cost = cost(&self.slots[*at], job, agent, class, true, left)?;
            Some((cost, *at))
        });
        let mut best = stay.min();
        if best.is_some_and(|((failed_here, ..), _)| !failed_here) {
            return best.map(|(_, at)| at);
        }
        let (mut looked, mut met) = (0, Vec::new());
        while looked < LOOK
            && let Some((load, id, at)) = self.pop()
        {
            met.push(Reverse((load, id, at)));
            if here.contains(&at) {
                continue;
            }
            let Some(apart) = cost(&self.slots[at], job, agent, class, false, left) else {
                continue;
            };
            looked += 1;
            best = Some(best.map_or((apart, at), |best| best.min((apart, at))));
            let (failed_here, _, missing, ..) = apart;
            if !failed_here && missing == 0 {
                break;
            }
        }
        self.queue.extend(met);
        best.map(|(_, at)| at)
    }
}

/// What it costs to place the agent on this slot, where the job has attempts (`here`) or not; `None` if
/// it does not fit or is not served.
pub(super) fn cost<'a>(
    slot: &Slot<'a>,
    job: &Job,
    agent: &Agent,
    class: &str,
    here: bool,
    left: u32,
) -> Option<Cost<'a>> {
    let id = slot.worker.worker_id.as_str();
    let fits = slot.fits(job, agent, here);
    if fits == 0 || !serves(slot, job, class) {
        return None;
    }
    let last = agent.placement.as_ref().filter(|_| agent.failures > 0);
    let failed_here = last.is_some_and(|last| last.worker_id == id);
    let missing = left.saturating_sub(fits);
    Some((failed_here, !here, missing, slot.load(), id))
}
