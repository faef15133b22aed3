//! One op at a time for all lanes: who takes which task, and when all have ended.
//!
//! A lane claims its own tasks from the front and those of others from the back. What two threads write to at
//! once, and what one waits for, lies in cache lines of its own: an op costs each thread a line from the
//! caller and the caller a line back.

use super::{IN_TASK, lock};
use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an idle thread spins before it sleeps, and a caller before it waits for the last task.
const SPIN: Duration = Duration::from_micros(50);

/// Spin iterations between two looks at the clock.
const SPINS_PER_LOOK: u32 = 64;

/// Most tasks of one hand-out: a lane keeps 16 bits for them.
pub(super) const MAX_TASKS: usize = u16::MAX as usize;

/// The op being handed out, called with a lane and a task: as a pointer without its lifetime.
type Task = *const (dyn Fn(usize, usize) + Sync);

/// Two cache lines: the processor fetches them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// What is left to do of a lane's share of the op.
#[derive(Default)]
struct Lane {
    /// Epoch (32 bits), end (16) and beginning (16) of the unclaimed tasks. One word, so that a late thread
    /// can never claim a task of an op that is over.
    left: AtomicU64,
    /// Written only while no task is claimed; read only by those who have claimed one of this lane's.
    task: UnsafeCell<Option<Task>>,
}

impl Lane {
    fn is_done(&self) -> bool {
        let left = self.left.load(Ordering::Acquire);
        (left >> 16) & 0xFFFF <= left & 0xFFFF
    }

    /// Takes the first task that is left, or the last one, with the op that it belongs to.
    fn claim(&self, first: bool) -> Option<(usize, Option<Task>)> {
        let mut left = self.left.load(Ordering::Acquire);
        loop {
            let (end, next) = ((left >> 16) & 0xFFFF, left & 0xFFFF);
            if next >= end {
                return None;
            }
            let (task, after) = match first {
                true => (next, left + 1),
                false => (end - 1, left - (1 << 16)),
            };
            let taken =
                self.left
                    .compare_exchange_weak(left, after, Ordering::AcqRel, Ordering::Acquire);
            match taken {
                // SAFETY: with a claim the op is not over, and `task` was written before the claim.
                Ok(_) => return Some((task as usize, unsafe { *self.task.get() })),
                Err(now) => left = now,
            }
        }
    }
}

/// What callers and threads share.
pub(super) struct Shared {
    lanes: Box<[Apart<Lane>]>,
    /// Tasks that others than callers have ended, of all ops so far.
    ended: Apart<AtomicUsize>,
    caller_waits: AtomicBool,
    panicked: AtomicBool,
    payload: Mutex<Option<Box<dyn Any + Send>>>,
    stopping: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    done: Condvar,
}

// SAFETY: a lane's `task` is the only field that is not `Sync` by itself. It is written by the one caller
// that holds `Pool::caller` once all tasks of the op before have ended, and read only between a claim and the
// end of the claimed task; `left` orders the write before the read. The closure behind it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only ever followed while the caller that lent it waits.
unsafe impl Send for Shared {}

impl Shared {
    /// For `lanes` threads, the caller among them.
    pub(super) fn new(lanes: usize) -> Shared {
        Shared {
            lanes: (0..lanes).map(|_| Apart::default()).collect(),
            ended: Apart::default(),
            caller_waits: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            payload: Mutex::new(None),
            stopping: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
        }
    }

    /// Ends the threads once they are idle.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(lock(&self.sleep));
        self.wake.notify_all();
    }

    /// Publishes one op, helps with it, and waits for its last task. The caller holds `Pool::caller`; there are
    /// at most [`MAX_TASKS`].
    pub(super) fn hand_out(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        // SAFETY: only the lifetime is dropped; this function returns after the last use.
        let task: Task = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Task>(f) };
        let ended = self.ended.0.load(Ordering::Acquire);
        let share = |lane: usize| ((tasks * lane).div_ceil(self.lanes.len())) as u64;
        // The caller's own comes last: others have it from a way off.
        for (lane, Apart(to)) in self.lanes.iter().enumerate().rev() {
            // SAFETY: every task of the op before has ended, so nobody has a claim and nobody reads `task`.
            unsafe { *to.task.get() = Some(task) };
            let epoch = (to.left.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
            let left = epoch | share(lane + 1) << 16 | share(lane);
            to.left.store(left, Ordering::Release);
        }
        // Between what was published and the question who sleeps; `sleep` has its like.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
        let mine = self.help(0);
        self.wait_for(ended.wrapping_add(tasks - mine));
        if self.panicked.swap(false, Ordering::Relaxed)
            && let Some(payload) = lock(&self.payload).take()
        {
            resume_unwind(payload);
        }
    }

    /// Claims and runs tasks until none is left; gives how many they were.
    fn help(&self, lane: usize) -> usize {
        let mut count = 0;
        for other in 0..self.lanes.len() {
            let Apart(from) = &self.lanes[(lane + other) % self.lanes.len()];
            while let Some((index, task)) = from.claim(other == 0) {
                if let Some(task) = task
                    && !self.panicked.load(Ordering::Relaxed)
                {
                    // SAFETY: `hand_out` keeps the closure borrowed until the claimed task has ended.
                    self.run_task(|| unsafe { (*task)(lane, index) });
                }
                count += 1;
            }
        }
        count
    }

    fn run_task(&self, task: impl FnOnce()) {
        IN_TASK.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(task));
        IN_TASK.set(false);
        if let Err(payload) = outcome {
            lock(&self.payload).get_or_insert(payload);
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// The life of a pool thread.
    pub(super) fn work(&self, lane: usize) {
        let Apart(own) = &self.lanes[lane];
        let idle = || own.is_done() && !self.stopping.load(Ordering::Relaxed);
        loop {
            let count = self.help(lane);
            if count > 0 {
                self.ended.0.fetch_add(count, Ordering::SeqCst);
                if self.caller_waits.load(Ordering::SeqCst) {
                    drop(lock(&self.sleep));
                    self.done.notify_all();
                }
            }
            if !spin_while(&idle) {
                self.sleep_while(&idle);
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Sleeps until there is something to do.
    fn sleep_while(&self, idle: &impl Fn() -> bool) {
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        // See `hand_out`: either it sees the sleeper, or this sees what it published.
        fence(Ordering::SeqCst);
        while idle() {
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits until others have ended so many tasks.
    fn wait_for(&self, ended: usize) {
        let busy = || self.ended.0.load(Ordering::SeqCst) != ended;
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
