use super::*;
use crate::{
    payload::InlineOnly,
    testkit::{World, question, width},
};

fn exported() -> (Vec<AuditRecord>, AuditHead) {
    let mut world = World::with_job(&question(width(2)));
    world.go("j");
    world.all_answer("j", "42");
    world.go("j");
    world.all_answer("j", "42");
    world.go("j");
    let job = world.job("j");
    (
        export(job, &InlineOnly).expect("all is inline"),
        job.audit.head(),
    )
}

#[test]
fn a_job_leaves_a_sealed_chain_with_its_bodies() {
    let (records, head) = exported();
    assert!(head.sealed);
    assert_eq!(verify_complete(&records, Some(&head)), Ok(()));
    let events: Vec<Event> = records
        .iter()
        .filter_map(open)
        .filter_map(|e| e.event)
        .collect();
    let kinds: Vec<u32> = events.iter().map(kind).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 4, 5, 5, 7, 3, 4, 5, 7, 9, 10]);
    let has = |found: bool| assert!(found, "bodies are put back in");
    has(matches!(&events[0], Event::Submitted(e) if e.spec.is_some()));
    has(
        matches!(&events[5], Event::Draft(e) if e.draft.as_ref().is_some_and(|d| d.answer == "42")),
    );
    has(matches!(&events[8], Event::Round(e) if e.context.contains("[2] 42")));
}

#[test]
fn any_changed_byte_is_found() {
    let (records, head) = exported();
    for at in 0..records.len() {
        let bytes = records[at].encode_to_vec();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let Ok(record) = AuditRecord::decode(changed.as_slice()) else {
                continue;
            };
            let mut forged = records.clone();
            assert_ne!(record, records[at], "record {at} byte {i} means nothing");
            forged[at] = record;
            assert!(
                verify_complete(&forged, Some(&head)).is_err(),
                "record {at} byte {i}"
            );
        }
    }
}

#[test]
fn dropped_swapped_and_added_records_are_found() {
    let (records, head) = exported();
    let without_last = &records[..records.len() - 1];
    assert_eq!(
        verify_complete(without_last, None),
        Ok(()),
        "unanchored, a prefix is a chain"
    );
    assert!(verify_complete(without_last, Some(&head)).is_err());
    let mut swapped = records.clone();
    swapped.swap(3, 4);
    assert!(verify_complete(&swapped, None).is_err());
    assert!(verify_complete(&records[1..], None).is_err());
}

#[test]
fn erased_payloads_leave_the_chain_whole() {
    let (mut records, head) = exported();
    records[0].body.clear();
    records[5].payload.clear();
    records[5].body.clear();
    assert_eq!(verify_chain(&records, Some(&head)), Ok(()));
    assert!(
        verify_complete(&records, Some(&head)).is_err(),
        "unless it must be complete"
    );
    records[0].body = vec![1];
    assert!(verify_chain(&records, Some(&head)).is_err());
}

#[test]
fn the_hash_is_the_published_formula() {
    let mut bytes = b"conclave-audit-v1".to_vec();
    bytes.extend_from_slice(&[3; 32]);
    bytes.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]);
    bytes.extend_from_slice(&[4; 32]);
    assert_eq!(
        link_hash(&[3; 32], 7, 9, 5, &[4; 32]),
        *blake3::hash(&bytes).as_bytes()
    );
}

#[test]
fn parts_of_an_export_are_the_whole_of_it() {
    let mut world = World::with_job(&question(width(3)));
    world.go("j");
    world.all_answer("j", "42");
    world.go("j");
    let job = world.job("j");
    let whole = export(job, &InlineOnly).expect("all is inline");
    for bytes in [1, 200, usize::MAX] {
        let (mut joined, mut longest) = (Vec::new(), 0);
        loop {
            let part = export_part(job, &InlineOnly, joined.len(), bytes).expect("all is inline");
            if part.is_empty() {
                break;
            }
            longest = longest.max(part.len());
            joined.extend(part);
        }
        assert_eq!(joined, whole, "{bytes}");
        match bytes {
            1 => assert_eq!(longest, 1),
            usize::MAX => assert_eq!(longest, whole.len()),
            _ => assert!(longest > 1 && longest < whole.len(), "{longest}"),
        }
    }
}
