//! The one thread of a worker that computes.
//!
//! It owns the engines, one a model, takes commands between steps and reports after each. Without work
//! it blocks on the command channel; with work it never waits for anybody but the owner of the event
//! channel, who takes events whatever the network does. A cancel takes effect before the next step.

mod slot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use conclave_proto::v1::{AttemptError, Draft, TokenDelta};
use conclave_worker_core::{Request, SeqId, Stats};
use tokio::sync::mpsc;

use crate::backend::{Backend, permanent};
use crate::metrics::EngineMetrics;
use slot::Slot;

/// Restarts without one good step between them before the thread gives up.
const RESTARTS_BEFORE_GIVING_UP: u32 = 3;

/// Steps whose events may wait to be taken.
const EVENT_QUEUE: usize = 256;

/// What the engine thread is told.
pub enum Command<P> {
    /// Runs a planned agent on the model at this index.
    Start {
        /// Index into the worker's models.
        model: usize,
        /// The sequence.
        request: Request,
        /// What the runner keeps for it.
        plan: P,
    },
    /// Ends a sequence; it is reported with what it has. Unknown ones are ignored.
    Cancel(SeqId),
    /// Ends the thread, and with it every sequence, unreported.
    Stop,
}

/// What happened to one sequence in a step.
#[derive(Debug)]
pub enum SeqEvent {
    /// It left the queue for the first time; so many prompt tokens were in the prefix cache.
    Started {
        /// The sequence.
        seq: SeqId,
        /// Prompt tokens that need not be computed.
        cached_tokens: u32,
    },
    /// It has new text.
    Delta {
        /// The sequence.
        seq: SeqId,
        /// `agent` and `attempt` are not set.
        delta: TokenDelta,
    },
    /// It ended; nothing follows.
    Ended {
        /// The sequence.
        seq: SeqId,
        /// What it hands in.
        outcome: Result<Box<Draft>, AttemptError>,
    },
}

/// What happened in one step, or between two.
#[derive(Debug)]
pub struct Step {
    /// When the step began.
    pub began: SystemTime,
    /// When it had ended.
    pub ended: SystemTime,
    /// What happened, in its order.
    pub events: Vec<SeqEvent>,
}

/// How the engine thread stands; written by it, read by anybody.
#[derive(Debug)]
pub struct EngineStatus {
    started: Instant,
    alive: AtomicBool,
    steps: AtomicU64,
    has_work: AtomicBool,
    moved_ms: AtomicU64,
    running: AtomicU32,
    waiting: AtomicU32,
    blocks_free: AtomicU32,
}

impl EngineStatus {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            alive: AtomicBool::new(true),
            steps: AtomicU64::new(0),
            has_work: AtomicBool::new(false),
            moved_ms: AtomicU64::new(0),
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            blocks_free: AtomicU32::new(0),
        }
    }

    /// False once the thread has ended or given up.
    pub fn alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Steps since the thread started.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether any sequence is live.
    pub fn has_work(&self) -> bool {
        self.has_work.load(Ordering::Relaxed)
    }

    /// Sequences that hold blocks, sequences in the queue, and blocks that could be taken.
    pub fn load(&self) -> (u32, u32, u32) {
        let get = |value: &AtomicU32| value.load(Ordering::Relaxed);
        (
            get(&self.running),
            get(&self.waiting),
            get(&self.blocks_free),
        )
    }

    /// How long there has been work without a finished step; zero when idle.
    pub fn stuck_for(&self) -> Duration {
        if !self.has_work() {
            return Duration::ZERO;
        }
        let moved = Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(moved)
    }

    fn moved(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Ordering::Relaxed);
    }
}

/// The two ends that the shell holds.
pub struct EngineHandle<P> {
    /// Bounded; sized so that a full queue means a fault, not load.
    pub commands: mpsc::Sender<Command<P>>,
    /// What each step did.
    pub events: mpsc::Receiver<Step>,
    /// How the thread stands.
    pub status: Arc<EngineStatus>,
    /// Ends after [`Command::Stop`], or when both channels are dropped.
    pub thread: JoinHandle<()>,
}

/// Starts the engine thread of a worker that runs at most `sequences` sequences at a time.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn<B: Backend>(
    backends: Vec<Arc<B>>,
    sequences: usize,
    worker_id: &str,
) -> std::io::Result<EngineHandle<B::Plan>> {
    // A start and a cancel for each sequence, and a stop.
    let (command_tx, commands) = mpsc::channel(2 * sequences + 1);
    let (events, event_rx) = mpsc::channel(EVENT_QUEUE);
    let status = Arc::new(EngineStatus::new());
    let metrics = EngineMetrics::new(worker_id);
    let shared = Arc::clone(&status);
    let thread = std::thread::Builder::new()
        .name(format!("engine {worker_id}"))
        .spawn(move || {
            let _life = Life(Arc::clone(&shared));
            let slots = backends.into_iter().map(Slot::new).collect();
            let mut thread = EngineThread {
                slots,
                commands,
                events,
                status: shared,
                metrics,
                batch: Vec::new(),
                began: SystemTime::now(),
            };
            thread.run();
        })?;
    Ok(EngineHandle {
        commands: command_tx,
        events: event_rx,
        status,
        thread,
    })
}

