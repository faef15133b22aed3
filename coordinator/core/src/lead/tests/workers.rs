//! Sessions: who is spoken to, who looks at prompts.

use conclave_proto::v1::{
    AttemptError, ErrorKind, JobState, Prepared, attempt_finished::Result as Outcome,
};

use super::*;
use crate::worker::LEASE_TTL_MS;

#[test]
fn a_worker_is_welcomed_once_it_is_in_the_state() {
    let mut desk = Desk::empty();
    desk.leader.hello(1, hello("w1", "i1"));
    assert_eq!(desk.lose(), [Purpose::Register { session: 1 }]);
    assert_eq!(
        desk.run(),
        [Act::Close { session: 1 }],
        "it says hello again"
    );
    let said = desk.hello(2, "w1", "i1");
    assert!(said.contains(&Act::Welcome { session: 2 }));
    let said = desk.hello(3, "w1", "i1");
    assert_eq!(said[0], Act::Close { session: 2 }, "one session a worker");
}

#[test]
fn an_unwanted_result_is_acknowledged_so_that_its_worker_forgets_it() {
    let mut desk = Desk::at_work();
    desk.run();
    let key = desk.world.key("j", 1);
    let hand_in = |desk: &mut Desk| {
        let error = AttemptError {
            kind: ErrorKind::Transient as i32,
            message: "broke".into(),
        };
        let (key, result) = (key.clone(), Outcome::Error(error));
        let moment = moment!(desk);
        desk.leader.finished(1, key, "i1".into(), result, &moment);
        desk.run()
    };
    let acks = |acts: &[Act]| {
        let ack = |(_, m): &&(u64, &ToWorker)| matches!(m, ToWorker::Ack(a) if a.keys[0] == key);
        sent(acts).iter().filter(ack).count()
    };
    assert_eq!(acks(&hand_in(&mut desk)), 1);
    assert_eq!(acks(&hand_in(&mut desk)), 1, "though it came too late");
}

#[test]
fn a_draining_worker_gets_nothing_new_and_the_state_learns_it() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    desk.leader.draining(1);
    assert!(!desk.lose().is_empty());
    desk.world.submit("j", &choice(width(2)));
    desk.world.prepare("j");
    desk.changed("j");
    assert_eq!(starts(&desk.run()), []);
    desk.pass(2_000);
    let worker = desk.world.state.worker("w1").expect("it holds a lease");
    assert!(worker.draining, "though the first word was lost");
    let (w2, said) = (2, desk.hello(2, "w2", "i1"));
    assert_eq!(starts(&said), [(w2, 1), (w2, 2)]);
}

fn looks(acts: &[Act]) -> Vec<u64> {
    let look = |(session, m): &(u64, &ToWorker)| match m {
        ToWorker::Prepare(_) => Some(*session),
        _ => None,
    };
    sent(acts).iter().filter_map(look).collect()
}

#[test]
fn workers_look_at_a_prompt_in_turn_until_one_answers() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    desk.hello(2, "w2", "i1");
    desk.submit("j", &choice(width(2)));
    let first = looks(&desk.run());
    assert_eq!(first.len(), 1);
    let beating = |desk: &mut Desk, seconds: u64| {
        let mut said = Vec::new();
        for _ in 0..seconds {
            desk.beat(1, 0, false);
            desk.beat(2, 0, false);
            said.extend(desk.pass(1_000));
        }
        looks(&said)
    };
    assert!(beating(&mut desk, 9).is_empty(), "one at a time");
    let second = beating(&mut desk, 2);
    assert_eq!(second.len(), 1, "it did not answer");
    assert_ne!(first, second);
    let retry = Prepared {
        job_id: "j".into(),
        retry: true,
        ..Prepared::default()
    };
    desk.leader.prepared(retry, desk.now_ms);
    assert_eq!(looks(&desk.pass(400)), first, "it could not look");
    desk.leader.closed(first[0]);
    assert_eq!(looks(&desk.pass(TICK_MS)), second, "its session is gone");
    let prepared = Prepared {
        job_id: "j".into(),
        prompt_tokens: 20,
        model: "m".into(),
        numeric_class: "a".into(),
        context_tokens: 4096,
        ..Prepared::default()
    };
    desk.leader.prepared(prepared, desk.now_ms);
    assert!(!starts(&desk.run()).is_empty());
}

#[test]
fn a_model_that_stays_unserved_ends_its_job() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    let spec = JobSpec {
        model: "other".into(),
        ..choice(width(2))
    };
    desk.submit("j", &spec);
    // A new leader gives the workers that it inherits a lease to find it.
    desk.pass(LEASE_TTL_MS - 500);
    assert!(!desk.world.job("j").is_final());
    desk.pass(1_000);
    assert!(desk.world.is_in("j", JobState::Failed));
    let message = &desk.world.job("j").message;
    assert!(message.contains("no worker serves the model `other`; served: m"));
}
