//! Both pure cores under the simulator: a fixed number of seeds, and the same bytes twice. More seeds:
//! `cargo run --release -p conclave-tests --bin sim -- --seeds 1000`.

use conclave_tests::sim::{Coverage, Options, run};

/// Seeds of every run of the tests.
const SEEDS: u64 = 200;

#[test]
fn no_law_breaks_under_faults() {
    let mut coverage = Coverage::default();
    for seed in 0..SEEDS {
        let options = Options::new(seed);
        let outcome = run(&options);
        if let Some(violation) = outcome.violation {
            panic!(
                "seed {seed} breaks \"{}\": {}\nagain: {}",
                violation.law,
                violation.what,
                options.rerun()
            );
        }
        coverage.merge(&outcome.coverage);
    }
    for (group, name, floor) in FLOORS {
        let met = coverage.count(group, name);
        assert!(
            met >= *floor,
            "{name}: met {met} times, at least {floor} are wanted"
        );
    }
}

/// What the seeds must have met, so that they prove something.
const FLOORS: &[(&str, &str, u64)] = &[
    ("faults", "node crashed", 200),
    ("faults", "node stood still", 50),
    ("faults", "worker crashed", 100),
    ("faults", "engine hung with work", 100),
    ("faults", "fsync failed", 50),
    ("faults", "network split", 50),
    ("faults", "one-way link lost", 50),
    ("faults", "message lost", 1_000),
    ("faults", "message doubled", 1_000),
    ("faults", "unsynced writes lost", 20),
    ("faults", "member removed", 50),
    ("deeds", "snapshot installed", 200),
    ("deeds", "lease withheld", 20),
    ("deeds", "exact answers compared", 500),
];

#[test]
fn a_seed_gives_the_same_story_twice() {
    for seed in [7, 8] {
        let options = Options {
            twice: true,
            ..Options::new(seed)
        };
        let (once, twice) = (run(&options), run(&options));
        assert!(once.lines > 100, "a story of {} lines", once.lines);
        assert_eq!(once, twice);
    }
}
