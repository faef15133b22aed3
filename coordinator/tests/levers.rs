//! The operators' last levers: a saved snapshot and what is restored of it, and
//! the member that is left of a lost quorum.

mod harness;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use conclave_coordinator::{
    Config,
    disk::condemn,
    offline::{
        recover::{RecoverError, Survivor},
        restore::{self, RestoreError},
    },
    snapshot_file::{Checker, MAGIC, SnapshotFileError, Step, write_frame},
};
use conclave_proto::v1::{
    AddRequest, Job, LineageKind, MembersRequest, SaveSnapshotRequest, TransferRequest,
};
use harness::{
    Cluster, PATIENCE, assert_done, config, done, export, free_address, get, refused, request,
    start, status, submit, worker::Mock,
};
use tonic::Code;

/// Saves through member `i`; returns the file.
async fn save(cluster: &Cluster, i: usize, folder: &Path) -> PathBuf {
    let path = folder.join("state.snapshot");
    fs::write(&path, save_bytes(cluster, i).await).unwrap();
    path
}

async fn save_bytes(cluster: &Cluster, i: usize) -> Vec<u8> {
    let mut frames = cluster
        .admin(i)
        .await
        .save_snapshot(SaveSnapshotRequest {})
        .await
        .unwrap()
        .into_inner();
    let (mut checker, mut file) = (Checker::default(), MAGIC.to_vec());
    loop {
        let frame = frames.message().await.unwrap().expect("an end");
        write_frame(&mut file, &frame).unwrap();
        if let Step::Whole(_) = checker.take(&frame).unwrap() {
            return file;
        }
    }
}

