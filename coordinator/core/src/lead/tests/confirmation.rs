//! Law 5: a leader that stood still says nothing until it is confirmed.

use super::*;

#[test]
fn a_leader_that_stood_still_is_silent_until_confirmed() {
    let mut desk = Desk::at_work();
    desk.now_ms += 1_001;
    assert_eq!(desk.acts(), [Act::Confirm { pause: 1 }]);
    // Meanwhile its work piles up, and ticks change nothing.
    desk.leader.hello(2, hello("w2", "i1"));
    desk.pass(1_000);
    assert_eq!(desk.acts(), []);
    assert!(desk.leader.serving() && !desk.leader.speaks());
    desk.leader.confirmed(1);
    let said = desk.run();
    assert_eq!(
        starts(&said),
        [(1, 1), (1, 2)],
        "what it had to say is kept"
    );
    assert!(said.contains(&Act::Welcome { session: 2 }));
}

#[test]
fn words_that_wait_when_the_clock_stops_do_not_leave_afterwards() {
    let mut desk = Desk::at_work();
    desk.leader.draining(1);
    desk.tick(100);
    // They are taken only after the gap.
    desk.now_ms += 5_000;
    assert_eq!(desk.acts(), [Act::Confirm { pause: 1 }]);
    assert_eq!(desk.acts(), []);
}

#[test]
fn an_answer_to_an_earlier_gap_does_not_confirm_a_later_one() {
    let mut desk = Desk::at_work();
    desk.now_ms += 2_000;
    assert_eq!(desk.acts(), [Act::Confirm { pause: 1 }]);
    // The quorum answers, and the process stops again before it hears that.
    desk.now_ms += 60_000;
    assert!(desk.leader.look_at_clock(desk.now_ms).is_some());
    desk.leader.confirmed(1);
    assert_eq!(desk.acts(), [Act::Confirm { pause: 2 }]);
    assert_eq!(desk.acts(), []);
    desk.leader.confirmed(2);
    assert!(!desk.run().is_empty());
}

#[test]
fn a_gap_shorter_than_an_election_is_no_pause() {
    let mut desk = Desk::at_work();
    desk.now_ms += 1_000;
    assert_eq!(desk.leader.look_at_clock(desk.now_ms), None);
    assert!(!starts(&desk.run()).is_empty());
}

#[test]
fn a_leader_that_stood_still_before_it_served_asks_too() {
    let world = World::with_job(&choice(width(1)));
    let mut desk = Desk::elected(world, settings());
    desk.now_ms += 9_000;
    assert_eq!(desk.acts(), [Act::Confirm { pause: 1 }]);
    assert!(desk.serve().is_some());
    assert_eq!(desk.acts(), []);
    desk.leader.confirmed(1);
    assert!(!desk.acts().is_empty());
}
