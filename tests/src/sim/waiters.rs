//! Who waits for an entry to be applied, and for a read to be confirmed.

use conclave_coordinator_core::{lead::Purpose, reads, waiters};

use super::cx::Addr;

/// Proposals that wait at a time; more are refused.
pub(super) const MOST_WAITERS: usize = 512;
/// Reads that wait at a time; more are refused.
pub(super) const MOST_READS: usize = 512;
/// How long a client's read waits, ms.
pub(super) const READ_MS: u64 = 5_000;

/// Proposals by the context that travels with their entries.
pub(super) type Waiters = waiters::Waiters<Waiter, u64>;
/// Reads on their way.
pub(super) type Reads = reads::Reads<Wanted, u64>;

/// Who waits for an entry.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A client's call.
    Call(Addr, u64),
    /// The leader of this term.
    Leader(u64, Purpose),
    /// Nobody: what it does shows in the state.
    Nobody,
}

/// What waits for a read point.
#[derive(Debug)]
pub(super) enum Wanted {
    /// A client's look at a job; and what had been applied somewhere when it came.
    Job(Addr, u64, String, u64),
    /// The leader of this term stood still, for so many times.
    Leader(u64, u64),
    /// A watcher's stream: is its job there?
    Watch(u64),
}
