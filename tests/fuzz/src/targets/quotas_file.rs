//! The quotas file: TOML of whoever runs the cluster, read while it serves.

use conclave_coordinator::quotas;

use crate::{Limits, Target};

/// The file's text.
pub const TARGET: Target = Target {
    name: "quotas_file",
    run,
    seeds,
    words: &[
        "[default]\n",
        "[tenant.a]\n",
        "[tenant]\n",
        "live_jobs = ",
        "running_agents = ",
        "tokens_per_minute = ",
        "18446744073709551615",
        "\n",
        "0",
        "{}",
    ],
    inputs: 10_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match quotas::parse(text) {
        Ok(quotas) => {
            let named = quotas.named().map(|name| quotas.of(name));
            for limits in named.chain([quotas.of("nobody")]) {
                assert_ne!(limits.tokens_per_minute, Some(0), "never paid off");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let text = "[default]\nlive_jobs = 10\nrunning_agents = 4\n\n[tenant.acme]\ntokens_per_minute = 60000\n";
    vec![text.as_bytes().to_vec()]
}
