//! The coordinator's TOML file.

use std::net::SocketAddr;

use conclave_coordinator::Config;
use toml::Table;

use crate::{Limits, Target};

/// The file's text.
pub const TARGET: Target = Target {
    name: "coordinator_config",
    run,
    seeds,
    words: &[
        " = ",
        "\n",
        "true",
        "\"\"",
        "[",
        "]",
        "listen",
        "tick_ms",
        "data_dir",
        "127.0.0.1:0",
        "[[a]]\n",
        "'''",
        "1979-05-27T07:32:00Z",
    ],
    inputs: 10_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if names_a_host(text) {
        return;
    }
    match Config::parse(text) {
        Ok(config) => {
            config.check().expect("a parsed config was checked");
            let _ = (config.listen_addr(), config.http_addr());
            let _ = (config.tick(), config.request_timeout(), config.election());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The check would ask the network for its address.
fn names_a_host(text: &str) -> bool {
    let table: Table = toml::from_str(text).unwrap_or_default();
    ["listen", "http_listen"].iter().any(|key| {
        let address = table.get(*key).and_then(toml::Value::as_str);
        address.is_some_and(|a| !a.is_empty() && a.parse::<SocketAddr>().is_err())
    })
}

fn seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("seeds/coordinator.toml").to_vec()]
}
