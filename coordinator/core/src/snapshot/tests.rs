//! Replay equals snapshot and suffix, for histories that a leader may bring about and for ones that
//! no leader would.

use conclave_proto::v1::AgentState;
use proptest::prelude::*;

use super::*;
use crate::testkit::{
    World,
    history::{carry_out, step},
    question, width,
};

/// What must hold of any state.
fn check(state: &State) {
    let active: Vec<&str> = state
        .all_jobs()
        .filter(|j| j.is_active())
        .map(|j| j.id.as_str())
        .collect();
    let indexed: Vec<&str> = state.active_jobs().map(|j| j.id.as_str()).collect();
    assert_eq!(active, indexed, "the index of active jobs is true");
    for job in state.all_jobs() {
        for (event, index) in job.events.iter().zip(1..) {
            assert_eq!(event.index, index, "events have no gaps");
        }
        let records = crate::audit::export(job, &crate::payload::InlineOnly).expect("inline");
        crate::audit::verify_complete(&records, Some(&job.audit.head())).expect("the chain holds");
        for (agent, number) in job.agents.iter().zip(1..) {
            assert_eq!(agent.spec.agent, number);
            assert_eq!(
                agent.state == AgentState::Done,
                agent.draft.is_some() && !agent.stopping && agent.state != AgentState::Cancelled
            );
            assert!(agent.failures <= crate::agent::MAX_FAILURES);
            let drafts = records.iter().filter_map(crate::audit::open).filter(|e| {
                matches!(&e.event, Some(conclave_proto::v1::audit_event::Event::Draft(d)) if d.agent == number)
            });
            assert!(drafts.count() <= 1, "one accepted result an agent");
            if job.is_final() {
                assert!(agent.is_final(), "an ended job has no open agent");
            }
            let live = |p: &crate::agent::Placement| {
                state
                    .worker(&p.worker_id)
                    .is_some_and(|w| w.incarnation == p.incarnation)
            };
            if agent.holds_worker() {
                assert!(
                    agent.placement.as_ref().is_some_and(live),
                    "attempts run on live leases"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn replay_equals_snapshot_and_suffix(
        steps in prop::collection::vec(step(), 1..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut world = World::new();
        world.register("w0", "i0", 3);
        for step in steps {
            carry_out(&mut world, step);
            check(&world.state);
        }
        let cut = cut.index(world.log.len());
        let mut replica = State::new();
        for (at, (index, command)) in world.log.iter().enumerate() {
            replica.apply(*index, 1, command);
            if at == cut {
                let (manifest, bytes) = encode(&replica);
                let whole = SnapshotState::decode(&*bytes).expect("decodes").encode_to_vec();
                prop_assert_eq!(&whole, &bytes, "parts make the whole");
                let restored = decode(&manifest, &bytes).expect("decodes");
                prop_assert_eq!(&restored, &replica);
                replica = restored;
            }
        }
        prop_assert_eq!(encode(&replica), encode(&world.state));
        prop_assert_eq!(replica.outstanding(), world.state.outstanding());
    }

    #[test]
    fn a_damaged_snapshot_is_refused(byte in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut world = World::with_job(&question(width(2)));
        world.go("j");
        let (manifest, mut bytes) = encode(&world.state);
        let byte = byte.index(bytes.len());
        bytes[byte] ^= 1 << bit;
        prop_assert_eq!(decode(&manifest, &bytes), Err(SnapshotError::Mismatch));
    }
}

#[test]
fn a_newer_snapshot_is_refused() {
    let (mut newer, bytes) = encode(&State::new());
    newer.log_version = LOG_VERSION + 1;
    let expected = SnapshotError::TooNew {
        needs: LOG_VERSION + 1,
        known: LOG_VERSION,
    };
    assert_eq!(decode(&newer, &bytes), Err(expected.clone()));
    assert_eq!(manifest(&newer.encode_to_vec()), Err(expected));
}

#[test]
fn genesis_stands_at_index_one() {
    let (manifest, bytes) = genesis();
    assert_eq!((manifest.index, manifest.term), (1, 1));
    let state = decode(&manifest, &bytes).expect("decodes");
    assert_eq!((state.applied_index(), state.cluster_id()), (1, ""));
}

#[test]
fn a_snapshot_that_says_something_twice_is_refused() {
    let mut world = World::with_job(&question(width(2)));
    world.register("w0", "i0", 3);
    let (manifest, bytes) = encode(&world.state);
    let whole = SnapshotState::decode(&*bytes).expect("decodes");
    let read = |state: &SnapshotState| {
        let bytes = state.encode_to_vec();
        let manifest = SnapshotManifest {
            digest: blake3::hash(&bytes).as_bytes().to_vec(),
            length: bytes.len() as u64,
            ..manifest.clone()
        };
        decode(&manifest, &bytes).map(drop)
    };
    assert_eq!(read(&whole), Ok(()));
    let refused = |part: &str, change: fn(&mut SnapshotState)| {
        let mut state = whole.clone();
        change(&mut state);
        let why = format!("{part} are out of order, or there twice");
        assert_eq!(read(&state), Err(SnapshotError::Broken { why }));
    };
    refused("jobs", |s| s.jobs.extend_from_within(..));
    refused("workers", |s| s.workers.extend_from_within(..));
    refused("keys", |s| s.keys.extend_from_within(..));
    refused("members", |s| s.members = vec![MemberRecord::default(); 2]);
}
