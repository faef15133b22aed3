//! The log on a real file system: crash images and damage, byte by byte.
//! A log is read exactly, or refused; never read wrongly, and never a panic.

mod images;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use conclave_coordinator::disk::{
    log_files::{LogFiles, Operation},
    log_store::{Batch, LogError, LogStore, Recovered},
};
use images::{copy, file_names, used};
use raft::eraftpb::{Entry, HardState, Snapshot};

fn entry(index: u64, term: u64, data: Vec<u8>) -> Entry {
    Entry {
        index,
        term,
        data: data.into(),
        ..Entry::default()
    }
}

/// Bytes that do not compress and are the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote,
        commit,
        ..HardState::default()
    }
}

fn appended(entries: Vec<Entry>, hard_state: Option<HardState>) -> Batch {
    Batch {
        entries,
        hard_state,
        ..Batch::default()
    }
}

fn snapshot(index: u64) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = 1;
    snapshot.data = vec![9].into();
    snapshot
}

fn same(a: &Recovered, b: &Recovered) -> bool {
    a.hard_state == b.hard_state && a.entries == b.entries && a.snapshot == b.snapshot
}

/// A life of a log: appends of all sizes, votes, a replaced tail, one batch that
/// is compressed, commits that nobody waits for.
fn life(store: &LogStore) {
    store
        .append(&appended(Vec::new(), Some(hard_state(1, 7, 0))))
        .unwrap();
    for i in 1..=12 {
        let data = noise(i, 40 * i as usize);
        store
            .append(&appended(
                vec![entry(i, 1, data)],
                Some(hard_state(1, 7, i - 1)),
            ))
            .unwrap();
        let commit = Batch {
            lazy: true,
            ..appended(Vec::new(), Some(hard_state(1, 7, i)))
        };
        store.append(&commit).unwrap();
    }
    // What was not committed is replaced by the next leader.
    store
        .append(&appended(vec![entry(13, 1, noise(13, 100))], None))
        .unwrap();
    store
        .append(&appended(
            vec![
                entry(13, 3, b"other".to_vec()),
                entry(14, 3, b"x".repeat(80_000)),
            ],
            Some(hard_state(3, 9, 12)),
        ))
        .unwrap();
}

fn open(folder: &Path) -> Result<Recovered, LogError> {
    LogStore::open(folder, false).map(|(_, recovered)| recovered)
}

/// A closed log, and what it holds.
fn closed(folder: &Path) -> Recovered {
    let (store, _) = LogStore::open(folder, false).unwrap();
    life(&store);
    drop(store);
    let kept = tempfile::tempdir().unwrap();
    copy(folder, kept.path());
    let whole = open(kept.path()).unwrap();
    assert_eq!(whole.entries.len(), 14);
    assert_eq!(whole.hard_state, hard_state(3, 9, 12));
    whole
}

