//! Who waits for an entry to be applied, and for a read to be confirmed.

use std::collections::BTreeMap;

use conclave_coordinator_core::lead::Purpose;

use super::cx::Addr;

/// Who waits for an entry.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A client's call.
    Call(Addr, u64),
    /// The leader of this term.
    Leader(u64, Purpose),
    /// Nobody: what it does shows in the state.
    Nobody,
}

/// Waiters by the context that travels with their entries.
#[derive(Debug)]
pub(super) struct Waiters {
    boot: u64,
    next: u64,
    waiting: BTreeMap<u64, (Waiter, u64)>,
}

impl Waiters {
    pub(super) fn new(boot: u64) -> Waiters {
        Waiters {
            boot,
            next: 0,
            waiting: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn add(&mut self, waiter: Waiter, until: u64) -> Vec<u8> {
        self.next += 1;
        self.waiting.insert(self.next, (waiter, until));
        [self.boot.to_le_bytes(), self.next.to_le_bytes()].concat()
    }

    pub(super) fn take(&mut self, context: &[u8]) -> Option<Waiter> {
        let (boot, number) = context.split_at_checked(8)?;
        if u64::from_le_bytes(boot.try_into().ok()?) != self.boot {
            return None;
        }
        let number = u64::from_le_bytes(number.try_into().ok()?);
        self.waiting.remove(&number).map(|(waiter, _)| waiter)
    }

    pub(super) fn expired(&mut self, now: u64) -> Vec<Waiter> {
        let due = self.waiting.extract_if(.., |_, (_, until)| *until <= now);
        due.map(|(_, (waiter, _))| waiter).collect()
    }
}

/// What waits for a read point.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    /// A client's look at a job.
    Job(Addr, u64, String),
    /// The leader of this term stood still, for so many times.
    Leader(u64, u64),
}

/// Linearizable reads; one ReadIndex under way at a time.
#[derive(Debug)]
pub(super) struct Reads {
    boot: u64,
    next: u64,
    waiting: Vec<Wanted>,
    flight: Option<(Vec<u8>, u64, Vec<Wanted>)>,
    confirmed: Vec<(u64, Wanted)>,
}

/// A ReadIndex without an answer is asked again after this, ms.
const RETRY_MS: u64 = 500;

impl Reads {
    pub(super) fn new(boot: u64) -> Reads {
        Reads {
            boot,
            next: 0,
            waiting: Vec::new(),
            flight: None,
            confirmed: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, wanted: Wanted) {
        self.waiting.push(wanted);
    }

    pub(super) fn ask(&mut self, now: u64) -> Option<Vec<u8>> {
        if let Some((_, since, _)) = &self.flight
            && now - since < RETRY_MS
        {
            return None;
        }
        if let Some((_, _, lost)) = self.flight.take() {
            self.waiting.extend(lost);
        }
        if self.waiting.is_empty() {
            return None;
        }
        self.next += 1;
        let context = [self.boot.to_le_bytes(), self.next.to_le_bytes()].concat();
        let wanted = std::mem::take(&mut self.waiting);
        self.flight = Some((context.clone(), now, wanted));
        Some(context)
    }

    pub(super) fn confirmed(&mut self, context: &[u8], index: u64) {
        if let Some((_, _, wanted)) = self.flight.take_if(|(c, ..)| c == context) {
            self.confirmed
                .extend(wanted.into_iter().map(|w| (index, w)));
        }
    }

    pub(super) fn ready(&mut self, applied: u64) -> Vec<Wanted> {
        let done = self
            .confirmed
            .extract_if(.., |(index, _)| *index <= applied);
        done.map(|(_, wanted)| wanted).collect()
    }
}
