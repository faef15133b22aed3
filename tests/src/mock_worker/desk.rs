//! The attempts of one mock and the results that it keeps: no socket, time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use conclave_proto::v1::worker_message::Message;
use conclave_proto::v1::{
    AttemptError, AttemptKey, AttemptResult, ErrorKind, Progress, Start, attempt_result,
};

use super::script::Script;

/// An unacknowledged result is sent again after so long, as a real worker does.
const RESEND_AFTER: Duration = Duration::from_secs(5);
/// Results in one `Hello`; the others follow it.
const HELLO_RESULTS: usize = 256;
/// Replies that wait for room; beyond, they are dropped, and the leader asks again.
const LOOSE: usize = 4096;

/// Job, agent, attempt.
pub(super) type Name = (String, u32, u32);

pub(super) fn name(key: AttemptKey) -> Name {
    (key.job_id, key.agent, key.attempt)
}

fn key(name: &Name) -> AttemptKey {
    AttemptKey {
        job_id: name.0.clone(),
        agent: name.1,
        attempt: name.2,
    }
}

/// Text on its way: how much there is, how much is sent.
struct Text {
    script: Script,
    produced: usize,
    sent: usize,
}

impl Text {
    fn take(&mut self, name: &Name) -> Option<Message> {
        let delta =
            (self.sent < self.produced).then(|| self.script.delta(self.sent, self.produced))?;
        self.sent += delta.tokens as usize;
        Some(Message::Progress(Progress {
            key: Some(key(name)),
            delta: Some(delta),
        }))
    }
}

struct Live {
    text: Text,
    until: Option<Instant>,
}

struct Kept {
    result: AttemptResult,
    /// Sent before the result; none for an attempt that never began.
    text: Option<Text>,
    sent: Option<Instant>,
}

/// What one start of a mock knows.
pub(super) struct Desk {
    incarnation: String,
    pub(super) draining: bool,
    announce_drain: bool,
    live: BTreeMap<Name, Live>,
    kept: BTreeMap<Name, Kept>,
    /// Results that are to be sent, in the order of their ends.
    unsent: VecDeque<Name>,
    loose: VecDeque<Message>,
    /// Whose turn of text was the last.
    turn: Option<Name>,
    /// Engine steps.
    pub(super) steps: u64,
}

/// What became of a `Start`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Started {
    /// It runs now.
    New,
    /// It was known, or is refused.
    Known,
}

impl Desk {
    pub(super) fn new(incarnation: &str) -> Desk {
        Desk {
            incarnation: incarnation.to_owned(),
            draining: false,
            announce_drain: false,
            live: BTreeMap::new(),
            kept: BTreeMap::new(),
            unsent: VecDeque::new(),
            loose: VecDeque::new(),
            turn: None,
            steps: 0,
        }
    }

    pub(super) fn running(&self) -> usize {
        self.live.len()
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.kept.len()
    }

    /// A session begins: what runs, and what results there are. Results that do not fit are named as
    /// running and sent after the welcome.
    pub(super) fn hello(&mut self, now: Instant) -> (Vec<AttemptKey>, Vec<AttemptResult>) {
        self.loose.clear();
        self.unsent.clear();
        self.announce_drain = false;
        let mut running: Vec<AttemptKey> = self.live.keys().map(key).collect();
        let mut finished = Vec::new();
        for (name, kept) in &mut self.kept {
            if finished.len() < HELLO_RESULTS {
                kept.sent = Some(now);
                finished.push(kept.result.clone());
            } else {
                kept.sent = None;
                running.push(key(name));
                self.unsent.push_back(name.clone());
            }
        }
        (running, finished)
    }

    pub(super) fn start(&mut self, start: Start, now: Instant) -> Started {
        let name = name(start.key.clone().unwrap_or_default());
        if start.incarnation != self.incarnation || self.live.contains_key(&name) {
            return Started::Known;
        }
        if self.kept.contains_key(&name) {
            self.send_again(name);
            return Started::Known;
        }
        if self.draining {
            self.keep_error(name, ErrorKind::Drained, "the mock drains");
            return Started::Known;
        }
        let until = (start.deadline_ms > 0).then(|| now + Duration::from_millis(start.deadline_ms));
        let text = Text {
            script: Script::new(start),
            produced: 0,
            sent: 0,
        };
        self.live.insert(name, Live { text, until });
        Started::New
    }