#[test]
fn a_flipped_byte_anywhere_is_refused_or_costs_nothing() {
    let (folder, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = closed(folder.path());
    let (mut refused, mut harmless) = (0, 0);
    for name in file_names(&folder.path().join("raft")) {
        let bytes = std::fs::read(folder.path().join("raft").join(&name)).unwrap();
        // The first 200 bytes one by one, then a prime apart; all of the last 200.
        let offsets = (0..bytes.len())
            .filter(|at| *at < 200 || at.is_multiple_of(31) || at + 200 > bytes.len());
        for at in offsets {
            for mask in [0x01, 0xff] {
                copy(folder.path(), image.path());
                let mut damaged = bytes.clone();
                damaged[at] ^= mask;
                std::fs::write(image.path().join("raft").join(&name), damaged).unwrap();
                match open(image.path()) {
                    Ok(found) => {
                        assert!(same(&found, &whole), "{name} at {at} ^ {mask:#x}");
                        harmless += 1;
                    }
                    Err(error) => {
                        let text = error.to_string();
                        assert!(text.contains("cluster remove"), "{text}");
                        refused += 1;
                    }
                }
            }
        }
    }
    // What may go without a loss is the last mark, and a header without records.
    assert!(refused > 500 && harmless > 50, "{refused}, {harmless}");
}

#[test]
fn a_write_that_a_crash_cut_short_is_dropped_and_all_before_it_stays() {
    let (folder, before, after) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let (store, _) = LogStore::open(folder.path(), false).unwrap();
    life(&store);
    copy(folder.path(), before.path());
    store
        .append(&appended(
            vec![entry(15, 3, noise(15, 3000)), entry(16, 3, noise(16, 90))],
            Some(hard_state(4, 2, 14)),
        ))
        .unwrap();
    copy(folder.path(), after.path());
    let name = "raft/0000000000000001.raftlog";
    let (old, new) = (
        std::fs::read(before.path().join(name)).unwrap(),
        std::fs::read(after.path().join(name)).unwrap(),
    );
    let (begin, end) = (used(&old), used(&new));
    assert!(end > begin + 3000);
    let without = open(before.path()).unwrap();
    let with = open(after.path()).unwrap();
    assert_eq!((without.entries.len(), with.entries.len()), (14, 16));
    let image = tempfile::tempdir().unwrap();
    for cut in (begin..=end).filter(|at| at.is_multiple_of(29) || at + 60 > end) {
        let shorter = new[..cut].to_vec();
        let mut zeros = new.clone();
        zeros[cut..].fill(0);
        let mut garbage = new.clone();
        let length = garbage.len();
        garbage[cut..].copy_from_slice(&noise(cut as u64, length - cut));
        for torn in [shorter, zeros, garbage] {
            copy(before.path(), image.path());
            std::fs::write(image.path().join(name), torn).unwrap();
            let found = open(image.path()).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            let expected = if cut == end { &with } else { &without };
            assert!(same(&found, expected), "cut at {cut}");
            // What was dropped does not come back.
            assert!(same(&open(image.path()).unwrap(), expected));
        }
    }
}

#[test]
fn of_writes_that_were_never_synced_a_hole_between_them_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("raft/0000000000000001.raftlog");
    let (store, _) = LogStore::open(folder.path(), false).unwrap();
    life(&store);
    let begin = used(&std::fs::read(&name).unwrap());
    let lazy = |index| Batch {
        lazy: true,
        ..appended(vec![entry(index, 3, noise(index, 2000))], None)
    };
    store.append(&lazy(15)).unwrap();
    let between = used(&std::fs::read(&name).unwrap());
    store.append(&lazy(16)).unwrap();
    let image = |sync: bool| {
        if sync {
            // Now they are on the disk, and the next mark says so.
            store.append(&appended(Vec::new(), None)).unwrap();
            store.settle().unwrap();
        }
        let image = tempfile::tempdir().unwrap();
        copy(folder.path(), image.path());
        let path = image.path().join("raft/0000000000000001.raftlog");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[begin + 512..between - 512].fill(0);
        std::fs::write(&path, bytes).unwrap();
        image
    };
    // A power cut may write the later one and not the earlier.
    assert_eq!(open(image(false).path()).unwrap().entries.len(), 14);
    let refused = open(image(true).path()).unwrap_err();
    assert!(matches!(refused, LogError::Damaged(ref d) if d.entry == 14 && d.offset == begin));
    assert!(refused.to_string().contains("0000000000000001.raftlog"));
}

