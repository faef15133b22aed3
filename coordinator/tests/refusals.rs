//! Changes of members and versions are refused where something would be lost by
//! them, and say what; what is too old goes, and nothing else.

mod harness;

use std::{fs, time::Duration};

use conclave_coordinator::{
    Config, Coordinator,
    node::{NodeRole, NodeStatus},
};
use conclave_proto::v1::{
    AddRequest, InitRequest, JobState, RemoveRequest, StatusRequest, SubmitJobRequest,
    TransferRequest, WatchJobRequest, export_job_response::Item,
};
use harness::{
    Cluster, PATIENCE, assert_done, config, done, export, get, refused, spec, start, status,
    submit, worker::Mock,
};
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn removals_that_would_lose_the_cluster_are_refused_and_say_what() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let remove = |i: usize, force| RemoveRequest {
        node_id: status(&cluster, i).node_id,
        force,
    };
    for force in [false, true] {
        let own = remove(leader, force);
        let answer = cluster.admin(leader).await.remove(own).await;
        refused(answer, &["leads", "transfer"]);
    }
    let live = cluster.follower().await;
    let request = remove(live, false);
    let dead = (0..3).find(|i| *i != leader && *i != live).unwrap();
    let dead_address = cluster.members[dead].address.clone();
    let dead_id = status(&cluster, dead).node_id;
    cluster.crash(dead).await;
    let answer = cluster.admin(leader).await.remove(request).await;
    refused(answer, &["quorum would be lost", &dead_address, "--force"]);
    // The one that is gone may go.
    let gone = RemoveRequest {
        node_id: dead_id,
        force: false,
    };
    let left = cluster.admin(leader).await.remove(gone).await.unwrap();
    assert_eq!(left.into_inner().members.len(), 2);
    // Then the live one; and the last one stays, whatever is said.
    cluster.admin(leader).await.remove(request).await.unwrap();
    for force in [false, true] {
        let last = RemoveRequest {
            node_id: status(&cluster, leader).node_id,
            force,
        };
        let answer = cluster.admin(leader).await.remove(last).await;
        refused(answer, &["the only voter", "delete its folder"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_added_knows_that_it_votes() {
    // Each hears of a commit with a heartbeat: without waiting for it, most would still say learner.
    let slow = |config: &mut Config| config.heartbeat_ms = 200;
    let cluster = Cluster::blank(3, slow).await;
    cluster.init().await;
    for i in 0..3 {
        let asked = cluster.admin(i).await.status(StatusRequest {}).await;
        let status = asked.unwrap().into_inner();
        assert_ne!(status.role, "learner", "{}", status.address);
        // And without a leader it could say who the others are.
        assert_eq!(status.members.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_removal_goes_through_where_the_quorum_is_lost_by_it() {
    let mut cluster = Cluster::new(3).await;
    let (leader, live) = (cluster.leader().await, cluster.follower().await);
    let dead = (0..3).find(|i| *i != leader && *i != live).unwrap();
    let node_id = status(&cluster, live).node_id;
    cluster.crash(dead).await;
    let forced = RemoveRequest {
        node_id,
        force: true,
    };
    // The change commits by the old majority; what follows it cannot.
    let _ = cluster.admin(leader).await.remove(forced).await;
    let gone = async {
        while status(&cluster, leader).members.contains_key(&node_id) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    cluster.start(dead).await;
    cluster.leader().await;
    submit(&mut cluster.client(dead).await, "still there?").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_holder_of_a_payload_is_not_removed() {
    let cluster = Cluster::new(3).await;
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, &"why? ".repeat(20_000)).await.job_id;
    for i in 0..3 {
        get(&mut cluster.client(i).await, &job_id).await;
    }
    let leader = cluster.leader().await;
    let holder = cluster.follower().await;
    let blobs = |i: usize| cluster.members[i].folder.join("blobs");
    for i in (0..3).filter(|i| *i != holder) {
        for shard in fs::read_dir(blobs(i)).unwrap() {
            fs::remove_dir_all(shard.unwrap().path()).unwrap();
        }
    }
    let hidden = cluster.members[holder].folder.join("hidden");
    fs::rename(blobs(holder), &hidden).unwrap();
    let remove = |force| RemoveRequest {
        node_id: status(&cluster, holder).node_id,
        force,
    };
    let answer = cluster.admin(leader).await.remove(remove(false)).await;
    refused(answer, &["1 payloads", "may be lost", "--force"]);
    // It gives it: nothing would be lost any more.
    fs::rename(&hidden, blobs(holder)).unwrap();
    cluster
        .admin(leader)
        .await
        .remove(remove(false))
        .await
        .unwrap();
    let job = get(&mut cluster.client(leader).await, &job_id).await;
    assert_eq!(job.state(), JobState::Preparing);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_not_handed_to_whoever_cannot_lead() {
    let mut cluster = Cluster::blank(4, |_| {}).await;
    let join = cluster.addresses()[1..3].to_vec();
    let init = InitRequest { join };
    cluster.admin(0).await.init(init).await.unwrap();
    let learner = AddRequest {
        address: cluster.members[3].address.clone(),
        learner: true,
    };
    cluster.admin(0).await.add(learner).await.unwrap();
    let leader = cluster.leader().await;
    let to = |node_id| TransferRequest {
        node_id,
        force: true,
    };
    let learner = to(status(&cluster, 3).node_id);
    let answer = cluster.admin(leader).await.transfer(learner).await;
    refused(answer, &["is a learner", &cluster.members[3].address]);
    refused(
        cluster.admin(leader).await.transfer(to(7)).await,
        &["no member"],
    );
    let dead = (1..3).find(|i| *i != leader).unwrap();
    let dead_id = status(&cluster, dead).node_id;
    cluster.crash(dead).await;
    let silent = async {
        while !status(&cluster, leader).silent.contains(&dead_id) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, silent).await.unwrap();
    let answer = cluster.admin(leader).await.transfer(to(dead_id)).await;
    refused(answer, &["does not answer", &cluster.members[dead].address]);
    let alone = Cluster::new(1).await;
    let answer = alone
        .admin(0)
        .await
        .transfer(TransferRequest::default())
        .await;
    refused(answer, &["no other voter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_change_at_a_time_is_made() {
    // A node that says what it is and never catches up, as seen by the leader.
    let cluster = Cluster::blank(3, |_| {}).await;
    let init = InitRequest::default();
    cluster.admin(0).await.init(init).await.unwrap();
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slow = AddRequest {
        address: deaf.local_addr().unwrap().to_string(),
        learner: false,
    };
    let mut admin = cluster.admin(0).await;
    let first = tokio::spawn(async move { admin.add(slow).await });
    // Its turn began once it is dialled.
    let dialled = tokio::time::timeout(PATIENCE, deaf.accept()).await.unwrap();
    let _open = dialled.unwrap();
    let second = AddRequest {
        address: cluster.members[1].address.clone(),
        learner: false,
    };
    let answer = cluster.admin(0).await.add(second.clone()).await;
    refused(answer, &["the addition of", "is under way"]);
    first.abort();
    let free = async {
        while cluster.admin(0).await.add(second.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.unwrap();
}

async fn restart_speaking(cluster: &mut Cluster, i: usize, version: u32) {
    drop(cluster.members[i].running.take());
    let member = &cluster.members[i];
    // Until the old one's thread let go of the folder.
    let lock = fs::File::open(member.folder.join("LOCK")).unwrap();
    tokio::task::spawn_blocking(move || lock.lock())
        .await
        .unwrap()
        .unwrap();
    let started = start_speaking(cluster, i, version).await.unwrap();
    cluster.members[i].running = Some(started);
}

async fn start_speaking(
    cluster: &Cluster,
    i: usize,
    version: u32,
) -> Result<Coordinator, conclave_coordinator::StartError> {
    let member = &cluster.members[i];
    start(Config {
        max_log_version: version,
        ..config(&member.folder, &member.address)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_version_rises_when_every_member_speaks_it_and_not_before() {
    let mut cluster = Cluster::blank(4, |config| config.max_log_version = 1).await;
    let join = cluster.addresses()[1..3].to_vec();
    let init = InitRequest { join };
    cluster.admin(0).await.init(init).await.unwrap();
    let upgrade = conclave_proto::v1::UpgradeRequest::default();
    // A rolling upgrade: two of three run the newer program.
    for i in 0..2 {
        restart_speaking(&mut cluster, i, 2).await;
        cluster.leader().await;
    }
    let old_address = cluster.members[2].address.clone();
    // Whoever leads: the one that runs the older program, too.
    let leader = cluster.leader().await;
    if leader != 2 {
        let to = TransferRequest {
            node_id: status(&cluster, 2).node_id,
            ..TransferRequest::default()
        };
        cluster.admin(leader).await.transfer(to).await.unwrap();
        let mut old = cluster.members[2].running.as_ref().unwrap().status();
        let leads = tokio::time::timeout(PATIENCE, old.wait_for(|s| s.serving)).await;
        leads.expect("it does not lead").unwrap();
    }
    let answer = cluster.admin(0).await.upgrade(upgrade).await;
    refused(answer, &[&old_address, "speaks up to 1", "stays 1"]);
    // Jobs go on meanwhile: nothing newer is proposed.
    let worker = Mock::new("w1", cluster.addresses()[..3].to_vec()).run();
    let mut client = cluster.client(2).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    assert_done(&done(&mut client, &job_id).await);
    assert_eq!(status(&cluster, 2).log_version, 1);
    restart_speaking(&mut cluster, 2, 2).await;
    cluster.leader().await;
    let raised = cluster.admin(2).await.upgrade(upgrade).await.unwrap();
    let raised = raised.into_inner();
    assert_eq!((raised.before, raised.after), (1, 2));
    let said = cluster
        .admin(1)
        .await
        .status(StatusRequest {})
        .await
        .unwrap();
    assert_eq!(said.into_inner().log_version, 2);
    // There is no way back: an older program does not start, or join.
    let add = AddRequest {
        address: cluster.members[3].address.clone(),
        learner: false,
    };
    let answer = cluster.admin(0).await.add(add).await;
    refused(answer, &["speaks log versions up to 1", "uses 2"]);
    cluster.crash(1).await;
    let error = start_speaking(&cluster, 1, 1).await.map(drop).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("uses log version 2"), "{error}");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_is_followed_by_the_next() {
    let mut cluster = Cluster::blank(1, |config| config.max_log_version = 1).await;
    cluster.init().await;
    cluster.leader().await;
    let upgrade = conclave_proto::v1::UpgradeRequest::default();
    for version in 2..=conclave_proto::LOG_VERSION {
        restart_speaking(&mut cluster, 0, version).await;
        cluster.leader().await;
        let raised = cluster.admin(0).await.upgrade(upgrade).await.unwrap();
        let raised = raised.into_inner();
        assert_eq!((raised.before, raised.after), (version - 1, version));
        // Its status may be a moment behind its answer.
        let mut said = cluster.members[0].running.as_ref().unwrap().status();
        let raised = said.wait_for(|s| s.log_version == version);
        tokio::time::timeout(PATIENCE, raised)
            .await
            .unwrap()
            .unwrap();
        // What it says is on disk: the same program comes back, the one before does not.
        restart_speaking(&mut cluster, 0, version).await;
        cluster.leader().await;
        cluster.crash(0).await;
        let error = start_speaking(&cluster, 0, version - 1).await.map(drop);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(&format!("uses log version {version}")),
            "{error}"
        );
        let started = start_speaking(&cluster, 0, version).await.unwrap();
        cluster.members[0].running = Some(started);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_version_is_asked_for_that_this_program_does_not_speak() {
    let cluster = Cluster::new(3).await;
    let newest = conclave_proto::LOG_VERSION;
    assert_eq!(status(&cluster, 0).log_version, newest, "a new cluster");
    let upgrade = conclave_proto::v1::UpgradeRequest {
        log_version: newest + 1,
    };
    let answer = cluster.admin(0).await.upgrade(upgrade).await;
    refused(answer, &["the leader", "speaks up to"]);
    assert_eq!(status(&cluster, 0).log_version, newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_jobs_go_by_bytes_oldest_first_and_live_ones_stay() {
    let cluster = Cluster::blank(1, |config| config.retention_bytes = 150_000).await;
    cluster.init().await;
    let worker = Mock::new("w1", cluster.addresses())
        .with_thought(20_000)
        .run();
    let mut client = cluster.client(0).await;
    let mut ended = Vec::new();
    for _ in 0..3 {
        let job_id = submit(&mut client, "what colour?").await.job_id;
        assert_done(&done(&mut client, &job_id).await);
        ended.push(job_id);
    }
    worker.mock.close_gate();
    let live = submit(&mut client, &"and now? ".repeat(20_000))
        .await
        .job_id;
    // Exported before it goes, it is kept outside.
    let kept = export(&cluster, 0, &ended[0]).await;
    assert!(matches!(kept.last(), Some(Item::Head(head)) if !head.signature.is_empty()));
    let first = expired(&cluster, &ended[0]).await;
    assert!(first.message().contains("retention"), "{first:?}");
    // Three drafts of 20 kB a job: two jobs fit.
    assert_done(&get(&mut client, &ended[1]).await);
    assert_done(&get(&mut client, &ended[2]).await);
    worker.mock.open_gate();
    assert_done(&done(&mut client, &live).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_jobs_go_by_age_with_their_payloads_and_watchers_are_told() {
    let cluster = Cluster::blank(1, |config| config.retention_hours = 0).await;
    cluster.init().await;
    let worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let keyed = SubmitJobRequest {
        idempotency_key: harness::key(),
        spec: Some(spec(&"why? ".repeat(20_000))),
    };
    let submitted = client.submit_job(keyed.clone()).await.unwrap();
    let job_id = submitted.into_inner().job_id;
    assert_done(&done(&mut client, &job_id).await);
    worker.mock.close_gate();
    let live = submit(&mut client, "and now?").await.job_id;
    let gone = expired(&cluster, &job_id).await;
    assert!(gone.message().contains("0 hours"), "{gone:?}");
    let watch = WatchJobRequest {
        job_id: job_id.clone(),
        ..WatchJobRequest::default()
    };
    let mut updates = match client.watch_job(watch).await {
        Ok(updates) => updates.into_inner(),
        Err(status) => return assert_eq!(status.code(), Code::NotFound),
    };
    let told = updates.message().await.unwrap_err();
    assert_eq!(told.code(), Code::NotFound);
    // The key lives on for a day: the same request is not run again unnoticed.
    let again = client.submit_job(keyed).await;
    assert!(again.is_err() || again.unwrap().into_inner().job_id == job_id);
    assert_eq!(get(&mut client, &live).await.job_id, live);
}

/// Waits until the job is gone, and returns what is said of it.
async fn expired(cluster: &Cluster, job_id: &str) -> Status {
    let mut client = cluster.client(0).await;
    let gone = async {
        loop {
            let request = conclave_proto::v1::GetJobRequest {
                job_id: job_id.to_owned(),
                ..conclave_proto::v1::GetJobRequest::default()
            };
            match client.get_job(request).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(status) => return status,
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    status
}

/// It asks for votes where it had one; a learner asks for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_while_it_was_away_says_so() {
    let mut cluster = Cluster::blank(4, |_| {}).await;
    let join = cluster.members[1..3]
        .iter()
        .map(|m| m.address.clone())
        .collect();
    cluster
        .admin(0)
        .await
        .init(InitRequest { join })
        .await
        .unwrap();
    let add = AddRequest {
        address: cluster.members[3].address.clone(),
        learner: true,
    };
    cluster.admin(0).await.add(add).await.unwrap();
    let voter = cluster.follower().await;
    for i in [3, voter] {
        let mut before = cluster.members[i].running.as_ref().unwrap().status();
        // Whoever goes before it knows the others' addresses has nobody to ask.
        let knows = |s: &NodeStatus| s.members.values().filter(|m| !m.address.is_empty()).count();
        let member = before.wait_for(|s| s.unready().is_none() && knows(s) > 2);
        let member = tokio::time::timeout(PATIENCE, member).await;
        let node_id = member.expect("it knows the members").unwrap().node_id;
        cluster.crash(i).await;
        let remove = RemoveRequest {
            node_id,
            force: false,
        };
        let leader = cluster.leader().await;
        cluster.admin(leader).await.remove(remove).await.unwrap();
        cluster.start(i).await;
        let mut status = cluster.members[i].running.as_ref().unwrap().status();
        let told = status.wait_for(|s| s.role == NodeRole::Removed);
        let told = tokio::time::timeout(PATIENCE, told).await;
        let why = told
            .unwrap_or_else(|_| panic!("member {i} does not say so"))
            .unwrap()
            .unready();
        assert!(why.is_some_and(|why| why.contains("removed")));
    }
}
