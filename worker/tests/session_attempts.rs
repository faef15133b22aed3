//! What becomes of an attempt: its text, its cancel, its faults, the worker's drain.

mod session_support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use conclave_proto::v1::attempt_result::Result as Outcome;
use conclave_proto::v1::coordinator_message::Message as FromLeader;
use conclave_proto::v1::worker_message::Message as FromWorker;
use conclave_proto::v1::{
    Ack, AttemptResult, Cancel, Draft, ErrorKind, JobSpec, Prepare, Resend, Start, StopReason,
};
use session_support::*;

fn draft(result: AttemptResult) -> Draft {
    match result.result {
        Some(Outcome::Draft(draft)) => draft,
        other => panic!("{other:?} is no draft"),
    }
}

fn error(result: AttemptResult) -> (ErrorKind, String) {
    match result.result {
        Some(Outcome::Error(error)) => (error.kind(), error.message),
        other => panic!("{other:?} is no error"),
    }
}

#[tokio::test]
async fn the_text_comes_whole_and_before_the_result() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (mut session, hello) = coordinator.welcome(1).await;
    session.send(1, start(1, 40, &hello)).await;
    let mut deltas = Vec::new();
    let draft = draft(session.result(&mut deltas).await);
    assert_eq!(joined(&deltas), draft.answer);
    assert!(
        deltas
            .iter()
            .all(|delta| (delta.agent, delta.attempt) == (1, 1))
    );
    assert_eq!(draft.usage.unwrap().answer_tokens, 40);
    drop(worker);
}

#[tokio::test]
async fn a_cancel_ends_the_attempt_before_the_next_step() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    backend.gate.close();
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (mut session, hello) = coordinator.welcome(1).await;
    session.send(1, start(1, 1000, &hello)).await;
    backend.gate.let_through(3);
    let mut sampled = backend.sampled.subscribe();
    soon("three tokens", sampled.wait_for(|n| *n == 3))
        .await
        .unwrap();
    let cancel = Cancel {
        key: Some(key(1)),
        ..Cancel::default()
    };
    session.send(1, FromLeader::Cancel(cancel)).await;
    // A reply to a later message shows that the cancel was taken; the engine waits inside a step.
    session
        .send(
            1,
            FromLeader::Prepare(Prepare {
                job_id: "p".into(),
                spec: Some(JobSpec::default()),
                salt: vec![],
            }),
        )
        .await;
    while !matches!(session.next().await, FromWorker::Prepared(_)) {}
    backend.gate.open();
    let draft = draft(session.result(&mut Vec::new()).await);
    assert_eq!(draft.stop(), StopReason::Cancelled);
    assert!(
        draft.token_ids.len() <= 4,
        "{} tokens",
        draft.token_ids.len()
    );
    drop(worker);
}

#[tokio::test]
async fn an_attempt_ends_at_its_deadline_with_what_it_has() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    backend.gate.close();
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (mut session, hello) = coordinator.welcome(1).await;
    let FromLeader::Start(endless) = start(1, 3000, &hello) else {
        unreachable!()
    };
    let bounded = Start {
        deadline_ms: 300,
        ..endless
    };
    session.send(1, FromLeader::Start(bounded)).await;
    // A step every 20 ms: to its own end it would run for a minute.
    let mut step = tokio::time::interval(Duration::from_millis(20));
    let mut deltas = Vec::new();
    let mut result = std::pin::pin!(session.result(&mut deltas));
    let draft = loop {
        tokio::select! {
            result = &mut result => break draft(result),
            _ = step.tick() => backend.gate.let_through(1),
        }
    };
    assert_eq!(draft.stop(), StopReason::Cancelled);
    assert!(draft.token_ids.len() < 3000);
    backend.gate.open();
    drop(worker);
}

