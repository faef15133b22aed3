//! Histories of a cluster for property tests: what a leader may bring about, and what none would.

use conclave_proto::v1::{
    CancelJobCommand, ContemplationPolicy, DrainWorker, EarlyAgreement, ErrorKind, ExpireJobs,
    RenewLeases, ReviewJobCommand, Verdict, WorkerLease, command::Command as Body,
};
use proptest::prelude::*;

use super::{World, choice, draft, question, width};

/// What may happen to a cluster; numbers choose among what there is.
#[derive(Debug, Clone)]
pub(crate) enum Step {
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

pub(crate) fn step() -> impl Strategy<Value = Step> {
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

/// Carries out one step.
pub(crate) fn carry_out(world: &mut World, step: Step) {
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
            let cancel = CancelJobCommand {
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
