//! Was this process standing still? Then the world may have moved on (law 5).

use super::Leader;

/// When the clock was last looked at, and what followed from it.
#[derive(Debug)]
pub(super) struct Clock {
    awake_ms: u64,
    /// Gaps so far: an answer to an earlier question says nothing about a later gap.
    pauses: u64,
    /// Stands until the last gap's question is answered.
    paused: bool,
    /// The last gap's question is to be asked.
    unasked: bool,
}

impl Clock {
    pub(super) fn new(now_ms: u64) -> Clock {
        Clock {
            awake_ms: now_ms,
            pauses: 0,
            paused: false,
            unasked: false,
        }
    }

    pub(super) fn stood_still(&self) -> bool {
        self.paused
    }

    /// The question to ask, once a gap.
    pub(super) fn question(&mut self) -> Option<u64> {
        std::mem::take(&mut self.unasked).then_some(self.pauses)
    }
}

impl Leader {
    /// Call this whenever the process wakes, before it does anything with what came: the words may
    /// have come to a process that stood still while another was elected. Returns how long it
    /// stood still, ms, if that was longer than an election takes: from then on nothing leaves
    /// before [`Leader::confirmed`].
    pub fn look_at_clock(&mut self, now_ms: u64) -> Option<u64> {
        let clock = &mut self.clock;
        let gap = now_ms.saturating_sub(std::mem::replace(&mut clock.awake_ms, now_ms));
        if gap <= self.settings.election_ms {
            return None;
        }
        clock.pauses += 1;
        (clock.paused, clock.unasked) = (true, true);
        Some(gap)
    }

    /// A quorum confirmed the leadership after this pause of the clock.
    pub fn confirmed(&mut self, pause: u64) {
        if pause == self.clock.pauses {
            self.clock.paused = false;
        }
    }
}
