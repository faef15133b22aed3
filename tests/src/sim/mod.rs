//! The simulator: both pure cores in one seeded event loop.
//!
//! There is no runtime, no wall clock and no order of a hash map: a run is a function of its seed. N
//! coordinators (raft node and replicated state of the core, a simulated shell, a disk that forgets),
//! workers (the engine of the core over its mock runner) and clients talk over a network that delays,
//! loses, doubles, reorders and cuts. After so many steps faults stop, and the world must come to rest.
//!
//! | part | what it is |
//! |---|---|
//! | `world` | the loop |
//! | `processes` | how they begin and end |
//! | `coordinator`, `carry`, `calls`, `leader`, `sessions`, `waiters` | a coordinator and its shell |
//! | `disk` | lost writes, torn tails, failing fsync |
//! | `worker`, `attempts`, `mind` | a worker, and what its mock model says |
//! | `blobs` | payloads by hash: on a majority before they are named, fetched where missing |
//! | `client` | submissions with keys, retries, cancellations, linearizable reads |
//! | `watching`, `watcher` | streams of events and text, from a leader or passed on; who reads them |
//! | `operator`, `faults` | changes of members; what goes wrong |
//! | `invariants` | what must hold, one law a file |
//! | `oracle` | what an exact job answers where nothing fails |
//! | `coverage`, `floors` | what runs met, and what they must meet |
//! | `story`, `words` | what happened, line by line |
//!
//! Not simulated: gRPC, TLS, tokens of callers, the audit's signatures.

mod attempts;
mod blobs;
mod calls;
mod carry;
mod client;
mod clocks;
mod coordinator;
mod coverage;
mod cx;
mod disk;
mod faults;
mod floors;
mod invariants;
mod leader;
pub(crate) mod mind;
mod operator;
mod oracle;
mod processes;
mod rng;
mod sessions;
mod story;
mod waiters;
mod watcher;
mod watching;
mod words;
mod worker;
mod world;

pub use coverage::{Coverage, ENOUGH};
pub use invariants::Violation;

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The world's seed.
    pub seed: u64,
    /// Events until faults stop.
    pub steps: u64,
    /// Keep the story's digest, to compare with a second run.
    pub twice: bool,
    /// Print the story.
    pub trace: bool,
}

impl Options {
    /// Events until faults stop, unless told otherwise.
    pub const STEPS: u64 = 6_000;

    /// A plain run of a seed.
    pub fn new(seed: u64) -> Options {
        Options {
            seed,
            steps: Options::STEPS,
            twice: false,
            trace: false,
        }
    }

    /// The command that runs this again, telling its story.
    pub fn rerun(&self) -> String {
        let Options { seed, steps, .. } = self;
        format!(
            "cargo run --release -p conclave-tests --bin sim -- --seed {seed} --steps {steps} --trace"
        )
    }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The world's seed.
    pub seed: u64,
    /// Events.
    pub steps: u64,
    /// Virtual time that passed, ms.
    pub virtual_ms: u64,
    /// Entries that were applied.
    pub commands: u64,
    /// Jobs that ended and were sealed.
    pub jobs: u64,
    /// The first law that did not hold.
    pub violation: Option<Violation>,
    /// What it met.
    pub coverage: Coverage,
    /// Lines of its story (0 unless it was kept).
    pub lines: u64,
    /// Hash over the story's bytes.
    pub digest: String,
}

/// Runs one world to its end. A panic anywhere in it is a law that did not hold.
pub fn run(options: &Options) -> Outcome {
    caught(options.seed, || world::World::new(options).run(options))
}

fn caught(seed: u64, run: impl FnOnce() -> Outcome) -> Outcome {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Outcome {
            seed,
            steps: 0,
            virtual_ms: 0,
            commands: 0,
            jobs: 0,
            violation: Some(Violation {
                law: "nothing panics",
                what: said.unwrap_or_default(),
            }),
            coverage: Coverage::default(),
            lines: 0,
            digest: String::new(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_seed() {
        let outcome = caught(7, || panic!("a block was freed twice"));
        let violation = outcome.violation.expect("it is told");
        assert_eq!((outcome.seed, violation.law), (7, "nothing panics"));
        assert_eq!(violation.what, "a block was freed twice");
    }
}
