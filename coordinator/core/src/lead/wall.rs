//! Is the leader's wall clock to be believed (law 3)? Replicated time never goes back, and what it
//! erases does not come back: so one machine's clock alone does not move it by days.

use conclave_proto::v1::command::Command as Body;

use super::{Act, Leader, Moment};

/// How far the wall clock may run ahead of what replicated time and this process's monotonic clock
/// explain, ms. What lies further ahead is believed once a majority of the voters' clocks is there.
pub const LEAP_MS: i64 = 60 * 60 * 1_000;
/// Period of asking for the members' clocks until a majority answers, ms; and then, while the
/// leader's own is doubted.
const ASK_MS: u64 = 2_000;
const ASK_AGAIN_MS: u64 = 30_000;
/// A new leader that doubts its clock waits so long for the members' before it serves, ms.
const PATIENCE_MS: u64 = 10_000;

/// The latest time that a majority of the voters' clocks has reached: as an index is committed, so
/// is time. One entry a voter, `None` for one that did not answer. `None`: too few answered.
pub fn reached(clocks: &[Option<i64>]) -> Option<i64> {
    let mut known: Vec<i64> = clocks.iter().flatten().copied().collect();
    known.sort_unstable_by(|a, b| b.cmp(a));
    known.get(clocks.len() / 2).copied()
}

/// What is believed, and what was asked.
#[derive(Debug, Default)]
pub(super) struct Wall {
    /// Unix ms that were believed, and the monotonic time then.
    believed: Option<(i64, u64)>,
    /// How far ahead of that the clock is, while it is doubted, ms.
    ahead_ms: Option<i64>,
    asked_ms: Option<u64>,
    answered: bool,
}

impl Wall {
    /// The time at this moment: the clock's, or as much of it as is explained.
    fn look(&mut self, moment: &Moment<'_>) -> i64 {
        let since = |at| i64::try_from(moment.now_ms.saturating_sub(at)).unwrap_or(i64::MAX);
        let gone = |(unix_ms, at): (i64, u64)| unix_ms.saturating_add(since(at));
        let believed = self.believed.map_or(i64::MIN, gone);
        let explained = believed.max(moment.state.unix_ms());
        let ahead_ms = moment.unix_ms.saturating_sub(explained);
        // A cluster that has not begun has nothing to compare with, and nothing to lose.
        if ahead_ms <= LEAP_MS || moment.state.cluster_id().is_empty() {
            *self = Wall::default();
            self.believed = Some((moment.unix_ms, moment.now_ms));
            return moment.unix_ms;
        }
        self.ahead_ms = Some(ahead_ms);
        self.believed = Some((explained, moment.now_ms));
        explained
    }
}

impl Leader {
    /// How far this leader's wall clock is ahead of all that explains it, ms, while it is doubted:
    /// time goes on without it then, by the monotonic clock.
    pub fn doubts_clock(&self) -> Option<i64> {
        self.wall.ahead_ms
    }

    /// The moment with the time that is believed.
    pub(super) fn believed<'a>(&mut self, moment: &Moment<'a>) -> Moment<'a> {
        let unix_ms = self.wall.look(moment);
        Moment { unix_ms, ..*moment }
    }

    /// A majority of the voters' clocks is at `reached_ms`, or too few of them answered.
    pub fn clocks(&mut self, reached_ms: Option<i64>, moment: &Moment<'_>) {
        let explained = self.wall.look(moment);
        let Some(reached_ms) = reached_ms.filter(|_| self.wall.ahead_ms.is_some()) else {
            return;
        };
        self.wall.answered = true;
        let confirmed = explained.max(reached_ms.min(moment.unix_ms));
        self.wall.believed = Some((confirmed, moment.now_ms));
        self.wall.look(moment);
    }

    /// Asks for the members' clocks, once a period while its own is doubted. Not before it has applied
    /// an entry of its own term: until then the state's time is an old one.
    pub(super) fn ask_clocks(&mut self, moment: &Moment<'_>) -> Option<Act> {
        self.wall.ahead_ms?;
        if moment.state.applied_term() != self.term {
            return None;
        }
        let now_ms = moment.now_ms;
        let (asked, answered) = (self.wall.asked_ms, self.wall.answered);
        let period = if answered { ASK_AGAIN_MS } else { ASK_MS };
        if asked.is_some_and(|at| now_ms.saturating_sub(at) < period) {
            return None;
        }
        self.wall.asked_ms = Some(now_ms);
        Some(Act::AskClocks)
    }

    /// It knows too little of the time to serve: what is stamped now might be days behind.
    pub(super) fn awaits_clocks(&self, now_ms: u64) -> bool {
        let waited = now_ms.saturating_sub(self.begun_ms) >= PATIENCE_MS;
        self.wall.ahead_ms.is_some() && !self.wall.answered && !waited
    }

    /// Moves a caller's command onto the leader's time: its node's wall clock may be behind
    /// replicated time, or far ahead of it. Spans stay as they are.
    pub fn stamp(&mut self, body: &mut Body, moment: &Moment<'_>) {
        let now = self.believed(moment).wall_ms();
        match body {
            Body::SubmitJob(submit) => {
                if submit.deadline_unix_ms > 0 {
                    let span = submit.deadline_unix_ms.saturating_sub(submit.unix_ms);
                    submit.deadline_unix_ms = now.saturating_add(span);
                }
                submit.unix_ms = now;
            }
            Body::CancelJob(cancel) => cancel.unix_ms = now,
            Body::ReviewJob(review) => review.unix_ms = now,
            _ => {}
        }
    }
}
