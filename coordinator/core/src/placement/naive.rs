//! Placement by a look at every worker for every agent: what [`super::place`] must come to.

use std::collections::BTreeMap;

use conclave_proto::v1::{
    AgentState, Assign, ContemplationPolicy, DrainWorker, ErrorKind, command::Command as Body,
};
use proptest::prelude::*;

use super::{
    Load, Slot,
    field::{LOOK, cost},
    place, serves,
    turns::Turns,
};
use crate::{
    agent::Agent,
    job::Job,
    payload::InlineOnly,
    quota::{Limits, Quotas},
    spec::Policy,
    state::State,
    testkit::{World, draft, question},
    view,
};

fn naive(state: &State, loads: &BTreeMap<String, Load>, quotas: &Quotas) -> Vec<Assign> {
    let workers = state.workers();
    let mut slots: Vec<Slot<'_>> = workers.filter_map(|w| Slot::of(state, w, loads)).collect();
    let mut assigns = Vec::new();
    let mut turns = Turns::new(state, quotas);
    while let Some(turn) = turns.next() {
        if slots.iter().all(|slot| slot.free() == 0) {
            break;
        }
        let job = state.job(turn.job_id).expect("it waits");
        let before = assigns.len();
        if job.prepared.is_some() {
            place_job(job, turn.room, &mut slots, &mut assigns);
        }
        turns.placed(turn, assigns.len() - before);
    }
    assigns
}

fn place_job(job: &Job, room: usize, slots: &mut [Slot<'_>], assigns: &mut Vec<Assign>) {
    let queued = |agent: &&Agent| agent.state == AgentState::Queued;
    let waiting: Vec<&Agent> = job.agents.iter().filter(queued).take(room).collect();
    let mut class = job.numeric_class.clone();
    if !class.is_empty() && !slots.iter().any(|slot| serves(slot, job, &class)) {
        let spec = view::spec(job, &InlineOnly).expect("all is inline");
        if !Policy::of(&spec).allow_inexact {
            return;
        }
        class.clear();
    }
    let mut here: Vec<usize> = (0..slots.len())
        .filter(|at| runs_on(job, &slots[*at]))
        .collect();
    for (agent, left) in waiting.iter().zip((1..=waiting.len() as u32).rev()) {
        let Some(at) = best(slots, job, agent, &class, &here, left) else {
            break;
        };
        let slot = &mut slots[at];
        let model = slot.worker.model(job.model()).expect("it serves the job");
        class.clone_from(&model.numeric_class);
        assigns.push(Assign {
            job_id: job.id.clone(),
            agent: agent.spec.agent,
            attempt: agent.attempt + 1,
            worker_id: slot.worker.worker_id.clone(),
            incarnation: slot.worker.incarnation.clone(),
            numeric_class: class.clone(),
        });
        slot.charge(job, agent, here.contains(&at));
        here.push(at);
    }
}

fn runs_on(job: &Job, slot: &Slot<'_>) -> bool {
    let held = job.agents.iter().filter(|agent| agent.holds_worker());
    let mut on = held.filter_map(|agent| agent.placement.as_ref());
    let (id, incarnation) = (&slot.worker.worker_id, &slot.worker.incarnation);
    on.any(|on| on.worker_id == *id && on.incarnation == *incarnation)
}

fn best(
    slots: &[Slot<'_>],
    job: &Job,
    agent: &Agent,
    class: &str,
    here: &[usize],
    left: u32,
) -> Option<usize> {
    let cost = |at: usize, here| cost(&slots[at], job, agent, class, here, left);
    let stay = here.iter().filter_map(|at| Some((cost(*at, true)?, *at)));
    let stay = stay.min();
    if stay.is_some_and(|((failed_here, ..), _)| !failed_here) {
        return stay.map(|(_, at)| at);
    }
    let mut others: Vec<usize> = (0..slots.len())
        .filter(|at| slots[*at].free() > 0 && !here.contains(at))
        .collect();
    others.sort_by_key(|at| (slots[*at].load(), &slots[*at].worker.worker_id));
    let apart: Vec<_> = others
        .into_iter()
        .filter_map(|at| Some((cost(at, false)?, at)))
        .take(LOOK)
        .collect();
    let enough = apart
        .iter()
        .position(|((failed_here, _, missing, ..), _)| !failed_here && *missing == 0);
    let weighed = enough.map_or(&apart[..], |at| &apart[..=at]);
    stay.into_iter()
        .chain(weighed.iter().copied())
        .min()
        .map(|(_, at)| at)
}

/// What happens to a crowd of workers; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        tenant: u8,
        width: u32,
        allow_inexact: bool,
    },
    Place,
    HandIn {
        job: usize,
        yes: bool,
    },
    Fail(usize),
    Drain(usize),
    Restart(usize),
    Say {
        worker: usize,
        running: u32,
    },
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let worker = 0..120_usize;
    prop_oneof![
        4 => (0..3_u8, 1..12_u32, any::<bool>()).prop_map(|(tenant, width, allow_inexact)| {
            Step::Submit { tenant, width, allow_inexact }
        }),
        5 => Just(Step::Place),
        3 => (0..20_usize, any::<bool>()).prop_map(|(job, yes)| Step::HandIn { job, yes }),
        2 => (0..20_usize).prop_map(Step::Fail),
        1 => worker.clone().prop_map(Step::Drain),
        1 => worker.clone().prop_map(Step::Restart),
        3 => (worker.clone(), 0..4_u32).prop_map(|(worker, running)| Step::Say { worker, running }),
        1 => worker.prop_map(Step::Leave),
    ]
}

