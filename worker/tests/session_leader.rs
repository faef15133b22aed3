//! Which coordinator a worker listens to, and what it says after losing one.

mod session_support;

use conclave_proto::v1::attempt_result::Result as Outcome;
use conclave_proto::v1::coordinator_message::Message as FromLeader;
use conclave_proto::v1::{Ack, NotLeader, StopReason, Welcome};
use session_support::*;

#[tokio::test]
async fn a_worker_follows_the_hint_of_a_coordinator_that_does_not_lead() {
    let (mut follower, mut leader) = (
        MockCoordinator::listen().await,
        MockCoordinator::listen().await,
    );
    let backend = MockBackend::new(4);
    let worker = worker(&backend, &[&follower.address]).await;
    let mut session = follower.accept().await;
    let hello = session.hello().await;
    assert_eq!(
        (hello.worker_id.as_str(), hello.models[0].name.as_str()),
        ("w1", "mock")
    );
    assert_eq!(session.authorization.as_deref(), Some("Bearer secret"));
    let not_leader = NotLeader {
        leader: leader.address.clone(),
        members: vec![follower.address.clone(), leader.address.clone()],
        ..NotLeader::default()
    };
    session.send(3, FromLeader::NotLeader(not_leader)).await;
    let (_session, again) = leader.welcome(3).await;
    assert_eq!((again.term, again.incarnation), (3, hello.incarnation));
    assert!(session.closed().await);
    drop(worker);
}

#[tokio::test]
async fn a_coordinator_of_an_older_term_is_refused() {
    let (mut old, mut new) = (
        MockCoordinator::listen().await,
        MockCoordinator::listen().await,
    );
    let backend = MockBackend::new(4);
    let worker = worker(&backend, &[&new.address, &old.address]).await;
    let (session, hello) = new.welcome(7).await;
    drop(session);
    let mut stale = old.accept().await;
    assert_eq!(stale.hello().await.term, 7);
    stale.send(6, FromLeader::Welcome(welcome())).await;
    stale.send(6, start(1, 5, &hello)).await;
    assert!(stale.closed().await, "the worker hangs up");
    let (mut session, hello) = new.welcome(7).await;
    assert!(
        hello.running.is_empty() && hello.finished.is_empty(),
        "nothing was started"
    );
    session.send(7, start(2, 5, &hello)).await;
    assert_eq!(session.result(&mut Vec::new()).await.key, Some(key(2)));
    drop(worker);
}

#[tokio::test]
async fn decoding_goes_on_without_a_session_and_results_are_repeated_until_acknowledged() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    backend.gate.close();
    let worker = worker(&backend, &[&coordinator.address]).await;
    let (session, hello) = coordinator.welcome(1).await;
    session.send(1, start(1, 6, &hello)).await;
    session.send(1, start(1, 6, &hello)).await;
    backend.gate.let_through(2);
    let mut sampled = backend.sampled.subscribe();
    soon("two tokens", sampled.wait_for(|n| *n >= 2))
        .await
        .unwrap();
    drop(session);
    // The connection is lost with the attempt half done.
    let (session, hello) = coordinator.welcome(2).await;
    assert_eq!(hello.running, [key(1)]);
    drop(session);
    backend.gate.open();
    soon("all tokens", sampled.wait_for(|n| *n >= 6))
        .await
        .unwrap();
    // Now it is done, and nobody has heard of it.
    let mut told = 0;
    for term in 3..6 {
        let (mut session, hello) = coordinator.welcome(term).await;
        let result = match hello.finished.first() {
            Some(result) => result.clone(),
            None => session.result(&mut Vec::new()).await,
        };
        assert_eq!(result.incarnation, hello.incarnation);
        let Some(Outcome::Draft(draft)) = result.result else {
            panic!("no draft")
        };
        assert_eq!(
            (draft.token_ids.len(), draft.stop()),
            (6, StopReason::Length)
        );
        told += 1;
    }
    let (session, hello) = coordinator.welcome(6).await;
    assert_eq!((hello.finished.len(), told), (1, 3));
    session
        .send(6, FromLeader::Ack(Ack { keys: vec![key(1)] }))
        .await;
    // A later message makes sure that the first was taken.
    let mut session = session;
    session.send(6, start(2, 1, &hello)).await;
    session.result(&mut Vec::new()).await;
    session
        .send(6, FromLeader::Ack(Ack { keys: vec![key(2)] }))
        .await;
    drop(session);
    let (_session, hello) = coordinator.welcome(7).await;
    assert!(
        !hello
            .finished
            .iter()
            .any(|result| result.key == Some(key(1)))
    );
    assert_eq!(*backend.sampled.borrow(), 7, "the doubled start ran once");
    drop(worker);
}

