//! Whose word a worker takes (law 5).
//!
//! Terms compare within one cluster only: a cluster begun on an older save has a lower term than the
//! one that this worker knows, and is the one that goes on. A Welcome that names another cluster is
//! therefore taken, and begins its own count; but never one of a cluster that this worker has left, or
//! that its own came out of: what is left of an old cluster wins no worker back.

use std::collections::VecDeque;

/// Clusters that are over; beyond, the oldest is forgotten. One more is one more recovery by hand.
const PAST: usize = 64;

/// What a Welcome means.
#[derive(Debug, PartialEq, Eq)]
pub enum Welcomed {
    /// The cluster that this worker belongs to goes on.
    Again,
    /// Another cluster took its place: what was done for the old one must be let go.
    Elsewhere,
    /// Refused: the leader of an older term, where this one was seen.
    OlderTerm(u64),
    /// Refused: a cluster that is over.
    Past,
}

/// The cluster that a worker belongs to, and the highest term that it has seen of it.
#[derive(Debug, Default)]
pub struct Fence {
    /// Empty before the first Welcome.
    cluster_id: String,
    term: u64,
    past: VecDeque<String>,
}

impl Fence {
    /// The cluster that welcomed last; empty before the first.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The highest term seen of that cluster.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Whether this cluster is over for the worker.
    pub fn is_past(&self, cluster_id: &str) -> bool {
        self.past.iter().any(|past| past == cluster_id)
    }

    /// A word inside a session; `Err` holds the term that was seen already.
    ///
    /// # Errors
    /// The word is of an older term: its sender leads no more.
    pub fn hear(&mut self, term: u64) -> Result<(), u64> {
        if term < self.term {
            return Err(self.term);
        }
        self.term = term;
        Ok(())
    }

    /// Somebody who does not lead told the term of its cluster.
    pub fn hear_of(&mut self, cluster_id: &str, term: u64) {
        if cluster_id == self.cluster_id {
            self.term = self.term.max(term);
        }
    }

    /// A leader welcomes: of which cluster, which came out of which, in which term.
    pub fn welcome(&mut self, cluster_id: &str, came_from: &[String], term: u64) -> Welcomed {
        if self.is_past(cluster_id) {
            return Welcomed::Past;
        }
        let first = self.cluster_id.is_empty();
        // A coordinator that names no cluster is of a version that had none to name.
        let same = first || cluster_id.is_empty() || cluster_id == self.cluster_id;
        if same && let Err(seen) = self.hear(term) {
            return Welcomed::OlderTerm(seen);
        }
        for cluster in came_from {
            self.leave(cluster.clone());
        }
        if same {
            if !cluster_id.is_empty() {
                cluster_id.clone_into(&mut self.cluster_id);
            }
            return Welcomed::Again;
        }
        let before = std::mem::replace(&mut self.cluster_id, cluster_id.to_owned());
        self.leave(before);
        self.term = term;
        Welcomed::Elsewhere
    }

    fn leave(&mut self, cluster_id: String) {
        if cluster_id.is_empty() || self.is_past(&cluster_id) {
            return;
        }
        if self.past.len() == PAST {
            self.past.pop_front();
        }
        self.past.push_back(cluster_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cluster_id: &str, term: u64) -> Fence {
        let mut fence = Fence::default();
        assert_eq!(fence.welcome(cluster_id, &[], term), Welcomed::Again);
        fence
    }

    #[test]
    fn terms_compare_within_a_cluster() {
        let mut fence = of("a", 7);
        assert_eq!(fence.welcome("a", &[], 6), Welcomed::OlderTerm(7));
        assert_eq!(fence.hear(6), Err(7));
        assert_eq!(fence.hear(8), Ok(()));
        assert_eq!(fence.welcome("a", &[], 8), Welcomed::Again);
        assert_eq!(fence.term(), 8);
    }

    #[test]
    fn a_cluster_begun_on_an_older_save_is_followed_and_the_one_before_no_more() {
        let mut fence = of("recovered", 1_000_039);
        let from = ["first".to_owned()];
        let restored = fence.welcome("restored", &from, 1_000_005);
        assert_eq!((restored, fence.term()), (Welcomed::Elsewhere, 1_000_005));
        for over in ["recovered", "first"] {
            assert_eq!(fence.welcome(over, &[], 2_000_000), Welcomed::Past);
        }
        assert_eq!(fence.cluster_id(), "restored");
        assert_eq!(fence.welcome("restored", &from, 1_000_005), Welcomed::Again);
    }

    #[test]
    fn a_worker_that_never_met_the_old_cluster_refuses_it_too() {
        let mut fence = Fence::default();
        fence.welcome("new", &["old".to_owned()], 1_000_002);
        assert_eq!(fence.welcome("old", &[], 3_000_000), Welcomed::Past);
    }

    #[test]
    fn a_term_that_is_not_of_this_cluster_changes_nothing() {
        let mut fence = of("a", 7);
        for cluster in ["", "b"] {
            fence.hear_of(cluster, 1_000_000);
            assert_eq!(fence.term(), 7);
        }
        fence.hear_of("a", 3);
        fence.hear_of("a", 9);
        assert_eq!(fence.term(), 9);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut fence = Fence::default();
        for cluster in 0..3 * PAST {
            fence.welcome(&cluster.to_string(), &[], 1);
        }
        assert_eq!(fence.past.len(), PAST);
    }
}
