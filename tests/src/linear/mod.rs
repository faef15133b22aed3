//! A linearizability checker after Wing & Gong (1993) with Lowe's memory of
//! visited configurations (2017), as porcupine and Knossos have it.
//!
//! A history is a list of calls with the times of invocation and return. It is
//! linearizable if each call can be given one point between the two so that the
//! calls, in the order of their points, are a run of the sequential [`Model`].
//! A call whose outcome is unknown may have its point at any time after its
//! invocation, or none.
//!
//! Lost or doubled effects, stale reads and states that go back all show as a
//! history with no such order. Histories are split by key before they are
//! checked (locality: a whole is linearizable if each of its objects is).

pub mod job;

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// A sequential specification. Several next states: the object may also have
/// moved on by itself before the call.
pub trait Model {
    /// State of one object.
    type State: Clone + Eq + Hash + Debug;
    /// A call with its outcome.
    type Call: Clone + Debug;

    /// State before the first call.
    fn initial(&self) -> Self::State;

    /// States after the call; none if its outcome cannot be in `state`.
    fn step(&self, state: &Self::State, call: &Self::Call) -> Vec<Self::State>;
}

/// One call of a history, times in nanoseconds of one monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<C> {
    /// When it was sent.
    pub invoked: u64,
    /// When the outcome was known; `None`: it is not known, and the call may
    /// take effect at any time after `invoked`, or never.
    pub returned: Option<u64>,
    /// What was called, and what came of it.
    pub call: C,
}

/// Why a history is not linearizable: the longest prefix that is.
#[derive(Debug, thiserror::Error)]
#[error(
    "not linearizable: after {} of {} calls, in state {state}, none of these can be next: {stuck:?}; \
     in order before: {order:?}",
    order.len(), total
)]
pub struct Violation {
    /// Calls of the longest order that was found, in that order.
    pub order: Vec<String>,
    /// State after them.
    pub state: String,
    /// Calls that could have been next in time and fit nowhere.
    pub stuck: Vec<String>,
    /// Calls of the whole history.
    pub total: usize,
}

/// Which calls have their point already.
type Done = Vec<u64>;

fn has(done: &Done, index: usize) -> bool {
    done[index / 64] & (1 << (index % 64)) != 0
}

fn with(done: &Done, index: usize) -> Done {
    let mut next = done.clone();
    next[index / 64] |= 1 << (index % 64);
    next
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Entry<M::Call>],
    visited: HashSet<(Done, M::State)>,
    order: Vec<usize>,
    best: (Vec<usize>, Option<M::State>, Vec<usize>),
}

/// Checks the calls on one object.
///
/// # Errors
/// [`Violation`] with the furthest order found.
pub fn check<M: Model>(model: &M, history: &[Entry<M::Call>]) -> Result<(), Violation> {
    let mut search = Search {
        model,
        history,
        visited: HashSet::new(),
        order: Vec::new(),
        best: (Vec::new(), None, Vec::new()),
    };
    let done = vec![0; history.len().div_ceil(64)];
    let initial = model.initial();
    if search.go(&done, &initial) {
        return Ok(());
    }
    let (order, state, stuck) = search.best;
    let say = |index: usize| format!("{:?}", history[index].call);
    Err(Violation {
        order: order.into_iter().map(say).collect(),
        state: format!("{:?}", state.unwrap_or(initial)),
        stuck: stuck.into_iter().map(say).collect(),
        total: history.len(),
    })
}

impl<M: Model> Search<'_, M> {
    /// True if the calls that are not `done` can follow on `state`.
    fn go(&mut self, done: &Done, state: &M::State) -> bool {
        let open = |index: &usize| !has(done, *index);
        let indices = 0..self.history.len();
        // The first return bounds who may be next: what was invoked later came later.
        let bound = indices
            .clone()
            .filter(open)
            .filter_map(|index| self.history[index].returned)
            .min();
        let Some(bound) = bound else {
            return true; // Only unknown outcomes are left: they may never take effect.
        };
        let next: Vec<usize> = indices
            .filter(open)
            .filter(|index| self.history[*index].invoked <= bound)
            .collect();
        for index in &next {
            for state in self.model.step(state, &self.history[*index].call) {
                let done = with(done, *index);
                if !self.visited.insert((done.clone(), state.clone())) {
                    continue;
                }
                self.order.push(*index);
                if self.go(&done, &state) {
                    return true;
                }
                self.order.pop();
            }
        }
        if self.best.1.is_none() || self.order.len() > self.best.0.len() {
            self.best = (self.order.clone(), Some(state.clone()), next);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: the textbook's model, to test the search with.
    struct Register;

    #[derive(Debug, Clone)]
    enum Call {
        Write(u32),
        Read(u32),
    }

    impl Model for Register {
        type State = u32;
        type Call = Call;

        fn initial(&self) -> u32 {
            0
        }

        fn step(&self, state: &u32, call: &Call) -> Vec<u32> {
            match call {
                Call::Write(value) => vec![*value],
                Call::Read(value) if value == state => vec![*state],
                Call::Read(_) => vec![],
            }
        }
    }

    fn history(calls: &[(u64, u64, Call)]) -> Vec<Entry<Call>> {
        calls
            .iter()
            .map(|(invoked, returned, call)| Entry {
                invoked: *invoked,
                returned: (*returned > 0).then_some(*returned),
                call: call.clone(),
            })
            .collect()
    }

    fn holds(calls: &[(u64, u64, Call)]) -> bool {
        check(&Register, &history(calls)).is_ok()
    }

    #[test]
    fn concurrent_calls_may_be_in_any_order_and_sequential_ones_may_not() {
        use Call::{Read, Write};
        assert!(holds(&[(1, 4, Write(1)), (2, 3, Read(0))]));
        assert!(holds(&[(1, 4, Write(1)), (2, 3, Read(1))]));
        assert!(!holds(&[(1, 2, Write(1)), (3, 4, Read(0))]), "a stale read");
        assert!(!holds(&[(1, 2, Read(7))]), "never written");
    }

    #[test]
    fn a_value_that_was_read_is_not_unread() {
        use Call::{Read, Write};
        let new_then_old = [(1, 9, Write(1)), (2, 3, Read(1)), (4, 5, Read(0))];
        assert!(!holds(&new_then_old), "two readers disagree on the order");
        assert!(holds(&[(1, 9, Write(1)), (2, 3, Read(0)), (4, 5, Read(1))]));
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never_but_not_before_its_call() {
        use Call::{Read, Write};
        assert!(holds(&[(1, 0, Write(1)), (2, 3, Read(0)), (4, 5, Read(1))]));
        assert!(holds(&[(1, 0, Write(1)), (2, 3, Read(0)), (4, 5, Read(0))]));
        assert!(!holds(&[(4, 0, Write(1)), (2, 3, Read(1))]));
    }

    #[test]
    fn a_long_history_of_many_clients_is_checked_quickly_and_one_lie_is_found() {
        use Call::{Read, Write};
        let mut calls = Vec::new();
        for round in 1..=100_u32 {
            let at = u64::from(round) * 10;
            calls.push((at, at + 8, Write(round)));
            calls.push((at + 1, at + 9, Read(round)));
            calls.push((at + 1, at + 9, Read(round - 1)));
        }
        assert!(holds(&calls));
        calls.push((1_500, 1_501, Read(3)));
        let violation = check(&Register, &history(&calls)).unwrap_err();
        assert!(violation.total == 301 && violation.order.len() < 301);
    }
}
