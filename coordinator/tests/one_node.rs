//! One node: what a single member must do, and refuse.

mod harness;

use conclave_proto::v1::{
    CancelJobRequest, ExportJobRequest, GetJobRequest, InitRequest, JobState, ListJobsRequest,
    StatusRequest, SubmitJobRequest, WatchJobRequest, audit_client::AuditClient,
    export_job_response::Item, watch_job_response::Update,
};
use harness::{
    Cluster, assert_done, config, done, get, request, spec, start, submit, with, with_tokens,
    worker::Mock,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_submitted_job_is_answered_and_stays_readable() {
    let cluster = Cluster::new(1).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let submitted = submit(&mut client, "what colour?").await;
    assert!(!submitted.existing);
    let job = done(&mut client, &submitted.job_id).await;
    assert_done(&job);
    assert_eq!(job.agents.len(), 3);
    assert_eq!(get(&mut client, &submitted.job_id).await.answer, job.answer);
    let listed = client
        .list_jobs(ListJobsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.jobs.len(), 1);
    assert!(listed.next_page_token.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stands_for_one_request() {
    let cluster = Cluster::new(1).await;
    let mut client = cluster.client(0).await;
    let first = request("what colour?");
    let one = client.submit_job(first.clone()).await.unwrap().into_inner();
    let two = client.submit_job(first.clone()).await.unwrap().into_inner();
    assert_eq!((two.job_id, two.existing), (one.job_id, true));
    assert_eq!(two.effective, one.effective, "the seed was minted once");
    let other = SubmitJobRequest {
        spec: Some(spec("another question")),
        ..first
    };
    assert_eq!(
        client.submit_job(other).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    let keyless = SubmitJobRequest {
        idempotency_key: String::new(),
        ..request("x")
    };
    assert_eq!(
        client.submit_job(keyless).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_survive_a_crash_at_any_stage() {
    let mut cluster = Cluster::blank(1, |c| c.snapshot_every = 16).await;
    cluster.init().await;
    let worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let ended = submit(&mut client, "what colour?").await.job_id;
    assert_done(&done(&mut client, &ended).await);
    worker.mock.close_gate();
    let live = submit(&mut client, "and now?").await.job_id;
    cluster.crash(0).await;
    cluster.start(0).await;
    cluster.leader().await;
    let mut client = cluster.client(0).await;
    assert_done(&get(&mut client, &ended).await);
    worker.mock.open_gate();
    assert_done(&done(&mut client, &live).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_job_and_its_agents() {
    let cluster = Cluster::new(1).await;
    let worker = Mock::new("w1", cluster.addresses());
    worker.close_gate();
    let worker = worker.run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    let cancel = CancelJobRequest {
        job_id: job_id.clone(),
        reason: "a test".to_owned(),
    };
    let job = client.cancel_job(cancel).await.unwrap().into_inner();
    assert_eq!(job.state(), JobState::Cancelled);
    assert!(job.message.contains("a test"), "{}", job.message);
    assert_eq!(
        done(&mut client, &job_id).await.state(),
        JobState::Cancelled
    );
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_behind_its_cursor_without_gap_or_repeat() {
    let cluster = Cluster::new(1).await;
    let worker = Mock::new("w1", cluster.addresses());
    worker.close_gate();
    let worker = worker.run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    let watch = |cursor| WatchJobRequest {
        job_id: job_id.clone(),
        cursor,
        tokens: true,
    };
    let mut first = client
        .watch_job(watch(Vec::new()))
        .await
        .unwrap()
        .into_inner();
    let (mut seen, mut text, mut cursor) = (0, String::new(), Vec::new());
    // Until every agent has written its first token, and waits at the gate.
    while text.matches("think").count() < 3 {
        let message = first.message().await.unwrap().unwrap();
        cursor = message.cursor;
        match message.update.unwrap() {
            Update::Event(event) => seen = event.index,
            Update::Tokens(delta) => text.push_str(&delta.text),
            other => panic!("{other:?}"),
        }
    }
    drop(first);
    worker.mock.open_gate();
    let mut second = client.watch_job(watch(cursor)).await.unwrap().into_inner();
    loop {
        match second.message().await.unwrap().unwrap().update.unwrap() {
            Update::Event(event) => {
                assert_eq!(event.index, seen + 1);
                seen = event.index;
            }
            Update::Tokens(delta) => text.push_str(&delta.text),
            Update::Reset(reset) => panic!("{reset:?}"),
            Update::Done(job) => break assert_done(&job),
        }
    }
    assert_eq!(text.matches("think").count(), 3, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_fails_with_the_names_that_are_served() {
    let cluster = Cluster::new(1).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let mut wrong = request("what colour?");
    wrong.spec.as_mut().unwrap().model = "nonesuch".to_owned();
    let accepted = client.submit_job(wrong.clone()).await.unwrap().into_inner();
    let job = done(&mut client, &accepted.job_id).await;
    assert_eq!(job.state(), JobState::Failed);
    // The worker is here by now: whoever submits it again hears so at once.
    wrong.idempotency_key = "again".to_owned();
    let accepted = client.submit_job(wrong).await.unwrap().into_inner();
    assert!(
        accepted.waits.contains("`nonesuch` (served: mock)"),
        "{}",
        accepted.waits
    );
    assert_eq!(submit(&mut client, "what colour?").await.waits, "");
    assert!(
        job.message.contains("`nonesuch`; served: mock"),
        "{}",
        job.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_progress_loses_its_agents_to_another() {
    let cluster = Cluster::new(1).await;
    let stuck = Mock::new("w1", cluster.addresses());
    stuck.close_gate();
    stuck.get_stuck();
    let stuck = stuck.run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    while stuck
        .mock
        .started
        .load(std::sync::atomic::Ordering::Relaxed)
        < 3
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let _healthy = Mock::new("w2", cluster.addresses()).run();
    // It no longer comes back, either: only the lease tells.
    drop(stuck);
    let job = done(&mut client, &job_id).await;
    assert_done(&job);
    assert!(
        job.agents
            .iter()
            .all(|agent| agent.attempt == 2 && agent.worker == "w2")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_chain_verifies_and_its_head_is_signed() {
    let cluster = Cluster::new(1).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    done(&mut client, &job_id).await;
    let mut audit = AuditClient::new(cluster.channel(0).await);
    let export = ExportJobRequest {
        job_id: job_id.clone(),
    };
    let mut items = audit.export_job(export).await.unwrap().into_inner();
    let (mut records, mut head) = (Vec::new(), None);
    while let Some(item) = items.message().await.unwrap() {
        match item.item.unwrap() {
            Item::Record(record) => records.push(record),
            Item::Head(signed) => head = Some(signed),
        }
    }
    let head = head.unwrap();
    conclave_coordinator::audit::verify_chain(&records, Some(&head)).unwrap();
    let status = cluster
        .admin(0)
        .await
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(head.public_key, status.public_key);
    assert_eq!(head.signature.len(), 64);
    assert_eq!(
        get(&mut client, &job_id).await.audit.unwrap().head,
        head.head
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_node_says_so_and_a_cluster_is_created_once() {
    let cluster = Cluster::blank(1, |_| {}).await;
    let mut client = cluster.client(0).await;
    let refused = client.submit_job(request("x")).await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::Unavailable,
        "another endpoint may be a member: clients go on"
    );
    assert!(
        refused.message().contains("cluster init"),
        "{}",
        refused.message()
    );
    // A member whose leader was replaced by an empty node at the same address looks for another leader.
    let mut passed_on = tonic::Request::new(request("x"));
    let yes = tonic::metadata::AsciiMetadataValue::from_static("1");
    passed_on.metadata_mut().insert("conclave-proxied", yes);
    let refused = client.submit_job(passed_on).await.unwrap_err();
    assert!(
        refused.metadata().contains_key("conclave-not-leader"),
        "{refused:?}"
    );
    let status = cluster
        .admin(0)
        .await
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (status.role.as_str(), status.cluster_id.as_str()),
        ("blank", "")
    );
    cluster.init().await;
    let again = cluster
        .admin(0)
        .await
        .init(InitRequest::default())
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_never_see_each_others_jobs() {
    let cluster = Cluster::blank(1, with_tokens).await;
    let mut admin = cluster.admin(0).await;
    let denied = admin
        .init(with("alice-token", Default::default()))
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    admin
        .init(with("admin-token", Default::default()))
        .await
        .unwrap();
    let _worker = Mock::new("w1", cluster.addresses())
        .with_token("labor-token")
        .run();
    let mut client = cluster.client(0).await;
    let unknown = client.submit_job(request("x")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unauthenticated);
    let submitted = client
        .submit_job(with("alice-token", request("x")))
        .await
        .unwrap();
    let job_id = submitted.into_inner().job_id;
    let get = || GetJobRequest {
        job_id: job_id.clone(),
        ..GetJobRequest::default()
    };
    client.get_job(with("alice-token", get())).await.unwrap();
    client.get_job(with("admin-token", get())).await.unwrap();
    let hidden = client
        .get_job(with("bobby-token", get()))
        .await
        .unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);
    let cancel = CancelJobRequest {
        job_id: job_id.clone(),
        reason: String::new(),
    };
    let hidden = client
        .cancel_job(with("bobby-token", cancel))
        .await
        .unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);
    let watch = WatchJobRequest {
        job_id: job_id.clone(),
        ..WatchJobRequest::default()
    };
    let hidden = client
        .watch_job(with("bobby-token", watch))
        .await
        .unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);
    let listed = client
        .list_jobs(with("bobby-token", ListJobsRequest::default()))
        .await
        .unwrap();
    assert!(listed.into_inner().jobs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_live_jobs_are_refused_with_a_time_to_come_again() {
    let cluster = Cluster::blank(1, |config| config.max_live_jobs = 1).await;
    cluster.init().await;
    let mut client = cluster.client(0).await;
    let first = request("x");
    client.submit_job(first.clone()).await.unwrap();
    let refused = client.submit_job(request("y")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.metadata().contains_key("retry-after-ms"));
    // What was accepted is still answered for.
    assert!(
        client
            .submit_job(first)
            .await
            .unwrap()
            .into_inner()
            .existing
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_or_of_a_newer_version_and_a_taken_port_are_refused() {
    let cluster = Cluster::new(1).await;
    let member = &cluster.members[0];
    let error = start(config(&member.folder, "127.0.0.1:0"))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("in use by another process"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = start(config(folder.path(), &member.address))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(&format!("cannot listen on {}", member.address)),
        "{error}"
    );
    let newer = "{\"format_version\": 9, \"node_id\": 1, \"cluster_id\": \"\"}";
    std::fs::write(folder.path().join("identity.json"), newer).unwrap();
    let error = start(config(folder.path(), "127.0.0.1:0"))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("has format 9"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_is_ready_once_a_leader_is_known() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let cluster = Cluster::blank(1, |config| config.http_listen = "127.0.0.1:0".to_owned()).await;
    let address = cluster.members[0]
        .running
        .as_ref()
        .unwrap()
        .http_addr()
        .unwrap();
    let fetch = |path: &'static str| async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(fetch("/healthz").await.starts_with("HTTP/1.1 200"));
    let blank = fetch("/readyz").await;
    assert!(
        blank.starts_with("HTTP/1.1 503") && blank.contains("no cluster yet"),
        "{blank}"
    );
    cluster.init().await;
    assert!(fetch("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(fetch("/metrics").await.starts_with("HTTP/1.1 200"));
}

/// Replaces every blob of a member by other bytes.
fn damage_blobs(folder: &std::path::Path) -> usize {
    let shards = std::fs::read_dir(folder.join("blobs")).unwrap();
    let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    let damage = |file: std::io::Result<std::fs::DirEntry>| {
        std::fs::write(file.unwrap().path(), b"damaged").unwrap();
    };
    files.map(damage).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_damaged_everywhere_is_said_to_be_missing() {
    let cluster = Cluster::new(1).await;
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, &"why? ".repeat(20_000)).await.job_id;
    assert_eq!(damage_blobs(&cluster.members[0].folder), 1);
    let get = GetJobRequest {
        job_id,
        ..GetJobRequest::default()
    };
    let gone = tokio::time::timeout(harness::PATIENCE, client.get_job(get))
        .await
        .expect("an answer, not an endless search")
        .unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_shut_down_is_ready_for_nothing() {
    let mut cluster = Cluster::new(1).await;
    let running = cluster.members[0].running.take().unwrap();
    let mut status = running.status();
    assert_eq!(status.borrow().unready(), None);
    let stop = tokio::spawn(running.shutdown(std::time::Duration::from_secs(5)));
    let left = status.wait_for(|s| s.unready().is_some()).await.unwrap();
    assert!(left.leaving, "it says so before its thread ends");
    drop(left);
    stop.await.unwrap();
    assert!(status.borrow().stopped.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_left_is_forgotten_while_nothing_else_happens() {
    let cluster = Cluster::new(1).await;
    let worker = Mock::new("w1", cluster.addresses()).run();
    let mut admin = cluster.admin(0).await;
    let mut count = async || {
        let list = conclave_proto::v1::ListWorkersRequest::default();
        admin
            .list_workers(list)
            .await
            .unwrap()
            .into_inner()
            .workers
            .len()
    };
    let wait = async {
        while count().await != 1 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        drop(worker);
        while count().await != 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(harness::PATIENCE, wait)
        .await
        .expect("its lease runs out");
}
