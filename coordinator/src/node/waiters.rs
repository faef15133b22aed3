//! Proposals that wait for their entry.

use std::{collections::BTreeMap, time::Instant};

use conclave_coordinator_core::{Reply, lead::Purpose};
use tokio::sync::oneshot;

use super::{Done, NodeError};

/// Whom to tell when an entry was applied.
pub enum Waiter {
    /// A caller.
    Call(oneshot::Sender<Result<Reply, NodeError>>),
    /// A change of the configuration.
    Change(Done),
    /// The leader, for a proposal of its own.
    Leader {
        /// The term that it leads: later ones count for themselves.
        term: u64,
        /// What it is for.
        purpose: Purpose,
    },
    /// Nobody: what it does shows in the state.
    Nobody,
}

struct Waiting {
    waiter: Waiter,
    since: Instant,
    deadline: Instant,
}

/// Waiters by the context that travels with their entries: this start of the
/// process, and a number.
pub struct Waiters {
    boot: u64,
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

impl Waiters {
    /// Nobody waits. `boot` tells this start of the process from earlier ones,
    /// whose entries may be applied again.
    pub fn new(boot: u64) -> Self {
        Self {
            boot,
            next: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a waiter; returns the context to propose with.
    pub fn add(&mut self, waiter: Waiter, now: Instant, deadline: Instant) -> Vec<u8> {
        self.next += 1;
        self.waiting.insert(
            self.next,
            Waiting {
                waiter,
                since: now,
                deadline,
            },
        );
        [self.boot.to_le_bytes(), self.next.to_le_bytes()].concat()
    }

    /// The waiter of an entry that was applied; `None` for others' entries.
    pub fn take(&mut self, context: &[u8], now: Instant) -> Option<Waiter> {
        let (boot, number) = context.split_at_checked(8)?;
        if u64::from_le_bytes(boot.try_into().ok()?) != self.boot {
            return None;
        }
        let waiting = self
            .waiting
            .remove(&u64::from_le_bytes(number.try_into().ok()?))?;
        crate::metrics::proposal_done(now - waiting.since);
        Some(waiting.waiter)
    }

    /// Takes those whose deadline passed: what they proposed may yet commit.
    pub fn expired(&mut self, now: Instant) -> Vec<Waiter> {
        let due: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, w)| w.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        due.iter()
            .filter_map(|id| self.waiting.remove(id))
            .map(|w| w.waiter)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PLACE: Waiter = Waiter::Leader {
        term: 1,
        purpose: Purpose::Place,
    };

    #[test]
    fn entries_of_an_earlier_start_wake_nobody() {
        let now = Instant::now();
        let mut earlier = Waiters::new(1);
        let mut waiters = Waiters::new(2);
        let old = earlier.add(Waiter::Nobody, now, now);
        let mine = waiters.add(PLACE, now, now);
        assert!(waiters.take(&old, now).is_none());
        assert!(waiters.take(b"", now).is_none());
        assert!(matches!(
            waiters.take(&mine, now),
            Some(Waiter::Leader { .. })
        ));
        assert!(waiters.take(&mine, now).is_none());
    }

    #[test]
    fn only_what_is_due_expires() {
        let now = Instant::now();
        let mut waiters = Waiters::new(1);
        waiters.add(PLACE, now, now);
        waiters.add(Waiter::Nobody, now, now + Duration::from_secs(1));
        assert!(matches!(
            waiters.expired(now).as_slice(),
            [Waiter::Leader { .. }]
        ));
        assert_eq!(waiters.len(), 1);
    }
}
