//! Tokenizing and compiling grammars: work of milliseconds to seconds that neither the engine's thread
//! nor the runtime's may do. A bounded number at a time, a bounded queue behind.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// Runs closures on the runtime's blocking threads, in the order of their arrival.
pub struct Blocking<T> {
    running: JoinSet<(T, Duration)>,
    waiting: VecDeque<Work<T>>,
    at_a_time: usize,
    queue: usize,
}

impl<T: Send + 'static> Blocking<T> {
    /// So many at a time, and so many waiting.
    pub fn new(at_a_time: usize, queue: usize) -> Self {
        Self {
            running: JoinSet::new(),
            waiting: VecDeque::new(),
            at_a_time,
            queue,
        }
    }

    /// Runs `work`, whose panic becomes `panicked`. False: the queue is full, nothing will run.
    pub fn run(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        panicked: impl FnOnce() -> T + Send + 'static,
    ) -> bool {
        if self.waiting.len() >= self.queue {
            return false;
        }
        self.waiting.push_back(Box::new(|| {
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| panicked())
        }));
        self.fill();
        true
    }

    /// The next result, with the time it took. Pending for ever while nothing runs; may be dropped and
    /// asked again.
    pub async fn next(&mut self) -> (T, Duration) {
        loop {
            match self.running.join_next().await {
                Some(Ok(done)) => {
                    self.fill();
                    return done;
                }
                // Only if the runtime shuts down: panics are caught.
                Some(Err(error)) => tracing::debug!(%error, "blocking work was dropped"),
                None => std::future::pending().await,
            }
        }
    }

    fn fill(&mut self) {
        while self.running.len() < self.at_a_time {
            let Some(work) = self.waiting.pop_front() else {
                return;
            };
            self.running.spawn_blocking(move || {
                let began = Instant::now();
                (work(), began.elapsed())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_result_and_the_queue_is_bounded() {
        let mut blocking = Blocking::new(1, 2);
        assert!(blocking.run(|| panic!("asked to"), || -1));
        let mut taken = 0;
        while blocking.run(|| 1, || -1) {
            taken += 1;
        }
        assert!(taken <= 2);
        let mut sum = 0;
        for _ in 0..=taken {
            sum += blocking.next().await.0;
        }
        assert_eq!(sum, taken - 1);
    }
}