#[tokio::test]
async fn text_is_sent_again_from_the_token_asked_for() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    backend.gate.close();
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (mut session, hello) = coordinator.welcome(1).await;
    session.send(1, start(1, 100, &hello)).await;
    backend.gate.let_through(10);
    let mut seen = Vec::new();
    while seen
        .iter()
        .map(|delta: &conclave_proto::v1::TokenDelta| delta.tokens)
        .sum::<u32>()
        < 10
    {
        match session.next().await {
            FromWorker::Progress(progress) => seen.extend(progress.delta),
            other => panic!("{other:?} is no progress"),
        }
    }
    session
        .send(
            1,
            FromLeader::Resend(Resend {
                key: Some(key(1)),
                offset: 4,
            }),
        )
        .await;
    let FromWorker::Progress(again) = session.next().await else {
        panic!("no progress")
    };
    let again = again.delta.unwrap();
    assert_eq!((again.offset, again.tokens), (4, 6));
    assert!(joined(&seen).ends_with(&again.text));
    backend.gate.open();
    drop(worker);
}

#[tokio::test]
async fn a_link_that_takes_nothing_does_not_hold_up_the_engine() {
    const TOKENS: u32 = 400;
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(1024);
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (mut session, hello) = coordinator.welcome(1).await;
    session.send(1, start(1, TOKENS, &hello)).await;
    // 400 KiB of text against a window of 64 KiB, and nobody reads.
    let mut sampled = backend.sampled.subscribe();
    soon("all tokens", sampled.wait_for(|n| *n == u64::from(TOKENS)))
        .await
        .unwrap();
    let mut deltas = Vec::new();
    let draft = draft(session.result(&mut deltas).await);
    assert_eq!(joined(&deltas), draft.answer);
    assert!(
        deltas.len() < TOKENS as usize / 2,
        "{} messages: not merged",
        deltas.len()
    );
    drop(worker);
}

#[tokio::test]
async fn what_cannot_run_is_permanent_and_a_panic_is_not() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (mut session, hello) = coordinator.welcome(1).await;
    let FromLeader::Start(good) = start(1, 5, &hello) else {
        unreachable!()
    };
    session
        .send(
            1,
            FromLeader::Start(Start {
                context: String::new(),
                ..good
            }),
        )
        .await;
    let (kind, message) = error(session.result(&mut Vec::new()).await);
    assert_eq!(
        (kind, message.as_str()),
        (ErrorKind::Permanent, "the prompt is empty")
    );
    backend.panic_next.store(true, Ordering::SeqCst);
    session.send(1, start(2, 5, &hello)).await;
    assert_eq!(
        error(session.result(&mut Vec::new()).await).0,
        ErrorKind::Transient
    );
    session.send(1, start(3, 5, &hello)).await;
    let after = draft(session.result(&mut Vec::new()).await);
    assert_eq!(after.token_ids.len(), 5, "the engine was built anew");
    backend.panic_admit.store(true, Ordering::SeqCst);
    session.send(1, start(4, 5, &hello)).await;
    let (kind, message) = error(session.result(&mut Vec::new()).await);
    assert_eq!(kind, ErrorKind::Transient);
    assert!(message.contains("panicked"), "{message}");
    session.send(1, start(5, 5, &hello)).await;
    let after = draft(session.result(&mut Vec::new()).await);
    assert_eq!(after.token_ids.len(), 5, "and again");
    drop(worker);
}

#[tokio::test]
async fn a_worker_that_leaves_finishes_what_runs_and_returns_what_comes() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    backend.gate.close();
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (mut session, hello) = coordinator.welcome(1).await;
    session.send(1, start(1, 5, &hello)).await;
    backend.gate.let_through(1);
    let mut sampled = backend.sampled.subscribe();
    soon("a token", sampled.wait_for(|n| *n == 1))
        .await
        .unwrap();
    let left = tokio::spawn(worker.shutdown(Duration::from_secs(10)));
    loop {
        match session.next().await {
            FromWorker::Draining(_) => break,
            FromWorker::Progress(_) => {}
            other => panic!("{other:?} before the drain is announced"),
        }
    }
    session.send(1, start(2, 5, &hello)).await;
    assert_eq!(
        error(session.result(&mut Vec::new()).await).0,
        ErrorKind::Drained
    );
    backend.gate.open();
    let draft = draft(session.result(&mut Vec::new()).await);
    assert_eq!(
        (draft.token_ids.len(), draft.stop()),
        (5, StopReason::Length)
    );
    session
        .send(
            1,
            FromLeader::Ack(Ack {
                keys: vec![key(1), key(2)],
            }),
        )
        .await;
    soon("the worker to leave", left).await.unwrap();
}