struct Crowd {
    world: World,
    loads: BTreeMap<String, Load>,
    quotas: Quotas,
    jobs: usize,
}

impl Crowd {
    fn new(workers: &[(u32, u32, bool)], running: u64) -> Crowd {
        let limits = Limits {
            running_agents: Some(running),
            ..Limits::default()
        };
        let mut crowd = Crowd {
            world: World::new(),
            loads: BTreeMap::new(),
            quotas: Quotas::new(Limits::default(), [("t0".to_owned(), limits)].into()),
            jobs: 0,
        };
        for (at, (sequences, kv_blocks, other)) in workers.iter().enumerate() {
            let (id, class) = (format!("w{at:03}"), if *other { "b" } else { "a" });
            crowd.world.register_as(&id, "i", *sequences, class);
            let worker = crowd.world.state.workers.get_mut(&id);
            worker.expect("registered").kv_blocks = *kv_blocks;
            crowd.loads.insert(id, Load::default());
        }
        crowd
    }

    fn carry_out(&mut self, step: &Step) {
        let job_id = |at: usize| format!("j{:03}", at % self.jobs.max(1));
        let running = |world: &World, id: &str| {
            let job = world.state.job(id);
            let agents = job.map_or(Vec::new(), |_| world.agents(id, AgentState::Running));
            agents.first().copied()
        };
        let worker_id = |at: usize| format!("w{at:03}");
        match *step {
            Step::Submit {
                tenant,
                width,
                allow_inexact,
            } => {
                let id = format!("j{:03}", self.jobs);
                self.jobs += 1;
                let policy = ContemplationPolicy {
                    width: Some(width),
                    allow_inexact,
                    ..ContemplationPolicy::default()
                };
                let tenant = format!("t{tenant}");
                self.world.submit_as(&tenant, &id, &question(policy));
                self.world.prepare(&id);
                self.world.decide(&id);
            }
            Step::Place => {
                for assign in
                    place(&self.world.state, &self.loads, &self.quotas, &InlineOnly).assigns
                {
                    self.world.apply(Body::Assign(assign));
                }
            }
            Step::HandIn { job, yes } => {
                let (id, text) = (job_id(job), if yes { "yes" } else { "no" });
                if let Some(agent) = running(&self.world, &id) {
                    self.world.hand_in(&id, agent, &draft(text, 1));
                    self.world.decide(&id);
                }
            }
            Step::Fail(job) => {
                if let Some(agent) = running(&self.world, &job_id(job)) {
                    self.world.fail(&job_id(job), agent, ErrorKind::Transient);
                }
            }
            Step::Drain(at) => {
                let (worker_id, incarnation) = (worker_id(at), "i".into());
                let drain = DrainWorker {
                    worker_id,
                    incarnation,
                };
                self.world.apply(Body::DrainWorker(drain));
            }
            Step::Restart(at) => drop(self.world.register(&worker_id(at), "again", 2)),
            Step::Say {
                worker: at,
                running,
            } => {
                let said = Load {
                    running,
                    ..Load::default()
                };
                self.loads.insert(worker_id(at), said);
            }
            Step::Leave(at) => drop(self.loads.remove(&worker_id(at))),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn placement_comes_to_what_a_look_at_every_worker_comes_to(
        workers in prop::collection::vec((1..5_u32, 30..120_u32, prop::bool::weighted(0.2)), 1..100),
        running in 0..20_u64,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut crowd = Crowd::new(&workers, running);
        for step in &steps {
            crowd.carry_out(step);
            let (state, loads, quotas) = (&crowd.world.state, &crowd.loads, &crowd.quotas);
            let placed = place(state, loads, quotas, &InlineOnly);
            prop_assert_eq!(placed.assigns, naive(state, loads, quotas));
        }
    }
}