/// Says that the thread is gone, however it goes: after a panic, too.
struct Life(Arc<EngineStatus>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.has_work.store(false, Ordering::Relaxed);
        self.0.alive.store(false, Ordering::Release);
    }
}

struct EngineThread<B: Backend> {
    slots: Vec<Slot<B>>,
    commands: mpsc::Receiver<Command<B::Plan>>,
    events: mpsc::Sender<Step>,
    status: Arc<EngineStatus>,
    metrics: EngineMetrics,
    batch: Vec<SeqEvent>,
    /// When the step that `batch` tells of began.
    began: SystemTime,
}

impl<B: Backend> EngineThread<B> {
    fn run(&mut self) {
        // Room for the KV cache is taken before the worker says that it is ready.
        for slot in &mut self.slots {
            if let Err(message) = slot.start_engine() {
                tracing::error!(model = slot.backend.model().name, message, "no runner");
                return;
            }
        }
        self.publish();
        while self.take_commands() && self.flush() {
            self.publish();
            self.began = SystemTime::now();
            for slot in &mut self.slots {
                if slot.has_work() {
                    slot.step(&mut self.batch, &self.metrics);
                    self.status.steps.fetch_add(1, Ordering::Relaxed);
                    self.status.moved();
                }
            }
            self.publish();
            if self
                .slots
                .iter()
                .any(|slot| slot.restarts > RESTARTS_BEFORE_GIVING_UP)
            {
                tracing::error!("the engine keeps failing; giving up");
                self.give_up();
                return;
            }
        }
    }

    /// Takes what there is; waits only when there is nothing to compute and nothing to report. False:
    /// stop.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.batch.is_empty() && !self.slots.iter().any(Slot::has_work);
            let command = if idle {
                match self.commands.blocking_recv() {
                    Some(command) => command,
                    None => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(mpsc::error::TryRecvError::Empty) => return true,
                    Err(mpsc::error::TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Start {
                    model,
                    request,
                    plan,
                } => {
                    if idle {
                        self.status.moved();
                    }
                    self.start(model, request, plan);
                }
                Command::Cancel(seq) => self
                    .slots
                    .iter_mut()
                    .for_each(|slot| slot.cancel(seq, &mut self.batch)),
                Command::Stop => return false,
            }
        }
    }

    fn start(&mut self, model: usize, request: Request, plan: B::Plan) {
        let seq = request.id;
        let refused = match self.slots.get_mut(model) {
            Some(slot) => slot.start(request, plan, &mut self.batch).err(),
            None => Some(permanent("the worker has no such model")),
        };
        if let Some(error) = refused {
            self.batch.push(SeqEvent::Ended {
                seq,
                outcome: Err(error),
            });
        }
    }

    /// Hands over what happened. False: nobody is interested any more.
    fn flush(&mut self) -> bool {
        if self.batch.is_empty() {
            return true;
        }
        let step = Step {
            began: self.began,
            ended: SystemTime::now(),
            events: std::mem::take(&mut self.batch),
        };
        self.events.blocking_send(step).is_ok()
    }

    fn publish(&self) {
        let mut total = Stats::default();
        for stats in self.slots.iter().map(|slot| slot.seen) {
            total.running += stats.running;
            total.waiting += stats.waiting;
            total.blocks_free += stats.blocks_free;
            total.blocks_cached += stats.blocks_cached;
            total.blocks_total += stats.blocks_total;
        }
        let store = |to: &AtomicU32, value: usize| {
            to.store(u32::try_from(value).unwrap_or(u32::MAX), Ordering::Relaxed)
        };
        store(&self.status.running, total.running);
        store(&self.status.waiting, total.waiting);
        store(
            &self.status.blocks_free,
            total.blocks_free + total.blocks_cached,
        );
        let has_work = self.slots.iter().any(Slot::has_work);
        self.status.has_work.store(has_work, Ordering::Relaxed);
        self.metrics.standing(&total);
    }

    fn give_up(&mut self) {
        for slot in &mut self.slots {
            slot.fail_all("the engine gave up", &mut self.batch);
        }
        self.flush();
    }
}
