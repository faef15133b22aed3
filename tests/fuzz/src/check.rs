//! What is asked of every input, whatever the target.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::{HEAP, Target};

/// What one input may cost. Generous, and far below what would hurt: the point is that cost follows the
/// input's length, not a number that the input names.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory held at once, bytes, for an input of no length.
    pub memory: usize,
    /// Bytes more for each byte of the input.
    pub memory_per_byte: usize,
    /// Processor time of the thread that parses.
    pub time: Duration,
}

impl Limits {
    /// For a parser of small text or messages.
    pub const SMALL: Limits = Limits {
        memory: 4 << 20,
        memory_per_byte: 4096,
        time: Duration::from_millis(500),
    };
}

/// Runs one input on this thread and holds it to the target's limits.
///
/// # Panics
/// On a finding.
pub fn run(target: &Target, input: &[u8]) {
    HEAP.reset_peak_usage();
    let (before, started) = (HEAP.current_usage(), thread_time());
    (target.run)(input);
    let took = thread_time().saturating_sub(started);
    let held = HEAP.peak_usage().saturating_sub(before);
    let Limits {
        memory,
        memory_per_byte,
        time,
    } = target.limits;
    let most = memory + memory_per_byte * input.len();
    assert!(
        held <= most,
        "{} bytes of input made {held} bytes of memory; {most} are allowed",
        input.len()
    );
    assert!(
        took <= time,
        "{} bytes of input took {took:?}; {time:?} are allowed",
        input.len()
    );
}

/// Processor time: other processes of the machine do not count.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}
