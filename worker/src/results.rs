//! Results that the coordinators have not yet committed.
//!
//! An attempt that ended stays here, tagged (job, agent, attempt, incarnation), until `Ack`: the worker
//! is the only place where it exists.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conclave_proto::v1::{AttemptError, AttemptKey, AttemptResult, Draft, attempt_result};
use prost::Message as _;

/// An unacknowledged result is sent again after so long, within one session.
pub const RESEND_AFTER: Duration = Duration::from_secs(5);

/// Bytes of results that travel inside a `Hello`; the others follow it.
const HELLO_BYTES: usize = 1024 * 1024;

/// An attempt's name, ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// The job.
    pub job: String,
    /// The agent in it.
    pub agent: u32,
    /// From 1.
    pub attempt: u32,
}

impl From<AttemptKey> for Attempt {
    fn from(key: AttemptKey) -> Self {
        Self {
            job: key.job_id,
            agent: key.agent,
            attempt: key.attempt,
        }
    }
}

impl From<&Attempt> for AttemptKey {
    fn from(attempt: &Attempt) -> Self {
        Self {
            job_id: attempt.job.clone(),
            agent: attempt.agent,
            attempt: attempt.attempt,
        }
    }
}

struct Kept {
    result: AttemptResult,
    /// When it was sent in the current session.
    sent: Option<Instant>,
}

/// The kept results of one incarnation. Bounded by its owner, who takes on no attempt for whose result
/// there is no room.
pub struct Results {
    incarnation: String,
    kept: BTreeMap<Attempt, Kept>,
}

impl Results {
    /// None yet.
    pub fn new(incarnation: &str) -> Self {
        Self {
            incarnation: incarnation.to_owned(),
            kept: BTreeMap::new(),
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether all are acknowledged.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether the attempt ended and is not acknowledged.
    pub fn contains(&self, attempt: &Attempt) -> bool {
        self.kept.contains_key(attempt)
    }

    /// The message for an ended attempt.
    pub fn message(
        &self,
        attempt: &Attempt,
        outcome: Result<Box<Draft>, AttemptError>,
    ) -> AttemptResult {
        AttemptResult {
            key: Some(attempt.into()),
            incarnation: self.incarnation.clone(),
            result: Some(match outcome {
                Ok(draft) => attempt_result::Result::Draft(*draft),
                Err(error) => attempt_result::Result::Error(error),
            }),
        }
    }

    /// Keeps the end of an attempt. The first one stands.
    pub fn keep(&mut self, attempt: Attempt, outcome: Result<Box<Draft>, AttemptError>) {
        let result = self.message(&attempt, outcome);
        self.kept
            .entry(attempt)
            .or_insert(Kept { result, sent: None });
    }

    /// Forgets it: its commit is acknowledged.
    pub fn acknowledge(&mut self, attempt: &Attempt) -> bool {
        self.kept.remove(attempt).is_some()
    }

    /// Sends it (again) with the next message.
    pub fn send_again(&mut self, attempt: &Attempt) {
        if let Some(kept) = self.kept.get_mut(attempt) {
            kept.sent = None;
        }
    }

    /// A session begins: what fits goes into its `Hello`, with the names of what does not.
    pub fn hello(&mut self, now: Instant) -> (Vec<AttemptResult>, Vec<AttemptKey>) {
        let (mut finished, mut later, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (attempt, kept) in &mut self.kept {
            bytes += kept.result.encoded_len();
            if bytes <= HELLO_BYTES || finished.is_empty() {
                kept.sent = Some(now);
                finished.push(kept.result.clone());
            } else {
                kept.sent = None;
                later.push(attempt.into());
            }
        }
        (finished, later)
    }

    /// The first attempt whose result is due.
    pub fn due(&self, now: Instant) -> Option<&Attempt> {
        let due = |kept: &Kept| kept.sent.is_none_or(|sent| now >= sent + RESEND_AFTER);
        self.kept
            .iter()
            .find(|(_, kept)| due(kept))
            .map(|(attempt, _)| attempt)
    }

    /// The result, marked as sent.
    pub fn send(&mut self, attempt: &Attempt, now: Instant) -> Option<AttemptResult> {
        let kept = self.kept.get_mut(attempt)?;
        kept.sent = Some(now);
        Some(kept.result.clone())
    }

    /// When [`Results::due`] next has something, if nothing changes.
    pub fn next_due(&self) -> Option<Instant> {
        self.kept
            .values()
            .filter_map(|kept| Some(kept.sent? + RESEND_AFTER))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(agent: u32) -> Attempt {
        Attempt {
            job: "j".into(),
            agent,
            attempt: 1,
        }
    }

    fn draft(bytes: usize) -> Result<Box<Draft>, AttemptError> {
        Ok(Box::new(Draft {
            answer: "x".repeat(bytes),
            ..Draft::default()
        }))
    }

    #[test]
    fn a_result_is_due_until_sent_and_again_after_the_interval_until_acknowledged() {
        let mut results = Results::new("i");
        let now = Instant::now();
        results.keep(attempt(1), draft(3));
        assert_eq!(results.due(now), Some(&attempt(1)));
        assert_eq!(results.send(&attempt(1), now).unwrap().incarnation, "i");
        assert_eq!(results.due(now), None);
        assert_eq!(results.next_due(), Some(now + RESEND_AFTER));
        assert_eq!(results.due(now + RESEND_AFTER), Some(&attempt(1)));
        assert!(results.acknowledge(&attempt(1)));
        assert!(results.is_empty() && results.due(now + RESEND_AFTER).is_none());
    }

    #[test]
    fn what_does_not_fit_into_a_hello_is_named_and_follows() {
        let mut results = Results::new("i");
        let now = Instant::now();
        for agent in 0..4 {
            results.keep(attempt(agent), draft(HELLO_BYTES / 2 - 100));
        }
        let (finished, later) = results.hello(now);
        assert_eq!((finished.len(), later.len()), (2, 2));
        assert_eq!(results.due(now), Some(&attempt(2)));
    }

    #[test]
    fn the_first_end_of_an_attempt_stands() {
        let mut results = Results::new("i");
        results.keep(attempt(1), draft(1));
        results.keep(attempt(1), Err(crate::backend::drained()));
        let sent = results.send(&attempt(1), Instant::now()).unwrap();
        assert!(matches!(
            sent.result,
            Some(attempt_result::Result::Draft(_))
        ));
    }
}
