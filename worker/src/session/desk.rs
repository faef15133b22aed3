//! What the worker knows of its attempts: the part of the session that decides.
//!
//! No socket, no clock, no thread: messages and engine events come in, [`Action`]s and messages to send
//! come out, time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::v1::worker_message::Message;
use conclave_proto::v1::{
    AttemptError, AttemptKey, AttemptResult, Cancel, Draft, Prepare, Prepared, Progress, Resend,
    Role, Start,
};
use conclave_worker_core::SeqId;

use crate::backend::{drained, permanent, transient};
use crate::engine_thread::SeqEvent;
use crate::results::{Attempt, Results};
use crate::session::progress::DeltaLog;

/// Replies that wait for room on the stream and are kept nowhere else. Beyond, they are dropped: the
/// coordinator asks again.
const LOOSE_REPLIES: usize = 256;

/// What the shell must do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Turn the attempt into a request for the model at this index, off this thread; then
    /// [`Desk::planned`].
    Plan {
        /// The sequence that it will be.
        seq: SeqId,
        /// Index into the worker's models.
        model: usize,
        /// The attempt.
        start: Arc<Start>,
    },
    /// Check the job against the model at this index, off this thread; then [`Desk::prepared`].
    Prepare {
        /// Index into the worker's models.
        model: usize,
        /// The job.
        prepare: Arc<Prepare>,
    },
    /// Tell the engine.
    Cancel(SeqId),
}

/// What became of a plan.
#[derive(Debug, PartialEq, Eq)]
pub enum Planned {
    /// Hand it to the engine.
    Go,
    /// Hand it to the engine, and then a cancel: so ends even an attempt that never ran with a draft.
    GoAndCancel,
    /// The attempt is over.
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Planning { cancelled: bool },
    Decoding,
}

#[derive(Debug)]
struct Live {
    seq: SeqId,
    stage: Stage,
    role: Role,
    tenant: String,
    log: DeltaLog,
    /// Then it is cancelled.
    until: Option<Instant>,
}

impl Live {
    /// Cancels what is with the engine; what is not yet, as soon as it is.
    fn cancel(&mut self) -> Option<Action> {
        self.until = None;
        match self.stage {
            Stage::Decoding => Some(Action::Cancel(self.seq)),
            Stage::Planning { .. } => {
                self.stage = Stage::Planning { cancelled: true };
                None
            }
        }
    }
}

/// An attempt that ended, for those who count.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Its sequence.
    pub seq: SeqId,
    /// Its name.
    pub attempt: Attempt,
    /// Whose job it is of.
    pub tenant: String,
    /// The agent's role.
    pub role: Role,
    /// What it came to.
    pub outcome: Result<Box<Draft>, AttemptError>,
}

/// All attempts of this incarnation.
pub struct Desk {
    incarnation: String,
    models: Vec<String>,
    /// Attempts and kept results together.
    capacity: usize,
    draining: bool,
    announce_drain: bool,
    next_seq: u64,
    live: BTreeMap<Attempt, Live>,
    by_seq: BTreeMap<SeqId, Attempt>,
    results: Results,
    /// Text of ended attempts that has not been sent yet; goes out before the result.
    tails: BTreeMap<Attempt, DeltaLog>,
    loose: VecDeque<Message>,
    /// Where the last turn of progress ended, so that all attempts get theirs.
    turn: Option<Attempt>,
}

impl Desk {
    /// A desk for the models of these names, which takes on attempts as long as they and the kept
    /// results are fewer than `capacity`.
    pub fn new(incarnation: &str, models: Vec<String>, capacity: usize) -> Self {
        Self {
            incarnation: incarnation.to_owned(),
            models,
            capacity,
            draining: false,
            announce_drain: false,
            next_seq: 0,
            live: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            results: Results::new(incarnation),
            tails: BTreeMap::new(),
            loose: VecDeque::new(),
            turn: None,
        }
    }

    /// Attempts that have not ended.
    pub fn running(&self) -> usize {
        self.live.len()
    }

    /// Of those, how many are not with the engine yet.
    pub fn planning(&self) -> usize {
        self.live
            .values()
            .filter(|live| live.stage != Stage::Decoding)
            .count()
    }

