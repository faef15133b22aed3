//! The compute pool: a few threads that are lent to one caller for one op after another, and to one
//! worker for one step after another ([`Pool::lend`]).
//!
//! A model step is about 200 short ops, so handing one out must cost about a microsecond: idle
//! threads spin for [`SPIN`] after the last op, then sleep until the next one. Tasks of an op are
//! claimed one by one from a shared counter, which evens out cores that others use too.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread spins before it sleeps, and a caller before it waits for the last task.
const SPIN: Duration = Duration::from_micros(50);

/// Spin iterations between two looks at the clock.
const SPINS_PER_LOOK: u32 = 64;

/// Most tasks of one hand-out: the ticket keeps 16 bits for them. More are handed out in parts.
const MAX_TASKS: usize = u16::MAX as usize;

/// The op being handed out, called with a lane and a task: as a pointer without its lifetime.
type Task = *const (dyn Fn(usize, usize) + Sync);

thread_local! {
    /// Set while this thread runs a task: a nested `run` then works alone instead of waiting for itself.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// What callers and threads share.
struct Shared {
    /// Epoch (32 bits), tasks (16), next unclaimed task (16). One word, so that a late thread can
    /// never claim a task of an op that is over.
    ticket: AtomicU64,
    /// Tasks of the current op that have not ended.
    pending: AtomicUsize,
    /// Written only while no task is claimed; read only by those who have claimed one.
    task: UnsafeCell<Option<Task>>,
    panicked: AtomicBool,
    payload: Mutex<Option<Box<dyn Any + Send>>>,
    stopping: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    caller_waits: AtomicBool,
    done: Condvar,
}

// SAFETY: `task` is the only field that is not `Sync` by itself. It is written by the one caller that
// holds `Pool::caller` while `pending` is 0, and read only between a successful claim and the
// decrement of `pending` that follows it; the ticket orders the write before the read. The closure
// behind it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only ever followed while the caller that lent it waits.
unsafe impl Send for Shared {}

/// A pool of compute threads. One a process; `run` lends all of it to one caller at a time.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    caller: Mutex<()>,
    queue: Mutex<Queue>,
    next: Condvar,
    handles: Vec<JoinHandle<()>>,
}

/// Who waits for the pool: first come, first served. A mutex alone would let the thread that gives the pool
/// back take it again before any other wakes.
#[derive(Default)]
struct Queue {
    /// The number of whoever comes next.
    tail: u64,
    /// The number of whoever has the pool, or may take it.
    head: u64,
}

/// The pool is this caller's until this is dropped.
#[must_use = "the pool is given back when this is dropped"]
pub struct Lent<'a> {
    pool: &'a Pool,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        lock(&self.pool.queue).head += 1;
        self.pool.next.notify_all();
    }
}

