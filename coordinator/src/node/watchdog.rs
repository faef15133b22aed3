//! Says of a node what its loop cannot: that it stands still.
//!
//! An fsync that hangs holds the loop, and with it everything that the node says
//! of itself. Others elect a leader; this one would go on saying that it leads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::NodeStatus;

/// When the loop last came round.
#[derive(Clone, Debug)]
pub struct Pulse {
    begun: Instant,
    beat_ms: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            beat_ms: Arc::default(),
        }
    }
}

impl Pulse {
    /// The loop came round.
    pub fn beat(&self) {
        self.beat_ms.store(self.now_ms(), Ordering::Release);
    }

    /// How long ago that was.
    pub fn since(&self) -> Duration {
        let beat_ms = self.beat_ms.load(Ordering::Acquire);
        Duration::from_millis(self.now_ms().saturating_sub(beat_ms))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Looks at `pulse` until the loop has ended. A loop that has not come round for
/// `longest` leads nobody; what it says once it goes on is the truth again.
pub async fn watch(pulse: Pulse, status: watch::Sender<NodeStatus>, longest: Duration) {
    let mut look = tokio::time::interval(longest / 4);
    loop {
        look.tick().await;
        if status.borrow().stopped.is_some() {
            return;
        }
        let found = status.send_if_modified(|s| {
            let stands = s.stopped.is_none() && !s.stuck && pulse.since() > longest;
            if stands {
                (s.stuck, s.serving) = (true, false);
            }
            stands
        });
        if found {
            let stands_ms = pulse.since().as_millis();
            tracing::error!(
                stands_ms,
                "this node's loop stands still: look at its disk; it leads nobody until it moves"
            );
        }
    }
}
