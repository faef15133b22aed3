//! A leader at its desk: what it says is carried out on a state of its own, or lost.

mod confirmation;
mod duties;
mod forgetting;
mod payloads;
mod quotas;
mod time;
mod wall;
mod workers;

use conclave_proto::v1::{
    Heartbeat, Hello, JobSpec, ModelInfo, command::Command as Body,
    coordinator_message::Message as ToWorker,
};

use super::{Act, Leader, Moment, Purpose, Settings};
use crate::{
    effect::Reply,
    payload::InlineOnly,
    quota::Quotas,
    testkit::{World, choice, width},
};

/// Period of a node's clock, ms.
const TICK_MS: u64 = 100;

fn settings() -> Settings {
    Settings {
        election_ms: 1_000,
        retention_ms: 60_000,
        retention_bytes: u64::MAX,
        inline_limit: conclave_proto::INLINE_LIMIT,
        quotas: Quotas::default(),
    }
}

struct Desk {
    world: World,
    leader: Leader,
    now_ms: u64,
}

/// What a leader sees at this desk; a macro, since the leader is borrowed beside it.
macro_rules! moment {
    ($desk:expr) => {
        Moment {
            state: &$desk.world.state,
            payloads: &InlineOnly,
            now_ms: $desk.now_ms,
            unix_ms: $desk.world.now,
        }
    };
}
use moment;

impl Desk {
    /// The first leader of this world, before it serves.
    fn elected(world: World, settings: Settings) -> Desk {
        Desk {
            world,
            leader: Leader::new(1, settings, None, 0),
            now_ms: 0,
        }
    }

    /// A leader that serves this world.
    fn of(world: World) -> Desk {
        Desk::with(world, settings())
    }

    fn with(world: World, settings: Settings) -> Desk {
        let mut desk = Desk::elected(world, settings);
        desk.serve();
        desk
    }

    /// A cluster without workers and jobs.
    fn empty() -> Desk {
        Desk::of(World::new())
    }

    /// Worker `w1` has session 1, its job `j` waits for the leader.
    fn at_work() -> Desk {
        let mut desk = Desk::empty();
        desk.hello(1, "w1", "i1");
        desk.world.submit("j", &choice(width(2)));
        desk.world.prepare("j");
        desk.changed("j");
        desk
    }

    fn serve(&mut self) -> Option<usize> {
        let moment = moment!(self);
        self.leader.begin_serving(&moment)
    }

    /// What it says now; nothing is carried out.
    fn acts(&mut self) -> Vec<Act> {
        let moment = moment!(self);
        self.leader.acts(&moment)
    }

    /// Carries out what it says until it is silent; returns all of it.
    fn run(&mut self) -> Vec<Act> {
        let mut said = Vec::new();
        loop {
            let acts = self.acts();
            if acts.is_empty() {
                return said;
            }
            for act in &acts {
                if let Act::Propose { body, purpose } = act {
                    let applied = self.world.apply(body.clone());
                    self.leader.effects(applied.effects);
                    self.leader.applied(purpose.clone(), &applied.reply);
                }
            }
            said.extend(acts);
        }
    }

    /// Every proposal that it makes now is lost; returns what they were for.
    fn lose(&mut self) -> Vec<Purpose> {
        let lost: Vec<_> = self.acts().into_iter().filter_map(purpose).collect();
        lost.iter().for_each(|p| self.leader.failed(p.clone()));
        lost
    }

    /// Time passes in ticks; returns all that is said.
    fn pass(&mut self, ms: u64) -> Vec<Act> {
        let mut said = Vec::new();
        for _ in 0..ms / TICK_MS {
            self.tick(TICK_MS);
            said.extend(self.run());
        }
        said
    }

    /// One tick after so long; nothing is carried out.
    fn tick(&mut self, after_ms: u64) {
        self.now_ms += after_ms;
        self.world.now += after_ms as i64;
        let moment = moment!(self);
        self.leader.tick(&moment);
    }

    fn hello(&mut self, session: u64, worker: &str, incarnation: &str) -> Vec<Act> {
        self.leader.hello(session, hello(worker, incarnation));
        self.run()
    }

    fn beat(&mut self, session: u64, steps: u64, has_work: bool) -> super::Sign {
        let beat = Heartbeat {
            steps,
            has_work,
            ..Heartbeat::default()
        };
        let moment = moment!(self);
        self.leader.heartbeat(session, &beat, &moment)
    }

    /// As applying does, when the leader is to ask what the job does next.
    fn changed(&mut self, job_id: &str) {
        let job_id = job_id.to_owned();
        let changed = crate::Effect::JobChanged { job_id };
        self.leader.effects(vec![changed]);
    }

    fn submit(&mut self, id: &str, spec: &JobSpec) {
        let applied = self.world.submit(id, spec);
        self.leader.effects(applied.effects);
    }
}

fn hello(worker: &str, incarnation: &str) -> Hello {
    Hello {
        worker_id: worker.into(),
        incarnation: incarnation.into(),
        models: vec![ModelInfo {
            name: "m".into(),
            numeric_class: "a".into(),
            context_tokens: 4096,
            ..ModelInfo::default()
        }],
        max_sequences: 8,
        kv_blocks: 4096,
        ..Hello::default()
    }
}

fn purpose(act: Act) -> Option<Purpose> {
    match act {
        Act::Propose { purpose, .. } => Some(purpose),
        _ => None,
    }
}

fn bodies(acts: &[Act]) -> Vec<&Body> {
    let mut bodies = Vec::new();
    for act in acts {
        if let Act::Propose { body, .. } = act {
            bodies.push(body);
        }
    }
    bodies
}

fn sent(acts: &[Act]) -> Vec<(u64, &ToWorker)> {
    let mut sent = Vec::new();
    for act in acts {
        if let Act::Send { session, message } = act {
            sent.push((*session, message));
        }
    }
    sent
}

/// Agents that are started, by the session that they are started on.
fn starts(acts: &[Act]) -> Vec<(u64, u32)> {
    let start = |(session, message): (u64, &ToWorker)| match message {
        ToWorker::Start(start) => Some((session, start.key.as_ref()?.agent)),
        _ => None,
    };
    sent(acts).into_iter().filter_map(start).collect()
}
