//! What every part of the world shares: virtual time, the queue of events, chance, the network, the
//! ledger of invariants, coverage, the story.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use conclave_coordinator_core::Reply;
use conclave_proto::INLINE_LIMIT;
use conclave_proto::v1::{
    CoordinatorMessage, Hello, JobState, WatchJobResponse, WorkerMessage, command::Command as Body,
};
use raft::eraftpb::{ConfChangeType, Message as RaftMessage};

use super::{
    blobs::Hash, coverage::Coverage, disk::Damage, invariants::Ledger, rng::Rng, story::Story,
};

/// Inputs that wait for a coordinator, unless a world has less.
const ROOM_TO_WAIT: usize = 128;
/// Unix ms at the beginning of virtual time.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Addr {
    Node(u64),
    Worker(u32),
    Client(u32),
    Watcher(u32),
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Node(id) => write!(f, "coordinator {id}"),
            Addr::Worker(number) => write!(f, "worker w{number}"),
            Addr::Client(number) => write!(f, "client {number}"),
            Addr::Watcher(number) => write!(f, "watcher {number}"),
        }
    }
}

/// What travels.
#[derive(Debug, Clone)]
pub(super) enum Wire {
    /// Between nodes; with the state behind it, if it is a snapshot.
    Raft(Box<RaftMessage>, Option<Vec<u8>>),
    /// A worker opens a session.
    Hello(u64, Box<Hello>),
    /// In a session, to the coordinator.
    Up(u64, Box<WorkerMessage>),
    /// In a session, to the worker.
    Down(u64, Box<CoordinatorMessage>),
    /// A session ends.
    Close(u64),
    /// A client's call, numbered.
    Call(u64, Box<Ask>),
    /// The answer to one.
    Told(u64, Box<Told>),
    /// Store this payload; for the sender's so-manieth.
    PutBlob(u64, Vec<u8>),
    /// It is durable here.
    HasBlob(u64),
    /// Who has this payload?
    GetBlob(Hash),
    /// Here it is.
    Blob(Hash, Vec<u8>),
    /// A watcher's stream: the job, and its cursor.
    Watch(u64, String, Vec<u8>),
    /// On such a stream, to the watcher.
    Update(u64, Box<WatchJobResponse>),
    /// There is no such job.
    NoJob(u64),
    /// The watcher has read an update.
    Read(u64),
    /// What time is it there?
    AskClock(u64),
    /// This time, Unix ms.
    Clock(u64, i64),
}

impl Wire {
    /// The session that it belongs to.
    pub(super) fn session(&self) -> Option<u64> {
        match self {
            Wire::Hello(id, _)
            | Wire::Up(id, _)
            | Wire::Down(id, _)
            | Wire::Close(id)
            | Wire::Watch(id, ..)
            | Wire::Update(id, _)
            | Wire::NoJob(id)
            | Wire::Read(id) => Some(*id),
            Wire::Raft(..)
            | Wire::Call(..)
            | Wire::Told(..)
            | Wire::PutBlob(..)
            | Wire::HasBlob(_)
            | Wire::GetBlob(_)
            | Wire::Blob(..)
            | Wire::AskClock(_)
            | Wire::Clock(..) => None,
        }
    }
}

/// What clients ask for.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    /// A command as the API proposes it.
    Propose(Body),
    /// A linearizable look at a job.
    Get(String),
}

/// What clients are told.
#[derive(Debug, Clone)]
pub(super) enum Told {
    /// Ask this node (0: any other).
    NotLeader(u64),
    /// Nothing was done.
    Busy,
    /// It may yet be done.
    Unknown,
    /// It was applied.
    Applied(Reply),
    /// The job: its state, and how many events it has; `None` if there is none.
    Job(Option<(JobState, usize)>),
}

/// What happens next to a node.
#[derive(Debug)]
pub(super) enum Input {
    Tick,
    Wire(Addr, Wire),
    Lost(u64),
    Synced,
    Saved,
    Change(ConfChangeType, u64),
    Transfer(u64),
    /// An operator raises the cluster's log version.
    Raise(u32),
    /// A payload is durable.
    Stored(u64),
}

/// What happens next to a worker.
#[derive(Debug)]
pub(super) enum WorkerInput {
    Step,
    Beat,
    Dial,
    Wire(Wire),
    Lost(u64),
    /// A prompt was looked at.
    Looked(u64, Box<WorkerMessage>),
}

/// What happens next.
#[derive(Debug)]
pub(super) enum Event {
    /// To this start of a node.
    Node(u64, u64, Input),
    /// To this start of a worker.
    Worker(u32, u64, WorkerInput),
    /// On the network, as the so-manieth thing that happened when it was sent.
    Arrives(Addr, Addr, u64, Wire),
    /// A session's end is noticed.
    Noticed(Addr, u64),
    Client(u32),
    Watcher(u32),
    /// A watcher has read an update, of this stream to this node.
    ReadUpdate(u32, u64, u64),
    Fault,
    Operator,
    Boot(u64),
    Resume(u64),
    BootWorker(u32),
    ResumeWorker(u32),
    Unhang(u32),
    Heal,
    /// The network round this one is quick again.
    Quicken(Addr),
    /// There is room on this node's disk again.
    Room(u64),
    /// The tick that ends this worker's lease is on its way through the log.
    LeaseEnds(u32),
}

