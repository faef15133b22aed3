//! `identity.json` of a data folder.

use std::fs;

use conclave_coordinator::disk::identity::Identity;

use crate::{Limits, Target};

/// The file's bytes.
pub const TARGET: Target = Target {
    name: "identity",
    run,
    seeds,
    words: &[
        "\"format_version\":",
        "\"node_id\":",
        "\"cluster_id\":",
        "null",
        "true",
        ",",
        "[]",
    ],
    inputs: 300,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let folder = super::model::folder();
    let path = folder.path().join("identity.json");
    fs::write(&path, input).expect("a file");
    let Ok(identity) = Identity::open(folder.path()) else {
        assert_eq!(
            fs::read(&path).expect("the file is still there"),
            input,
            "a file that is refused is left as it is"
        );
        return;
    };
    let known = (identity.node_id(), identity.cluster_id().map(str::to_owned));
    assert_ne!(known.0, 0);
    drop(identity);
    let again = Identity::open(folder.path()).expect("what was read reads again");
    assert_eq!(
        (again.node_id(), again.cluster_id().map(str::to_owned)),
        known
    );
}

fn seeds() -> Vec<Vec<u8>> {
    let blank = br#"{"format_version":1,"node_id":77,"cluster_id":""}"#;
    let bound = br#"{"format_version": 1, "node_id": 9223372036854775807, "cluster_id": "c-1"}"#;
    let newer = br#"{"format_version":2,"node_id":{"a":1}}"#;
    vec![blank.to_vec(), bound.to_vec(), newer.to_vec()]
}
