//! `RegisterWorker`: a worker process says hello; what it runs is reconciled with what it should.

use std::collections::BTreeSet;

use conclave_proto::v1::{AttemptKey, RegisterWorker};

use super::{At, lose_worker};
use crate::{
    effect::{Applied, Effect, Reply},
    state::{State, undelivered},
    worker::{LEASE_TTL_MS, Worker},
};

pub(crate) fn apply(state: &mut State, at: At, command: &RegisterWorker) -> Applied {
    if command.worker_id.is_empty() || command.incarnation.is_empty() {
        return Applied::only(Reply::Rejected {
            why: "a worker without an identity".into(),
        });
    }
    let mut effects = Vec::new();
    let before = state.workers.get(&command.worker_id).cloned();
    let same = before
        .as_ref()
        .is_some_and(|w| w.incarnation == command.incarnation);
    if let Some(old) = before.as_ref().filter(|_| !same) {
        effects.extend(lose_worker(state, at, old, "the worker restarted"));
    }
    let worker = Worker {
        worker_id: command.worker_id.clone(),
        incarnation: command.incarnation.clone(),
        models: command.models.clone(),
        max_sequences: command.max_sequences,
        kv_blocks: command.kv_blocks,
        version: command.version.clone(),
        expires_ms: state.lease_clock_ms + LEASE_TTL_MS,
        // A process that drains never takes up work again.
        draining: same && before.is_some_and(|w| w.draining),
    };
    state.workers.insert(command.worker_id.clone(), worker);
    state.reorder(&command.worker_id);
    effects.extend(state.reconcile(&command.worker_id, &command.incarnation, &command.running));
    effects.push(Effect::Place);
    Applied::ok(effects)
}

impl State {
    /// What a process must be told, given the attempts that it runs or has finished: starts that
    /// it lost, cancels that it missed, attempts that are no longer wanted (law 5).
    pub fn reconcile(
        &self,
        worker_id: &str,
        incarnation: &str,
        running: &[AttemptKey],
    ) -> Vec<Effect> {
        let name = |key: &AttemptKey| (key.job_id.clone(), key.agent, key.attempt);
        let known: BTreeSet<_> = running.iter().map(name).collect();
        let mut wanted = BTreeSet::new();
        let mut effects = Vec::new();
        for (job, agent) in self.placed_on(worker_id, incarnation) {
            let key = agent.key(&job.id);
            let runs = known.contains(&name(&key));
            wanted.insert(name(&key));
            if agent.stopping || !runs {
                effects.extend(undelivered(job, agent));
            }
        }
        let unwanted = running.iter().filter(|key| !wanted.contains(&name(key)));
        effects.extend(unwanted.map(|key| Effect::Cancel {
            worker_id: worker_id.to_owned(),
            incarnation: incarnation.to_owned(),
            key: key.clone(),
            reason: "another attempt took its place".into(),
        }));
        effects
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::AgentState;

    use super::*;
    use crate::testkit::{World, cancels, choice, width};

    fn world() -> World {
        let mut world = World::with_job(&choice(width(2)));
        world.go("j");
        world
    }

    #[test]
    fn a_process_that_drains_does_so_to_its_end() {
        let mut world = world();
        let drain = conclave_proto::v1::DrainWorker {
            worker_id: "w1".into(),
            incarnation: "i1".into(),
        };
        world.apply(conclave_proto::v1::command::Command::DrainWorker(drain));
        let drains = |world: &World| world.state.worker("w1").is_some_and(|w| w.draining);
        world.register("w1", "i1", 8);
        assert!(drains(&world), "it only came back");
        world.register("w1", "i2", 8);
        assert!(!drains(&world), "another process");
    }

    #[test]
    fn a_new_incarnation_requeues_the_attempts_of_the_old() {
        let mut world = world();
        let applied = world.register("w1", "i2", 8);
        assert!(applied.effects.contains(&Effect::Place));
        assert_eq!(world.agents("j", AgentState::Queued), [1, 2]);
        assert_eq!(
            world.job("j").agents[0].failures,
            1,
            "a crash counts: the prompt may cause it"
        );
        world.place();
        assert_eq!(world.key("j", 1).attempt, 2);
    }

    #[test]
    fn the_same_incarnation_goes_on_and_gets_what_it_missed() {
        let mut world = world();
        let known = [
            world.key("j", 1),
            AttemptKey {
                job_id: "x".into(),
                agent: 1,
                attempt: 1,
            },
        ];
        let effects = world.state.reconcile("w1", "i1", &known);
        let key = world.key("j", 2);
        assert!(
            matches!(&effects[0], Effect::Start { key: k, .. } if *k == key),
            "{effects:?}"
        );
        assert!(matches!(&effects[1], Effect::Cancel { key, .. } if key.job_id == "x"));
        assert_eq!(effects.len(), 2);
        world.register("w1", "i1", 8);
        assert_eq!(world.agents("j", AgentState::Running), [1, 2]);
    }

    #[test]
    fn a_stopping_attempt_is_cancelled_again() {
        let mut world = world();
        let cancel = conclave_proto::v1::CancelJobCommand {
            job_id: "j".into(),
            ..Default::default()
        };
        world.apply(conclave_proto::v1::command::Command::CancelJob(cancel));
        let running = [world.key("j", 1), world.key("j", 2)];
        assert_eq!(
            cancels(&world.state.reconcile("w1", "i1", &running)),
            [1, 2]
        );
    }
}
