//! A JSON Web Token of whoever calls, and the key set of whoever runs the cluster.

use std::sync::LazyLock;

use conclave_coordinator::{auth::jwt::Verifier, config::JwtConfig};
use serde_json::Value;

use crate::{Limits, Target};

/// A token; or, after a `{`, a key set.
pub const TARGET: Target = Target {
    name: "jwt",
    run,
    seeds,
    words: &[
        ".",
        "..",
        "eyJhbGciOiJub25lIn0",
        "{\"keys\": [",
        "\"kty\": \"RSA\"",
        "\"kty\": \"EC\", \"crv\": \"P-256\"",
        "\"kid\": \"rsa\"",
        "\"alg\": \"HS256\"",
        "]}",
    ],
    inputs: 20_000,
    limits: Limits::SMALL,
};

/// A key, and the one token that it ever signed.
static RSA: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../../../coordinator/tests/fixtures/jwt_rs256.json");
    serde_json::from_str(text).expect("a fixture")
});

static VERIFIER: LazyLock<Verifier> =
    LazyLock::new(|| Verifier::parse(&set(), settings()).expect("a key set"));

fn settings() -> JwtConfig {
    JwtConfig {
        issuer: "https://issuer.example".to_owned(),
        audience: "conclave".to_owned(),
        ..JwtConfig::default()
    }
}

fn set() -> Vec<u8> {
    format!("{{\"keys\": [{}]}}", RSA["jwk"]).into_bytes()
}

fn signed() -> &'static str {
    RSA["token"].as_str().expect("a token")
}

fn run(input: &[u8]) {
    if input.first() == Some(&b'{') {
        if let Err(error) = Verifier::parse(input, settings()) {
            assert!(!error.to_string().is_empty());
        }
        return;
    }
    let Ok(token) = std::str::from_utf8(input) else {
        return;
    };
    match VERIFIER.caller(token) {
        Ok(caller) => assert_eq!((token, caller.tenant.as_str()), (signed(), "alice")),
        Err(status) => {
            let longest = token.split('.').max_by_key(|part| part.len());
            // Our own words are no secret, even if someone sends them: no word of theirs is so long.
            let word = |p: &str| p.len() > 16 && p.bytes().all(base64url);
            let repeated = longest.is_some_and(|p| word(p) && status.message().contains(p));
            assert!(!repeated, "a message shows a token: {status:?}");
        }
    }
}

fn base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn seeds() -> Vec<Vec<u8>> {
    vec![
        signed().as_bytes().to_vec(),
        set(),
        b"the JWT cannot be rea".to_vec(),
    ]
}
