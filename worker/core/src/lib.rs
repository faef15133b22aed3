//! The engine of a worker as a pure machine: it decides which tokens of which sequence are computed
//! in a step and where their KV lies, and leaves the computing to a [`Runner`].
//!
//! Nothing here knows a tensor, a text, a clock or a random number. One [`Engine::step`] is four
//! statements: schedule, run, complete, report. The plan ([`Batch`]) is the only thing that crosses to
//! the runner; [`Outcome`]s are the only thing that comes back.
//!
//! ```
//! use conclave_worker_core::{Engine, Event, Limits, Report, Request, SeqId, mock::MockRunner};
//!
//! let limits = Limits { blocks: 64, ..Limits::default() };
//! let mut engine = Engine::new(limits, MockRunner::new(limits.blocks))?;
//! engine.submit(Request::new(SeqId(1), vec![5, 6, 7], 4))?;
//! let mut report = Report::default();
//! let mut tokens = Vec::new();
//! while engine.has_work() {
//!     engine.step(&mut report)?;
//!     tokens.extend(report.events.iter().filter_map(|event| match event {
//!         Event::Token { token, .. } => Some(*token),
//!         _ => None,
//!     }));
//! }
//! assert_eq!(tokens.len(), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`sequence`] | requests, sequences and their lifecycle as types |
//! | [`chain`] | the block hash: names of KV blocks that are equal on every worker |
//! | [`block_pool`] | ref-counted blocks, the prefix cache, eviction |
//! | [`scheduler`] | how many tokens of each sequence this step; admission, preemption, sharing |
//! | [`limits`] | how much the engine takes on |
//! | [`batch`] | the plan |
//! | [`runner`] | the trait that computes a plan |
//! | [`engine`] | the four statements |
//! | [`report`] | what a step did |
//! | [`audit`] | the invariants, as a function |
//! | [`fence`] | whose word a worker takes |
//! | [`mock`] | a fake model for tests, benches and the simulator |
//!
//! Not here: sliding-window groups with pools of their own, spliced segments, KV tiers.

pub mod audit;
pub mod batch;
pub mod block_pool;
pub mod chain;
pub mod engine;
pub mod error;
pub mod fence;
pub mod limits;
pub mod mock;
pub mod report;
pub mod runner;
pub mod scheduler;
pub mod sequence;

mod admission;
mod claims;
mod lru;
mod names;
mod plan;

pub use audit::Fault;
pub use batch::{Batch, BatchEntry, Branch, CopyBlock};
pub use block_pool::{BLOCK, BlockId, BlockPool};
pub use chain::{BlockHash, Chain};
pub use engine::Engine;
pub use error::{EngineError, LimitsError, StepError};
pub use limits::Limits;
pub use report::{Event, Finished, Report, Stats};
pub use runner::{Next, Outcome, Runner};
pub use scheduler::Scheduler;
pub use sequence::{Fork, Lifecycle, Request, Retention, SeqId, StopReason};
