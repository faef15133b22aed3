//! The model of one job as its clients see it: submitted under one key, it
//! goes forward through its phases by itself, and a cancel ends it.

use conclave_proto::v1::JobState;

use super::Model;

/// What calls on one key may do. `job` is the id that a coordinator returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `SubmitJob` that was acknowledged. `existing`: as the reply said.
    Submitted {
        /// The id.
        job: String,
        /// The key was known before.
        existing: bool,
    },
    /// `SubmitJob` whose outcome is unknown; only with an unknown return.
    SubmitUnknown,
    /// `GetJob` or `ListJobs` that showed the job.
    Read {
        /// The id.
        job: String,
        /// What it showed.
        state: JobState,
        /// The round it showed.
        round: u32,
    },
    /// `GetJob` that did not find it.
    NotFound,
    /// `CancelJob` that was acknowledged, with the state that it returned.
    Cancelled {
        /// The id.
        job: String,
        /// What it returned.
        state: JobState,
    },
    /// `CancelJob` whose outcome is unknown; only with an unknown return.
    CancelUnknown,
}

/// What is known of the job after the calls so far.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// Never submitted.
    Absent,
    /// Submitted.
    Present {
        /// The id, once a reply has told it.
        job: Option<String>,
        /// The least that it has reached.
        phase: Phase,
        /// A cancel took effect, and it was not at its end.
        cancelled: bool,
    },
}

/// Where a job is; ordered as it goes. The order inside a round is that of the
/// states: propose, then (distil, refine) a round, then aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Accepted.
    Queued,
    /// Agents run: the round, and the state within.
    Running(u32, i32),
    /// A final state.
    Ended(i32),
}

impl Phase {
    /// The phase that a reply shows; `None` for a state that no server sends.
    fn of(state: JobState, round: u32) -> Option<Phase> {
        match state {
            JobState::Unspecified => None,
            JobState::Preparing => Some(Phase::Queued),
            JobState::Proposing
            | JobState::Distilling
            | JobState::Refining
            | JobState::Aggregating
            | JobState::AwaitingReview => Some(Phase::Running(round, state.into())),
            JobState::Done | JobState::Degraded | JobState::Failed | JobState::Cancelled => {
                Some(Phase::Ended(state.into()))
            }
        }
    }

    /// True if the job may be at `later`, having been here.
    fn may_become(self, later: Phase) -> bool {
        match (self, later) {
            (Phase::Ended(ended), Phase::Ended(now)) => ended == now,
            (Phase::Ended(_), _) => false,
            _ => self <= later,
        }
    }
}

/// The model; see [`Call`] and [`State`].
pub struct JobModel;

impl Model for JobModel {
    type State = State;
    type Call = Call;

    fn initial(&self) -> State {
        State::Absent
    }

    fn step(&self, state: &State, call: &Call) -> Vec<State> {
        match call {
            Call::Submitted { job, existing } => submitted(state, job, *existing),
            Call::SubmitUnknown => match state {
                State::Absent => vec![present(None, Phase::Queued, false)],
                // The same as none: it changes nothing.
                State::Present { .. } => vec![],
            },
            Call::Read {
                job,
                state: s,
                round,
            } => read(state, job, *s, *round),
            Call::NotFound => match state {
                State::Absent => vec![State::Absent],
                State::Present { .. } => vec![],
            },
            Call::Cancelled { job, state: shown } => cancel(state)
                .iter()
                .flat_map(|state| read(state, job, *shown, u32::MAX))
                .filter(ended)
                .collect(),
            Call::CancelUnknown => cancel(state),
        }
    }
}

fn present(job: Option<String>, phase: Phase, cancelled: bool) -> State {
    State::Present {
        job,
        phase,
        cancelled,
    }
}

fn ended(state: &State) -> bool {
    matches!(
        state,
        State::Present {
            phase: Phase::Ended(_),
            ..
        }
    )
}

/// A job acknowledged as new is new; one that `existing` says was there was
/// there, or the coordinator itself has sent the submission twice.
fn submitted(state: &State, id: &str, existing: bool) -> Vec<State> {
    match state {
        State::Absent => vec![present(Some(id.to_owned()), Phase::Queued, false)],
        // The unknown one took effect, and this reply tells its id.
        State::Present {
            job: None,
            phase,
            cancelled,
        } if existing => {
            vec![present(Some(id.to_owned()), *phase, *cancelled)]
        }
        State::Present { job: Some(job), .. } if existing && job == id => vec![state.clone()],
        State::Present { .. } => vec![],
    }
}

fn read(state: &State, id: &str, shown: JobState, round: u32) -> Vec<State> {
    let State::Present {
        job,
        phase,
        cancelled,
    } = state
    else {
        return vec![];
    };
    let Some(now) = Phase::of(shown, round) else {
        return vec![];
    };
    let same = job.as_deref().is_none_or(|job| job == id);
    // Nobody but a cancel ends a job so, and once it did nothing else is seen.
    let told = *cancelled == (now == Phase::Ended(JobState::Cancelled.into()));
    if !same || !told || !phase.may_become(now) {
        return vec![];
    }
    vec![present(Some(id.to_owned()), now, *cancelled)]
}

