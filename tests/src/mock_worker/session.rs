//! A mock's conversation with whoever leads: one task, which waits, applies, and fills what room the
//! stream has. Attempts decode on while there is no session.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::{Duration, Instant};

use conclave_proto::v1::coordinator_message::Message as FromLeader;
use conclave_proto::v1::worker_message::Message;
use conclave_proto::v1::{
    CoordinatorMessage, Heartbeat, Hello, ModelInfo, NotLeader, Welcome, WorkerMessage,
};
use conclave_worker_core::fence::{Fence, Welcomed};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};
use tonic::Status;

use super::desk::{Desk, Started, name};
use super::link::{DIAL, Link, open};
use super::{CLASS, CONTEXT, Levers, MODEL_DIGEST, MockOptions, Seen, script};

/// A real worker's: bounds of the waits between dials.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Hints that are followed without a wait.
const FREE_HINTS: u32 = 3;
/// Bounds of an engine step: a slow mock still steps, a fast one gives several tokens a step.
const STEP: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));

type Dial = Pin<Box<dyn Future<Output = Option<Link>> + Send>>;

enum State {
    Waiting(Instant),
    Dialing(Dial),
    /// Hello is said; until then the leader must welcome us.
    Greeting(Link, Instant),
    Up(Link),
}

enum Input {
    /// Something is due by the clock, or there is room on the stream.
    Due,
    Turned,
    Dialed(Option<Link>),
    Message(Result<Option<CoordinatorMessage>, Status>),
    Drain(Duration),
    /// The owner is gone.
    Abandoned,
}

pub(super) struct Session {
    options: MockOptions,
    incarnation: String,
    levers: watch::Receiver<Levers>,
    drain: mpsc::Receiver<Duration>,
    seen: watch::Sender<Seen>,
    desk: Desk,
    state: State,
    members: Vec<String>,
    next: usize,
    hint: Option<String>,
    hints: u32,
    failures: u32,
    fence: Fence,
    beat_every: Duration,
    beat_at: Instant,
    step_at: Instant,
    /// Tokens that the rate has granted and no step has given.
    credit: f64,
    /// Until then what runs may end, when the mock drains.
    leave: Option<Instant>,
}

impl Session {
    pub(super) fn new(
        options: &MockOptions,
        incarnation: String,
        levers: watch::Receiver<Levers>,
        drain: mpsc::Receiver<Duration>,
        seen: watch::Sender<Seen>,
    ) -> Session {
        let now = Instant::now();
        Session {
            desk: Desk::new(&incarnation),
            members: options.coordinators.clone(),
            options: options.clone(),
            incarnation,
            levers,
            drain,
            seen,
            state: State::Waiting(now),
            next: 0,
            hint: None,
            hints: 0,
            failures: 0,
            fence: Fence::default(),
            beat_every: Duration::from_secs(1),
            beat_at: now,
            step_at: now,
            credit: 0.0,
            leave: None,
        }
    }

    /// Until it has drained, or its owner is gone.
    pub(super) async fn run(mut self) {
        loop {
            match self.next_input().await {
                Input::Abandoned => return,
                Input::Due | Input::Turned => {}
                Input::Dialed(Some(link)) => {
                    self.state = State::Greeting(link, Instant::now() + DIAL);
                }
                Input::Dialed(None) | Input::Message(Ok(None) | Err(_)) => self.lose(),
                Input::Message(Ok(Some(message))) => self.message(message),
                Input::Drain(within) => {
                    self.desk.drain();
                    self.leave = Some(Instant::now() + within);
                }
            }
            let now = Instant::now();
            let levers = *self.levers.borrow_and_update();
            if levers.frozen {
                continue;
            }
            self.tick(now, levers);
            self.pump(now);
            self.show();
            if self.has_left(now) {
                return;
            }
        }
    }

    async fn next_input(&mut self) -> Input {
        let levers = *self.levers.borrow_and_update();
        if levers.frozen {
            return match self.levers.changed().await {
                Ok(()) => Input::Turned,
                Err(_) => Input::Abandoned,
            };
        }
        let due = self.due(levers);
        let wants_room = self.desk.has_message() || Instant::now() >= self.beat_at;
        let link = async {
            match &mut self.state {
                State::Waiting(_) => pending().await,
                State::Dialing(dial) => Input::Dialed(dial.await),
                State::Greeting(link, _) => Input::Message(link.inbound.message().await),
                State::Up(link) => {
                    let outbound = link.outbound.clone();
                    tokio::select! {
                        message = link.inbound.message() => Input::Message(message),
                        _room = outbound.reserve(), if wants_room => Input::Due,
                    }
                }
            }
        };
        tokio::select! {
            input = link => input,
            changed = self.levers.changed() => match changed {
                Ok(()) => Input::Turned,
                Err(_) => Input::Abandoned,
            },
            Some(within) = self.drain.recv() => Input::Drain(within),
            () = sleep_until(due.into()) => Input::Due,
        }
    }

