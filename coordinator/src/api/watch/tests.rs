use conclave_coordinator_core::{codec, payload};
use conclave_proto::v1::{
    CancelJobCommand, CreateCluster, JobSpec, SubmitJobCommand, TokenDelta,
    command::Command as Body,
};
use prost::Message as _;
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::{
    api::tests::{api, status},
    node::{Input, NodeRole, NodeStatus},
};

const JOB: &str = "00000000-0000-7000-8000-000000000001";

fn caller() -> Principal {
    let open = crate::auth::Auth::open();
    open.caller(&MetadataMap::new()).unwrap()
}

/// A state with one job, which was cancelled.
fn ended() -> State {
    let spec = JobSpec::default().encode_to_vec();
    let submit = SubmitJobCommand {
        job_id: JOB.to_owned(),
        tenant: caller().tenant,
        idempotency_key: "key".to_owned(),
        request_digest: vec![1; 32],
        spec: Some(payload::inline(spec)),
        ..SubmitJobCommand::default()
    };
    let cancel = CancelJobCommand {
        job_id: JOB.to_owned(),
        ..CancelJobCommand::default()
    };
    let create = CreateCluster {
        cluster_id: "c".to_owned(),
        signing_seed: vec![1; 32],
        salt_key: vec![1; 32],
        ..CreateCluster::default()
    };
    let commands = [
        Body::CreateCluster(create),
        Body::SubmitJob(submit),
        Body::CancelJob(cancel),
    ];
    let mut state = State::new();
    for (index, body) in (1..).zip(commands) {
        state.apply(index, 1, &codec::command(body));
    }
    assert!(state.job(JOB).is_some_and(|job| job.is_final()));
    state
}

/// A watch on a node that leads, whose loop is played here.
struct Played {
    watch: Watch,
    updates: mpsc::Receiver<Waiting>,
    ended: oneshot::Receiver<Status>,
    feed: Arc<Feed>,
    node: watch::Sender<NodeStatus>,
    _folder: TempDir,
}

fn played(stall: Duration) -> Played {
    let node = watch::Sender::new(NodeStatus {
        role: NodeRole::Leader,
        serving: true,
        ..status()
    });
    let (inputs, mut queue) = mpsc::channel(8);
    let (api, folder) = api(inputs, &node);
    let state = ended();
    tokio::spawn(async move {
        while let Some(input) = queue.recv().await {
            if let Input::Read(read) = input {
                (read.run)(Ok(&state));
            }
        }
    });
    let feed = api.feeds.of(JOB);
    let seat = api.feeds.seat().unwrap();
    let (queue, updates) = mpsc::channel(QUEUE);
    let (end, ended) = oneshot::channel();
    let watch = Watch {
        api: Arc::new(api),
        caller: caller(),
        metadata: MetadataMap::new(),
        job_id: JOB.to_owned(),
        tokens: true,
        cursor: Cursor::default(),
        queue,
        room: Arc::new(Semaphore::new(QUEUE_BYTES)),
        end,
        stall,
        _seat: seat,
    };
    Played {
        watch,
        updates,
        ended,
        feed,
        node,
        _folder: folder,
    }
}

/// Pieces that are not sent as one.
fn push(feed: &Feed, offsets: std::ops::Range<u32>) {
    push_words(feed, offsets, "word ");
}

fn push_words(feed: &Feed, offsets: std::ops::Range<u32>, words: &str) {
    for offset in offsets {
        let delta = TokenDelta {
            attempt: 1,
            offset,
            tokens: 1,
            text: words.to_owned(),
            thought: offset % 2 == 0,
            ..TokenDelta::default()
        };
        assert_eq!(feed.push(delta), None);
    }
}

const MANY: u32 = QUEUE as u32 + 2;

#[tokio::test]
async fn text_that_came_while_a_slow_watcher_was_waited_for_goes_before_the_end() {
    let mut played = played(STALL);
    push(&played.feed, 0..MANY);
    let mut relay = Box::pin(played.watch.relay());
    // It fills the queue, and waits for room.
    while played.updates.len() < QUEUE {
        assert!(futures::poll!(relay.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    push(&played.feed, MANY..MANY + 2);
    let relay = tokio::spawn(relay);
    let mut seen = 0;
    loop {
        let (message, _) = played.updates.recv().await.expect("not before `done`");
        match message.update.unwrap() {
            Update::Tokens(text) => seen += text.tokens,
            Update::Done(_) => break,
            Update::Event(_) | Update::Reset(_) => {}
        }
    }
    assert_eq!(seen, MANY + 2);
    relay.await.unwrap();
}

#[tokio::test]
async fn a_watcher_that_takes_nothing_loses_its_seat_and_is_told_why() {
    let mut played = played(Duration::from_millis(20));
    push(&played.feed, 0..MANY);
    let relay = tokio::spawn(played.watch.relay());
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, relay)
        .await
        .expect("it keeps its seat")
        .unwrap();
    let why = played.ended.await.unwrap();
    assert_eq!(why.code(), Code::Unavailable, "{why}");
    // What it was sent is there to resume behind.
    let mut last = None;
    while let Some((message, _)) = played.updates.recv().await {
        last = Some(message.cursor);
    }
    let cursor = Cursor::decode(&last.unwrap()).unwrap();
    assert!(cursor.positions[&0].offset < MANY);
    drop(played.node);
}

#[tokio::test]
async fn what_was_handed_over_waits_until_the_next_is_asked_for() {
    let room = Arc::new(Semaphore::new(2));
    let (queue, updates) = mpsc::channel(2);
    let (_end, ended) = oneshot::channel();
    for _ in 0..2 {
        let taken = room.clone().try_acquire_owned().unwrap();
        let update = WatchJobResponse::default();
        queue.send((update, taken)).await.unwrap();
    }
    let mut updates = outbound(updates, ended);
    updates.next().await.unwrap().unwrap();
    assert_eq!(room.available_permits(), 0);
    updates.next().await.unwrap().unwrap();
    assert_eq!(room.available_permits(), 1);
    assert!(futures::poll!(updates.next()).is_pending());
    assert_eq!(room.available_permits(), 2);
}

#[tokio::test]
async fn what_waits_for_a_watcher_is_bounded_in_bytes() {
    let mut played = played(Duration::from_millis(20));
    push_words(&played.feed, 0..8, &"x".repeat(QUEUE_BYTES / 4));
    played.watch.relay().await;
    let mut waiting = 0;
    while let Some((message, _)) = played.updates.recv().await {
        waiting += message.encoded_len();
    }
    assert!(waiting > 0 && waiting <= QUEUE_BYTES, "{waiting}");
    drop(played.node);
}
