//! What a leader does because time passes: replicated time, leases, deadlines, expiry.

use conclave_proto::v1::{ExpireJobs, RenewLeases, Tick, WorkerLease, command::Command as Body};

use super::{Act, Leader, Moment, Purpose, retention};
use crate::commands::tick::MAX_TICK_MS;

/// Period of replicated time while there is work, ms.
const TIME_MS: u64 = 500;
/// Period of looking for jobs that are too old, ms.
const EXPIRE_MS: u64 = 10_000;
/// How soon again after a full batch, ms.
const EXPIRE_MORE_MS: u64 = 200;
/// Jobs forgotten with one command.
pub(super) const EXPIRE_BATCH: usize = 256;

impl Leader {
    /// The leader's share of a tick of the node's clock.
    pub fn tick(&mut self, moment: &Moment<'_>) {
        self.look_at_clock(moment.now_ms);
        if !self.speaks() {
            return;
        }
        let moment = &self.believed(moment);
        self.pay_debts(moment);
        self.decisions.tick(moment.now_ms);
        self.placements.tick();
        let overdue = moment.state.overdue(moment.wall_ms());
        self.decisions.ask(overdue.map(str::to_owned));
        self.prepare_all(moment);
        self.move_time(moment);
        self.expire(moment);
    }

    /// Replicated time moves while something depends on it (law 3).
    fn move_time(&mut self, moment: &Moment<'_>) {
        // A worker that is gone is forgotten, even if nothing else happens.
        let here = |id: &str, incarnation: &str| self.roster.find(id, Some(incarnation)).is_some();
        let mut leased = moment.state.workers();
        let gone = leased.any(|w| !here(&w.worker_id, &w.incarnation));
        if !gone && !moment.state.needs_ticks() {
            self.moving = false;
            return;
        }
        let since = moment.now_ms.saturating_sub(self.moved_ms);
        if self.moving && since < TIME_MS {
            return;
        }
        // After a rest time begins anew; and a tick is worth so much at most.
        let (elapsed_ms, last_unix_ms) = if self.moving {
            (since.min(MAX_TICK_MS), self.moved_unix_ms)
        } else {
            (0, moment.state.unix_ms())
        };
        self.moving = true;
        self.moved_ms = moment.now_ms;
        // An agent that waits is asked of the state, too: no lost word strands it (law 2).
        if moment.state.agents_at_work().0 > 0 {
            self.placements.ask();
        }
        self.drain_workers(moment);
        self.renew_leases();
        // A wall clock that was put back, or another leader's that was ahead: replicated time goes
        // on by what has passed since the last tick, so that deadlines still come. Not since the
        // state's time: callers' commands moved that in between, and it would count twice.
        let passed = i64::try_from(elapsed_ms).unwrap_or(0);
        self.moved_unix_ms = moment.unix_ms.max(last_unix_ms.saturating_add(passed));
        let tick = Tick {
            elapsed_ms,
            unix_ms: self.moved_unix_ms,
            new_term: false,
        };
        self.ticks += 1;
        let number = self.ticks;
        self.propose(Body::Tick(tick), Purpose::Tick { number });
    }

    /// One command for all leases that signs of life came for. It goes before the tick: what was
    /// heard in time counts.
    fn renew_leases(&mut self) {
        let renew = std::mem::take(&mut self.renew).into_iter();
        let lease = |(worker_id, incarnation)| WorkerLease {
            worker_id,
            incarnation,
        };
        let leases: Vec<_> = renew.map(lease).collect();
        if !leases.is_empty() {
            self.propose(Body::RenewLeases(RenewLeases { leases }), Purpose::Nothing);
        }
    }

    /// Forgets ended jobs that are too old, or too many bytes for one tenant; and has members
    /// written down that listen elsewhere now.
    fn expire(&mut self, moment: &Moment<'_>) {
        if moment.now_ms.saturating_sub(self.expired_ms) < EXPIRE_MS {
            return;
        }
        let job_ids = retention::due(moment.state, &self.settings, moment.wall_ms(), EXPIRE_BATCH);
        // A full batch means that there are more: jobs may end faster than a batch a period.
        let full = job_ids.len() == EXPIRE_BATCH;
        let early = if full { EXPIRE_MS - EXPIRE_MORE_MS } else { 0 };
        self.expired_ms = moment.now_ms.saturating_sub(early);
        if !job_ids.is_empty() {
            self.propose(Body::ExpireJobs(ExpireJobs { job_ids }), Purpose::Nothing);
        }
        self.tidy_quotas(moment);
        self.acts.push(Act::NoteMembers);
    }
}
