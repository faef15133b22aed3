//! Agents' text on its way to watchers: never through raft, never blocking.
//!
//! A feed keeps the text of a live job's current attempts. Watchers hold
//! cursors and read behind them whenever they are ready, so a slow one costs
//! nothing but its own delay and gets what it missed in fewer, longer pieces.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use conclave_proto::v1::{AgentReset, AttemptKey, TokenDelta, watch_job_response::Update};
use dashmap::DashMap;
use tokio::sync::watch;

use crate::metrics::Label;

/// Bytes of text kept for one attempt; a longer one loses its beginning.
const MAX_TEXT: usize = 1 << 20;

/// How far a watcher has read one agent's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The attempt whose text it is.
    pub attempt: u32,
    /// The next token.
    pub offset: u32,
}

/// Watchers' positions by agent.
pub type Positions = BTreeMap<u32, Position>;

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

#[derive(Debug, Default)]
struct Text {
    attempt: u32,
    deltas: Vec<TokenDelta>,
    bytes: usize,
}

impl Text {
    fn end(&self) -> u32 {
        self.deltas.last().map_or(0, |d| d.offset + d.tokens)
    }
}

/// One live job's text and the bell that wakes its watchers.
#[derive(Debug)]
pub struct Feed {
    agents: Mutex<BTreeMap<u32, Text>>,
    version: watch::Sender<Version>,
}

impl Feed {
    fn new() -> Self {
        Self {
            agents: Mutex::default(),
            version: watch::Sender::new(Version::default()),
        }
    }

    fn agents(&self) -> MutexGuard<'_, BTreeMap<u32, Text>> {
        // The map is whole between statements: a panicked holder broke nothing.
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut agents = self.agents();
        let text = agents.entry(agent).or_default();
        if attempt > text.attempt {
            *text = Text {
                attempt,
                ..Text::default()
            };
            drop(agents);
            self.version.send_modify(|v| v.tokens += 1);
        }
    }

    /// Takes a piece of text from a worker. Returns the offset to ask again
    /// from if pieces are missing before it.
    pub fn push(&self, delta: TokenDelta) -> Option<u32> {
        let mut agents = self.agents();
        let text = agents.entry(delta.agent).or_default();
        if delta.attempt < text.attempt {
            return None;
        }
        if delta.attempt > text.attempt {
            *text = Text {
                attempt: delta.attempt,
                ..Text::default()
            };
        }
        let end = text.end();
        if delta.tokens > 0 && delta.offset + delta.tokens <= end {
            return None;
        }
        if delta.offset != end {
            // Cut back to where both agree; ask for what is missing.
            text.deltas.retain(|d| d.offset + d.tokens <= delta.offset);
            text.bytes = text.deltas.iter().map(|d| d.text.len()).sum();
            let end = text.end();
            if delta.offset != end {
                return Some(end);
            }
        }
        text.bytes += delta.text.len();
        text.deltas.push(delta);
        while text.bytes > MAX_TEXT && text.deltas.len() > 1 {
            text.bytes -= text.deltas.remove(0).text.len();
        }
        drop(agents);
        self.version.send_modify(|v| v.tokens += 1);
        None
    }

    /// What lies behind `positions`, which move past it. Neighbouring pieces
    /// of one phase come as one.
    pub fn read(&self, positions: &mut Positions) -> Vec<Update> {
        let mut updates = Vec::new();
        for (&agent, text) in self.agents().iter() {
            let fresh = Position {
                attempt: text.attempt,
                offset: 0,
            };
            let known = positions.get(&agent).copied();
            let mut at = known.unwrap_or(fresh);
            let straddles = text
                .deltas
                .iter()
                .any(|d| d.offset < at.offset && at.offset < d.offset + d.tokens);
            if at.attempt != text.attempt || straddles {
                at = fresh;
                updates.push(Update::Reset(AgentReset {
                    agent,
                    attempt: text.attempt,
                }));
            }
            for delta in text.deltas.iter().filter(|d| d.offset >= at.offset) {
                match updates.last_mut() {
                    Some(Update::Tokens(last)) if joins(last, delta) => join(last, delta),
                    _ => updates.push(Update::Tokens(delta.clone())),
                }
            }
            at.offset = at.offset.max(text.end());
            positions.insert(agent, at);
        }
        updates
    }
}

