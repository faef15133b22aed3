//! Replay equals snapshot and suffix, for histories that a leader may bring about and for ones that
//! no leader would.

use conclave_proto::v1::{
    AgentState, ContemplationPolicy, DrainWorker, EarlyAgreement, ErrorKind, ExpireJobs,
    RenewLeases, ReviewJobCommand, Verdict, WorkerLease, command::Command as Body,
};
use proptest::prelude::*;

use super::*;
use crate::testkit::{World, choice, draft, question, width};

/// What may happen to a cluster; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        id: u8,
        refine: bool,
        review: bool,
    },
    Prepare(u8),
    Decide(u8),
    Place,
    HandIn {
        job: u8,
        agent: u8,
        yes: bool,
    },
    Fail {
        job: u8,
        agent: u8,
        kind: u8,
    },
    Cancel(u8),
    Review(u8),
    Register {
        worker: u8,
        incarnation: u8,
    },
    Renew(u8),
    Drain(u8),
    Tick(u16),
    Expire,
    /// An old command again: retries and late proposals.
    Again(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4u8, any::<bool>(), any::<bool>())
            .prop_map(|(id, refine, review)| Step::Submit { id, refine, review }),
        2 => (0..4u8).prop_map(Step::Prepare),
        4 => (0..4u8).prop_map(Step::Decide),
        4 => Just(Step::Place),
        8 => (0..4u8, 0..8u8, any::<bool>())
            .prop_map(|(job, agent, yes)| Step::HandIn { job, agent, yes }),
        2 => (0..4u8, 0..8u8, 0..4u8)
            .prop_map(|(job, agent, kind)| Step::Fail { job, agent, kind }),
        1 => (0..4u8).prop_map(Step::Cancel),
        1 => (0..4u8).prop_map(Step::Review),
        2 => (0..3u8, 0..3u8)
            .prop_map(|(worker, incarnation)| Step::Register { worker, incarnation }),
        1 => (0..3u8).prop_map(Step::Renew),
        1 => (0..3u8).prop_map(Step::Drain),
        2 => (0..2_000u16).prop_map(Step::Tick),
        1 => Just(Step::Expire),
        2 => any::<u16>().prop_map(Step::Again),
    ]
}

fn carry_out(world: &mut World, step: Step) {
    let name = |id: u8| format!("j{id}");
    let known = |world: &World, id: u8| world.state.job(&name(id)).is_some();
    match step {
        Step::Submit { id, refine, review } => {
            let policy = ContemplationPolicy {
                refine_rounds: Some(u32::from(refine)),
                quorum: Some(2),
                early_agreement: Some(EarlyAgreement { drafts: 2 }),
                review,
                ..width(3)
            };
            let spec = if refine {
                choice(policy)
            } else {
                question(policy)
            };
            world.submit(&name(id), &spec);
        }
        Step::Prepare(id) => drop(world.prepare(&name(id))),
        Step::Decide(id) if known(world, id) => world.decide(&name(id)),
        Step::Place => world.place(),
        Step::HandIn { job, agent, yes } => {
            if let Some(agent) = running(world, &name(job), agent) {
                let text = if yes { "yes" } else { "no" };
                world.hand_in(&name(job), agent, &draft(text, i64::from(agent)));
            }
        }
        Step::Fail { job, agent, kind } => {
            if let Some(agent) = running(world, &name(job), agent) {
                let kind = ErrorKind::try_from(i32::from(kind)).unwrap_or_default();
                world.fail(&name(job), agent, kind);
            }
        }
        Step::Cancel(id) => {
            let job_id = name(id);
            let cancel = conclave_proto::v1::CancelJobCommand {
                job_id,
                ..Default::default()
            };
            world.apply(Body::CancelJob(cancel));
        }
        Step::Review(id) => {
            let verdict = Verdict::Approve as i32;
            let job_id = name(id);
            let review = ReviewJobCommand {
                job_id,
                verdict,
                ..Default::default()
            };
            world.apply(Body::ReviewJob(review));
        }
        Step::Register {
            worker,
            incarnation,
        } => {
            world.register(&format!("w{worker}"), &format!("i{incarnation}"), 3);
        }
        Step::Renew(worker) => {
            let lease = WorkerLease {
                worker_id: format!("w{worker}"),
                incarnation: "i0".into(),
            };
            world.apply(Body::RenewLeases(RenewLeases {
                leases: vec![lease],
            }));
        }
        Step::Drain(worker) => {
            let drain = DrainWorker {
                worker_id: format!("w{worker}"),
                incarnation: "i0".into(),
            };
            world.apply(Body::DrainWorker(drain));
        }
        Step::Tick(ms) => drop(world.tick(u64::from(ms))),
        Step::Expire => {
            let job_ids = (0..4).map(name).collect();
            world.apply(Body::ExpireJobs(ExpireJobs { job_ids }));
        }
        Step::Again(at) => {
            let at = usize::from(at) % world.log.len();
            if let Some(body) = world.log[at].1.command.clone() {
                world.apply(body);
            }
        }
        Step::Decide(_) => {}
    }
}

