//! What jobs do next, and where agents run: asked of the core, proposed, made anew if lost.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use conclave_proto::v1::{Decide, command::Command as Body, decide};

use super::{Act, Leader, Moment, Purpose};
use crate::{
    contemplate::{self, Context},
    payload::{self, InlineOnly},
    placement,
};

/// How long a decision may be under way, its payload included, before it counts as lost, ms.
pub(super) const DECIDE_MS: u64 = 20_000;

/// Decisions by job.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    due: BTreeSet<String>,
    next_tick: BTreeSet<String>,
    /// And when each counts as lost.
    under_way: BTreeMap<String, u64>,
}

impl Decisions {
    /// The jobs are asked about next.
    pub(super) fn ask(&mut self, job_ids: impl IntoIterator<Item = String>) {
        self.due.extend(job_ids);
    }

    pub(super) fn applied(&mut self, job_id: String) {
        self.under_way.remove(&job_id);
        self.due.insert(job_id);
    }

    pub(super) fn failed(&mut self, job_id: String) {
        self.under_way.remove(&job_id);
        self.next_tick.insert(job_id);
    }

    /// What failed, and what nothing was heard of, is due again.
    pub(super) fn tick(&mut self, now_ms: u64) {
        let lost = self.under_way.extract_if(.., |_, until| *until <= now_ms);
        self.due.extend(lost.map(|(job_id, _)| job_id));
        self.due.append(&mut self.next_tick);
    }
}

/// Assignments that are under way, and whether more are due.
#[derive(Debug, Default)]
pub(super) struct Placements {
    due: bool,
    next_tick: bool,
    under_way: usize,
    /// The tick that went into the log last before them.
    behind: u64,
    /// Nothing was heard of one of them: it may yet be applied.
    doubt: bool,
}

impl Placements {
    /// Agents may wait for a worker, or a worker for agents.
    pub(super) fn ask(&mut self) {
        self.due = true;
    }

    pub(super) fn ended(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    pub(super) fn failed(&mut self) {
        self.ended();
        self.next_tick = true;
    }

    /// Nothing was heard of one in time.
    pub(super) fn lost(&mut self) {
        self.doubt = true;
        self.failed();
    }

    /// The tick of this number is applied: what this leader proposed before it is applied, or never will be.
    pub(super) fn passed(&mut self, tick: u64) {
        self.doubt &= tick <= self.behind;
    }

    pub(super) fn tick(&mut self) {
        self.due |= std::mem::take(&mut self.next_tick);
    }
}

impl Leader {
    /// Asks what the jobs that are due do next, and proposes it; one decision a job at a time.
    pub(super) fn decide(&mut self, moment: &Moment<'_>) {
        let context = Context {
            payloads: moment.payloads,
            now_unix_ms: moment.wall_ms(),
        };
        for job_id in std::mem::take(&mut self.decisions.due) {
            let job = moment.state.job(&job_id).filter(|j| j.needs_decision());
            // The end of one under way asks anew.
            let Some(job) = job.filter(|_| !self.decisions.under_way.contains_key(&job_id)) else {
                continue;
            };
            match contemplate::next(job, &context) {
                Ok(None) => {}
                Ok(Some(decide)) => {
                    let lost_at = moment.now_ms + DECIDE_MS;
                    self.decisions.under_way.insert(job_id.clone(), lost_at);
                    self.propose_decision(job_id, decide);
                }
                Err(missing) => self.wait_for(missing),
            }
        }
    }

    pub(super) fn propose_decision(&mut self, job_id: String, decide: Decide) {
        match large_context(&decide, self.settings.inline_limit) {
            None => self.propose(Body::Decide(decide), Purpose::Decide { job_id }),
            Some(bytes) => self.acts.push(Act::StoreContext {
                job_id,
                decide: Box::new(decide),
                bytes,
            }),
        }
    }

    /// A round's context is on a majority and named in the decision; `None`: it could not be
    /// stored.
    pub fn context_stored(&mut self, job_id: String, decide: Option<Decide>) {
        match decide {
            Some(decide) => self.propose(Body::Decide(decide), Purpose::Decide { job_id }),
            None => self.decisions.failed(job_id),
        }
    }

    /// Places agents that wait. The next placement looks at the state after this one, so it waits
    /// until all of this one is applied.
    pub(super) fn place(&mut self, moment: &Moment<'_>) {
        if !self.placements.due || self.placements.under_way > 0 {
            return;
        }
        let quotas = self.gate.quotas();
        // An assignment that may yet be applied would come on top of what a tenant may run. It is behind
        // the next tick, which goes out while anything waits.
        if self.placements.doubt && quotas.bound_agents() {
            return;
        }
        self.placements.due = false;
        self.placements.behind = self.ticks;
        let placed = placement::place(moment.state, &self.roster, quotas, moment.payloads);
        self.placements.under_way = placed.assigns.len();
        for assign in placed.assigns {
            self.propose(Body::Assign(assign), Purpose::Place);
        }
        // A job that waits for its payload holds up no other.
        for missing in placed.missing {
            self.wait_for(missing);
        }
    }
}

/// The bytes of a round's context if they are too long to travel in the log.
fn large_context(decide: &Decide, limit: usize) -> Option<Vec<u8>> {
    let Some(decide::Next::StartRound(round)) = &decide.next else {
        return None;
    };
    let context = round.context.as_ref()?;
    if payload::blob_ref(context).is_some() || payload::length(context) <= limit as u64 {
        return None;
    }
    payload::read(context, &InlineOnly)
        .ok()
        .map(Cow::into_owned)
}
