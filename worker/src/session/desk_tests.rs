use conclave_proto::v1::{AgentSpec, ErrorKind, TokenDelta, attempt_result};

use super::*;

fn key(agent: u32) -> AttemptKey {
    AttemptKey {
        job_id: "j".into(),
        agent,
        attempt: 1,
    }
}

fn start(agent: u32) -> Start {
    Start {
        key: Some(key(agent)),
        spec: Some(AgentSpec::default()),
        model: "m".into(),
        incarnation: "i".into(),
        ..Start::default()
    }
}

fn desk() -> Desk {
    Desk::new("i", vec!["m".into()], 4)
}

fn running(agent: u32) -> (Desk, SeqId) {
    let mut desk = desk();
    let Some(Action::Plan { seq, .. }) = desk.start(start(agent), Instant::now()) else {
        panic!("not planned")
    };
    assert_eq!(desk.planned(seq, None), (Planned::Go, None));
    (desk, seq)
}

fn delta(offset: u32, text: &str) -> TokenDelta {
    TokenDelta {
        offset,
        tokens: 1,
        text: text.into(),
        ..TokenDelta::default()
    }
}

fn done(seq: SeqId) -> SeqEvent {
    let outcome = Ok(Box::default());
    SeqEvent::Ended { seq, outcome }
}

/// All that would be sent now.
fn sent(desk: &mut Desk, now: Instant) -> Vec<Message> {
    std::iter::from_fn(|| desk.next_message(now)).collect()
}

fn error_of(message: &Message) -> (u32, ErrorKind) {
    let Message::Result(result) = message else {
        panic!("{message:?} is no result")
    };
    let agent = result.key.as_ref().unwrap().agent;
    match &result.result {
        Some(attempt_result::Result::Error(error)) => (agent, error.kind()),
        other => panic!("{other:?} is no error"),
    }
}

#[test]
fn a_start_sent_twice_runs_once_and_a_late_one_finds_the_result() {
    let (mut desk, seq) = running(1);
    assert_eq!(desk.start(start(1), Instant::now()), None);
    assert!(desk.engine(done(seq)).is_some());
    let now = Instant::now();
    assert_eq!(sent(&mut desk, now).len(), 1);
    assert_eq!(desk.start(start(1), Instant::now()), None);
    assert_eq!(sent(&mut desk, now).len(), 1, "the result is sent again");
}

#[test]
fn a_start_for_another_incarnation_is_ignored() {
    let mut desk = desk();
    let other = Start {
        incarnation: "old".into(),
        ..start(1)
    };
    assert_eq!(desk.start(other, Instant::now()), None);
    assert_eq!((desk.running(), desk.unacknowledged()), (0, 0));
}

#[test]
fn an_attempt_cancelled_while_planned_still_hands_in_a_draft() {
    let mut desk = desk();
    let Some(Action::Plan { seq, .. }) = desk.start(start(1), Instant::now()) else {
        panic!("not planned")
    };
    let cancel = Cancel {
        key: Some(key(1)),
        ..Cancel::default()
    };
    assert_eq!(desk.cancel(cancel), None);
    assert_eq!(desk.planned(seq, None), (Planned::GoAndCancel, None));
}

#[test]
fn cancel_reaches_the_engine_and_an_unknown_one_is_answered() {
    let (mut desk, seq) = running(1);
    let cancel = |agent| Cancel {
        key: Some(key(agent)),
        ..Cancel::default()
    };
    assert_eq!(desk.cancel(cancel(1)), Some(Action::Cancel(seq)));
    assert_eq!(desk.cancel(cancel(2)), None);
    let messages = sent(&mut desk, Instant::now());
    assert_eq!(error_of(&messages[0]), (2, ErrorKind::Transient));
    assert_eq!(
        desk.start(start(2), Instant::now()),
        None,
        "a late start does not run"
    );
}

#[test]
fn text_goes_before_the_result_and_a_resend_repeats_it() {
    let (mut desk, seq) = running(1);
    for (offset, text) in ["a", "b", "c"].into_iter().enumerate() {
        let delta = delta(offset as u32, text);
        assert!(desk.engine(SeqEvent::Delta { seq, delta }).is_none());
    }
    let Some(Message::Progress(first)) = desk.next_progress() else {
        panic!("no progress")
    };
    assert_eq!(first.delta.unwrap().text, "abc");
    assert!(!desk.has_progress());
    desk.resend(Resend {
        key: Some(key(1)),
        offset: 1,
    });
    desk.engine(done(seq));
    let messages = sent(&mut desk, Instant::now());
    let Message::Progress(tail) = &messages[0] else {
        panic!("no tail")
    };
    assert_eq!(tail.delta.as_ref().unwrap().text, "bc");
    assert!(matches!(messages[1], Message::Result(_)));
}

