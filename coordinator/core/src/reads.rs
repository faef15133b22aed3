//! Linearizable reads: many share one ReadIndex, lost ones are asked again.

use std::collections::VecDeque;

use crate::waiters::context;

/// Questions under way that an answer is still known for; the oldest are forgotten first.
const MOST_QUESTIONS: usize = 16;

#[derive(Debug)]
struct Wanted<R, T> {
    read: R,
    /// `None`: it waits as long as it takes.
    deadline: Option<T>,
    /// The first question that was asked, or is to be, after it came: the answer to this one, or
    /// to a later one, is its read point.
    first: u64,
}

#[derive(Debug)]
struct Question<T> {
    number: u64,
    context: Vec<u8>,
    lost_at: T,
}

/// Reads on their way: waiting, asked for, confirmed but not yet applied. `T` is any monotone time.
#[derive(Debug)]
pub struct Reads<R, T> {
    /// Tells this start of the process from others: a leader answers followers' questions beside
    /// its own, and raft tells them apart by context only.
    boot: u64,
    /// The latest question's number.
    asked: u64,
    most: usize,
    /// In the order they came.
    waiting: Vec<Wanted<R, T>>,
    /// Without an answer, oldest first. One that counts as lost may only be late.
    questions: VecDeque<Question<T>>,
    confirmed: Vec<(u64, Wanted<R, T>)>,
}

impl<R, T: Copy + Ord> Reads<R, T> {
    /// Nothing is read yet; `most` may wait. `boot` is unique, one a start of a process.
    pub fn new(boot: u64, most: usize) -> Self {
        Self {
            boot,
            asked: 0,
            most,
            waiting: Vec::new(),
            questions: VecDeque::new(),
            confirmed: Vec::new(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.confirmed.len()
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
        self.want(read, Some(deadline));
        Ok(())
    }

    /// Adds a question of the node's own, which is asked until it is answered.
    pub fn insist(&mut self, read: R) {
        self.want(read, None);
    }

    fn want(&mut self, read: R, deadline: Option<T>) {
        self.waiting.push(Wanted {
            read,
            deadline,
            first: self.asked + 1,
        });
    }

    /// The context to ask ReadIndex with, if there is a reason to ask: the question counts as lost
    /// at `lost_at`, and is asked anew then. One is under way at a time; what came meanwhile takes
    /// the next. An answer that comes after all still counts, for those who waited when it was
    /// asked: else a disk slower than that would keep every read from ever being served.
    pub fn ask(&mut self, now: T, lost_at: T) -> Option<Vec<u8>> {
        let under_way = self.questions.back().is_some_and(|q| now < q.lost_at);
        if under_way || self.waiting.is_empty() {
            return None;
        }
        self.asked += 1;
        let context = context(self.boot, self.asked);
        if self.questions.len() == MOST_QUESTIONS {
            self.questions.pop_front();
        }
        self.questions.push_back(Question {
            number: self.asked,
            context: context.clone(),
            lost_at,
        });
        Some(context)
    }

    /// A read point: served once `index` is applied.
    pub fn confirmed(&mut self, context: &[u8], index: u64) {
        let Some(at) = self.questions.iter().position(|q| q.context == context) else {
            return;
        };
        // Who waited for an earlier one is served by this one, too.
        let Some(answered) = self.questions.drain(..=at).next_back() else {
            return;
        };
        let number = answered.number;
        let served = self.waiting.extract_if(.., |w| w.first <= number);
        self.confirmed.extend(served.map(|w| (index, w)));
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
        reads.confirmed(&second, 2);
        assert_eq!(reads.ready(9), ["it"]);
        reads.confirmed(&first, 1);
        assert!(reads.is_empty(), "answered once");
    }

    #[test]
    fn a_late_answer_is_a_read_point_for_those_who_waited_when_it_was_asked() {
        let mut reads = Reads::new(1, 8);
        reads.insist("before");
        let first = reads.ask(0, LOST).expect("something waits");
        reads.insist("after");
        let second = reads.ask(LOST, 2 * LOST).expect("the first is late");
        reads.confirmed(&first, 1);
        assert_eq!(reads.ready(9), ["before"]);
        assert_eq!(reads.ask(LOST, 2 * LOST), None, "the second is under way");
        reads.confirmed(&second, 2);
        assert_eq!(reads.ready(9), ["after"]);
    }

    #[test]
    fn reads_are_served_even_if_every_answer_is_late() {
        // Each turn of the node takes longer than a question may: it is asked anew in every one,
        // and the answer that a turn takes in is an earlier one's.
        let mut reads = Reads::new(1, 8);
        reads.insist("it");
        let mut answers = VecDeque::new();
        let mut turns = 0;
        while reads.ready(9).is_empty() {
            assert!(turns < 4, "it is never served");
            answers.extend(reads.ask(turns * 2 * LOST, turns * 2 * LOST + LOST));
            if turns > 0 {
                let answer = answers.pop_front().expect("one a turn");
                reads.confirmed(&answer, 1);
            }
            turns += 1;
        }
    }

    #[test]
    fn questions_without_an_answer_are_bounded() {
        let mut reads = Reads::new(1, 8);
        reads.insist("it");
        let asked = |n: u64, reads: &mut Reads<_, u64>| reads.ask(n, n + 1).expect("it waits");
        let contexts: Vec<_> = (0..100).map(|n| asked(n, &mut reads)).collect();
        assert_eq!(reads.questions.len(), MOST_QUESTIONS);
        reads.confirmed(&contexts[0], 1);
        assert!(reads.ready(9).is_empty(), "forgotten");
        reads.confirmed(&contexts[99], 1);
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
