//! A node on a disk that fails, fills up, or forgets.

mod harness;
mod images;

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_coordinator::{
    Coordinator,
    disk::log_files::{LogFiles, Operation},
    offline::recover::Survivor,
};
use conclave_proto::v1::SubmitJobRequest;
use harness::{
    Cluster, PATIENCE, assert_done, config, done, get, request, spec, start, submit, worker::Mock,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use tonic::Code;

/// What the disk of one member does from now on.
#[derive(Clone, Default)]
struct Disk(Arc<AtomicU8>);

impl Disk {
    fn fail_syncs(&self) {
        self.0.store(1, Ordering::SeqCst);
    }

    fn fill(&self) {
        self.0.store(2, Ordering::SeqCst);
    }

    /// Syncs do not return until it heals.
    fn hang(&self) {
        self.0.store(3, Ordering::SeqCst);
    }

    fn heal(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    fn files(&self) -> LogFiles {
        let state = self.0.clone();
        LogFiles::failing(
            move |operation| match (state.load(Ordering::SeqCst), operation) {
                (3, Operation::Sync) => {
                    // A disk tells nobody when it goes on.
                    while state.load(Ordering::SeqCst) == 3 {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Ok(())
                }
                (3, _) => Ok(()),
                (1, Operation::Sync) => Err(io::Error::other("the cable is out")),
                (2, Operation::Sync) | (0 | 1, _) => Ok(()),
                _ => Err(io::Error::new(io::ErrorKind::StorageFull, "nospace")),
            },
        )
    }
}

/// Starts member `i` anew, on `disk`.
async fn restart_on(cluster: &mut Cluster, i: usize, disk: &Disk) {
    cluster.stop(i).await;
    let member = &mut cluster.members[i];
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let config = config(&member.folder, &member.address);
    member.running = Some(
        Coordinator::start_on(config, metrics, disk.files())
            .await
            .unwrap(),
    );
}

/// Makes a member lead whose log is on `disk`; returns which.
async fn leads_on(cluster: &mut Cluster, disk: &Disk) -> usize {
    let first = cluster.leader().await;
    restart_on(cluster, first, disk).await;
    let (id, leader) = {
        let running = cluster.members[first].running.as_ref().unwrap();
        let mut status = running.status();
        tokio::time::timeout(PATIENCE, status.wait_for(|s| s.unready().is_none()))
            .await
            .expect("does not come back")
            .unwrap();
        (running.status().borrow().node_id, cluster.leader().await)
    };
    let transfer = conclave_proto::v1::TransferRequest {
        node_id: id,
        force: false,
    };
    let handed = async {
        // Refused until the leader has heard from it.
        let mut admin = cluster.admin(leader).await;
        while admin.transfer(transfer).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, handed)
        .await
        .expect("not handed over");
    let mut status = cluster.members[first].running.as_ref().unwrap().status();
    tokio::time::timeout(PATIENCE, status.wait_for(|s| s.serving))
        .await
        .expect("does not lead")
        .unwrap();
    first
}

/// Why member `i` stopped by itself.
async fn stopped(cluster: &Cluster, i: usize) -> String {
    let running = cluster.members[i].running.as_ref().unwrap();
    tokio::time::timeout(PATIENCE, running.wait())
        .await
        .expect("the node goes on")
}

/// Law 11: the thread that cannot sync ends, and says nothing it cannot keep.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fsync_ends_the_node_and_acknowledges_nothing() {
    let mut cluster = Cluster::new(1).await;
    let disk = Disk::default();
    restart_on(&mut cluster, 0, &disk).await;
    cluster.leader().await;
    let mut client = cluster.client(0).await;
    let kept = submit(&mut client, "kept").await.job_id;
    disk.fail_syncs();
    let asked = request("not acknowledged");
    let error = client.submit_job(asked.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let why = stopped(&cluster, 0).await;
    assert!(
        why.contains("the cable is out") && why.contains("start this node again"),
        "{why}"
    );
    let status = cluster.members[0].running.as_ref().unwrap().status();
    assert!(!status.borrow().serving && status.borrow().unready().is_some());
    client.submit_job(asked.clone()).await.unwrap_err();
    cluster.stop(0).await;
    cluster.start(0).await;
    cluster.leader().await;
    let mut client = cluster.client(0).await;
    assert_eq!(get(&mut client, &kept).await.job_id, kept);
    // Unknown was the outcome: the retry by key makes one job of it.
    let first = client.submit_job(asked.clone()).await.unwrap().into_inner();
    let again = client.submit_job(asked).await.unwrap().into_inner();
    assert_eq!((again.job_id, again.existing), (first.job_id, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_ends_and_the_others_go_on() {
    let mut cluster = Cluster::new(3).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let disk = Disk::default();
    let first = leads_on(&mut cluster, &disk).await;
    let other = (first + 1) % 3;
    let mut client = cluster.client(other).await;
    let before = submit(&mut client, "what colour?").await.job_id;
    disk.fill();
    let asked = request("what colour now?");
    // Whoever leads next takes it; until then callers try again.
    let wait = async {
        loop {
            match client.submit_job(asked.clone()).await {
                Ok(taken) => return taken.into_inner().job_id,
                Err(error) => assert_eq!(error.code(), Code::Unavailable, "{error}"),
            }
        }
    };
    let after = tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("nobody took it");
    let why = stopped(&cluster, first).await;
    let folder = cluster.members[first].folder.to_string_lossy().into_owned();
    assert!(why.contains(&folder) && why.contains("make room"), "{why}");
    assert_done(&done(&mut client, &before).await);
    assert_done(&done(&mut client, &after).await);
    // With room again it comes back, and lacks nothing.
    cluster.stop(first).await;
    cluster.start(first).await;
    let mut status = cluster.members[first].running.as_ref().unwrap().status();
    tokio::time::timeout(PATIENCE, status.wait_for(|s| s.unready().is_none()))
        .await
        .expect("does not come back")
        .unwrap();
    let mut client = cluster.client(first).await;
    assert_done(&get(&mut client, &before).await);
    assert_done(&get(&mut client, &after).await);
}

/// A disk that hangs says nothing, and the loop on it looks at no deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_hangs_lets_calls_and_watches_go() {
    let mut cluster = Cluster::new(3).await;
    let worker = Mock::new("w1", cluster.addresses());
    worker.close_gate();
    let worker = worker.run();
    let disk = Disk::default();
    let first = leads_on(&mut cluster, &disk).await;
    let mut direct = cluster.client(first).await;
    let mut client = cluster.client((first + 1) % 3).await;
    let running = submit(&mut client, "what colour?").await.job_id;
    let watched = {
        let (mut client, running) = (client.clone(), running.clone());
        tokio::spawn(async move { done(&mut client, &running).await })
    };
    disk.hang();
    let asked = request("what colour now?");
    // No deadline of the caller's own: the node's counts.
    let error = tokio::time::timeout(PATIENCE, direct.submit_job(asked.clone()))
        .await
        .expect("a call waits for a disk")
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let mut status = cluster.members[first].running.as_ref().unwrap().status();
    tokio::time::timeout(PATIENCE, status.wait_for(|s| s.stuck && !s.serving))
        .await
        .expect("it says that it leads")
        .unwrap();
    assert!(status.borrow().unready().is_some());
    // The others go on: what ran, the watch of it, and what was unknown.
    worker.mock.open_gate();
    assert_done(&watched.await.unwrap());
    // Unknown was the outcome: whoever leads now takes it, once.
    let taken = async {
        loop {
            match client.submit_job(asked.clone()).await {
                Ok(taken) => return taken.into_inner().job_id,
                Err(error) => assert_eq!(error.code(), Code::Unavailable, "{error}"),
            }
        }
    };
    let job = tokio::time::timeout(PATIENCE, taken).await.expect("none");
    assert_done(&done(&mut client, &job).await);
    disk.heal();
    tokio::time::timeout(PATIENCE, status.wait_for(|s| s.unready().is_none()))
        .await
        .expect("does not come back")
        .unwrap();
    assert_done(&get(&mut direct, &job).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_holds_up_no_shutdown() {
    let mut cluster = Cluster::new(1).await;
    let disk = Disk::default();
    restart_on(&mut cluster, 0, &disk).await;
    cluster.leader().await;
    let mut client = cluster.client(0).await;
    disk.hang();
    let _unknown = client.submit_job(request("what colour?")).await;
    let running = cluster.members[0].running.take().unwrap();
    let ended = running.shutdown(Duration::from_secs(1));
    let ended = tokio::time::timeout(PATIENCE, ended).await;
    disk.heal();
    ended.expect("it waits for the disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_log_is_gone_does_not_start() {
    let mut cluster = Cluster::new(1).await;
    let mut client = cluster.client(0).await;
    submit(&mut client, "what colour?").await;
    cluster.stop(0).await;
    let member = &cluster.members[0];
    let (folder, whole) = (&member.folder, tempfile::tempdir().unwrap());
    images::copy(folder, whole.path());
    let raft = folder.join("raft");
    let empty = || {
        for name in images::file_names(&raft) {
            fs::write(raft.join(name), b"").unwrap();
        }
    };
    let ways: [&dyn Fn(); 3] = [
        &empty,
        &|| {
            fs::remove_dir_all(&raft).unwrap();
            fs::create_dir(&raft).unwrap();
        },
        &|| {
            fs::remove_dir_all(&raft).unwrap();
            fs::remove_dir_all(folder.join("snapshots")).unwrap();
        },
    ];
    for (number, lose) in ways.iter().enumerate() {
        lose();
        // Again: a start that was refused leaves nothing that the next would take for a log.
        for _ in 0..2 {
            let error = start(config(folder, &member.address)).await;
            let error = error.map(drop).expect_err("an empty log").to_string();
            assert!(
                error.contains("not one record") && error.contains("cluster remove"),
                "{number}: {error}"
            );
        }
        images::copy(whole.path(), folder);
    }
    cluster.start(0).await;
    cluster.leader().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_of_another_cluster_is_refused() {
    let (mut one, mut other) = (Cluster::new(1).await, Cluster::new(1).await);
    for cluster in [&mut one, &mut other] {
        cluster.leader().await;
        cluster.stop(0).await;
    }
    let name = "identity.json";
    let (mine, theirs) = (&one.members[0].folder, &other.members[0].folder);
    fs::copy(theirs.join(name), mine.join(name)).unwrap();
    let error = start(config(mine, &one.members[0].address)).await;
    let error = error.map(drop).expect_err("not its own").to_string();
    assert!(error.contains("identity.json is of cluster"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_of_another_member_of_the_same_cluster_is_refused() {
    let mut cluster = Cluster::new(3).await;
    cluster.leader().await;
    for i in 0..2 {
        cluster.stop(i).await;
    }
    let name = "identity.json";
    let (mine, other) = (&cluster.members[0].folder, &cluster.members[1].folder);
    let own = fs::read(mine.join(name)).unwrap();
    fs::copy(other.join(name), mine.join(name)).unwrap();
    let address = cluster.members[0].address.clone();
    let error = start(config(mine, &address)).await;
    let error = error.map(drop).expect_err("not its own").to_string();
    assert!(error.contains("identity.json is of member"), "{error}");
    let error = Survivor::open(mine).map(drop).unwrap_err().to_string();
    assert!(error.contains("identity.json is of member"), "{error}");
    fs::write(mine.join(name), own).unwrap();
    for i in 0..2 {
        cluster.start(i).await;
    }
    cluster.leader().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_a_folder_is_found_out_and_never_starts_again() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let old = tempfile::tempdir().unwrap();
    cluster.stop(follower).await;
    images::copy(&cluster.members[follower].folder, old.path());
    cluster.start(follower).await;
    let mut client = cluster.client(leader).await;
    for _ in 0..5 {
        submit(&mut client, "what colour?").await;
    }
    let commit = cluster.members[leader].running.as_ref().unwrap().status();
    let commit = commit.borrow().commit;
    let status = cluster.members[follower].running.as_ref().unwrap().status();
    let follows = async {
        // Entries alone are no news to wait for.
        while status.borrow().applied < commit {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, follows)
        .await
        .expect("does not follow");
    cluster.stop(follower).await;
    images::copy(old.path(), &cluster.members[follower].folder);
    cluster.start(follower).await;
    let why = stopped(&cluster, follower).await;
    assert!(
        why.contains("old copy") && why.contains("cluster remove"),
        "{why}"
    );
    cluster.stop(follower).await;
    let member = &cluster.members[follower];
    let again = start(config(&member.folder, &member.address)).await;
    let again = again
        .err()
        .expect("a folder that forgot may vote")
        .to_string();
    assert!(again.contains("must not be used any more"), "{again}");
    // The others never noticed.
    submit(&mut client, "and now?").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_refuses_the_start_and_says_what_to_do() {
    let mut cluster = Cluster::blank(1, |c| c.snapshot_every = 16).await;
    cluster.init().await;
    let worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let snapshots = cluster.members[0].folder.join("snapshots");
    // Until the log begins at a state of its own: the one that it was created with is gone then.
    let began = Instant::now();
    while images::file_names(&snapshots)
        .iter()
        .any(|name| fs::metadata(snapshots.join(name)).is_ok_and(|file| file.len() <= 100))
    {
        assert!(began.elapsed() < PATIENCE, "no snapshot was taken");
        let job = submit(&mut client, "what colour?").await.job_id;
        assert_done(&done(&mut client, &job).await);
    }
    drop(worker);
    cluster.stop(0).await;
    let member = &cluster.members[0];
    // Another may have been stored just before the log was to begin at it: all are damaged.
    let names = images::file_names(&snapshots);
    let read = |path: PathBuf| (fs::read(&path).unwrap(), path);
    let whole: Vec<_> = names
        .iter()
        .map(|name| read(snapshots.join(name)))
        .collect();
    assert!(!whole.is_empty() && whole.iter().all(|(bytes, _)| bytes.len() > 100));
    for part in 0..20 {
        for (bytes, path) in &whole {
            let mut damaged = bytes.clone();
            damaged[bytes.len() * part / 20] ^= 2;
            fs::write(path, damaged).unwrap();
        }
        let refused = start(config(&member.folder, &member.address)).await;
        let refused = refused.err().expect("a damaged state").to_string();
        assert!(
            refused.contains("damaged") && refused.contains("cluster remove"),
            "{refused}"
        );
    }
    for (bytes, path) in &whole {
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert!(
        start(config(&member.folder, &member.address))
            .await
            .is_err()
    );
    for (bytes, path) in &whole {
        fs::write(path, bytes).unwrap();
    }
    cluster.start(0).await;
    cluster.leader().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_cannot_be_stored_refuses_the_submission_and_not_the_node() {
    let cluster = Cluster::new(1).await;
    let blobs = cluster.members[0].folder.join("blobs");
    fs::remove_dir_all(&blobs).unwrap();
    fs::write(&blobs, b"in the way").unwrap();
    let mut client = cluster.client(0).await;
    let mut long = spec("what colour?");
    long.messages[0].content = "word ".repeat(10_000);
    let long = SubmitJobRequest {
        spec: Some(long),
        ..request("")
    };
    let error = client.submit_job(long.clone()).await.unwrap_err();
    assert!(
        error.message().contains("cannot store the payload"),
        "{error}"
    );
    submit(&mut client, "a short one").await;
    fs::remove_file(&blobs).unwrap();
    fs::create_dir(&blobs).unwrap();
    client.submit_job(long).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_submissions_are_refused_with_figures_and_a_time() {
    let mut cluster = Cluster::new(1).await;
    let mut client = cluster.client(0).await;
    let job = submit(&mut client, "what colour?").await.job_id;
    cluster.stop(0).await;
    cluster.extra = Box::new(|c| c.disk_reserve_bytes = u64::MAX);
    cluster.start(0).await;
    cluster.leader().await;
    let mut client = cluster.client(0).await;
    let error = client.submit_job(request("more")).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("bytes are free"), "{error}");
    assert!(error.metadata().contains_key("retry-after-ms"));
    // What was accepted is served on.
    assert_eq!(get(&mut client, &job).await.job_id, job);
}