    pub(super) fn cancel(&mut self, name: Name) {
        if self.live.contains_key(&name) {
            self.end(&name);
        } else if self.kept.contains_key(&name) {
            self.send_again(name);
        } else {
            self.keep_error(name, ErrorKind::Transient, "cancelled before it began");
        }
    }

    pub(super) fn acknowledge(&mut self, keys: Vec<AttemptKey>) -> u64 {
        let known = |key| self.kept.remove(&name(key)).is_some();
        keys.into_iter().map(known).filter(|known| *known).count() as u64
    }

    pub(super) fn resend(&mut self, name: Name, offset: u32) {
        let offset = offset as usize;
        if let Some(live) = self.live.get_mut(&name) {
            live.text.sent = live.text.sent.min(offset);
        } else if let Some(kept) = self.kept.get_mut(&name) {
            if let Some(text) = &mut kept.text {
                text.sent = text.sent.min(offset);
            }
            self.send_again(name);
        }
    }

    pub(super) fn reply(&mut self, message: Message) {
        if self.loose.len() < LOOSE {
            self.loose.push_back(message);
        }
    }

    pub(super) fn drain(&mut self) {
        (self.draining, self.announce_drain) = (true, true);
    }

    /// Another cluster took the place of the one before: what runs and is kept for that one is let go.
    pub(super) fn begin_anew(&mut self, incarnation: &str) {
        let (draining, steps) = (self.draining, self.steps);
        *self = Desk {
            draining,
            steps,
            ..Desk::new(incarnation)
        };
    }

    /// One engine step: every attempt gains `tokens`. Returns how many ended.
    pub(super) fn step(&mut self, tokens: usize) -> u64 {
        self.steps += 1;
        let mut ended = Vec::new();
        for (name, live) in &mut self.live {
            let text = &mut live.text;
            text.produced = (text.produced + tokens).min(text.script.len());
            if text.produced == text.script.len() {
                ended.push(name.clone());
            }
        }
        ended.iter().for_each(|name| self.end(name));
        ended.len() as u64
    }

    /// Ends what has reached its deadline.
    pub(super) fn overdue(&mut self, now: Instant) {
        let due = |live: &Live| live.until.is_some_and(|until| until <= now);
        let due: Vec<Name> = self
            .live
            .iter()
            .filter(|(_, live)| due(live))
            .map(|(name, _)| name.clone())
            .collect();
        due.iter().for_each(|name| self.end(name));
    }

    /// Results whose acknowledgement did not come are sent again.
    pub(super) fn resend_due(&mut self, now: Instant) {
        let due = |kept: &Kept| kept.sent.is_some_and(|sent| now >= sent + RESEND_AFTER);
        for (name, kept) in &mut self.kept {
            if due(kept) {
                kept.sent = None;
                self.unsent.push_back(name.clone());
            }
        }
    }

    /// Gives everything that runs back: the time to drain is over.
    pub(super) fn give_back(&mut self) {
        for name in std::mem::take(&mut self.live).into_keys() {
            self.keep_error(name, ErrorKind::Drained, "the mock drains");
        }
    }

    fn end(&mut self, name: &Name) {
        let Some(Live { text, .. }) = self.live.remove(name) else {
            return;
        };
        let draft = text.script.draft(text.produced);
        self.keep(
            name.clone(),
            attempt_result::Result::Draft(draft),
            Some(text),
        );
    }

    fn keep_error(&mut self, name: Name, kind: ErrorKind, why: &str) {
        let error = AttemptError {
            kind: kind.into(),
            message: why.to_owned(),
        };
        self.keep(name, attempt_result::Result::Error(error), None);
    }

    fn keep(&mut self, name: Name, result: attempt_result::Result, text: Option<Text>) {
        let result = AttemptResult {
            key: Some(key(&name)),
            incarnation: self.incarnation.clone(),
            result: Some(result),
        };
        self.unsent.push_back(name.clone());
        let sent = None;
        self.kept.insert(name, Kept { result, text, sent });
    }

