//! Watchers that are slow, ahead, or come back at any point: what they are sent has no gap, no
//! repeat and no past.

mod harness;

use std::time::Duration;

use conclave_coordinator_core::watch::Cursor;
use conclave_proto::v1::{
    GetJobRequest, WatchJobRequest, WatchJobResponse, contemplation_client::ContemplationClient,
    watch_job_response::Update,
};
use harness::{Cluster, PATIENCE, assert_done, done, status, submit, worker::Mock};
use tonic::{Code, Streaming, transport::Endpoint};

/// Watchers that read nothing: together they are sent more than one connection may hold by default.
const DEAF: usize = 24;

fn watch(job_id: &str, cursor: Vec<u8>) -> WatchJobRequest {
    WatchJobRequest {
        job_id: job_id.to_owned(),
        cursor,
        tokens: true,
    }
}

/// Everything up to `done`.
async fn rest(mut updates: Streaming<WatchJobResponse>) -> Vec<WatchJobResponse> {
    let read = async {
        let mut all = Vec::new();
        loop {
            let message = updates.message().await.unwrap().expect("not before `done`");
            let last = matches!(message.update, Some(Update::Done(_)));
            all.push(message);
            if last {
                return all;
            }
        }
    };
    let read = tokio::time::timeout(PATIENCE, read);
    read.await.expect("the watch does not end")
}

/// Indices of the events among them.
fn events(updates: &[WatchJobResponse]) -> Vec<u64> {
    let index = |m: &WatchJobResponse| match &m.update {
        Some(Update::Event(event)) => Some(event.index),
        _ => None,
    };
    updates.iter().filter_map(index).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_sleeps_through_a_job_gets_every_event() {
    let cluster = Cluster::new(1).await;
    let worker = Mock::new("w1", cluster.addresses());
    worker.close_gate();
    let worker = worker.run();
    let mut client = cluster.client(0).await;
    let mut sleepers = Vec::new();
    for _ in 0..4 {
        let job_id = submit(&mut client, "what colour?").await.job_id;
        let updates = client.watch_job(watch(&job_id, Vec::new())).await.unwrap();
        sleepers.push((job_id, updates.into_inner()));
    }
    worker.mock.open_gate();
    // Nobody reads until all have ended.
    for (job_id, _) in &sleepers {
        assert_done(&done(&mut client, job_id).await);
    }
    for (_, updates) in sleepers {
        let all = rest(updates).await;
        let seen = events(&all);
        assert!(seen.len() > 6, "{seen:?}");
        assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_may_be_taken_up_behind_any_of_its_messages() {
    let cluster = Cluster::new(1).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    let first = client.watch_job(watch(&job_id, Vec::new())).await.unwrap();
    let whole = rest(first.into_inner()).await;
    let all = events(&whole);
    for at in 0..whole.len() {
        let cursor = whole[at].cursor.clone();
        let again = client.watch_job(watch(&job_id, cursor)).await.unwrap();
        let behind = rest(again.into_inner()).await;
        let mut seen = events(&whole[..=at]);
        seen.extend(events(&behind));
        assert_eq!(seen, all, "behind message {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_from_the_future_is_told_so() {
    let cluster = Cluster::new(1).await;
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    // A cursor of before the cluster was restored: silence would leave a gap that nobody sees.
    let ahead = Cursor {
        event: 1_000,
        ..Cursor::default()
    };
    let told = match client.watch_job(watch(&job_id, ahead.encode())).await {
        Err(status) => status,
        Ok(updates) => updates.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(told.code(), Code::OutOfRange, "{told}");
    assert!(told.message().contains("without a cursor"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_of_a_job_that_is_forgotten_is_told_so() {
    let cluster = Cluster::blank(1, |config| config.retention_bytes = 0).await;
    cluster.init().await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    let whole = client.watch_job(watch(&job_id, Vec::new())).await.unwrap();
    let whole = rest(whole.into_inner()).await;
    // The leader forgets it at its next look at what is too old.
    let gone = async {
        let get = GetJobRequest {
            job_id: job_id.clone(),
            ..GetJobRequest::default()
        };
        while client.get_job(get.clone()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it goes");
    let cursor = whole[0].cursor.clone();
    let told = match client.watch_job(watch(&job_id, cursor)).await {
        Err(status) => status,
        Ok(updates) => updates.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(told.code(), Code::NotFound, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_all_who_watched_it_have_left() {
    let cluster = Cluster::blank(1, |config| config.max_watchers = 1).await;
    cluster.init().await;
    let worker = Mock::new("w1", cluster.addresses());
    worker.close_gate();
    let worker = worker.run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "what colour?").await.job_id;
    let first = client.watch_job(watch(&job_id, Vec::new())).await.unwrap();
    let mut first = first.into_inner();
    first.message().await.unwrap().expect("it is watched");
    drop(first);
    // There is one seat: once it is free, the node knows that nobody watches.
    let seat = async {
        loop {
            match client.watch_job(watch(&job_id, Vec::new())).await {
                Ok(updates) => return updates.into_inner(),
                Err(full) => assert_eq!(full.code(), Code::ResourceExhausted, "{full}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let second = tokio::time::timeout(PATIENCE, seat).await.unwrap();
    worker.mock.open_gate();
    let last = rest(second).await.pop().and_then(|message| message.update);
    let Some(Update::Done(job)) = last else {
        panic!("{last:?}");
    };
    assert_done(&job);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_at_a_follower_that_read_nothing_hold_up_nobody_else() {
    let cluster = Cluster::new(3).await;
    let worker = Mock::new("w1", cluster.addresses()).with_thought(100 << 10);
    let worker = worker.run();
    let mut leader = cluster.client(cluster.leader().await).await;
    let mut wide = harness::request("what colour?");
    let policy = wide.spec.as_mut().unwrap().policy.as_mut();
    policy.unwrap().width = Some(40);
    let job_id = leader.submit_job(wide).await.unwrap().into_inner().job_id;
    assert_done(&done(&mut leader, &job_id).await);
    // What is submitted below stays where it is.
    drop(worker);
    let follower = cluster.follower().await;
    let address = format!("http://{}", cluster.addresses()[follower]);
    let deaf = Endpoint::from_shared(address).unwrap();
    let deaf = deaf
        .initial_stream_window_size(1 << 10)
        .initial_connection_window_size(1 << 16)
        .connect_lazy();
    let mut deaf = ContemplationClient::new(deaf);
    let mut held = Vec::new();
    for _ in 0..DEAF {
        held.push(deaf.watch_job(watch(&job_id, Vec::new())).await.unwrap());
    }
    // Each goes to the leader over the connection that the watches take, and through the log.
    let mut others = cluster.client(follower).await;
    // For longer than a follower that hears nothing keeps its leader.
    let mut pace = tokio::time::interval(Duration::from_millis(150));
    for _ in 0..20 {
        pace.tick().await;
        let call = others.submit_job(harness::request("and what else?"));
        let call = tokio::time::timeout(PATIENCE, call).await;
        call.expect("it is held up").unwrap();
    }
    assert!(status(&cluster, follower).leader_id != 0);
    for mut updates in held.into_iter().map(tonic::Response::into_inner) {
        updates.message().await.unwrap().expect("it is still there");
    }
}