/// Puts blank members in the places of all but `i`, and adds them. They listen
/// elsewhere: a connection that outlived a member crashed in this process would
/// answer for it.
async fn replace_others(cluster: &mut Cluster, i: usize) {
    for other in (0..cluster.members.len()).filter(|other| *other != i) {
        if cluster.members[other].running.is_some() {
            cluster.crash(other).await;
        }
        let folder = cluster.members[other].folder.clone();
        cluster.members[other].folder = folder.with_extension("anew");
        cluster.members[other].address = free_address();
        cluster.start(other).await;
        let add = AddRequest {
            address: cluster.members[other].address.clone(),
            learner: false,
        };
        cluster.admin(i).await.add(add).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_back_from_its_snapshot_with_every_job() {
    let mut cluster = Cluster::new(3).await;
    let worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let keyed = request(&"why? ".repeat(20_000));
    let long = client.submit_job(keyed.clone()).await.unwrap().into_inner();
    let ended: Job = done(&mut client, &long.job_id).await;
    worker.mock.close_gate();
    let live = submit(&mut client, "and now?").await.job_id;
    let running = async {
        while worker
            .mock
            .started
            .load(std::sync::atomic::Ordering::Relaxed)
            < 6
        {
            // An external party's progress: nothing here rings.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, running).await.unwrap();
    let before = export(&cluster, 0, &long.job_id).await;
    let outside = tempfile::tempdir().unwrap();
    let file = save(&cluster, cluster.follower().await, outside.path()).await;
    let old = status(&cluster, 0);
    for i in 0..3 {
        cluster.crash(i).await;
        fs::remove_dir_all(&cluster.members[i].folder).unwrap();
    }
    let restored = restore::restore(&file, &cluster.members[0].folder).unwrap();
    assert_eq!((restored.header.jobs, restored.header.live_jobs), (2, 1));
    assert_ne!(restored.cluster_id, restored.from_cluster_id);
    cluster.start(0).await;
    cluster.leader().await;
    replace_others(&mut cluster, 0).await;
    let now = status(&cluster, 0);
    assert_eq!(now.public_key, old.public_key);
    assert!(now.term > old.term + 1_000, "workers obey nobody older");
    assert_eq!(now.lineage[0].kind(), LineageKind::Restored);
    assert_eq!(now.lineage[0].from_cluster_id, old.cluster_id.unwrap());
    for i in 0..3 {
        let mut client = cluster.client(i).await;
        let job = get(&mut client, &long.job_id).await;
        assert_eq!(
            (job.answer, job.spec),
            (ended.answer.clone(), ended.spec.clone())
        );
        assert_eq!(export(&cluster, i, &long.job_id).await, before);
    }
    // The worker, which lived on, forgets what it ran for the old cluster.
    worker.mock.open_gate();
    let job = done(&mut cluster.client(1).await, &live).await;
    assert_done(&job);
    assert!(job.agents.iter().all(|agent| agent.attempt == 2));
    let again = cluster.client(2).await.submit_job(keyed).await.unwrap();
    let again = again.into_inner();
    assert_eq!((again.job_id, again.existing), (long.job_id, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_restored_whole_into_an_empty_folder_or_not_at_all() {
    let cluster = Cluster::new(1).await;
    submit(&mut cluster.client(0).await, "what colour?").await;
    let outside = tempfile::tempdir().unwrap();
    let file = save(&cluster, 0, outside.path()).await;
    let target = outside.path().join("node");
    let used = restore::restore(&file, &cluster.members[0].folder).unwrap_err();
    assert!(matches!(used, RestoreError::NotEmpty { .. }), "{used}");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = outside.path().join("damaged");
    fs::write(&damaged, &bytes).unwrap();
    let error = restore::restore(&damaged, &target).unwrap_err();
    let found = matches!(
        &error,
        RestoreError::File {
            source: SnapshotFileError::Damaged { .. },
            ..
        }
    );
    assert!(found, "{error}");
    assert!(!target.exists(), "nothing was written");
    restore::restore(&file, &target).unwrap();
    let again = restore::restore(&file, &target).unwrap_err();
    assert!(matches!(again, RestoreError::NotEmpty { .. }), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_operator_saves_a_snapshot() {
    let outside = tempfile::tempdir().unwrap();
    let tokens = outside.path().join("tokens.jsonl");
    let lines = "{\"token\": \"alice-token\", \"tenant\": \"a\", \"role\": \"reviewer\"}\n\
                 {\"token\": \"peer-token\", \"role\": \"peer\"}\n";
    fs::write(&tokens, lines).unwrap();
    let cluster = Cluster::blank(1, |_| {}).await;
    let node = start(Config {
        open: false,
        tokens_file: Some(tokens),
        ..config(&outside.path().join("node"), "127.0.0.1:0")
    })
    .await
    .unwrap();
    let address = format!("http://{}", node.grpc_addr());
    let channel = tonic::transport::Channel::from_shared(address).unwrap();
    let mut admin = conclave_proto::v1::cluster_client::ClusterClient::new(channel.connect_lazy());
    for token in ["alice-token", "peer-token"] {
        let mut request = tonic::Request::new(SaveSnapshotRequest {});
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let refused = admin.save_snapshot(request).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let mut blank = cluster.admin(0).await;
    let saved = blank.save_snapshot(SaveSnapshotRequest {}).await;
    let saved = saved.map(drop).unwrap_err();
    assert_eq!(saved.code(), Code::Unavailable, "another may be a member");
    assert!(saved.message().contains("belongs to no cluster"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_that_is_left_goes_on_and_the_old_ones_cannot_disturb_it() {
    let mut cluster = Cluster::new(3).await;
    let worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let ended = submit(&mut client, "what colour?").await.job_id;
    assert_done(&done(&mut client, &ended).await);
    let survivor = cluster.follower().await;
    let folder = cluster.members[survivor].folder.clone();
    let running = Survivor::open(&folder).map(drop).unwrap_err();
    assert!(matches!(running, RecoverError::Identity(_)), "{running}");
    for i in 0..3 {
        cluster.crash(i).await;
    }
    drop(worker);
    // Found to hold another history than a leader, it is no member any more, and may be all that is left.
    condemn(&folder, "another history").unwrap();
    let opened = Survivor::open(&folder).unwrap();
    let loss = opened.loss.clone();
    assert_eq!(loss.doubt.as_deref(), Some("another history"));
    assert_eq!((loss.jobs, loss.live_jobs, loss.others.len()), (1, 0, 2));
    assert!(
        loss.last >= loss.committed && loss.committed > 0,
        "{loss:?}"
    );
    assert_eq!(loss.unconfirmed.len() as u64, loss.last - loss.committed);
    for (_, address, votes) in &loss.others {
        assert!(*votes && cluster.addresses().contains(address), "{loss:?}");
    }
    let new = opened.go_on_alone().unwrap();
    assert_ne!(new.cluster_id, loss.cluster_id);
    cluster.start(survivor).await;
    assert_eq!(cluster.leader().await, survivor);
    let mut client = cluster.client(survivor).await;
    assert_done(&get(&mut client, &ended).await);
    let fresh = submit(&mut client, "and now?").await.job_id;
    // The two others come back as the old cluster: a majority of it, even.
    let term = status(&cluster, survivor).term;
    for old in (0..3).filter(|i| *i != survivor) {
        cluster.start(old).await;
    }
    let others_lead = async {
        let old: Vec<_> = (0..3).filter(|i| *i != survivor).collect();
        while !old.iter().any(|i| status(&cluster, *i).serving) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, others_lead).await.unwrap();
    let now = status(&cluster, survivor);
    assert!(
        now.serving && now.term == term && now.members.len() == 1,
        "{now:?}"
    );
    assert_eq!(now.lineage[0].kind(), LineageKind::Recovered);
    assert_eq!(now.lineage[0].left_behind.len(), 2);
    let old = (0..3).find(|i| *i != survivor).unwrap();
    let add = AddRequest {
        address: cluster.members[old].address.clone(),
        learner: false,
    };
    let added = cluster.admin(survivor).await.add(add).await;
    refused(added, &["belongs to cluster", "empty data folder"]);
    replace_others(&mut cluster, survivor).await;
    let _worker = Mock::new("w2", cluster.addresses()).run();
    assert_done(&done(&mut cluster.client(old).await, &fresh).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_not_alone_in_need_is_not_recovered() {
    let mut cluster = Cluster::new(1).await;
    cluster.crash(0).await;
    let folder = cluster.members[0].folder.clone();
    let alone = Survivor::open(&folder).map(drop).unwrap_err();
    assert!(matches!(alone, RecoverError::Alone { .. }), "{alone}");
    let empty = tempfile::tempdir().unwrap();
    let blank = Survivor::open(empty.path()).map(drop).unwrap_err();
    assert!(matches!(blank, RecoverError::Blank(_)), "{blank}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_done_recovery_serves_nobody_and_can_be_finished() {
    let mut cluster = Cluster::new(3).await;
    for i in 0..3 {
        cluster.crash(i).await;
    }
    let folder = cluster.members[0].folder.clone();
    let identity = fs::read(folder.join("identity.json")).unwrap();
    let new = Survivor::open(&folder).unwrap().go_on_alone().unwrap();
    // As a crash before the last step leaves it.
    fs::write(folder.join("identity.json"), identity).unwrap();
    let config = config(&folder, &cluster.members[0].address);
    let error = start(config).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("did not come to its end"), "{error}");
    let again = Survivor::open(&folder).unwrap().go_on_alone().unwrap();
    assert_eq!(again.cluster_id, new.cluster_id);
    cluster.start(0).await;
    cluster.leader().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_through_a_follower_moves_leadership_once() {
    let cluster = Cluster::new(3).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let before = status(&cluster, leader);
    let any = TransferRequest::default();
    let mut admin = cluster.admin(follower).await;
    let after = admin.transfer(any).await.unwrap().into_inner();
    assert_eq!(after.term, before.term + 1, "{after:?}");
    let leads = after.members.iter().find(|m| m.leader).unwrap().node_id;
    assert_ne!(leads, before.node_id, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_shut_down_hands_over_to_a_member_with_room_on_its_disk() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let mut others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    // Of two that are equally caught up, it is the higher id that would be taken for that alone.
    others.sort_by_key(|i| status(&cluster, *i).node_id);
    let (roomy, short) = (others[0], others[1]);
    cluster.stop(short).await;
    cluster.extra = Box::new(|c| c.disk_reserve_bytes = u64::MAX);
    cluster.start(short).await;
    let caught_up = async {
        loop {
            let known = cluster.admin(leader).await.members(MembersRequest {}).await;
            let members = known.unwrap().into_inner().members;
            let last = members.iter().map(|m| m.match_index).max();
            if members
                .iter()
                .all(|m| m.leader || (m.active && Some(m.match_index) == last))
            {
                return;
            }
            // Nobody tells when a follower has caught up.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, caught_up)
        .await
        .expect("all are there");
    cluster.stop(leader).await;
    assert_eq!(cluster.leader().await, roomy);
}
