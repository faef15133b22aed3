//! Entries of the replicated log: [`codec::decode`], and `apply` of whatever it accepts. A command that
//! makes `apply` panic would stop every replica, again at each start.

use conclave_coordinator_core::{State, codec};
use conclave_proto::v1::Command;
use prost::{Message as _, bytes::Buf};

use super::history;
use crate::{Limits, Target};

/// Length-delimited entries, applied in order.
pub const TARGET: Target = Target {
    name: "log_entries",
    run,
    seeds,
    words: &["job-1", "w1", "i1", "t", "k", "\x08\x01\x12"],
    inputs: 20_000,
    limits: Limits::SMALL,
};

fn run(mut input: &[u8]) {
    let mut state = State::new();
    let mut index = 0;
    while input.has_remaining() && index < 64 {
        let Ok(length) = prost::decode_length_delimiter(&mut input) else {
            break;
        };
        let entry;
        (entry, input) = input.split_at(length.min(input.len()));
        index += 1;
        let Ok(command) = codec::decode(entry) else {
            state.skip(index, 1);
            continue;
        };
        let again = codec::decode(&codec::encode(&command));
        assert_eq!(again.as_ref(), Ok(&command), "an entry survives the log");
        state.apply(index, 1, &command);
    }
    history::lead(&mut state);
    history::examine(&state);
}

fn seeds() -> Vec<Vec<u8>> {
    let golden = history::golden();
    let all = golden
        .iter()
        .flat_map(Command::encode_length_delimited_to_vec)
        .collect();
    let each = golden
        .iter()
        .map(Command::encode_length_delimited_to_vec)
        .collect::<Vec<_>>();
    [vec![all], each].concat()
}
