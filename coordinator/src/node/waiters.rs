//! Who waits for an entry, and who for a read point.

use std::time::Instant;

use conclave_coordinator_core::{Reply, lead::Purpose, reads, waiters};
use tokio::sync::oneshot;

use super::{Done, NodeError, Read};

/// Proposals that wait at a time; more are refused.
pub const MOST_WAITERS: usize = 65_536;
/// Reads that wait at a time; more are refused.
pub const MOST_READS: usize = 16_384;

/// Proposals that wait for their entry.
pub type Waiters = waiters::Waiters<Waiter, Instant>;
/// Reads that wait for their point.
pub type Reads = reads::Reads<Wanted, Instant>;

/// Whom to tell when an entry was applied.
pub enum Waiter {
    /// A caller.
    Call(oneshot::Sender<Result<Reply, NodeError>>),
    /// A change of the configuration.
    Change(Done),
    /// The leader, for a proposal of its own.
    Leader {
        /// The term that it leads: later ones count for themselves.
        term: u64,
        /// What it is for.
        purpose: Purpose,
    },
    /// Nobody: what it does shows in the state.
    Nobody,
}

/// What waits for a read point.
pub enum Wanted {
    /// A caller's read.
    Caller(Read),
    /// The leader itself, after its clock stood still (law 5).
    Leader {
        /// The term that it leads.
        term: u64,
        /// Which gap it asks about.
        pause: u64,
    },
}
