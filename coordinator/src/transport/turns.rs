//! Raft snapshots whose state is fetched: one at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is being fetched and what comes next. A state is fetched whole, in memory:
/// while one is on its way, only the newest of those that come waits.
#[derive(Debug)]
pub struct Turns<M>(Arc<Mutex<Waiting<M>>>);

#[derive(Debug)]
struct Waiting<M> {
    /// Index of the one under way.
    now: Option<u64>,
    next: Option<(u64, M)>,
}

/// One is under way until this is dropped.
#[derive(Debug)]
pub struct Turn<M>(Turns<M>);

impl<M> Turns<M> {
    /// Begins a fetch if none is under way; else `message` waits, unless it is of
    /// the same index or of none newer than what waits already.
    pub fn begin(&self, index: u64, message: M) -> Option<(Turn<M>, M)> {
        let mut waiting = self.lock();
        let Some(now) = waiting.now else {
            waiting.now = Some(index);
            return Some((Turn(self.clone()), message));
        };
        if index > now && waiting.next.as_ref().is_none_or(|(i, _)| *i <= index) {
            waiting.next = Some((index, message));
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Turn<M> {
    /// The fetch ended, well or not: which is next.
    pub fn next(&self) -> Option<M> {
        let mut waiting = self.0.lock();
        let (index, message) = waiting.next.take()?;
        waiting.now = Some(index);
        Some(message)
    }
}

impl<M> Drop for Turn<M> {
    fn drop(&mut self) {
        // What came since the last look is sent again, like any message.
        *self.0.lock() = Waiting::default();
    }
}

impl<M> Clone for Turns<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Default for Turns<M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<M> Default for Waiting<M> {
    fn default() -> Self {
        Self {
            now: None,
            next: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_fetched_at_a_time_and_the_newest_comes_next() {
        let turns = Turns::default();
        let (turn, first) = turns.begin(10, "first").unwrap();
        assert_eq!(first, "first");
        for (index, message) in [(10, "again"), (30, "newest"), (20, "older")] {
            assert!(turns.begin(index, message).is_none());
        }
        assert_eq!(turn.next(), Some("newest"));
        assert_eq!(turn.next(), None);
        drop(turn);
        assert!(turns.begin(5, "of another leader").is_some());
    }
}