    /// Results that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.results.len()
    }

    /// Whether new attempts are turned away.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// No new attempts from here on, and the leader is told.
    pub fn drain(&mut self) {
        self.draining = true;
        self.announce_drain = true;
    }

    /// A session begins: the attempts still running and the results not yet acknowledged. What was left
    /// for the last session and is kept nowhere else is forgotten: its leader may be gone.
    pub fn hello(&mut self, now: Instant) -> (Vec<AttemptKey>, Vec<AttemptResult>) {
        self.loose.clear();
        self.announce_drain = false;
        let (finished, later) = self.results.hello(now);
        let running = self
            .live
            .keys()
            .map(AttemptKey::from)
            .chain(later)
            .collect();
        (running, finished)
    }

    /// `Prepare`.
    pub fn prepare(&mut self, prepare: Prepare) -> Option<Action> {
        let asked = prepare.spec.as_ref().map_or("", |spec| spec.model.as_str());
        if let Some(model) = self.model(asked) {
            let prepare = Arc::new(prepare);
            return Some(Action::Prepare { model, prepare });
        }
        // Another worker may serve it: whether none does is the coordinator's to know.
        let served = self.models.join(", ");
        self.reply(Message::Prepared(Prepared {
            error: format!("model `{asked}` is not served here; served: {served}"),
            job_id: prepare.job_id,
            retry: true,
            ..Prepared::default()
        }));
        None
    }

    /// The answer to a `Prepare`.
    pub fn prepared(&mut self, prepared: Prepared) {
        self.reply(Message::Prepared(prepared));
    }

    /// `Start`: at most once per attempt, whatever is sent twice. Its deadline counts from `now`.
    pub fn start(&mut self, start: Start, now: Instant) -> Option<Action> {
        let Some(key) = start.key.clone() else {
            tracing::warn!("a start without a key");
            return None;
        };
        if start.incarnation != self.incarnation {
            tracing::info!(
                job = key.job_id,
                agent = key.agent,
                attempt = key.attempt,
                tenant = start.tenant,
                placed_on = start.incarnation,
                "a start for another incarnation"
            );
            return None;
        }
        let attempt = Attempt::from(key);
        if self.live.contains_key(&attempt) {
            return None;
        }
        if self.results.contains(&attempt) {
            self.results.send_again(&attempt);
            return None;
        }
        if self.live.len() + self.results.len() >= self.capacity {
            // There is no room for its result either: said once, kept nowhere.
            let refusal = self
                .results
                .message(&attempt, Err(transient("the worker is full")));
            self.reply(Message::Result(refusal));
            return None;
        }
        if self.draining {
            self.results.keep(attempt, Err(drained()));
            return None;
        }
        let Some(model) = self.model(&start.model) else {
            let message = format!(
                "model `{}` is not served here; served: {}",
                start.model,
                self.models.join(", ")
            );
            self.results.keep(attempt, Err(permanent(message)));
            return None;
        };
        Some(self.take_on(attempt, model, start, now))
    }

    fn take_on(&mut self, attempt: Attempt, model: usize, start: Start, now: Instant) -> Action {
        self.next_seq += 1;
        let until = (start.deadline_ms > 0).then(|| Duration::from_millis(start.deadline_ms));
        let seq = SeqId(self.next_seq);
        let live = Live {
            seq,
            stage: Stage::Planning { cancelled: false },
            role: start
                .spec
                .as_ref()
                .map_or(Role::Unspecified, |spec| spec.role()),
            tenant: start.tenant.clone(),
            log: DeltaLog::default(),
            // A deadline beyond what the clock can say is none.
            until: until.and_then(|within| now.checked_add(within)),
        };
        self.by_seq.insert(seq, attempt.clone());
        self.live.insert(attempt, live);
        let start = Arc::new(start);
        Action::Plan { seq, model, start }
    }

    /// The attempt was planned, or cannot be.
    pub fn planned(
        &mut self,
        seq: SeqId,
        refused: Option<AttemptError>,
    ) -> (Planned, Option<Ended>) {
        if let Some(error) = refused {
            return (Planned::Drop, self.end(seq, Err(error)));
        }
        let Some(live) = self
            .by_seq
            .get(&seq)
            .and_then(|attempt| self.live.get_mut(attempt))
        else {
            return (Planned::Drop, None);
        };
        let go = match live.stage {
            Stage::Planning { cancelled: true } => Planned::GoAndCancel,
            Stage::Planning { cancelled: false } | Stage::Decoding => Planned::Go,
        };
        live.stage = Stage::Decoding;
        (go, None)
    }

    /// `Cancel`. An attempt that never came is answered too, so that nobody waits for it; should its
    /// `Start` come late, it finds its result.
    pub fn cancel(&mut self, cancel: Cancel) -> Option<Action> {
        let attempt = Attempt::from(cancel.key?);
        if let Some(live) = self.live.get_mut(&attempt) {
            return live.cancel();
        } else if self.results.contains(&attempt) {
            self.results.send_again(&attempt);
        } else if self.live.len() + self.results.len() < self.capacity {
            self.results
                .keep(attempt, Err(transient("cancelled before it began")));
        }
        None
    }

    /// Cancels what has reached its deadline, each attempt once.
    pub fn overdue(&mut self, now: Instant) -> Vec<Action> {
        let due = self
            .live
            .values_mut()
            .filter(|live| live.until.is_some_and(|until| until <= now));
        due.filter_map(Live::cancel).collect()
    }

    /// When [`Desk::overdue`] has something next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.live.values().filter_map(|live| live.until).min()
    }

    /// `Ack`.
    pub fn acknowledge(&mut self, keys: Vec<AttemptKey>) {
        for attempt in keys.into_iter().map(Attempt::from) {
            self.results.acknowledge(&attempt);
            self.tails.remove(&attempt);
        }
    }

    /// The worker belongs to another cluster now: what the old one asked for is forgotten, and what
    /// it left running is to be cancelled.
    pub fn begin_anew(&mut self, incarnation: &str) -> Vec<Action> {
        let running = self.live.values_mut().filter_map(Live::cancel).collect();
        self.live.clear();
        self.by_seq.clear();
        self.tails.clear();
        self.loose.clear();
        self.turn = None;
        self.results = Results::new(incarnation);
        incarnation.clone_into(&mut self.incarnation);
        running
    }

    /// `Resend`.
    pub fn resend(&mut self, resend: Resend) {
        let Some(attempt) = resend.key.map(Attempt::from) else {
            return;
        };
        if let Some(live) = self.live.get_mut(&attempt) {
            live.log.rewind(resend.offset);
        } else if let Some(tail) = self.tails.get_mut(&attempt) {
            tail.rewind(resend.offset);
            self.results.send_again(&attempt);
        }
    }

    /// The engine made a step.
    pub fn engine(&mut self, event: SeqEvent) -> Option<Ended> {
        match event {
            SeqEvent::Started { seq, cached_tokens } => {
                if let Some(live) = self.live_mut(seq) {
                    live.log.started(cached_tokens);
                }
                None
            }
            SeqEvent::Delta { seq, mut delta } => {
                let attempt = self.by_seq.get(&seq)?;
                let live = self.live.get_mut(attempt)?;
                (delta.agent, delta.attempt) = (attempt.agent, attempt.attempt);
                live.log.push(delta);
                None
            }
            SeqEvent::Ended { seq, outcome } => self.end(seq, outcome),
        }
    }

    /// Ends every attempt with this error: the engine is gone, or the time to drain is over.
    pub fn end_all(&mut self, error: &AttemptError) -> Vec<Ended> {
        let all: Vec<SeqId> = self.by_seq.keys().copied().collect();
        all.into_iter()
            .filter_map(|seq| self.end(seq, Err(error.clone())))
            .collect()
    }

    fn end(&mut self, seq: SeqId, outcome: Result<Box<Draft>, AttemptError>) -> Option<Ended> {
        let attempt = self.by_seq.remove(&seq)?;
        let live = self.live.remove(&attempt)?;
        let ended = Ended {
            seq,
            attempt: attempt.clone(),
            tenant: live.tenant,
            role: live.role,
            outcome: outcome.clone(),
        };
        self.tails.insert(attempt.clone(), live.log);
        self.results.keep(attempt, outcome);
        Some(ended)
    }

    fn live_mut(&mut self, seq: SeqId) -> Option<&mut Live> {
        self.live.get_mut(self.by_seq.get(&seq)?)
    }

    fn model(&self, name: &str) -> Option<usize> {
        if name.is_empty() && self.models.len() == 1 {
            return Some(0);
        }
        self.models.iter().position(|model| model == name)
    }

    fn reply(&mut self, message: Message) {
        if self.loose.len() < LOOSE_REPLIES {
            self.loose.push_back(message);
        } else {
            tracing::warn!("too many replies wait for the stream; one is dropped");
        }
    }

    /// The next message for the stream, if anything but progress is due. The text of an attempt goes
    /// before its result, so that watchers have it all when the agent is done.
    pub fn next_message(&mut self, now: Instant) -> Option<Message> {
        if std::mem::take(&mut self.announce_drain) {
            return Some(Message::Draining(conclave_proto::v1::Draining {}));
        }
        if let Some(reply) = self.loose.pop_front() {
            return Some(reply);
        }
        let attempt = self.results.due(now)?.clone();
        if let Some(delta) = self.tails.get_mut(&attempt).and_then(DeltaLog::take) {
            return Some(progress(&attempt, delta));
        }
        self.results.send(&attempt, now).map(Message::Result)
    }

    /// The next piece of text, of each attempt in turn.
    pub fn next_progress(&mut self) -> Option<Message> {
        let pending = |(_, live): &(&Attempt, &Live)| live.log.pending();
        let after = match &self.turn {
            Some(turn) => {
                use std::ops::Bound::{Excluded, Unbounded};
                self.live.range((Excluded(turn), Unbounded)).find(pending)
            }
            None => None,
        };
        let attempt = after.or_else(|| self.live.iter().find(pending))?.0.clone();
        let delta = self.live.get_mut(&attempt)?.log.take()?;
        let message = progress(&attempt, delta);
        self.turn = Some(attempt);
        Some(message)
    }

    /// Whether [`Desk::next_message`] has something.
    pub fn has_message(&self, now: Instant) -> bool {
        self.announce_drain || !self.loose.is_empty() || self.results.due(now).is_some()
    }

    /// Whether [`Desk::next_progress`] has something.
    pub fn has_progress(&self) -> bool {
        self.live.values().any(|live| live.log.pending())
    }

    /// When [`Desk::has_message`] may turn true by itself.
    pub fn next_due(&self) -> Option<Instant> {
        self.results.next_due()
    }
}

fn progress(attempt: &Attempt, delta: conclave_proto::v1::TokenDelta) -> Message {
    Message::Progress(Progress {
        key: Some(attempt.into()),
        delta: Some(delta),
    })
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
