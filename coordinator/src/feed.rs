//! Agents' text on its way to watchers: never through raft, never blocking.
//!
//! A feed keeps the text of a live job's current attempts. Watchers hold
//! cursors and read behind them whenever they are ready, so a slow one costs
//! nothing but its own delay and gets what it missed in fewer, longer pieces.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use conclave_coordinator_core::watch::{Positions, Pushed, Texts};
use conclave_proto::v1::{AttemptKey, TokenDelta, watch_job_response::Update};
use dashmap::DashMap;
use tokio::sync::watch;

use crate::metrics::Label;

/// Counters that move when there is something new to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Moves with the job's replicated events.
    pub events: u64,
    /// Moves with its agents' text.
    pub tokens: u64,
    /// This node stopped leading: read on elsewhere.
    pub closed: bool,
}

/// One live job's text and the bell that wakes its watchers.
#[derive(Debug)]
pub struct Feed {
    texts: Mutex<Texts>,
    version: watch::Sender<Version>,
}

impl Feed {
    fn new() -> Self {
        Self {
            texts: Mutex::default(),
            version: watch::Sender::new(Version::default()),
        }
    }

    fn texts(&self) -> MutexGuard<'_, Texts> {
        // They are whole between statements: a panicked holder broke nothing.
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes on every change from now on.
    pub fn subscribe(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    /// Tells watchers that the job's replicated events grew.
    pub fn events_changed(&self) {
        self.version.send_modify(|v| v.events += 1);
    }

    /// A new attempt begins: what watchers hold of an older one is void.
    pub fn begin(&self, agent: u32, attempt: u32) {
        if self.texts().begin(agent, attempt) {
            self.version.send_modify(|v| v.tokens += 1);
        }
    }

    /// Takes a piece of text from a worker. Returns the offset to ask again
    /// from if pieces are missing before it.
    pub fn push(&self, delta: TokenDelta) -> Option<u32> {
        let pushed = self.texts().push(delta);
        match pushed {
            Pushed::Taken => self.version.send_modify(|v| v.tokens += 1),
            Pushed::Dropped => {}
            Pushed::Missing(offset) => return Some(offset),
        }
        None
    }

    /// What lies behind `positions`, which move past it, up to `most` bytes: see [`Texts::read`].
    pub fn read(&self, positions: &mut Positions, most: usize) -> Vec<Update> {
        self.texts().read(positions, most)
    }
}

/// The feeds of every live job, and how many watch.
#[derive(Debug)]
pub struct Feeds {
    jobs: DashMap<String, Arc<Feed>>,
    watchers: AtomicUsize,
    max_watchers: usize,
    label: Label,
}

/// One watcher's place; given back when dropped.
#[derive(Debug)]
pub struct Seat(Arc<Feeds>);

impl Drop for Seat {
    fn drop(&mut self) {
        let left = self.0.watchers.fetch_sub(1, Ordering::AcqRel) - 1;
        crate::metrics::watchers(&self.0.label, left);
    }
}

impl Feeds {
    /// No feeds, and room for `max_watchers` watchers. `label` is the node's.
    pub fn new(max_watchers: usize, label: Label) -> Arc<Self> {
        Arc::new(Self {
            jobs: DashMap::new(),
            watchers: AtomicUsize::new(0),
            max_watchers,
            label,
        })
    }

    /// A place for one more watcher; `None` when there is none.
    pub fn seat(self: &Arc<Self>) -> Option<Seat> {
        let taken = self
            .watchers
            .try_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < self.max_watchers).then_some(n + 1)
            })
            .ok()?;
        crate::metrics::watchers(&self.label, taken + 1);
        Some(Seat(self.clone()))
    }

    /// The feed of a job, made if absent.
    pub fn of(&self, job_id: &str) -> Arc<Feed> {
        if let Some(feed) = self.jobs.get(job_id) {
            return feed.clone();
        }
        self.jobs
            .entry(job_id.to_owned())
            .or_insert_with(|| Arc::new(Feed::new()))
            .clone()
    }

    /// Wakes the watchers of a job, if there are any.
    pub fn changed(&self, job_id: &str) {
        if let Some(feed) = self.jobs.get(job_id) {
            feed.events_changed();
        }
    }

    /// Forgets a job that ended; its watchers read the end from the state.
    pub fn ended(&self, job_id: &str) {
        if let Some((_, feed)) = self.jobs.remove(job_id) {
            feed.events_changed();
        }
    }

    /// Takes a worker's text; see [`Feed::push`]. Text of a job without a feed
    /// (it ended) is dropped.
    pub fn push(&self, key: &AttemptKey, mut delta: TokenDelta) -> Option<u32> {
        delta.agent = key.agent;
        delta.attempt = key.attempt;
        let feed = self.jobs.get(&key.job_id)?.clone();
        feed.push(delta)
    }

    /// Sends every watcher elsewhere: this node no longer leads.
    pub fn close(&self) {
        for feed in &self.jobs {
            feed.version.send_modify(|v| v.closed = true);
        }
        self.jobs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_bounded_and_come_back() {
        let feeds = Feeds::new(1, crate::metrics::label(1));
        let seat = feeds.seat().unwrap();
        assert!(feeds.seat().is_none());
        drop(seat);
        assert!(feeds.seat().is_some());
    }
}