#[test]
fn a_log_of_many_files_is_read_and_damage_in_any_of_them_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(folder.path(), false).unwrap();
    let batch = |i: u64| appended(vec![entry(i, 1, noise(i, 1 << 20))], None);
    store
        .append(&appended(Vec::new(), Some(hard_state(1, 7, 0))))
        .unwrap();
    for i in 1..=140 {
        store.append(&batch(i)).unwrap();
        if i % 30 == 0 {
            store.compact(&snapshot(i), i - 5).unwrap();
        }
    }
    let image = tempfile::tempdir().unwrap();
    // Copied while it is open: as a SIGKILL leaves it.
    copy(folder.path(), image.path());
    let found = open(image.path()).unwrap();
    assert_eq!(
        (found.entries.len(), found.entries.last().unwrap().index),
        (20, 140)
    );
    assert_eq!(found.hard_state, hard_state(1, 7, 0));
    drop(store);
    let names = file_names(&folder.path().join("raft"));
    assert!(names.len() > 3, "{names:?}");
    let whole = found;
    for name in names {
        let path = folder.path().join("raft").join(&name);
        let bytes = std::fs::read(&path).unwrap();
        let mut damaged = bytes.clone();
        if damaged.len() < 100 {
            continue;
        }
        damaged[bytes.len() / 2] ^= 4;
        std::fs::write(&path, damaged).unwrap();
        match open(folder.path()) {
            Ok(found) => assert!(same(&found, &whole), "{name}"),
            Err(error) => assert!(error.to_string().contains("cluster remove"), "{error}"),
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(same(&open(folder.path()).unwrap(), &whole));
}

/// A log whose disk fails from a moment on.
fn failing(
    folder: &Path,
    when: fn(Operation) -> io::Result<()>,
) -> (LogStore, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (on, after) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let (switch, count): (_, Arc<AtomicUsize>) = (on.clone(), Arc::clone(&after));
    let files = LogFiles::failing(move |operation| {
        if !switch.load(Ordering::Relaxed) {
            return Ok(());
        }
        count.fetch_add(1, Ordering::Relaxed);
        when(operation)
    });
    (
        LogStore::open_with(folder, false, files).unwrap().0,
        on,
        after,
    )
}

#[test]
fn after_a_failed_fsync_nothing_is_written_any_more_and_a_restart_reads_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (store, on, asked) = failing(folder.path(), |operation| match operation {
        Operation::Sync => Err(io::Error::other("the cable is out")),
        _ => Ok(()),
    });
    life(&store);
    on.store(true, Ordering::Relaxed);
    let next = appended(vec![entry(15, 3, b"lost".to_vec())], None);
    let error = store.append(&next).unwrap_err();
    assert!(matches!(error, LogError::Write { .. }), "{error}");
    assert!(error.to_string().contains("the cable is out"), "{error}");
    let then = asked.load(Ordering::Relaxed);
    // A later fsync that succeeds proves nothing about the pages before it.
    on.store(false, Ordering::Relaxed);
    store.append(&next).unwrap_err();
    store.settle().unwrap_err();
    store.clear().unwrap_err();
    let length = used(&std::fs::read(folder.path().join("raft/0000000000000001.raftlog")).unwrap());
    drop(store);
    assert_eq!(asked.load(Ordering::Relaxed), then);
    let bytes = std::fs::read(folder.path().join("raft/0000000000000001.raftlog")).unwrap();
    assert_eq!(used(&bytes), length, "closing writes nothing either");
    let found = open(folder.path()).unwrap();
    assert!(found.entries.len() >= 14);
    assert_eq!(found.hard_state, hard_state(3, 9, 12));
}

#[test]
fn on_a_full_disk_the_write_fails_and_with_room_all_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let (store, on, _) = failing(folder.path(), |operation| match operation {
        Operation::Sync => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::StorageFull, "nospace")),
    });
    life(&store);
    on.store(true, Ordering::Relaxed);
    let next = appended(vec![entry(15, 3, b"no room".to_vec())], None);
    let error = store.append(&next).unwrap_err().to_string();
    assert!(
        error.contains("space") && error.contains("make room"),
        "{error}"
    );
    assert!(error.contains(&*folder.path().to_string_lossy()), "{error}");
    drop(store);
    assert_eq!(open(folder.path()).unwrap().entries.len(), 14);
    assert_eq!(open(folder.path()).unwrap().entries.len(), 14);
}

#[test]
fn a_full_disk_refuses_the_start_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let whole = closed(folder.path());
    let full = LogFiles::failing(|operation| match operation {
        Operation::Sync => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::StorageFull, "nospace")),
    });
    let error = LogStore::open_with(folder.path(), false, full)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("make room"), "{error}");
    assert!(same(&open(folder.path()).unwrap(), &whole));
}
