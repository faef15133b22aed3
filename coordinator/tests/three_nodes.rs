//! Three nodes: what the cluster must do whatever becomes of one of them.

mod harness;

use std::time::{Duration, Instant};

use conclave_proto::v1::{
    AddRequest, JobState, ListJobsRequest, MembersRequest, RemoveRequest, StatusRequest,
    TransferRequest, WatchJobRequest, watch_job_response::Update,
};
use harness::{Cluster, assert_done, done, get, request, submit, worker::Mock};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn every_member_says_what_a_job_without_a_worker_waits_for() {
    let cluster = Cluster::new(3).await;
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    for member in 0..3 {
        let job = get(&mut cluster.client(member).await, &job_id).await;
        assert_eq!(job.state(), JobState::Preparing);
        let said = &job.message;
        assert!(said.contains("no worker holds a lease"), "{said}");
    }
    let listed = client.list_jobs(ListJobsRequest::default()).await.unwrap();
    assert!(listed.into_inner().jobs[0].message.contains("waiting"));
    let _worker = Mock::new("w1", cluster.addresses()).run();
    assert_done(&done(&mut client, &job_id).await);
    let ended = get(&mut client, &job_id).await;
    assert!(!ended.message.contains("waiting"), "{}", ended.message);
    let junk = ListJobsRequest {
        page_token: "junk".to_owned(),
        ..ListJobsRequest::default()
    };
    let refused = client.list_jobs(junk).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_serves_every_call() {
    let cluster = Cluster::new(3).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    for i in 0..3 {
        let mut client = cluster.client(i).await;
        let job_id = submit(&mut client, "what colour?").await.job_id;
        assert_done(&done(&mut client, &job_id).await);
        for j in 0..3 {
            assert_done(&get(&mut cluster.client(j).await, &job_id).await);
        }
    }
    let members = cluster
        .admin(1)
        .await
        .members(MembersRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(members.members.iter().filter(|m| m.leader).count(), 1);
    assert!(
        members
            .members
            .iter()
            .all(|m| m.active && m.match_index > 0),
        "{members:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_and_its_watch_outlive_their_leader() {
    let mut cluster = Cluster::new(3).await;
    let worker = Mock::new("w1", cluster.addresses());
    worker.close_gate();
    let worker = worker.run();
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut client = cluster.client(follower).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    let watch = WatchJobRequest {
        job_id: job_id.clone(),
        cursor: Vec::new(),
        tokens: true,
    };
    let mut updates = client.watch_job(watch).await.unwrap().into_inner();
    let (mut seen, mut texts) = (0, 0);
    while texts < 3 {
        match updates.message().await.unwrap().unwrap().update.unwrap() {
            Update::Event(event) => seen = event.index,
            Update::Tokens(_) => texts += 1,
            other => panic!("{other:?}"),
        }
    }
    cluster.crash(leader).await;
    assert_ne!(cluster.leader().await, leader);
    worker.mock.open_gate();
    let wait = async {
        loop {
            match updates.message().await.unwrap().unwrap().update.unwrap() {
                Update::Event(event) => {
                    assert_eq!(event.index, seen + 1, "events have no gaps across leaders");
                    seen = event.index;
                }
                Update::Done(job) => return job,
                Update::Tokens(_) | Update::Reset(_) => {}
            }
        }
    };
    let job = tokio::time::timeout(harness::PATIENCE, wait).await.unwrap();
    assert_done(&job);
    assert!(
        job.agents.iter().all(|a| a.attempt == 1),
        "workers decode on: {:?}",
        job.agents
    );
    // The old leader comes back from its disk and agrees.
    cluster.start(leader).await;
    assert_done(&get(&mut cluster.client(leader).await, &job_id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_leader_hands_over_before_it_goes() {
    let mut cluster = Cluster::new(3).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let before = cluster.members[follower]
        .running
        .as_ref()
        .unwrap()
        .status()
        .borrow()
        .term;
    cluster.stop(leader).await;
    let next = cluster.leader().await;
    let after = cluster.members[next]
        .running
        .as_ref()
        .unwrap()
        .status()
        .borrow()
        .clone();
    assert_eq!(after.term, before + 1, "one election, asked for");
    let mut client = cluster.client(follower).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    assert_done(&done(&mut client, &job_id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_three_restart_and_finish_what_they_accepted() {
    let mut cluster = Cluster::new(3).await;
    let worker = Mock::new("w1", cluster.addresses());
    worker.close_gate();
    let worker = worker.run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    for i in 0..3 {
        cluster.crash(i).await;
    }
    for i in 0..3 {
        cluster.start(i).await;
    }
    worker.mock.open_gate();
    cluster.leader().await;
    assert_done(&done(&mut cluster.client(1).await, &job_id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_calls_end_in_time_and_name_who_is_missing() {
    let mut cluster = Cluster::new(3).await;
    let mut client = cluster.client(2).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    cluster.crash(0).await;
    cluster.crash(1).await;
    let started = Instant::now();
    let refused = client.submit_job(request("another")).await.unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "a bounded wait"
    );
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let known = refused.metadata().contains_key("outcome");
    let names = [0, 1]
        .iter()
        .all(|i| refused.message().contains(&cluster.members[*i].address));
    assert!(known || names, "{refused:?}");
    let refused = client
        .get_job(conclave_proto::v1::GetJobRequest {
            job_id: job_id.clone(),
            ..conclave_proto::v1::GetJobRequest::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        refused.code(),
        Code::Unavailable,
        "no stale read: {refused:?}"
    );
    // What this member is, it says without a quorum.
    cluster
        .admin(2)
        .await
        .status(StatusRequest {})
        .await
        .unwrap();
    cluster.start(0).await;
    cluster.leader().await;
    assert_eq!(get(&mut client, &job_id).await.state(), JobState::Preparing);
}

/// A caller that is turned away can go to the other side of the partition; one that is held to its
/// own deadline cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_cut_off_turns_its_callers_away() {
    let mut cluster = Cluster::blank(3, |config| config.request_timeout_ms = 60_000).await;
    cluster.init().await;
    let mut client = cluster.client(2).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    cluster.crash(0).await;
    cluster.crash(1).await;
    for turn in 0..2 {
        let started = Instant::now();
        let get = conclave_proto::v1::GetJobRequest {
            job_id: job_id.clone(),
            ..conclave_proto::v1::GetJobRequest::default()
        };
        let refused = client.get_job(get).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let refused = client.submit_job(request("another")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(20), "turn {turn}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_and_drafts_reach_every_member() {
    let cluster = Cluster::new(3).await;
    let _worker = Mock::new("w1", cluster.addresses())
        .with_thought(100_000)
        .run();
    let mut client = cluster.client(cluster.follower().await).await;
    let question = "why? ".repeat(20_000);
    let job_id = submit(&mut client, &question).await.job_id;
    let job = done(&mut client, &job_id).await;
    assert_done(&job);
    assert_eq!(job.spec.unwrap().messages[0].content, question);
    for i in 0..3 {
        let job = get(&mut cluster.client(i).await, &job_id).await;
        let draft = job.agents[0].draft.as_ref().unwrap();
        assert_eq!(draft.thought.len(), 100_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_member_catches_up_from_a_snapshot() {
    let mut cluster = Cluster::blank(4, |config| config.snapshot_every = 16).await;
    let join = cluster.members[1..3]
        .iter()
        .map(|m| m.address.clone())
        .collect();
    let init = conclave_proto::v1::InitRequest { join };
    cluster.admin(0).await.init(init).await.unwrap();
    let _worker = Mock::new("w1", cluster.addresses()[..3].to_vec()).run();
    let mut client = cluster.client(0).await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        let job_id = submit(&mut client, "what colour?").await.job_id;
        assert_done(&done(&mut client, &job_id).await);
        jobs.push(job_id);
    }
    let add = AddRequest {
        address: cluster.members[3].address.clone(),
        learner: false,
    };
    let members = cluster.admin(1).await.add(add).await.unwrap().into_inner();
    assert_eq!(members.members.iter().filter(|m| !m.learner).count(), 4);
    for job_id in &jobs {
        assert_done(&get(&mut cluster.client(3).await, job_id).await);
    }
    // It restarts from what it was sent.
    cluster.crash(3).await;
    cluster.start(3).await;
    assert_done(&get(&mut cluster.client(3).await, &jobs[0]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_and_members_leave_as_told() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let status = |i: usize| {
        cluster.members[i]
            .running
            .as_ref()
            .unwrap()
            .status()
            .borrow()
            .clone()
    };
    let other = cluster.follower().await;
    let to = TransferRequest {
        node_id: status(other).node_id,
        force: false,
    };
    cluster.admin(leader).await.transfer(to).await.unwrap();
    assert_eq!(cluster.leader().await, other);
    let own = RemoveRequest {
        node_id: status(other).node_id,
        force: false,
    };
    let refused = cluster.admin(leader).await.remove(own).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let remove = RemoveRequest {
        node_id: status(leader).node_id,
        force: false,
    };
    let left = cluster
        .admin(other)
        .await
        .remove(remove)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(left.members.len(), 2);
    let stranger = RemoveRequest {
        node_id: 1,
        force: false,
    };
    let refused = cluster
        .admin(other)
        .await
        .remove(stranger)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_cluster_is_not_added() {
    let one = Cluster::new(1).await;
    let two = Cluster::new(1).await;
    let add = AddRequest {
        address: two.members[0].address.clone(),
        learner: false,
    };
    // It is refused at once, not once it has failed to catch up.
    let mut add = tonic::Request::new(add);
    add.set_timeout(Duration::from_secs(5));
    let refused = one.admin(0).await.add(add).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("belongs to cluster"),
        "{}",
        refused.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_payload_is_repaired_from_another_member() {
    let cluster = Cluster::new(3).await;
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, &"why? ".repeat(20_000)).await.job_id;
    // The member has it, once it has answered.
    let mut second = cluster.client(1).await;
    get(&mut second, &job_id).await;
    let shards = std::fs::read_dir(cluster.members[1].folder.join("blobs")).unwrap();
    let mut files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    // What is on its way into the folder ends in `.tmp`.
    let blob = files.find_map(|file| {
        let path = file.unwrap().path();
        path.extension().is_none().then_some(path)
    });
    let blob = blob.unwrap();
    let whole = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, b"damaged").unwrap();
    get(&mut second, &job_id).await;
    assert_eq!(std::fs::read(&blob).unwrap(), whole);
}

/// From now on this member can store no payload.
fn spoil_blobs(cluster: &Cluster, i: usize) {
    let blobs = cluster.members[i].folder.join("blobs");
    std::fs::remove_dir_all(&blobs).unwrap();
    std::fs::write(blobs, "no folder").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_no_majority_holds_is_not_proposed() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    for i in (0..3).filter(|i| *i != leader) {
        spoil_blobs(&cluster, i);
    }
    let mut client = cluster.client(leader).await;
    let long = request(&"why? ".repeat(20_000));
    let refused = client.submit_job(long.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("1 of 2"), "{refused}");
    // Nothing of it is in the log: the key is free for another request.
    let short = conclave_proto::v1::SubmitJobRequest {
        idempotency_key: long.idempotency_key,
        ..request("why?")
    };
    let taken = client.submit_job(short).await.unwrap().into_inner();
    assert!(!taken.existing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_votes_once_it_holds_every_payload() {
    let cluster = Cluster::blank(3, |_| {}).await;
    let init = conclave_proto::v1::InitRequest::default();
    cluster.admin(0).await.init(init).await.unwrap();
    let mut client = cluster.client(0).await;
    submit(&mut client, &"why? ".repeat(20_000)).await;
    let add = |i: usize, learner| AddRequest {
        address: cluster.members[i].address.clone(),
        learner,
    };
    let mut admin = cluster.admin(0).await;
    let learners =
        |m: conclave_proto::v1::MembersResponse| m.members.iter().filter(|m| m.learner).count();
    let asked = admin.add(add(1, true)).await.unwrap().into_inner();
    assert_eq!(learners(asked), 1, "it joins without a vote");
    let asked = admin.add(add(1, false)).await.unwrap().into_inner();
    assert_eq!(learners(asked), 0);
    spoil_blobs(&cluster, 2);
    admin.add(add(2, false)).await.unwrap_err();
    let status = cluster.members[0].running.as_ref().unwrap().status();
    let learners = status
        .borrow()
        .members
        .values()
        .filter(|m| m.learner)
        .count();
    assert_eq!(
        learners, 1,
        "it counts for no majority that must hold a payload"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_may_not_send_is_refused_and_ends_no_node() {
    use conclave_proto::v1::{RaftBatch, raft_client::RaftClient};
    use protobuf::Message as _;
    let cluster = Cluster::new(1).await;
    let status = cluster.members[0].running.as_ref().unwrap().status();
    let (me, cluster_id) = {
        let status = status.borrow();
        (status.node_id, status.cluster_id.clone().unwrap())
    };
    let mut message = raft::eraftpb::Message::default();
    message.set_msg_type(raft::eraftpb::MessageType::MsgHup);
    (message.from, message.to) = (me, me);
    let batch = RaftBatch {
        cluster_id,
        from: 7,
        to: me,
        messages: vec![message.write_to_bytes().unwrap()],
        from_address: "127.0.0.1:1".to_owned(),
        advertised: false,
    };
    let mut peer = RaftClient::new(cluster.channel(0).await);
    let refused = peer
        .messages(futures::stream::iter([batch]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let mut client = cluster.client(0).await;
    submit(&mut client, "still there?").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_leader_that_hands_over_reach_the_next() {
    let cluster = Cluster::new(3).await;
    for _ in 0..3 {
        let leader = cluster.leader().await;
        let mut admin = cluster.admin(leader).await;
        let calls = (0..8).map(|_| async {
            let mut client = cluster.client(leader).await;
            client.submit_job(request("what colour?")).await.map(drop)
        });
        let moved = admin.transfer(TransferRequest::default());
        let (moved, answered) = tokio::join!(moved, futures::future::join_all(calls));
        moved.unwrap();
        answered.into_iter().for_each(|answer| answer.unwrap());
    }
}
