//! Linearizable reads: many share one ReadIndex, lost ones are asked again.

use std::time::{Duration, Instant};

use super::Read;

/// Reads that wait at a time; more are refused.
const MOST: usize = 16_384;

/// What waits for a read point.
pub enum Wanted {
    /// A caller's read.
    Caller(Read),
    /// The leader itself, after its clock stood still (law 5).
    Leader {
        /// The term that it leads.
        term: u64,
        /// Which gap it asks about.
        pause: u64,
    },
}

struct Flight {
    context: Vec<u8>,
    since: Instant,
    wanted: Vec<Wanted>,
}

/// Reads on their way: waiting, asked for, confirmed but not yet applied.
pub struct Reads {
    /// Tells this start of the process from others: a leader answers followers'
    /// questions beside its own, and raft tells them apart by context only.
    boot: u64,
    next: u64,
    waiting: Vec<Wanted>,
    flight: Option<Flight>,
    confirmed: Vec<(u64, Wanted)>,
}

impl Reads {
    /// Nothing is read yet. `boot` is random, one a start of the process.
    pub fn new(boot: u64) -> Self {
        Self {
            boot,
            next: 0,
            waiting: Vec::new(),
            flight: None,
            confirmed: Vec::new(),
        }
    }

    /// Adds a caller's read; gives it back if too many wait.
    pub fn add(&mut self, read: Read) -> Result<(), Read> {
        let flying = self.flight.as_ref().map_or(0, |f| f.wanted.len());
        if self.waiting.len() + flying + self.confirmed.len() >= MOST {
            return Err(read);
        }
        self.waiting.push(Wanted::Caller(read));
        Ok(())
    }

    /// Adds the leader's own question.
    pub fn confirm(&mut self, term: u64, pause: u64) {
        self.waiting.push(Wanted::Leader { term, pause });
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
        let context = [self.boot.to_le_bytes(), self.next.to_le_bytes()].concat();
        self.flight = Some(Flight {
            context: context.clone(),
            since: now,
            wanted: std::mem::take(&mut self.waiting),
        });
        Some(context)
    }

    /// A read point: served once `index` is applied.
    pub fn confirmed(&mut self, context: &[u8], index: u64) {
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
                Wanted::Leader { .. } => None,
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
        let mut reads = Reads::new(1);
        reads.confirm(1, 1);
        let first = reads.ask(now, retry).unwrap();
        reads.confirm(1, 1);
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
        let mut reads = Reads::new(1);
        reads.confirm(1, 1);
        let first = reads.ask(now, retry).unwrap();
        let second = reads.ask(now + retry, retry).unwrap();
        reads.confirmed(&first, 1);
        assert!(reads.ready(9).is_empty());
        reads.confirmed(&second, 2);
        assert_eq!(reads.ready(9).len(), 1);
    }

    #[test]
    fn an_answer_to_another_member_confirms_nothing_here() {
        let now = Instant::now();
        let retry = Duration::from_millis(100);
        let (mut mine, mut other) = (Reads::new(1), Reads::new(2));
        mine.confirm(1, 1);
        other.confirm(1, 1);
        let asked = mine.ask(now, retry).unwrap();
        let others = other.ask(now, retry).unwrap();
        mine.confirmed(&others, 1);
        assert!(mine.ready(9).is_empty());
        mine.confirmed(&asked, 1);
        assert_eq!(mine.ready(9).len(), 1);
    }

    #[test]
    fn reads_that_wait_are_bounded() {
        let mut reads = Reads::new(1);
        let read = || Read {
            linear: true,
            deadline: Instant::now(),
            run: Box::new(|_| {}),
        };
        for _ in 0..MOST {
            assert!(reads.add(read()).is_ok());
        }
        assert!(reads.add(read()).is_err());
        assert_eq!(reads.expired(Instant::now()).len(), MOST);
        assert!(reads.add(read()).is_ok());
    }
}