fn joins(last: &TokenDelta, next: &TokenDelta) -> bool {
    last.agent == next.agent
        && last.attempt == next.attempt
        && last.thought == next.thought
        && last.offset + last.tokens == next.offset
}

fn join(last: &mut TokenDelta, next: &TokenDelta) {
    last.tokens += next.tokens;
    last.text.push_str(&next.text);
    last.confidence_micro = next.confidence_micro;
    last.cached_tokens = next.cached_tokens;
    last.prompt_tokens = next.prompt_tokens;
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

    fn delta(attempt: u32, offset: u32, text: &str) -> TokenDelta {
        let tokens = u32::try_from(text.len()).unwrap();
        TokenDelta {
            agent: 1,
            attempt,
            offset,
            tokens,
            text: text.to_owned(),
            ..Default::default()
        }
    }

    fn texts(updates: &[Update]) -> Vec<String> {
        updates
            .iter()
            .map(|u| match u {
                Update::Tokens(t) => t.text.clone(),
                Update::Reset(r) => format!("reset {}", r.attempt),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_slow_watcher_gets_all_text_in_fewer_pieces() {
        let feed = Feed::new();
        let mut slow = Positions::new();
        for (i, text) in ["a", "b", "c"].iter().enumerate() {
            assert_eq!(feed.push(delta(1, u32::try_from(i).unwrap(), text)), None);
        }
        assert_eq!(texts(&feed.read(&mut slow)), ["abc"]);
        assert!(feed.read(&mut slow).is_empty());
        feed.push(delta(1, 3, "d"));
        assert_eq!(texts(&feed.read(&mut slow)), ["d"]);
    }

    #[test]
    fn a_new_attempt_resets_and_an_older_one_is_ignored() {
        let feed = Feed::new();
        let mut watcher = Positions::new();
        feed.push(delta(1, 0, "old"));
        feed.read(&mut watcher);
        feed.begin(1, 2);
        assert_eq!(texts(&feed.read(&mut watcher)), ["reset 2"]);
        feed.push(delta(1, 3, "late"));
        feed.push(delta(2, 0, "new"));
        assert_eq!(texts(&feed.read(&mut watcher)), ["new"]);
    }

    #[test]
    fn missing_text_is_asked_for_and_doubled_text_is_dropped() {
        let feed = Feed::new();
        assert_eq!(feed.push(delta(1, 0, "ab")), None);
        assert_eq!(feed.push(delta(1, 5, "f")), Some(2));
        assert_eq!(feed.push(delta(1, 0, "ab")), None);
        assert_eq!(feed.push(delta(1, 2, "cd")), None);
        assert_eq!(texts(&feed.read(&mut Positions::new())), ["abcd"]);
    }

    #[test]
    fn text_that_is_cut_and_sent_again_counts_once() {
        let feed = Feed::new();
        let half = MAX_TEXT / 2;
        for _ in 0..4 {
            feed.push(delta(1, 0, "a"));
            feed.push(delta(1, 1, &"b".repeat(half)));
            // Overlaps the end: everything behind the first token is cut.
            feed.push(delta(1, u32::try_from(half).unwrap(), "cd"));
        }
        let texts = texts(&feed.read(&mut Positions::new()));
        assert!(texts[0].starts_with('a'), "nothing was dropped as too long");
    }

    #[test]
    fn a_cursor_inside_a_piece_starts_the_agent_anew() {
        let feed = Feed::new();
        feed.push(delta(1, 0, "abcd"));
        let mut watcher = Positions::from([(
            1,
            Position {
                attempt: 1,
                offset: 2,
            },
        )]);
        assert_eq!(texts(&feed.read(&mut watcher)), ["reset 1", "abcd"]);
    }

    #[test]
    fn seats_are_bounded_and_come_back() {
        let feeds = Feeds::new(1, crate::metrics::label(1));
        let seat = feeds.seat().unwrap();
        assert!(feeds.seat().is_none());
        drop(seat);
        assert!(feeds.seat().is_some());
    }
}
