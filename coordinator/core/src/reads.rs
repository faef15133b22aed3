//! Linearizable reads: many share one ReadIndex, lost ones are asked again.

use crate::waiters::context;

#[derive(Debug)]
struct Wanted<R, T> {
    read: R,
    /// `None`: it waits as long as it takes.
    deadline: Option<T>,
}

#[derive(Debug)]
struct Flight<R, T> {
    context: Vec<u8>,
    lost_at: T,
    wanted: Vec<Wanted<R, T>>,
}

/// Reads on their way: waiting, asked for, confirmed but not yet applied. `T` is any monotone time.
#[derive(Debug)]
pub struct Reads<R, T> {
    /// Tells this start of the process from others: a leader answers followers' questions beside
    /// its own, and raft tells them apart by context only.
    boot: u64,
    next: u64,
    most: usize,
    waiting: Vec<Wanted<R, T>>,
    flight: Option<Flight<R, T>>,
    confirmed: Vec<(u64, Wanted<R, T>)>,
}

impl<R, T: Copy + Ord> Reads<R, T> {
    /// Nothing is read yet; `most` may wait. `boot` is unique, one a start of a process.
    pub fn new(boot: u64, most: usize) -> Self {
        Self {
            boot,
            next: 0,
            most,
            waiting: Vec::new(),
            flight: None,
            confirmed: Vec::new(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        let flying = self.flight.as_ref().map_or(0, |f| f.wanted.len());
        self.waiting.len() + flying + self.confirmed.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a caller's read.
    ///
    /// # Errors
    /// Too many wait: gives it back.
    pub fn add(&mut self, read: R, deadline: T) -> Result<(), R> {
        if self.len() >= self.most {
            return Err(read);
        }
        let deadline = Some(deadline);
        self.waiting.push(Wanted { read, deadline });
        Ok(())
    }

    /// Adds a question of the node's own, which is asked until it is answered.
    pub fn insist(&mut self, read: R) {
        let deadline = None;
        self.waiting.push(Wanted { read, deadline });
    }

    /// The context to ask ReadIndex with, if there is a reason to ask: the question counts as lost
    /// at `lost_at`. One is under way at a time; what came meanwhile takes the next.
    pub fn ask(&mut self, now: T, lost_at: T) -> Option<Vec<u8>> {
        if let Some(flight) = &mut self.flight {
            if now < flight.lost_at {
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
        let context = context(self.boot, self.next);
        self.flight = Some(Flight {
            context: context.clone(),
            lost_at,
            wanted: std::mem::take(&mut self.waiting),
        });
        Some(context)
    }

    /// A read point: served once `index` is applied.
    pub fn confirmed(&mut self, context: &[u8], index: u64) {
        if let Some(flight) = self.flight.take_if(|f| f.context == context) {
            let wanted = flight.wanted.into_iter();
            self.confirmed.extend(wanted.map(|w| (index, w)));
        }
    }

    /// Takes the reads that may be served at `applied`.
    pub fn ready(&mut self, applied: u64) -> Vec<R> {
        let ready = self.confirmed.extract_if(.., |(at, _)| *at <= applied);
        ready.map(|(_, w)| w.read).collect()
    }

    /// Takes the reads whose deadline passed.
    pub fn expired(&mut self, now: T) -> Vec<R> {
        let due = |w: &Wanted<R, T>| w.deadline.is_some_and(|at| at <= now);
        let mut out: Vec<_> = self.waiting.extract_if(.., |w| due(w)).collect();
        if let Some(flight) = &mut self.flight {
            out.extend(flight.wanted.extract_if(.., |w| due(w)));
        }
        let confirmed = self.confirmed.extract_if(.., |(_, w)| due(w));
        out.extend(confirmed.map(|(_, w)| w));
        out.into_iter().map(|w| w.read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: u64 = 100;

    #[test]
    fn reads_that_come_later_never_use_an_earlier_point() {
        let mut reads = Reads::new(1, 8);
        reads.insist("first");
        let first = reads.ask(0, LOST).expect("something waits");
        reads.insist("second");
        assert_eq!(reads.ask(0, LOST), None, "one at a time");
        reads.confirmed(&first, 5);
        assert!(reads.ready(4).is_empty());
        assert_eq!(reads.ready(5), ["first"]);
        let second = reads.ask(0, LOST).expect("something waits");
        assert_ne!(first, second);
    }

    #[test]
    fn a_lost_question_is_asked_again() {
        let mut reads = Reads::new(1, 8);
        reads.insist("it");
        let first = reads.ask(0, LOST).expect("something waits");
        let second = reads.ask(LOST, 2 * LOST).expect("the first is lost");
        reads.confirmed(&first, 1);
        assert!(reads.ready(9).is_empty(), "too late");
        reads.confirmed(&second, 2);
        assert_eq!(reads.ready(9), ["it"]);
    }

    #[test]
    fn an_answer_to_another_member_confirms_nothing_here() {
        let (mut mine, mut other) = (Reads::new(1, 8), Reads::new(2, 8));
        mine.insist("mine");
        other.insist("other");
        let asked = mine.ask(0, LOST).expect("something waits");
        let others = other.ask(0, LOST).expect("something waits");
        mine.confirmed(&others, 1);
        assert!(mine.ready(9).is_empty());
        mine.confirmed(&asked, 1);
        assert_eq!(mine.ready(9), ["mine"]);
    }

    #[test]
    fn reads_that_wait_are_bounded_wherever_they_are() {
        let mut reads = Reads::new(1, 3);
        assert!(reads.add("confirmed", 5).is_ok());
        let asked = reads.ask(0, LOST).expect("something waits");
        reads.confirmed(&asked, 9);
        assert!(reads.add("asked", 5).is_ok());
        assert!(reads.ask(0, LOST).is_some());
        assert!(reads.add("waiting", 6).is_ok());
        assert_eq!(reads.add("refused", 7), Err("refused"));
        assert_eq!(reads.expired(5), ["asked", "confirmed"]);
        assert_eq!(reads.expired(6), ["waiting"]);
        assert!(reads.is_empty() && reads.add("again", 9).is_ok());
    }

    #[test]
    fn a_question_of_the_nodes_own_never_expires() {
        let mut reads = Reads::new(1, 1);
        reads.insist("own");
        reads.insist("another");
        assert!(reads.expired(u64::MAX).is_empty());
        assert_eq!(reads.len(), 2);
    }
}
