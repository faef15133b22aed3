//! Faults against real processes: scenarios that kill, stop, cut off, starve
//! and confuse a cluster under load, and what must hold after each.
//!
//! `cargo run -p conclave-tests --bin chaos` runs them; each needs its own
//! piece of machine ([`machine`]), and says so where that is missing.

mod arena;
mod caller;
mod checks;
mod clocks;
mod history;
mod load;
pub mod machine;
mod netns;
mod policy;
mod scenarios;
mod small_disk;
mod specs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use arena::Arena;
pub use caller::Caller;
pub use history::History;
pub use policy::RetryPolicy;
pub use scenarios::{Ground, SCENARIOS, Scenario};

use crate::Cluster;
use specs::{Essence, Kind};

/// Clients of a scenario.
const CLIENTS: usize = 4;
/// How long the load runs before the first fault.
const WARM_UP: Duration = Duration::from_millis(700);

/// A stream of numbers from one seed (SplitMix64): which choices a run makes.
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same choices.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n.max(1) as u64) as usize
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// One line of the table.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Faults injected.
    pub faults: usize,
    /// Jobs acknowledged.
    pub accepted: usize,
    /// Of these, ended as they must.
    pub answered: usize,
    /// Answers that differ from the undisturbed run, or are not whole.
    pub different: usize,
    /// Keys with more than one job.
    pub doubled: usize,
    /// Calls that failed although retried as the service config says.
    pub failed_calls: usize,
    /// Attempts that were made again.
    pub retries: usize,
    /// Calls whose order was checked.
    pub history: usize,
    /// The longest wait after a fault for an acknowledged submission, and for
    /// an answer to it.
    pub recovered: Option<(Duration, Duration)>,
    /// The whole scenario.
    pub took: Duration,
}

/// How a scenario ended.
#[derive(Debug)]
pub enum Outcome {
    /// It ran; what does not hold, if anything.
    Ran(Row, Vec<String>),
    /// This machine lacks something.
    Skipped(String),
}

/// What exact jobs answer where nothing fails.
pub struct Reference {
    kinds: Vec<Kind>,
    essences: BTreeMap<usize, Essence>,
}

impl Reference {
    /// Runs each exact kind once, on one coordinator and one worker.
    ///
    /// # Panics
    /// If the undisturbed cluster does not answer.
    pub async fn take() -> Reference {
        let cluster = Cluster::start(1, 1).await;
        let client = cluster.client();
        let kinds = specs::kinds();
        let mut essences = BTreeMap::new();
        for (index, kind) in kinds.iter().enumerate().filter(|(_, kind)| kind.exact) {
            let key = format!("reference-{}", kind.name);
            let id = client.submit(&key, &kind.spec).await.expect("accepted");
            let job = client.finished(&id).await;
            let essence = specs::essence(&job).unwrap_or_else(|| panic!("no answer: {job:?}"));
            essences.insert(index, essence);
        }
        Reference { kinds, essences }
    }
}

/// Runs one scenario on a cluster of its own.
///
/// # Panics
/// If the cluster does not start, or a step of the scenario cannot be done.
pub async fn run(scenario: &Scenario, reference: &Reference, seed: u64) -> Outcome {
    if let Some(why) = machine::missing(scenario.ground) {
        return Outcome::Skipped(why);
    }
    let started = Instant::now();
    let (places, site) = scenarios::prepare(scenario.ground);
    let cluster = Cluster::start_at(places).await;
    let history = Arc::new(History::default());
    let caller = Caller::new(&cluster.endpoints(), history.clone());
    let kinds = reference.kinds.clone();
    let load = load::Load::start(caller, kinds.clone(), CLIENTS, seed);
    let mut arena = Arena::new(cluster, site, load.shared.clone(), Dice::new(seed));
    // Faults hit a cluster at work.
    tokio::time::sleep(WARM_UP).await;
    (scenario.run)(&mut arena).await;
    arena.look_for_the_dead();
    let shared = load.finish().await;

    let accepted = shared.accepted();
    let mut row = Row {
        faults: arena.faults(),
        failed_calls: shared.caller.failed().len(),
        retries: shared.caller.retries(),
        recovered: arena.slowest(),
        ..Row::default()
    };
    let evidence = checks::Evidence {
        endpoints: &arena.cluster.endpoints(),
        accepted: &accepted,
        kinds: &kinds,
        references: &reference.essences,
    };
    let mut wrong = checks::check(&evidence, &mut row).await;
    wrong.extend(shared.wrong());
    wrong.extend(arena.wrong());
    if !scenario.calls_may_fail {
        wrong.extend(shared.caller.failed());
    }
    let (calls, violations) = history.check();
    row.history = calls;
    wrong.extend(violations);
    row.took = started.elapsed();
    if !wrong.is_empty() {
        wrong.push(format!("logs: {}", arena.cluster.keep().display()));
    }
    Outcome::Ran(row, wrong)
}
