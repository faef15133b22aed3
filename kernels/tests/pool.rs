//! The compute pool: every task once, panics to the caller, no wait without an end.

use conclave_kernels::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn every_task_runs_exactly_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads);
        for tasks in [0, 1, 2, 7, 100, 70_000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                "{threads} {tasks}"
            );
        }
    }
}

#[test]
fn many_short_ops_in_a_row_lose_no_task() {
    let pool = Pool::new(4);
    let total = AtomicUsize::new(0);
    for _ in 0..20_000 {
        pool.run(5, &|i| {
            total.fetch_add(i, Ordering::Relaxed);
        });
    }
    assert_eq!(total.into_inner(), 20_000 * 10);
}

#[test]
fn tasks_run_side_by_side() {
    let pool = Pool::new(3);
    let barrier = Barrier::new(3);
    // Each task waits for the two others: one thread alone would never end.
    pool.run(3, &|_| {
        barrier.wait();
    });
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let pool = Pool::new(3);
    for guilty in [0, 5, 99] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|i| assert!(i != guilty, "task {guilty} failed"));
        }));
        let payload = result.expect_err("the panic is passed on");
        let message = payload
            .downcast_ref::<String>()
            .expect("a formatted message");
        assert_eq!(*message, format!("task {guilty} failed"));
        let done = AtomicUsize::new(0);
        pool.run(50, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 50);
    }
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = Pool::new(2);
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    pool.run(6, &|_| {
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 4 * 500 * 6);
}

#[test]
fn a_task_may_call_the_pool() {
    let pool = Pool::new(2);
    let total = AtomicUsize::new(0);
    pool.run(4, &|_| {
        pool.run(4, &|_| {
            total.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(total.into_inner(), 16);
}

/// CPU time this process has used.
#[cfg(target_os = "linux")]
fn cpu_time() -> Duration {
    // SAFETY: an all-zero `timespec` is valid, and the call fills it in.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        assert_eq!(
            libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time),
            0
        );
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The other tests of this file run beside it in the same process, so it looks again until they are quiet.
#[test]
#[cfg(target_os = "linux")]
fn an_idle_pool_uses_no_processor_time() {
    let pool = Pool::new(4);
    pool.run(4, &|_| {});
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        let before = cpu_time();
        std::thread::park_timeout(Duration::from_millis(200));
        if cpu_time() - before < Duration::from_millis(20) {
            return;
        }
    }
    panic!("the pool never came to rest");
}

#[test]
fn sleeping_threads_wake_for_the_next_op() {
    let pool = Pool::new(2);
    for _ in 0..5 {
        std::thread::park_timeout(Duration::from_millis(5));
        let barrier = Barrier::new(2);
        pool.run(2, &|_| {
            barrier.wait();
        });
    }
}

#[test]
fn steps_take_turns_in_the_order_of_their_coming() {
    let pool = Pool::new(2);
    let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let first = pool.lend();
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let _lent = pool.lend();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                    pool.run(3, &|_| {});
                    inside.fetch_sub(1, Ordering::SeqCst);
                    turns.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        assert_eq!(turns.load(Ordering::SeqCst), 0);
        drop(first);
    });
    assert_eq!(turns.into_inner(), 800);
}

#[test]
fn a_step_that_panics_gives_the_pool_back() {
    let pool = Pool::new(2);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _lent = pool.lend();
        pool.run(2, &|_| panic!("in a task"));
    }));
    assert!(panicked.is_err());
    drop(pool.lend());
}
