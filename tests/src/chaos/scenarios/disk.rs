//! Disks that are full, and logs that are damaged.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use conclave_proto::v1::cluster_client::ClusterClient;
use conclave_proto::v1::contemplation_client::ContemplationClient;
use conclave_proto::v1::{AddRequest, RemoveRequest, SubmitJobRequest, TransferRequest};
use tonic::Code;

use super::{Site, Step};
use crate::chaos::Arena;
use crate::chaos::small_disk::SmallDisk;

/// `disk_reserve_bytes` of the scenario.
pub(super) const RESERVE: u64 = 24 << 20;
/// What the first filling leaves: below the reserve, and enough to go on with.
const LEFT: u64 = 12 << 20;
const WHILE: Duration = Duration::from_secs(3);

fn disk(arena: &Arena) -> &SmallDisk {
    match &arena.site {
        Site::Disk(disk) => disk,
        _ => panic!("the scenario has a small disk"),
    }
}

/// Coordinator 0, on the small disk, leads. Below its reserve it refuses
/// submissions, and what runs goes on; when it is gone the others accept; once
/// there is room it starts again with all it had.
pub(super) fn full_disk(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        lead_with(arena, 0).await;
        arena.fault("the leader's disk falls below its reserve");
        disk(arena).fill(LEFT);
        refuses(arena).await;
        arena.run_for(WHILE).await;
        arena.say("free");
        disk(arena).free_up();
        arena.recovered().await;

        lead_with(arena, 0).await;
        arena.fault("no byte is left on the leader's disk");
        disk(arena).fill(0);
        // The log has room that it allocated before, so the node goes on for a while; what it
        // cannot write ends it. Either way it is gone after this.
        refuses(arena).await;
        arena.run_for(WHILE).await;
        arena.kill_or_find_dead(0).await;
        arena.fault("it is gone, and started again while the disk is full");
        if arena.cluster.try_start_coordinator(0).await.is_ok() {
            arena.run_for(WHILE).await;
            arena.kill_or_find_dead(0).await;
        }
        arena.recovered().await;
        disk(arena).free_up();
        arena.fault("there is room again: it is started");
        arena.cluster.start_coordinator(0).await;
        arena.until_ready(0).await;
        arena.recovered().await;
    })
}

/// Moves leadership to coordinator `index`.
async fn lead_with(arena: &mut Arena, index: usize) {
    for _ in 0..50 {
        let leader = arena.cluster.leader().await;
        if leader == index {
            return;
        }
        let status = arena.cluster.status(index).await;
        let node_id = status.map_or(0, |status| status.node_id);
        let address = format!("http://{}", arena.cluster.endpoints()[leader]);
        if let Ok(mut client) = ClusterClient::connect(address).await {
            // Refused while it lags; asked again.
            let to = TransferRequest {
                node_id,
                force: false,
            };
            let _ = client.transfer(to).await;
        }
        arena.run_for(Duration::from_millis(200)).await;
    }
    arena.accuse(format!("coordinator {index} was never given the lead"));
}

/// A new submission is refused with a wait, and says why.
async fn refuses(arena: &mut Arena) {
    let address = format!("http://{}", arena.cluster.endpoints()[0]);
    let mut client = ContemplationClient::connect(address)
        .await
        .expect("it listens");
    let request = SubmitJobRequest {
        idempotency_key: "beyond the reserve".into(),
        spec: Some(crate::exact_job(1)),
    };
    match client.submit_job(request).await {
        Err(status)
            if status.code() == Code::ResourceExhausted
                && status.metadata().contains_key("retry-after-ms") =>
        {
            arena.say(&format!("refused: {}", status.message()));
        }
        other => arena.accuse(format!(
            "below the reserve a submission was answered {other:?}"
        )),
    }
}

/// Bytes of raft-engine's magic, its version and its alignment, with which a log begins.
const FILE_HEADER: usize = 53 + 8 + 8;

/// Garbage behind the end of a log, and then a torn last record: what a crash
/// leaves. Both are cut off, and the node goes on.
pub(super) fn torn_log(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let victim = arena.follower().await;
        let log = stop_and_find_log(arena, victim).await;
        arena.fault(&format!("garbage behind the log of coordinator {victim}"));
        let mut file = OpenOptions::new().write(true).open(&log).expect("its log");
        file.seek(SeekFrom::Start(used(&log)))
            .and_then(|_| file.write_all(&[0xa7; 777]))
            .expect("written");
        arena.cluster.start_coordinator(victim).await;
        arena.until_ready(victim).await;
        arena.recovered().await;

        let log = stop_and_find_log(arena, victim).await;
        arena.fault(&format!(
            "a last record of coordinator {victim}'s log, torn"
        ));
        tear(&log);
        arena.cluster.start_coordinator(victim).await;
        arena.until_ready(victim).await;
        arena.recovered().await;
    })
}

