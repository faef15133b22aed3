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
    let before = state
        .workers
        .get(&command.worker_id)
        .map(|w| w.incarnation.clone());
    if let Some(old) = before.filter(|old| *old != command.incarnation) {
        effects.extend(lose_worker(
            state,
            at,
            &command.worker_id,
            &old,
            "the worker restarted",
        ));
    }
    let worker = Worker {
        worker_id: command.worker_id.clone(),
        incarnation: command.incarnation.clone(),
        models: command.models.clone(),
        max_sequences: command.max_sequences,
        kv_blocks: command.kv_blocks,
        version: command.version.clone(),
        expires_ms: state.lease_clock_ms + LEASE_TTL_MS,
        draining: false,
    };
    state.workers.insert(command.worker_id.clone(), worker);
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
