//! Memory stays bounded: whatever waits in a process waits in a queue with a bound, or with a deadline.

use super::Check;

/// What a process holds: its name, how much, and the most it may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(Vec<(&'static str, u64, u64)>);

impl Held {
    /// Adds a queue.
    pub fn with(mut self, what: &'static str, held: u64, most: u64) -> Held {
        self.0.push((what, held, most));
        self
    }
}

pub(super) fn check(who: &str, held: &Held) -> Check {
    match held.0.iter().find(|(_, held, most)| held > most) {
        None => Ok(()),
        Some((what, held, most)) => Err(format!("{who}: {held} {what}, at most {most} may be")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_grows_is_found() {
        let held = |n| Held::default().with("waiters", n, 8).with("reads", 1, 1);
        assert_eq!(check("coordinator 1", &held(8)), Ok(()));
        let why = check("coordinator 1", &held(9)).unwrap_err();
        assert_eq!(why, "coordinator 1: 9 waiters, at most 8 may be");
    }
}