/// A byte in the middle of a log: no crash does that. The node refuses to
/// start and says what to do; done so, there are three members again.
pub(super) fn flipped_byte(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let victim = arena.follower().await;
        let node_id = arena.cluster.status(victim).await.map_or(0, |s| s.node_id);
        let log = stop_and_find_log(arena, victim).await;
        arena.fault(&format!(
            "a byte in the middle of coordinator {victim}'s log"
        ));
        flip(&log);
        match arena.cluster.try_start_coordinator(victim).await {
            Ok(()) => {
                arena.accuse("it started on a damaged log");
                arena.cluster.kill_coordinator(victim).await;
            }
            Err(code) => arena.say(&format!("it refuses to start: exit status {code:?}")),
        }
        said(arena, victim, "cluster remove");
        arena.recovered().await;

        arena.say("as it says: the folder away, an empty one, remove the member, add it");
        let folder = arena.cluster.data_dir(victim);
        fs::rename(&folder, folder.with_extension("damaged")).expect("moved away");
        arena.cluster.start_coordinator(victim).await;
        let leader = arena.cluster.leader().await;
        let endpoints = arena.cluster.endpoints();
        let address = format!("http://{}", endpoints[leader]);
        let mut client = ClusterClient::connect(address).await.expect("the leader");
        let remove = RemoveRequest {
            node_id,
            force: false,
        };
        client.remove(remove).await.expect("removed");
        let address = endpoints[victim].clone();
        let add = AddRequest {
            address,
            learner: false,
        };
        client.add(add).await.expect("added");
        arena.until_ready(victim).await;
        arena.recovered().await;
    })
}

/// SIGKILL; the newest file of its log that holds anything.
async fn stop_and_find_log(arena: &mut Arena, index: usize) -> PathBuf {
    arena.cluster.kill_coordinator(index).await;
    let folder = arena.cluster.data_dir(index).join("raft");
    let entries = fs::read_dir(&folder).expect("its log").flatten();
    let logs = entries.map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|e| e == "raftlog")
            && fs::metadata(path).is_ok_and(|m| m.len() > 1024)
    });
    logs.max().expect("a log file")
}

/// Bytes of a log that hold records; behind them lies room that was allocated
/// ahead, all zeros.
fn used(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("its log");
    let last = bytes.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last as u64 + 1)
}

/// A write that a crash cut short: the last record once more, without its end. The one that stands there whole
/// may be acknowledged; without that, the node rightly refuses to start.
fn tear(path: &Path) {
    let bytes = fs::read(path).expect("its log");
    let length = |at: usize| {
        let head = bytes.get(at..at + 8).expect("a record's head");
        // The low byte is the record's kind.
        usize::try_from(u64::from_be_bytes(head.try_into().expect("8 bytes")) >> 8).expect("small")
    };
    let (mut last, mut at) = (FILE_HEADER, FILE_HEADER);
    while at + 8 <= bytes.len() && length(at) != 0 {
        (last, at) = (at, at + length(at));
    }
    assert!(last < at && at <= bytes.len(), "no record in {path:?}");
    let mut file = OpenOptions::new().write(true).open(path).expect("its log");
    file.seek(SeekFrom::Start(at as u64))
        .and_then(|_| file.write_all(&bytes[last..at - 7]))
        .expect("written");
}

fn flip(path: &Path) {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("its log");
    let middle = used(path) / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle))
        .and_then(|_| file.read_exact(&mut byte))
        .expect("read");
    byte[0] ^= 0x10;
    file.seek(SeekFrom::Start(middle))
        .and_then(|_| file.write_all(&byte))
        .expect("written");
}

/// The log of a coordinator says so.
fn said(arena: &mut Arena, index: usize, what: &str) {
    let log = arena.cluster.coordinator_log(index);
    match log.lines().rev().find(|line| line.contains(what)) {
        Some(line) => arena.say(&format!("it says: {line}")),
        None => arena.accuse(format!("coordinator {index} does not say `{what}`")),
    }
}
