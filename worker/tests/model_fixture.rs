//! The default model agrees with the reference implementation.

use std::path::{Path, PathBuf};

use conclave_kernels::Activation;
use conclave_worker::model::check::{CheckOptions, CheckReport, run_check};

/// The model file: a missing one fails the tests, for they say nothing without it.
fn model() -> PathBuf {
    let given = std::env::var_os("CONCLAVE_TEST_MODEL").map(PathBuf::from);
    given.unwrap_or_else(|| {
        conclave_worker::model::pull::resolve("smollm2-135m").unwrap_or_else(|error| {
            panic!("{error}\n`make test` fetches it; so does `conclave model pull smollm2-135m`")
        })
    })
}

fn check(activation: Activation) -> CheckReport {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2.json");
    let opts = CheckOptions {
        activations: vec![activation],
        ..CheckOptions::default()
    };
    run_check(&model(), &fixture, &opts).unwrap()
}

#[test]
fn f32_activations_give_every_token_and_log_probability_of_the_reference() {
    let report = check(Activation::F32);
    assert!(report.passed(), "{report}");
}

#[test]
fn int8_activations_stay_close_to_the_reference() {
    let report = check(Activation::Int8);
    assert!(report.passed(), "{report}");
}