fn running(world: &World, job: &str, agent: u8) -> Option<u32> {
    let agents = &world.state.job(job)?.agents;
    let held: Vec<u32> = agents
        .iter()
        .filter(|a| a.holds_worker())
        .map(|a| a.spec.agent)
        .collect();
    held.get(usize::from(agent) % held.len().max(1)).copied()
}

/// What must hold of any state.
fn check(state: &State) {
    let active: Vec<&str> = state
        .all_jobs()
        .filter(|j| j.is_active())
        .map(|j| j.id.as_str())
        .collect();
    let indexed: Vec<&str> = state.active_jobs().map(|j| j.id.as_str()).collect();
    assert_eq!(active, indexed, "the index of active jobs is true");
    for job in state.all_jobs() {
        for (event, index) in job.events.iter().zip(1..) {
            assert_eq!(event.index, index, "events have no gaps");
        }
        let records = crate::audit::export(job, &crate::payload::InlineOnly).expect("inline");
        crate::audit::verify_chain(&records, Some(&job.audit.head())).expect("the chain holds");
        for (agent, number) in job.agents.iter().zip(1..) {
            assert_eq!(agent.spec.agent, number);
            assert_eq!(
                agent.state == AgentState::Done,
                agent.draft.is_some() && !agent.stopping && agent.state != AgentState::Cancelled
            );
            assert!(agent.failures <= crate::agent::MAX_FAILURES);
            let drafts = records.iter().filter_map(crate::audit::open).filter(|e| {
                matches!(&e.event, Some(conclave_proto::v1::audit_event::Event::Draft(d)) if d.agent == number)
            });
            assert!(drafts.count() <= 1, "one accepted result an agent");
            if job.is_final() {
                assert!(agent.is_final(), "an ended job has no open agent");
            }
            let live = |p: &crate::agent::Placement| {
                state
                    .worker(&p.worker_id)
                    .is_some_and(|w| w.incarnation == p.incarnation)
            };
            if agent.holds_worker() {
                assert!(
                    agent.placement.as_ref().is_some_and(live),
                    "attempts run on live leases"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn replay_equals_snapshot_and_suffix(
        steps in prop::collection::vec(step(), 1..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut world = World::new();
        world.register("w0", "i0", 3);
        for step in steps {
            carry_out(&mut world, step);
            check(&world.state);
        }
        let cut = cut.index(world.log.len());
        let mut replica = State::new();
        for (at, (index, command)) in world.log.iter().enumerate() {
            replica.apply(*index, 1, command);
            if at == cut {
                let (manifest, bytes) = encode(&replica);
                let restored = decode(&manifest, &bytes).expect("decodes");
                prop_assert_eq!(&restored, &replica);
                replica = restored;
            }
        }
        prop_assert_eq!(encode(&replica), encode(&world.state));
        prop_assert_eq!(replica.outstanding(), world.state.outstanding());
    }

    #[test]
    fn a_damaged_snapshot_is_refused(byte in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut world = World::with_job(&question(width(2)));
        world.go("j");
        let (manifest, mut bytes) = encode(&world.state);
        let byte = byte.index(bytes.len());
        bytes[byte] ^= 1 << bit;
        prop_assert_eq!(decode(&manifest, &bytes), Err(SnapshotError::Mismatch));
    }
}

#[test]
fn a_newer_snapshot_is_refused() {
    let (mut newer, bytes) = encode(&State::new());
    newer.log_version = LOG_VERSION + 1;
    let expected = SnapshotError::TooNew {
        needs: LOG_VERSION + 1,
    };
    assert_eq!(decode(&newer, &bytes), Err(expected.clone()));
    assert_eq!(manifest(&newer.encode_to_vec()), Err(expected));
}

#[test]
fn genesis_stands_at_index_one() {
    let (manifest, bytes) = genesis();
    assert_eq!((manifest.index, manifest.term), (1, 1));
    let state = decode(&manifest, &bytes).expect("decodes");
    assert_eq!((state.applied_index(), state.cluster_id()), (1, ""));
}