#[tokio::test]
async fn a_cluster_that_took_anothers_place_gets_a_worker_that_forgot_its_attempts() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    let worker = worker(&backend, &[&coordinator.address]).await;
    let of = |cluster: &str| {
        FromLeader::Welcome(Welcome {
            cluster_id: cluster.into(),
            came_from: vec!["first".into()],
            ..welcome()
        })
    };
    let mut session = coordinator.accept().await;
    let hello = session.hello().await;
    assert_eq!(hello.cluster_id, "");
    session.send(1_000_039, of("old")).await;
    session.send(1_000_039, start(1, 5, &hello)).await;
    session.result(&mut Vec::new()).await;
    backend.gate.close();
    session.send(1_000_039, start(2, 50, &hello)).await;
    drop(session);
    // The same cluster is told of both; another one has names for other work.
    let mut session = coordinator.accept().await;
    let again = session.hello().await;
    assert_eq!(
        (again.cluster_id.as_str(), again.finished.len()),
        ("old", 1)
    );
    // Begun on an older save: its term is the lower one.
    session.send(1_000_005, of("new")).await;
    assert!(session.closed().await);
    let mut session = coordinator.accept().await;
    let fresh = session.hello().await;
    assert_eq!(fresh.cluster_id, "new");
    assert!(
        fresh.running.is_empty() && fresh.finished.is_empty(),
        "{fresh:?}"
    );
    assert_ne!(fresh.incarnation, hello.incarnation);
    backend.gate.open();
    session.send(1_000_005, of("new")).await;
    session.send(1_000_005, start(1, 3, &fresh)).await;
    let result = session.result(&mut Vec::new()).await;
    assert_eq!(
        (result.key, result.incarnation),
        (Some(key(1)), fresh.incarnation.clone())
    );
    // What is left of the clusters before wins the worker back neither by its term nor by its place.
    for over in ["old", "first"] {
        drop(session);
        session = coordinator.accept().await;
        let told = session.hello().await;
        assert_eq!(
            (told.cluster_id.as_str(), told.term, told.incarnation),
            ("new", 1_000_005, fresh.incarnation.clone())
        );
        session.send(2_000_000, of(over)).await;
        session.send(2_000_000, start(2, 3, &fresh)).await;
        assert!(session.closed().await, "the worker hangs up on `{over}`");
    }
    let (_session, told) = coordinator.welcome(1_000_005).await;
    assert!(told.running.is_empty(), "{told:?}");
    drop(worker);
}

#[tokio::test]
async fn a_node_of_no_cluster_sends_a_worker_on_and_its_term_means_nothing() {
    let mut coordinator = MockCoordinator::listen().await;
    let backend = MockBackend::new(4);
    let worker = worker(&backend, &[&coordinator.address]).await;
    let member = FromLeader::Welcome(Welcome {
        cluster_id: "mine".into(),
        ..welcome()
    });
    let mut session = coordinator.accept().await;
    session.hello().await;
    session.send(7, member.clone()).await;
    drop(session);
    for (cluster_id, term) in [("", 0), ("another", 1_000_000)] {
        let mut session = coordinator.accept().await;
        assert_eq!(session.hello().await.term, 7);
        let refusal = NotLeader {
            cluster_id: cluster_id.into(),
            ..NotLeader::default()
        };
        session.send(term, FromLeader::NotLeader(refusal)).await;
        assert!(session.closed().await);
    }
    let mut session = coordinator.accept().await;
    let hello = session.hello().await;
    session.send(7, member).await;
    session.send(7, start(1, 3, &hello)).await;
    assert_eq!(session.result(&mut Vec::new()).await.key, Some(key(1)));
    drop(worker);
}
