//! Law 1 across programs: what an older program wrote is read as it meant it, and applied as it did.
//!
//! `old_logs/v1.txt` was written by the core of commit 452a8de, the last that knew version 1 only;
//! `v2.txt` by that of 09dba39, the last that knew version 2 and none above; `v3.txt` by that of 21bb2fa,
//! which introduced version 3. A line is an entry: its index, its bytes, and the digest of the state that the
//! old program came to behind it; the last line is that program's snapshot. Never made anew: a
//! difference means that two programs apply one log differently, which needs a log version of its own.

use conclave_proto::LOG_VERSION;

use crate::{
    State, codec, snapshot,
    testkit::old_log::{digest, hex, read, write},
};

/// By log version, from 1 on. A new one begins as an empty file: a test says what belongs there.
const FIXTURES: [&str; LOG_VERSION as usize] = [
    include_str!("old_logs/v1.txt"),
    include_str!("old_logs/v2.txt"),
    include_str!("old_logs/v3.txt"),
];

#[test]
fn logs_of_older_programs_are_applied_as_those_did() {
    for (fixture, version) in FIXTURES.iter().zip(1..) {
        let (lines, ..) = read(fixture);
        assert!(lines.len() >= 100, "{} entries", lines.len());
        let mut state = State::new();
        for line in lines {
            let command = codec::decode(&line.entry).expect("it reads");
            assert_eq!(
                hex(&codec::encode(&command)),
                hex(&line.entry),
                "a field is lost"
            );
            state.apply(line.index, 1, &command);
            let (index, mine) = (line.index, digest(&state));
            assert_eq!(
                mine, line.digest,
                "version {version}, entry {index}: {command:?}"
            );
        }
        assert_eq!(state.log_version(), version);
    }
}

#[test]
fn snapshots_of_older_programs_are_read_as_those_meant_them() {
    for fixture in FIXTURES {
        let (lines, manifest, bytes) = read(fixture);
        let mut state = State::new();
        for line in lines {
            state.apply(
                line.index,
                1,
                &codec::decode(&line.entry).expect("it reads"),
            );
        }
        let manifest = snapshot::manifest(&manifest).expect("it reads");
        let restored = snapshot::decode(&manifest, &bytes).expect("it reads");
        assert_eq!(restored, state, "with all that is derived");
        let (mine, written) = snapshot::encode(&restored);
        assert_eq!(
            (hex(&written), mine),
            (hex(&bytes), manifest),
            "a field is lost"
        );
    }
}

#[test]
fn every_log_version_has_its_fixture() {
    let newest = FIXTURES[FIXTURES.len() - 1];
    assert!(
        newest.lines().count() > 100,
        "old_logs/v{LOG_VERSION}.txt is to hold:\n{}",
        write(LOG_VERSION)
    );
}
