//! The compute pool: a few threads that are lent to one caller for one op after another, and to one
//! worker for one step after another ([`Pool::lend`]).
//!
//! A model step is about 200 short ops, so handing one out must cost well below a microsecond: idle
//! threads spin for a while after the last op, then sleep until the next one. Each thread has a share of an
//! op's tasks, and helps others with theirs once it is through, which evens out cores that others use too.

mod hand_out;

use hand_out::{MAX_TASKS, Shared};
use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

thread_local! {
    /// Set while this thread runs a task: a nested `run` then works alone instead of waiting for itself.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

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
        let shared = Arc::new(Shared::new(threads.max(1)));
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
        self.shared.stop();
        for handle in self.handles.drain(..) {
            // A compute thread catches its tasks' panics, so it ends without one.
            let _ = handle.join();
        }
    }
}

/// A mutex here guards no invariant that a panic could break.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
