//! Linearizable reads: many share one ReadIndex, lost ones are asked again.

use std::time::{Duration, Instant};

use super::Read;

/// What waits for a read point.
pub enum Wanted {
    /// A caller's read.
    Caller(Read),
    /// The leader itself, after its clock stood still (law 5).
    Resume,
}

struct Flight {
    context: u64,
    since: Instant,
    wanted: Vec<Wanted>,
}

/// Reads on their way: waiting, asked for, confirmed but not yet applied.
#[derive(Default)]
pub struct Reads {
    next: u64,
    waiting: Vec<Wanted>,
    flight: Option<Flight>,
    confirmed: Vec<(u64, Wanted)>,
}

impl Reads {
    /// Adds a read.
    pub fn add(&mut self, wanted: Wanted) {
        self.waiting.push(wanted);
    }

    /// The context to ask ReadIndex with, if there is a reason to ask. One
    /// question is under way at a time; what came meanwhile takes the next.
    pub fn ask(&mut self, now: Instant, retry: Duration) -> Option<Vec<u8>> {
        if let Some(flight) = &mut self.flight {
            if now - flight.since < retry {
                return None;
            }
            // Lost with a message or a leader: ask anew, for all of them.
            let lost = std::mem::take(&mut flight.wanted);
            self.flight = None;
            self.waiting.extend(lost);
        }
        if self.waiting.is_empty() {
            return None;
        }
        self.next += 1;
        let wanted = std::mem::take(&mut self.waiting);
        self.flight = Some(Flight {
            context: self.next,
            since: now,
            wanted,
        });
        Some(self.next.to_le_bytes().to_vec())
    }

    /// A read point: served once `index` is applied.
    pub fn confirmed(&mut self, context: &[u8], index: u64) {
        let context = context.try_into().map(u64::from_le_bytes).unwrap_or(0);
        if let Some(flight) = self.flight.take_if(|f| f.context == context) {
            self.confirmed
                .extend(flight.wanted.into_iter().map(|w| (index, w)));
        }
    }

    /// Takes the reads that may be served at `applied`.
    pub fn ready(&mut self, applied: u64) -> Vec<Wanted> {
        self.confirmed
            .extract_if(.., |(index, _)| *index <= applied)
            .map(|(_, w)| w)
            .collect()
    }

    /// Takes the callers' reads whose deadline passed.
    pub fn expired(&mut self, now: Instant) -> Vec<Read> {
        let due = |w: &Wanted| matches!(w, Wanted::Caller(read) if read.deadline <= now);
        let mut out: Vec<Wanted> = self.waiting.extract_if(.., |w| due(w)).collect();
        if let Some(flight) = &mut self.flight {
            out.extend(flight.wanted.extract_if(.., |w| due(w)));
        }
        out.extend(
            self.confirmed
                .extract_if(.., |(_, w)| due(w))
                .map(|(_, w)| w),
        );
        out.into_iter()
            .filter_map(|w| match w {
                Wanted::Caller(read) => Some(read),
                Wanted::Resume => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_come_later_never_use_an_earlier_point() {
        let now = Instant::now();
        let retry = Duration::from_millis(100);
        let mut reads = Reads::default();
        reads.add(Wanted::Resume);
        let first = reads.ask(now, retry).unwrap();
        reads.add(Wanted::Resume);
        assert!(reads.ask(now, retry).is_none());
        reads.confirmed(&first, 5);
        assert!(reads.ready(4).is_empty());
        assert_eq!(reads.ready(5).len(), 1);
        let second = reads.ask(now, retry).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn a_lost_question_is_asked_again() {
        let now = Instant::now();
        let retry = Duration::from_millis(100);
        let mut reads = Reads::default();
        reads.add(Wanted::Resume);
        let first = reads.ask(now, retry).unwrap();
        let second = reads.ask(now + retry, retry).unwrap();
        reads.confirmed(&first, 1);
        assert!(reads.ready(9).is_empty());
        reads.confirmed(&second, 2);
        assert_eq!(reads.ready(9).len(), 1);
    }
}