/// A cancel ends a job, unless that had ended by itself.
fn cancel(state: &State) -> Vec<State> {
    match state {
        State::Absent => vec![],
        State::Present {
            phase: Phase::Ended(_),
            ..
        } => vec![state.clone()],
        State::Present { job, phase, .. } => vec![
            present(job.clone(), *phase, true),
            present(job.clone(), *phase, false),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Entry, check};

    fn submitted(job: &str, existing: bool) -> Call {
        let job = job.to_owned();
        Call::Submitted { job, existing }
    }

    fn read(state: JobState, round: u32) -> Call {
        let job = "a".to_owned();
        Call::Read { job, state, round }
    }

    fn cancelled(state: JobState) -> Call {
        let job = "a".to_owned();
        Call::Cancelled { job, state }
    }

    /// Each call after the one before; unknown ones stay open.
    fn holds(calls: &[Call]) -> bool {
        let entry = |(at, call): (usize, &Call)| Entry {
            invoked: at as u64 * 2 + 1,
            returned: (!matches!(call, Call::SubmitUnknown | Call::CancelUnknown))
                .then_some(at as u64 * 2 + 2),
            call: call.clone(),
        };
        let history: Vec<_> = calls.iter().enumerate().map(entry).collect();
        check(&JobModel, &history).is_ok()
    }

    #[test]
    fn a_job_goes_forward_and_stays_at_its_end() {
        use JobState::{Aggregating, Distilling, Done, Preparing, Proposing, Refining};
        assert!(holds(&[
            submitted("a", false),
            read(Preparing, 0),
            read(Proposing, 0),
            read(Proposing, 0),
            read(Refining, 1),
            read(Distilling, 2),
            read(Aggregating, 3),
            read(Done, 3),
            submitted("a", true),
            read(Done, 3),
        ]));
        assert!(!holds(&[
            submitted("a", false),
            read(Proposing, 0),
            read(Preparing, 0)
        ]));
        assert!(!holds(&[
            submitted("a", false),
            read(Refining, 2),
            read(Refining, 1)
        ]));
        assert!(!holds(&[
            submitted("a", false),
            read(Done, 0),
            read(Proposing, 0)
        ]));
        assert!(!holds(&[
            submitted("a", false),
            read(Done, 0),
            read(JobState::Failed, 0)
        ]));
    }

    #[test]
    fn a_key_stands_for_one_job() {
        assert!(holds(&[submitted("a", false), submitted("a", true)]));
        assert!(
            !holds(&[submitted("a", false), submitted("b", false)]),
            "doubled"
        );
        assert!(
            !holds(&[submitted("a", false), submitted("b", true)]),
            "another id"
        );
        assert!(
            !holds(&[submitted("a", false), submitted("a", false)]),
            "new twice"
        );
    }

    #[test]
    fn an_acknowledged_job_is_never_lost() {
        assert!(holds(&[Call::NotFound, submitted("a", false)]));
        assert!(!holds(&[submitted("a", false), Call::NotFound]));
    }

    #[test]
    fn an_unknown_submit_may_have_taken_effect_or_not() {
        assert!(holds(&[Call::SubmitUnknown, submitted("a", true)]));
        assert!(holds(&[Call::SubmitUnknown, submitted("a", false)]));
        assert!(!holds(&[
            Call::SubmitUnknown,
            submitted("a", false),
            submitted("b", false)
        ]));
    }

    #[test]
    fn only_a_cancel_cancels_and_it_lasts() {
        use JobState::{Cancelled, Done, Proposing};
        assert!(holds(&[
            submitted("a", false),
            cancelled(Cancelled),
            read(Cancelled, 0)
        ]));
        assert!(holds(&[
            submitted("a", false),
            cancelled(Done),
            read(Done, 0)
        ]));
        assert!(holds(&[
            submitted("a", false),
            Call::CancelUnknown,
            read(Cancelled, 0)
        ]));
        assert!(holds(&[
            submitted("a", false),
            Call::CancelUnknown,
            read(Proposing, 0),
            read(Done, 0)
        ]));
        assert!(
            !holds(&[submitted("a", false), read(Cancelled, 0)]),
            "nobody did"
        );
        assert!(!holds(&[
            submitted("a", false),
            cancelled(Cancelled),
            read(Done, 0)
        ]));
        assert!(!holds(&[
            submitted("a", false),
            cancelled(Cancelled),
            read(Proposing, 0)
        ]));
        assert!(
            !holds(&[submitted("a", false), cancelled(Proposing)]),
            "acknowledged in vain"
        );
        assert!(!holds(&[
            submitted("a", false),
            cancelled(Done),
            read(Cancelled, 0)
        ]));
    }
}
