//! A replicated state under commands, and what a leader derives from it: shared by the targets whose
//! bytes end there.

use std::collections::BTreeMap;

use conclave_coordinator_core::{
    State, codec, contemplate, payload::InlineOnly, placement, quota::Quotas, snapshot, view,
};
use conclave_proto::v1::{Command, command::Command as Body};

/// The commands of the golden log, whose story is one job's.
const GOLDEN: &str = include_str!("../../../../proto/tests/golden/log_v1.txt");

/// The golden commands that this program accepts, in order.
pub(super) fn golden() -> Vec<Command> {
    let bytes = GOLDEN
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(_, hexed)| hex::decode(hexed).expect("golden bytes are hex"));
    bytes
        .filter_map(|bytes| codec::decode(&bytes).ok())
        .collect()
}

/// Applies a command at the next index.
pub(super) fn apply(state: &mut State, body: Body) {
    let index = state.applied_index() + 1;
    state.apply(index, 1, &codec::command(body));
}

/// What a leader asks of the state, and what its answers make of it, for a few rounds.
pub(super) fn lead(state: &mut State) {
    let context = contemplate::Context {
        payloads: &InlineOnly,
        now_unix_ms: state.unix_ms(),
    };
    for _ in 0..4 {
        let decided: Vec<_> = state
            .active_jobs()
            .filter_map(|job| contemplate::next(job, &context).ok().flatten())
            .collect();
        let placed = placement::place(state, &BTreeMap::new(), &Quotas::default(), &InlineOnly);
        if decided.is_empty() && placed.assigns.is_empty() {
            break;
        }
        for decide in decided {
            apply(state, Body::Decide(decide));
        }
        for assign in placed.assigns {
            apply(state, Body::Assign(assign));
        }
    }
}

/// Everything that reads the state, and that a snapshot of it gives the same state back.
pub(super) fn examine(state: &State) {
    let _ = state.outstanding();
    let _ = state.live_blobs();
    let _ = state.expirable(0, 0, 100);
    let _ = view::workers(state);
    for job in state.all_jobs() {
        let _ = view::job(job, &InlineOnly, Some(view::Drafts::ALL));
        let _ = view::prepare(state, job, &InlineOnly);
        for event in &job.events {
            let _ = view::event(job, event, &InlineOnly);
        }
    }
    let (manifest, bytes) = snapshot::encode(state);
    let back = snapshot::decode(&manifest, &bytes).expect("what was encoded decodes");
    assert_eq!(&back, state, "a snapshot gives the same state back");
}
