//! Cursors that clients send back.

use conclave_coordinator_core::watch::{Cursor, Position, Pushed, Texts};
use conclave_proto::v1::{AgentCursor, TokenDelta, WatchCursor, watch_job_response::Update};
use prost::Message as _;

use crate::{Limits, Target};

/// An encoded cursor.
pub const TARGET: Target = Target {
    name: "watch_cursor",
    run,
    seeds,
    words: &["\x08\x01", "\x12\x06"],
    inputs: 60_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let Ok(cursor) = Cursor::decode(input) else {
        return;
    };
    let again = Cursor::decode(&cursor.encode()).expect("an encoded cursor decodes");
    assert_eq!(again, cursor, "a cursor comes back as it was");
    let mut texts = Texts::default();
    for offset in [0, 3] {
        let delta = TokenDelta {
            agent: 1,
            attempt: 1,
            offset,
            tokens: 3,
            text: "abc".into(),
            ..TokenDelta::default()
        };
        assert_eq!(texts.push(delta), Pushed::Taken);
    }
    let mut cursor = again;
    let mut positions = cursor.positions.clone();
    let updates = texts.read(&mut positions, usize::MAX);
    updates.iter().for_each(|update| cursor.pass(update));
    let later = |p: &Position| p.attempt > 1 || (p.attempt == 1 && p.offset >= 6);
    assert!(
        positions.get(&1).is_some_and(later),
        "a watcher has read all there is"
    );
    assert!(
        texts.read(&mut positions, usize::MAX).is_empty(),
        "and nothing twice"
    );
    let tokens = |update: &Update| matches!(update, Update::Tokens(t) if t.text.len() > 6);
    assert!(!updates.iter().any(tokens), "nothing is sent twice");
}

fn seeds() -> Vec<Vec<u8>> {
    let agent = |agent, attempt, offset| AgentCursor {
        agent,
        attempt,
        offset,
    };
    let cursor = WatchCursor {
        event: 7,
        agents: vec![agent(1, 1, 2), agent(2, 3, 400)],
    };
    vec![Vec::new(), cursor.encode_to_vec()]
}