#[test]
fn a_session_begins_with_what_runs_and_what_is_not_acknowledged() {
    let (mut desk, seq) = running(1);
    desk.engine(done(seq));
    desk.start(start(2), Instant::now());
    let now = Instant::now();
    let (running, finished) = desk.hello(now);
    assert_eq!(running, [key(2)]);
    assert_eq!(finished[0].key, Some(key(1)));
    assert!(sent(&mut desk, now).is_empty(), "the hello carried it");
    desk.acknowledge(vec![key(1)]);
    assert_eq!(desk.hello(now).1, []);
}

#[test]
fn a_draining_worker_finishes_what_runs_and_returns_what_comes() {
    let (mut desk, _) = running(1);
    desk.drain();
    assert_eq!(desk.start(start(2), Instant::now()), None);
    let messages = sent(&mut desk, Instant::now());
    assert!(matches!(messages[0], Message::Draining(_)));
    assert_eq!(error_of(&messages[1]), (2, ErrorKind::Drained));
    assert_eq!(desk.running(), 1);
}

#[test]
fn a_full_desk_refuses_without_keeping_the_refusal() {
    let mut desk = desk();
    for agent in 0..4 {
        assert!(desk.start(start(agent), Instant::now()).is_some());
    }
    assert_eq!(desk.start(start(9), Instant::now()), None);
    assert_eq!(
        error_of(&sent(&mut desk, Instant::now())[0]),
        (9, ErrorKind::Transient)
    );
    assert_eq!(desk.unacknowledged(), 0);
}

#[test]
fn an_unknown_model_is_permanent_and_an_unnamed_one_is_the_only_one() {
    let mut desk = desk();
    let with = |model: &str| Start {
        model: model.into(),
        ..start(1)
    };
    assert_eq!(desk.start(with("other"), Instant::now()), None);
    assert_eq!(
        error_of(&sent(&mut desk, Instant::now())[0]),
        (1, ErrorKind::Permanent)
    );
    desk.acknowledge(vec![key(1)]);
    assert!(desk.start(with(""), Instant::now()).is_some());
}

#[test]
fn every_attempt_gets_its_turn_of_progress() {
    let mut desk = desk();
    let mut seqs = Vec::new();
    for agent in 0..3 {
        let Some(Action::Plan { seq, .. }) = desk.start(start(agent), Instant::now()) else {
            panic!("not planned")
        };
        desk.planned(seq, None);
        seqs.push(seq);
    }
    let mut turns = Vec::new();
    for round in 0..2 {
        for &seq in &seqs {
            desk.engine(SeqEvent::Delta {
                seq,
                delta: delta(round, "x"),
            });
        }
        while let Some(Message::Progress(progress)) = desk.next_progress() {
            turns.push(progress.key.unwrap().agent);
        }
    }
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn an_attempt_is_cancelled_once_at_its_deadline() {
    let now = Instant::now();
    let bounded = |agent| Start {
        deadline_ms: 50,
        ..start(agent)
    };
    let mut desk = desk();
    let seqs = [1, 2, 3].map(|agent| {
        let start = if agent == 3 {
            start(agent)
        } else {
            bounded(agent)
        };
        match desk.start(start, now) {
            Some(Action::Plan { seq, .. }) => seq,
            other => panic!("{other:?}"),
        }
    });
    let [decoding, planning, endless] = seqs;
    for seq in [decoding, endless] {
        assert_eq!(desk.planned(seq, None), (Planned::Go, None));
    }
    let due = now + Duration::from_millis(50);
    assert_eq!(desk.next_deadline(), Some(due));
    assert_eq!(desk.overdue(due - Duration::from_millis(1)), []);
    assert_eq!(desk.overdue(due), [Action::Cancel(decoding)]);
    assert_eq!((desk.overdue(due), desk.next_deadline()), (vec![], None));
    assert_eq!(desk.planned(planning, None), (Planned::GoAndCancel, None));
}
