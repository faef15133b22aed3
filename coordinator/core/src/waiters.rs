//! Proposals that wait for their entry.

use std::collections::BTreeMap;

#[derive(Debug)]
struct Waiting<W, T> {
    waiter: W,
    since: T,
    deadline: T,
}

/// Whom to tell when an entry is applied, by the context that travels with it: this start of the
/// process, and a number. `T` is any monotone time.
#[derive(Debug)]
pub struct Waiters<W, T> {
    boot: u64,
    next: u64,
    most: usize,
    waiting: BTreeMap<u64, Waiting<W, T>>,
}

impl<W, T: Copy + Ord> Waiters<W, T> {
    /// Nobody waits; `most` may. `boot` tells this start of the process from earlier ones, whose
    /// entries may be applied again.
    pub fn new(boot: u64, most: usize) -> Self {
        Self {
            boot,
            next: 0,
            most,
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
    ///
    /// # Errors
    /// Too many wait: gives it back.
    pub fn add(&mut self, waiter: W, now: T, deadline: T) -> Result<Vec<u8>, W> {
        if self.waiting.len() >= self.most {
            return Err(waiter);
        }
        self.next += 1;
        let since = now;
        self.waiting.insert(
            self.next,
            Waiting {
                waiter,
                since,
                deadline,
            },
        );
        Ok(context(self.boot, self.next))
    }

    /// The waiter of an entry that was applied, and since when it waited; `None` for others'
    /// entries, and for one whose deadline passed.
    pub fn take(&mut self, context: &[u8]) -> Option<(W, T)> {
        let (boot, number) = context.split_at_checked(8)?;
        if u64::from_le_bytes(boot.try_into().ok()?) != self.boot {
            return None;
        }
        let number = u64::from_le_bytes(number.try_into().ok()?);
        let waiting = self.waiting.remove(&number)?;
        Some((waiting.waiter, waiting.since))
    }

    /// Takes those whose deadline passed: what they proposed may yet commit.
    pub fn expired(&mut self, now: T) -> Vec<W> {
        let due = self.waiting.extract_if(.., |_, w| w.deadline <= now);
        due.map(|(_, w)| w.waiter).collect()
    }
}

/// What tells a proposal or a question from all others.
pub(crate) fn context(boot: u64, number: u64) -> Vec<u8> {
    [boot.to_le_bytes(), number.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_an_earlier_start_wake_nobody() {
        let mut earlier = Waiters::new(1, 8);
        let mut waiters = Waiters::new(2, 8);
        let old = earlier.add("old", 0, 9).expect("there is room");
        let mine = waiters.add("mine", 3, 9).expect("there is room");
        assert_eq!(waiters.take(&old), None);
        assert_eq!(waiters.take(b""), None);
        assert_eq!(waiters.take(&mine), Some(("mine", 3)));
        assert_eq!(waiters.take(&mine), None, "once");
    }

    #[test]
    fn only_what_is_due_expires_and_then_its_entry_wakes_nobody() {
        let mut waiters = Waiters::new(1, 8);
        let soon = waiters.add("soon", 0, 5).expect("there is room");
        waiters.add("late", 0, 9).expect("there is room");
        assert_eq!(waiters.expired(4), Vec::<&str>::new());
        assert_eq!(waiters.expired(5), ["soon"]);
        assert_eq!(waiters.take(&soon), None);
        assert_eq!(waiters.len(), 1);
    }

    #[test]
    fn waiters_are_bounded() {
        let mut waiters = Waiters::new(1, 1);
        assert!(waiters.add("one", 0, 5).is_ok());
        assert_eq!(waiters.add("two", 0, 5), Err("two"));
        waiters.expired(5);
        assert!(waiters.add("three", 0, 9).is_ok());
    }
}
