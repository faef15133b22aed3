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
        coverage.merge(&outcome.coverage, true);
    }
    let missed = coverage.missed(SEEDS);
    assert!(missed.is_empty(), "{}\n{missed:#?}", coverage.table(SEEDS));
}

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
