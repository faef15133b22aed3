//! The tokens file: JSON lines of whoever runs the cluster.

use conclave_coordinator::auth::Tokens;

use crate::{Limits, Target};

/// The file's text.
pub const TARGET: Target = Target {
    name: "tokens_file",
    run,
    seeds,
    words: &[
        "{\"token\": \"",
        "\", \"tenant\": \"",
        "\", \"role\": \"",
        "\"}",
        "\n",
        "peer",
        "operator",
        "worker",
        "\\u0000",
    ],
    inputs: 60_000,
    limits: Limits::SMALL,
};

/// Stands in every seed: no message may repeat it.
const SECRET: &str = "hidden-words";

fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Tokens::parse(text) {
        Ok(tokens) => assert!(
            tokens
                .peer()
                .is_some_and(|token| token.as_encoded_bytes().len() >= 15)
        ),
        Err(error) => {
            let said = error.to_string();
            assert!(!said.contains(SECRET), "a message shows a token: {said}");
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let line = |role: &str| {
        format!("{{\"token\": \"{SECRET}-{role}\", \"tenant\": \"t\", \"role\": \"{role}\"}}\n")
    };
    let roles = ["submitter", "reviewer", "operator", "worker", "peer"];
    vec![
        roles.map(line).concat().into_bytes(),
        line("peer").into_bytes(),
        line("king").into_bytes(),
    ]
}