    fn send_again(&mut self, name: Name) {
        if let Some(kept) = self.kept.get_mut(&name) {
            kept.sent = None;
            self.unsent.push_back(name);
        }
    }

    /// Whether [`Desk::next_message`] has something.
    pub(super) fn has_message(&self) -> bool {
        self.announce_drain
            || !self.loose.is_empty()
            || !self.unsent.is_empty()
            || self.live.values().any(|l| l.text.sent < l.text.produced)
    }

    /// What is to be sent next: replies, then results behind the rest of their text, then text in turn.
    pub(super) fn next_message(&mut self, now: Instant) -> Option<Message> {
        if std::mem::take(&mut self.announce_drain) {
            return Some(Message::Draining(conclave_proto::v1::Draining {}));
        }
        if let Some(reply) = self.loose.pop_front() {
            return Some(reply);
        }
        while let Some(name) = self.unsent.front() {
            // Acknowledged or sent meanwhile: nothing is due.
            let due = self.kept.get_mut(name).filter(|kept| kept.sent.is_none());
            let Some(kept) = due else {
                self.unsent.pop_front();
                continue;
            };
            if let Some(text) = kept.text.as_mut().and_then(|text| text.take(name)) {
                return Some(text);
            }
            kept.sent = Some(now);
            let result = kept.result.clone();
            self.unsent.pop_front();
            return Some(Message::Result(result));
        }
        self.next_text()
    }

    fn next_text(&mut self) -> Option<Message> {
        use std::ops::Bound::{Excluded, Unbounded};
        let pending = |(_, live): &(&Name, &Live)| live.text.sent < live.text.produced;
        let after = self
            .turn
            .as_ref()
            .and_then(|turn| self.live.range((Excluded(turn), Unbounded)).find(pending));
        let next = after.or_else(|| self.live.iter().find(pending))?.0.clone();
        let message = self.live.get_mut(&next)?.text.take(&next);
        self.turn = Some(next);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_proto::v1::AgentSpec;

    fn start(agent: u32) -> Start {
        Start {
            key: Some(AttemptKey {
                job_id: "j".into(),
                agent,
                attempt: 1,
            }),
            incarnation: "i".into(),
            spec: Some(AgentSpec {
                answer_tokens: 4,
                ..AgentSpec::default()
            }),
            ..Start::default()
        }
    }

    fn results(desk: &mut Desk, now: Instant) -> usize {
        std::iter::from_fn(|| desk.next_message(now))
            .filter(|message| matches!(message, Message::Result(_)))
            .count()
    }

    #[test]
    fn a_result_is_kept_and_repeated_until_it_is_acknowledged() {
        let (mut desk, now) = (Desk::new("i"), Instant::now());
        assert_eq!(desk.start(start(0), now), Started::New);
        assert_eq!(desk.start(start(0), now), Started::Known);
        while desk.running() > 0 {
            desk.step(1);
        }
        assert_eq!(results(&mut desk, now), 1);
        desk.resend_due(now + RESEND_AFTER);
        assert_eq!(results(&mut desk, now), 1);
        let (running, finished) = desk.hello(now);
        assert_eq!((running.len(), finished.len()), (0, 1));
        assert_eq!(desk.acknowledge(vec![key(&("j".into(), 0, 1))]), 1);
        assert_eq!(desk.hello(now).1.len(), 0);
    }

    #[test]
    fn a_cancelled_attempt_hands_in_what_it_has() {
        let (mut desk, now) = (Desk::new("i"), Instant::now());
        desk.start(start(0), now);
        desk.step(1);
        desk.cancel(("j".into(), 0, 1));
        let result = std::iter::from_fn(|| desk.next_message(now)).find_map(|m| match m {
            Message::Result(result) => result.result,
            _ => None,
        });
        let Some(attempt_result::Result::Draft(draft)) = result else {
            panic!("a draft: {result:?}");
        };
        assert_eq!((draft.token_ids.len(), draft.valid), (1, false));
    }

    #[test]
    fn a_draining_mock_takes_nothing() {
        let (mut desk, now) = (Desk::new("i"), Instant::now());
        desk.drain();
        assert_eq!(desk.start(start(0), now), Started::Known);
        assert_eq!((desk.running(), desk.unacknowledged()), (0, 1));
    }
}
