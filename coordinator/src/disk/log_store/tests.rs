use super::*;

fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    Entry {
        index,
        term,
        data: data.to_vec().into(),
        ..Entry::default()
    }
}

fn snapshot(index: u64) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = 1;
    snapshot.data = vec![9].into();
    snapshot
}

fn indices(recovered: &Recovered) -> Vec<(u64, u64)> {
    recovered
        .entries
        .iter()
        .map(|e| (e.index, e.term))
        .collect()
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let (store, blank) = LogStore::open(folder.path(), false).unwrap();
    assert!(blank.entries.is_empty() && blank.snapshot.is_none());
    let hard_state = HardState {
        term: 3,
        vote: 7,
        commit: 2,
        ..HardState::default()
    };
    let entries = (1..=5).map(|i| entry(i, 1, b"x")).collect();
    let batch = Batch {
        entries,
        hard_state: Some(hard_state.clone()),
        ..Batch::default()
    };
    store.append(&batch).unwrap();
    // A new leader replaces the tail.
    let entries = vec![entry(4, 3, b"y")];
    store
        .append(&Batch {
            entries,
            ..Batch::default()
        })
        .unwrap();
    drop(store);
    let (_, recovered) = LogStore::open(folder.path(), false).unwrap();
    assert_eq!(recovered.hard_state, hard_state);
    assert_eq!(indices(&recovered), [(1, 1), (2, 1), (3, 1), (4, 3)]);
}

#[test]
fn an_own_snapshot_keeps_the_tail_and_a_received_one_replaces_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(folder.path(), false).unwrap();
    let hard_state = HardState {
        term: 1,
        commit: 9,
        ..HardState::default()
    };
    let entries = (1..=10).map(|i| entry(i, 1, b"x")).collect();
    let batch = Batch {
        entries,
        hard_state: Some(hard_state.clone()),
        ..Batch::default()
    };
    store.append(&batch).unwrap();
    store.compact(&snapshot(8), 7).unwrap();
    drop(store);
    let (store, recovered) = LogStore::open(folder.path(), false).unwrap();
    assert_eq!(
        recovered.snapshot.as_ref().map(|s| s.get_metadata().index),
        Some(8)
    );
    assert_eq!(indices(&recovered), [(9, 1), (10, 1)]);

    let batch = Batch {
        snapshot: Some(snapshot(50)),
        ..Batch::default()
    };
    store.append(&batch).unwrap();
    store
        .append(&Batch {
            entries: vec![entry(51, 2, b"z")],
            ..Batch::default()
        })
        .unwrap();
    drop(store);
    let (_, recovered) = LogStore::open(folder.path(), false).unwrap();
    assert_eq!(recovered.hard_state, hard_state);
    assert_eq!(
        recovered.snapshot.as_ref().map(|s| s.get_metadata().index),
        Some(50)
    );
    assert_eq!(indices(&recovered), [(51, 2)]);
}

#[test]
fn a_log_knows_whose_it_is_whatever_is_written_and_one_of_before_takes_its_first_owner() {
    let folder = tempfile::tempdir().unwrap();
    // As a program of before leaves it.
    let (store, _) = LogStore::open(folder.path(), false).unwrap();
    let entries = (1..=3).map(|i| entry(i, 1, b"x")).collect();
    store
        .append(&Batch {
            entries,
            ..Batch::default()
        })
        .unwrap();
    drop(store);
    let (store, _) = LogStore::open(folder.path(), true).unwrap();
    store.claim(7).unwrap();
    store.claim(7).unwrap();
    drop(store);
    // A received snapshot replaces all that the log held.
    let (store, _) = LogStore::open(folder.path(), true).unwrap();
    let batch = Batch {
        snapshot: Some(snapshot(50)),
        ..Batch::default()
    };
    store.append(&batch).unwrap();
    store.compact(&snapshot(60), 61).unwrap();
    drop(store);
    let (store, recovered) = LogStore::open(folder.path(), true).unwrap();
    let error = store.claim(8).unwrap_err().to_string();
    assert!(
        error.contains("member 0000000000000008") && error.contains("member 0000000000000007"),
        "{error}"
    );
    store.claim(7).unwrap();
    assert_eq!(
        recovered.snapshot.as_ref().map(|s| s.get_metadata().index),
        Some(60)
    );
}
