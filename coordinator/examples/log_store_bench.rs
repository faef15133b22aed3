//! Append + fsync latency of the candidates for the raft log.
//!
//! `cargo run --release -p conclave-coordinator --example log_store_bench [FOLDER]`
//!
//! Prints p50 and p99 in microseconds of a durable append of 1, 16 and 256
//! entries of 300 bytes, on raft-engine and on redb. The figures are in
//! `docs/adr/0001-log-store.md`.
#![allow(clippy::print_stdout)]

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use conclave_coordinator::disk::log_store::{Batch, LogStore};
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};
use redb::{Database, TableDefinition};

const ENTRY_BYTES: usize = 300;
const ROUNDS: usize = 400;
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("log-store-bench-{}", std::process::id()));
    println!("| store | entries | p50 us | p99 us | bytes on disk per entry byte |");
    println!("|---|---|---|---|---|");
    for entries in [1, 16, 256] {
        report(
            "raft-engine",
            entries,
            &root.join(format!("engine-{entries}")),
            engine,
        )?;
        report("redb", entries, &root.join(format!("redb-{entries}")), redb)?;
    }
    fs::remove_dir_all(root)?;
    Ok(())
}

type Run = fn(&Path, usize) -> Result<Vec<Duration>, Box<dyn Error>>;

fn report(name: &str, entries: usize, folder: &Path, run: Run) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let mut times = run(folder, entries)?;
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_micros();
    let written = (entries * ENTRY_BYTES * ROUNDS) as f64;
    let ratio = size(folder)? as f64 / written;
    println!(
        "| {name} | {entries} | {} | {} | {ratio:.1} |",
        at(50),
        at(99)
    );
    Ok(())
}

fn batch(round: usize, entries: usize) -> (Vec<Entry>, HardState) {
    let first = round * entries + 1;
    let list = (first..first + entries)
        .map(|index| Entry {
            index: index as u64,
            term: 1,
            // Not compressible, as encoded commands with hashes are.
            data: (0..ENTRY_BYTES / 32 + 1)
                .flat_map(|i| *blake3::hash(&(index * 1000 + i).to_le_bytes()).as_bytes())
                .take(ENTRY_BYTES)
                .collect::<Vec<u8>>()
                .into(),
            ..Entry::default()
        })
        .collect();
    let commit = (first - 1) as u64;
    (
        list,
        HardState {
            term: 1,
            vote: 1,
            commit,
            ..HardState::default()
        },
    )
}

fn engine(folder: &Path, entries: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let (store, _) = LogStore::open(folder, false)?;
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (list, hard_state) = batch(round, entries);
        let batch = Batch {
            entries: list,
            hard_state: Some(hard_state),
            ..Batch::default()
        };
        times.push(store.append(&batch)?);
    }
    Ok(times)
}

fn redb(folder: &Path, entries: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let database = Database::create(folder.join("log.redb"))?;
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (list, hard_state) = batch(round, entries);
        let started = Instant::now();
        let write = database.begin_write()?;
        {
            let mut log = write.open_table(LOG)?;
            for entry in &list {
                log.insert(entry.index, entry.write_to_bytes()?.as_slice())?;
            }
            let mut meta = write.open_table(META)?;
            meta.insert("hard_state", hard_state.write_to_bytes()?.as_slice())?;
        }
        write.commit()?;
        times.push(started.elapsed());
    }
    Ok(times)
}

fn size(folder: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        total += if data.is_dir() {
            size(&entry.path())?
        } else {
            data.len()
        };
    }
    Ok(total)
}