    /// When something is due by the clock alone.
    fn due(&self, levers: Levers) -> Instant {
        let now = Instant::now();
        let link = match &self.state {
            State::Waiting(until) | State::Greeting(_, until) => Some(*until),
            State::Up(_) => Some(self.beat_at).filter(|at| *at > now),
            State::Dialing(_) => None,
        };
        let step = (self.desk.running() > 0 && !levers.hung).then_some(self.step_at);
        // Deadlines and results whose acknowledgement is late are looked at once a beat.
        let idle = Some(now + self.beat_every);
        let leave = self.leave.filter(|at| *at > now);
        [link, step, idle, leave]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now)
    }

    fn tick(&mut self, now: Instant, levers: Levers) {
        match &self.state {
            State::Waiting(until) if now >= *until => self.dial(now),
            State::Greeting(_, until) if now >= *until => self.lose(),
            _ => {}
        }
        self.desk.resend_due(now);
        if self.leave.is_some_and(|leave| now >= leave) {
            self.desk.give_back();
        }
        if levers.hung || self.desk.running() == 0 {
            // Time that passes without an engine is not made up for.
            self.step_at = now;
            return;
        }
        self.desk.overdue(now);
        if now < self.step_at {
            return;
        }
        let every = Duration::try_from_secs_f64(1.0 / levers.rate.max(1e-3))
            .unwrap_or(STEP.1)
            .clamp(STEP.0, STEP.1);
        self.step_at = now.max(self.step_at + every);
        self.credit += levers.rate * every.as_secs_f64();
        let tokens = self.credit.floor();
        self.credit -= tokens;
        let ended = self.desk.step(tokens as usize);
        self.seen.send_if_modified(|seen| {
            seen.finished += ended;
            ended > 0
        });
    }

    fn dial(&mut self, now: Instant) {
        let address = self.hint.take().unwrap_or_else(|| {
            self.next = self.next.wrapping_add(1);
            self.members[self.next % self.members.len()].clone()
        });
        let token = self.options.token.clone();
        let dial = open(address, token, self.hello(now));
        self.state = State::Dialing(Box::pin(async {
            timeout(DIAL, dial).await.unwrap_or_default()
        }));
    }

    fn hello(&mut self, now: Instant) -> Hello {
        let (running, finished) = self.desk.hello(now);
        Hello {
            worker_id: self.options.name.clone(),
            incarnation: self.incarnation.clone(),
            models: vec![ModelInfo {
                name: self.options.model.clone(),
                digest: MODEL_DIGEST.to_vec(),
                numeric_class: CLASS.to_owned(),
                context_tokens: CONTEXT,
            }],
            max_sequences: self.options.max_sequences,
            kv_blocks: 0,
            version: "mock".to_owned(),
            running,
            finished,
            term: self.fence.term(),
            draining: self.desk.draining,
            cluster_id: self.fence.cluster_id().to_owned(),
        }
    }

    /// The session, or the try of one, is over.
    fn lose(&mut self) {
        self.failures += 1;
        (self.hint, self.hints) = (None, 0);
        self.wait();
    }

    /// Doubles with each failure, half of it by the mock's own dice, so that mocks do not come in step.
    fn wait(&mut self) {
        let wait = match self.failures {
            _ if self.hint.is_some() => Duration::ZERO,
            0 => Duration::ZERO,
            n => LONGEST_WAIT.min(FIRST_WAIT * 2u32.pow((n - 1).min(10))),
        };
        let dice = blake3::hash(format!("{}{}", self.incarnation, self.next).as_bytes());
        let share = f64::from(dice.as_bytes()[0]) / 255.0;
        self.state = State::Waiting(Instant::now() + wait.mul_f64(0.5 + 0.5 * share));
    }

    fn message(&mut self, message: CoordinatorMessage) {
        let term = message.term;
        let word = match message.message {
            Some(FromLeader::Welcome(welcome)) => return self.welcome(welcome, term),
            Some(FromLeader::NotLeader(other)) => return self.sent_on(other, term),
            word => word,
        };
        if self.fence.hear(term).is_err() {
            return self.lose();
        }
        let now = Instant::now();
        match word {
            Some(FromLeader::Prepare(prepare)) => {
                let prepared = script::prepared(prepare, &self.options.model);
                self.desk.reply(Message::Prepared(prepared));
            }
            Some(FromLeader::Start(start)) => {
                let new = self.desk.start(start, now) == Started::New;
                self.seen.send_if_modified(|seen| {
                    seen.started += u64::from(new);
                    if new && seen.placed.is_none_or(|(placed, _)| placed < term) {
                        seen.placed = Some((term, now));
                    }
                    new
                });
            }
            Some(FromLeader::Cancel(cancel)) => {
                self.desk.cancel(name(cancel.key.unwrap_or_default()));
            }
            Some(FromLeader::Ack(ack)) => {
                let known = self.desk.acknowledge(ack.keys);
                self.seen.send_modify(|seen| seen.acknowledged += known);
            }
            Some(FromLeader::Resend(resend)) => {
                let offset = resend.offset;
                self.desk
                    .resend(name(resend.key.unwrap_or_default()), offset);
            }
            // Handled above, or of a kind that this version does not know.
            Some(FromLeader::Welcome(_) | FromLeader::NotLeader(_)) | None => {}
        }
    }

    /// A coordinator that does not lead names the one that does.
    fn sent_on(&mut self, other: NotLeader, term: u64) {
        if self.fence.is_past(&other.cluster_id) {
            return self.lose();
        }
        self.fence.hear_of(&other.cluster_id, term);
        self.learn(other.members);
        if other.leader.is_empty() || self.hints >= FREE_HINTS {
            return self.lose();
        }
        self.hints += 1;
        self.hint = Some(other.leader);
        self.wait();
    }

    /// A leader welcomes: of this cluster, or of one that took its place (law 5).
    fn welcome(&mut self, welcome: Welcome, term: u64) {
        let welcomed = self
            .fence
            .welcome(&welcome.cluster_id, &welcome.came_from, term);
        match welcomed {
            Welcomed::Again => {}
            Welcomed::Elsewhere => return self.begin_anew(welcome.members),
            Welcomed::OlderTerm(_) | Welcomed::Past => return self.lose(),
        }
        let now = Instant::now();
        (self.failures, self.hints) = (0, 0);
        self.beat_every = Duration::from_millis(welcome.heartbeat_ms.max(20));
        self.beat_at = now;
        self.learn(welcome.members);
        let state = std::mem::replace(&mut self.state, State::Waiting(now));
        if let State::Greeting(link, _) | State::Up(link) = state {
            self.state = State::Up(link);
        }
        self.seen.send_modify(|seen| seen.welcomes += 1);
    }

    /// What runs and is kept for the cluster of before is let go, and the mock says hello as a new
    /// incarnation, to whoever welcomed it.
    fn begin_anew(&mut self, members: Vec<String>) {
        self.incarnation = super::incarnation();
        self.desk.begin_anew(&self.incarnation);
        self.learn(members);
        self.wait();
    }

    fn learn(&mut self, members: Vec<String>) {
        for member in members {
            if !self.members.contains(&member) {
                self.members.push(member);
            }
        }
    }

    /// Fills what room the stream has.
    fn pump(&mut self, now: Instant) {
        let State::Up(link) = &self.state else { return };
        let outbound = link.outbound.clone();
        while let Ok(permit) = outbound.try_reserve() {
            let message = if now >= self.beat_at {
                self.beat_at = now + self.beat_every;
                Message::Heartbeat(Heartbeat {
                    steps: self.desk.steps,
                    has_work: self.desk.running() > 0,
                    running: self.desk.running() as u32,
                    waiting: 0,
                    kv_blocks_free: 1 << 20,
                    ..Heartbeat::default()
                })
            } else {
                let Some(message) = self.desk.next_message(now) else {
                    return;
                };
                message
            };
            permit.send(WorkerMessage {
                message: Some(message),
            });
        }
    }

    /// Shows where it stands, if that changed.
    fn show(&self) {
        let connected = matches!(self.state, State::Up(_));
        let (running, kept) = (self.desk.running(), self.desk.unacknowledged());
        let term = self.fence.term();
        self.seen.send_if_modified(|seen| {
            let before = (seen.connected, seen.term, seen.running, seen.kept);
            let after = (connected, term, running as u64, kept as u64);
            (seen.connected, seen.term, seen.running, seen.kept) = after;
            before != after
        });
    }

    fn has_left(&self, now: Instant) -> bool {
        let Some(leave) = self.leave else {
            return false;
        };
        let done =
            self.desk.running() == 0 && self.desk.unacknowledged() == 0 && !self.desk.has_message();
        // What was given back is still to be told.
        done || now >= leave + DIAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(cluster_id: &str, came_from: &[&str]) -> Welcome {
        Welcome {
            cluster_id: cluster_id.to_owned(),
            came_from: came_from.iter().map(|c| (*c).to_owned()).collect(),
            ..Welcome::default()
        }
    }

    #[test]
    fn a_restored_cluster_of_a_lower_term_is_followed_and_the_one_before_no_more() {
        let levers = Levers {
            rate: 1.0,
            hung: false,
            frozen: false,
        };
        let (_levers, levers) = watch::channel(levers);
        let (_drain, drain) = mpsc::channel(1);
        let (seen, shown) = watch::channel(Seen::default());
        let options = MockOptions::new("m", vec!["a:1".to_owned()]);
        let mut session = Session::new(&options, "i".to_owned(), levers, drain, seen);
        session.welcome(welcome("old", &[]), 9);
        assert_eq!(
            (
                session.hello(Instant::now()).term,
                session.incarnation.as_str()
            ),
            (9, "i")
        );
        session.welcome(welcome("new", &["old"]), 3);
        let hello = session.hello(Instant::now());
        assert_eq!((hello.term, hello.cluster_id.as_str()), (3, "new"));
        assert_ne!(
            hello.incarnation, "i",
            "what it did for the old one is let go"
        );
        session.welcome(welcome("new", &["old"]), 3);
        assert_eq!(shown.borrow().welcomes, 2);
        session.welcome(welcome("old", &[]), 99);
        assert_eq!(
            shown.borrow().welcomes,
            2,
            "what is left of it wins nobody back"
        );
        assert_eq!(session.hello(Instant::now()).term, 3);
    }
}