impl Pool {
    /// Starts a pool of `threads` (at least 1), the caller of [`Pool::run`] among them.
    ///
    /// Where the system refuses threads, the pool is smaller.
    pub fn new(threads: usize) -> Arc<Pool> {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            payload: Mutex::new(None),
            stopping: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            caller_waits: AtomicBool::new(false),
            done: Condvar::new(),
        });
        let start = |i: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("compute-{i}"))
                .spawn(move || shared.work(i))
                .ok()
        };
        let handles: Vec<_> = (1..threads.max(1)).map_while(start).collect();
        let threads = handles.len() + 1;
        Arc::new(Pool {
            shared,
            threads,
            caller: Mutex::new(()),
            queue: Mutex::default(),
            next: Condvar::new(),
            handles,
        })
    }

    /// Lends the pool for a whole step, in the order of the calls. Two workers of a process whose steps ran
    /// at once would evict each other's weights and KV from the caches between any two ops, and both would
    /// end late; so they take turns.
    ///
    /// It holds back only others who ask by this call. A thread that has the pool must not ask again: it
    /// would wait for itself.
    pub fn lend(&self) -> Lent<'_> {
        let mut queue = lock(&self.queue);
        let turn = queue.tail;
        queue.tail += 1;
        while queue.head != turn {
            queue = self
                .next
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Lent { pool: self }
    }

    /// Threads that share the tasks of a call, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Threads this process may use: the cgroup's CPU quota and the affinity mask, at least 1.
    pub fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get())
    }

    /// Calls `f(0), f(1), … f(tasks - 1)` on the pool's threads, each once, and returns when all have ended.
    ///
    /// Callers wait for each other. A task that panics makes this call panic with the same payload
    /// once the running tasks have ended; those not yet begun are skipped. Inside a task the call
    /// runs on the same thread alone.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        self.run_lanes(tasks, &|_lane, task| f(task));
    }

    /// As [`Pool::run`], but `f` is also told its lane, which is below [`Pool::threads`] and comes first: tasks
    /// of this call that run at the same time have different lanes, and so may have memory of their own.
    pub fn run_lanes(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.threads == 1 || IN_TASK.get() {
            (0..tasks).for_each(|task| f(0, task));
            return;
        }
        let _turn = lock(&self.caller);
        let mut first = 0;
        while first < tasks {
            let part = (tasks - first).min(MAX_TASKS);
            self.shared.hand_out(part, &|lane, i| f(lane, first + i));
            first += part;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for handle in self.handles.drain(..) {
            // A compute thread catches its tasks' panics, so it ends without one.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// Publishes one op, helps with it, and waits for its last task. The caller holds `Pool::caller`.
    fn hand_out(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        // SAFETY: only the lifetime is dropped; this function returns after the last use.
        let task: Task = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Task>(f) };
        // SAFETY: `pending` is 0, so nobody has a claim and nobody reads `task`.
        unsafe { *self.task.get() = Some(task) };
        self.pending.store(tasks, Ordering::Relaxed);
        let epoch = (self.ticket.load(Ordering::Relaxed) >> 32) as u32;
        let ticket = (u64::from(epoch.wrapping_add(1)) << 32) | ((tasks as u64) << 16);
        self.ticket.store(ticket, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
        self.help(0);
        self.wait_done();
        if self.panicked.swap(false, Ordering::Relaxed)
            && let Some(payload) = lock(&self.payload).take()
        {
            resume_unwind(payload);
        }
    }

    /// Claims and runs tasks until none is left.
    fn help(&self, lane: usize) {
        while let Some(i) = self.claim() {
            if !self.panicked.load(Ordering::Relaxed) {
                self.run_task(lane, i);
            }
            if self.pending.fetch_sub(1, Ordering::SeqCst) == 1
                && self.caller_waits.load(Ordering::SeqCst)
            {
                drop(lock(&self.sleep));
                self.done.notify_all();
            }
        }
    }

    fn run_task(&self, lane: usize, i: usize) {
        // SAFETY: the caller holds claim `i`, so the op is not over and `task` was written before the claim.
        let task = unsafe { *self.task.get() };
        let Some(task) = task else { return };
        IN_TASK.set(true);
        // SAFETY: `hand_out` keeps the closure borrowed until `pending` is 0, which is after this task.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*task)(lane, i) }));
        IN_TASK.set(false);
        if let Err(payload) = outcome {
            lock(&self.payload).get_or_insert(payload);
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the next task of the current op, if one is left.
    fn claim(&self) -> Option<usize> {
        let mut ticket = self.ticket.load(Ordering::Acquire);
        loop {
            let (tasks, next) = ((ticket >> 16) & 0xFFFF, ticket & 0xFFFF);
            if next >= tasks {
                return None;
            }
            match self.ticket.compare_exchange_weak(
                ticket,
                ticket + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(next as usize),
                Err(now) => ticket = now,
            }
        }
    }

    /// The life of a pool thread.
    fn work(&self, lane: usize) {
        loop {
            self.help(lane);
            let idle = || {
                let ticket = self.ticket.load(Ordering::SeqCst);
                (ticket >> 16) & 0xFFFF <= ticket & 0xFFFF && !self.stopping.load(Ordering::SeqCst)
            };
            if !spin_while(&idle) {
                let mut guard = lock(&self.sleep);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while idle() {
                    guard = self
                        .wake
                        .wait(guard)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Waits until the last claimed task has ended.
    fn wait_done(&self) {
        let busy = || self.pending.load(Ordering::SeqCst) > 0;
        if spin_while(&busy) {
            return;
        }
        let mut guard = lock(&self.sleep);
        self.caller_waits.store(true, Ordering::SeqCst);
        while busy() {
            guard = self
                .done
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_waits.store(false, Ordering::SeqCst);
    }
}

/// Spins while `condition` holds, for at most [`SPIN`]; true if it ceased to hold.
fn spin_while(condition: &impl Fn() -> bool) -> bool {
    let mut began = None;
    loop {
        for _ in 0..SPINS_PER_LOOK {
            if !condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if began.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return !condition();
        }
    }
}

/// A mutex here guards no invariant that a panic could break.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
