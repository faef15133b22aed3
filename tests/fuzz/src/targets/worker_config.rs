//! The worker's TOML file.

use conclave_worker::Config;

use crate::{Limits, Target};

/// The file's text.
pub const TARGET: Target = Target {
    name: "worker_config",
    run,
    seeds,
    words: &[
        " = ",
        "\n",
        "true",
        "\"\"",
        "[",
        "]",
        "[[models]]\n",
        "path",
        "name",
        "kv_dtype",
        "coordinators",
        "'''",
    ],
    inputs: 15_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Config::from_toml(text) {
        Ok(config) => config.check().expect("a parsed config was checked"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("seeds/worker.toml").to_vec()]
}