/// How the network behaves now.
#[derive(Debug, Default)]
pub(super) struct Net {
    pub loss_ppm: u64,
    pub duplicate_ppm: u64,
    pub reset_ppm: u64,
    /// So many are held back on purpose, until later ones have passed.
    pub reorder_ppm: u64,
    pub slowest_ms: u64,
    /// Everything from and to these takes so much longer, ms.
    pub slow: BTreeMap<Addr, u64>,
    pub blocked: BTreeSet<(Addr, Addr)>,
    /// Sessions that carry nothing any more.
    dead: BTreeSet<u64>,
    /// A session's messages arrive in order: by session and receiver.
    last: BTreeMap<(u64, Addr), u64>,
    /// The latest that arrived on a link.
    newest: BTreeMap<(Addr, Addr), u64>,
}

impl Net {
    /// Loses nothing from here on; sessions that are cut stay so.
    pub(super) fn clear_up(&mut self) {
        *self = Net {
            slowest_ms: 10,
            dead: std::mem::take(&mut self.dead),
            last: std::mem::take(&mut self.last),
            newest: std::mem::take(&mut self.newest),
            ..Net::default()
        };
    }
}

/// What every part of the world shares.
pub(super) struct Cx {
    /// Virtual ms.
    pub now: u64,
    pub rng: Rng,
    pub net: Net,
    pub ledger: Ledger,
    pub coverage: Coverage,
    pub story: Story,
    /// Longest payload that travels inside the log, bytes.
    pub inline_limit: usize,
    /// Agents that a tenant may run, if it may not run all.
    pub running_agents: Option<u64>,
    /// Inputs that wait for a coordinator, of either kind; more are refused or dropped.
    pub room_to_wait: usize,
    /// Workers say that they hold more than they do.
    pub short_workers: bool,
    queue: BTreeMap<(u64, u64), Event>,
    numbers: u64,
}

impl Cx {
    pub(super) fn new(seed: u64, traced: bool, shown: bool) -> Cx {
        Cx {
            now: 0,
            rng: Rng::new(seed),
            net: Net {
                slowest_ms: 10,
                ..Net::default()
            },
            ledger: Ledger::default(),
            coverage: Coverage::default(),
            story: Story::new(traced, shown),
            inline_limit: INLINE_LIMIT,
            running_agents: None,
            room_to_wait: ROOM_TO_WAIT,
            short_workers: false,
            queue: BTreeMap::new(),
            numbers: 0,
        }
    }

    /// A number that no one else has.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Unix ms of an honest clock.
    pub(super) fn unix_ms(&self) -> i64 {
        EPOCH_MS + self.now as i64
    }

    pub(super) fn after(&mut self, ms: u64, event: Event) {
        let key = (self.now + ms, self.number());
        self.queue.insert(key, event);
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        Some(event)
    }

    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        self.story.tell(self.now, line);
    }

    pub(super) fn fault(&mut self, class: &'static str) {
        self.coverage.hit("faults", class);
    }

    pub(super) fn damage(&mut self, damage: Damage) {
        if damage.lost > 0 {
            self.coverage.hit("faults", "unsynced writes lost");
        }
        if damage.torn {
            self.coverage.hit("faults", "torn tail");
        }
    }

    fn delay(&mut self, from: Addr, to: Addr) -> u64 {
        let slowest = self.net.slowest_ms;
        let slow = |addr| self.net.slow.get(&addr).copied().unwrap_or(0);
        let spike = slow(from).max(slow(to));
        // Most messages are quick, a few are late: so they overtake each other.
        let usual = if self.rng.below(16) == 0 {
            self.rng.between(1, slowest.max(1))
        } else {
            self.rng.between(1, slowest.max(4) / 4)
        };
        spike + usual
    }

    /// A message came out of a link; it may have been overtaken there.
    pub(super) fn arrived(&mut self, from: Addr, to: Addr, stamp: u64) {
        let newest = self.net.newest.entry((from, to)).or_insert(0);
        if *newest > stamp {
            self.fault("message reordered");
        } else {
            *newest = stamp;
        }
    }

    /// Sends; the network may delay, lose or double it.
    pub(super) fn send(&mut self, from: Addr, to: Addr, wire: Wire) {
        if let Some(session) = wire.session() {
            return self.send_in(session, from, to, wire);
        }
        if self.net.blocked.contains(&(from, to)) {
            return self.coverage.hit("network", "blocked");
        }
        if self.rng.ppm(self.net.loss_ppm) {
            return self.fault("message lost");
        }
        if self.rng.ppm(self.net.duplicate_ppm) {
            self.fault("message doubled");
            let late = self.delay(from, to) + self.rng.below(200);
            let stamp = self.number();
            self.after(late, Event::Arrives(from, to, stamp, wire.clone()));
        }
        let mut delay = self.delay(from, to);
        if self.rng.ppm(self.net.reorder_ppm) {
            self.fault("message held back");
            delay += self.rng.between(20, 1_500);
        }
        let stamp = self.number();
        self.after(delay, Event::Arrives(from, to, stamp, wire));
    }

    fn send_in(&mut self, session: u64, from: Addr, to: Addr, wire: Wire) {
        if self.net.dead.contains(&session) {
            return;
        }
        if self.net.blocked.contains(&(from, to)) || self.rng.ppm(self.net.reset_ppm) {
            self.fault("session broken");
            return self.cut(session, from, to);
        }
        let delay = self.delay(from, to);
        let last = self.net.last.entry((session, to)).or_insert(0);
        let at = (self.now + delay).max(*last);
        *last = at;
        let stamp = self.number();
        self.after(at - self.now, Event::Arrives(from, to, stamp, wire));
    }

    /// A session carries nothing more; both ends notice, each in its time.
    pub(super) fn cut(&mut self, session: u64, one: Addr, other: Addr) {
        if self.net.dead.insert(session) {
            for end in [one, other] {
                let late = self.rng.between(50, 3_000);
                self.after(late, Event::Noticed(end, session));
            }
        }
    }

    pub(super) fn is_cut(&self, session: u64) -> bool {
        self.net.dead.contains(&session)
    }
}
