//! `Tick`: replicated time moves; leases and deadlines fall due (law 3).

use conclave_proto::v1::Tick;

use super::{At, lose_worker};
use crate::{
    effect::{Applied, Effect},
    state::State,
    worker::LEASE_TTL_MS,
};

/// The most that one tick moves the lease clock, ms: a leader that slept must not expire what it
/// could not hear. Part of log version 1.
pub(crate) const MAX_TICK_MS: u64 = 1_000;

pub(crate) fn apply(state: &mut State, at: At, command: &Tick) -> Applied {
    state.advance_unix(command.unix_ms);
    state.lease_clock_ms += command.elapsed_ms.min(MAX_TICK_MS);
    if command.new_term {
        let full = state.lease_clock_ms + LEASE_TTL_MS;
        state
            .workers
            .values_mut()
            .for_each(|worker| worker.expires_ms = full);
    }
    let mut effects = expire_leases(state, at);
    let overdue = state.overdue(state.unix_ms);
    effects.extend(overdue.map(|job_id| Effect::JobChanged {
        job_id: job_id.to_owned(),
    }));
    Applied::ok(effects)
}

fn expire_leases(state: &mut State, at: At) -> Vec<Effect> {
    let clock = state.lease_clock_ms;
    let expired: Vec<_> = state
        .workers
        .values()
        .filter(|w| w.expires_ms <= clock)
        .cloned()
        .collect();
    let mut effects = Vec::new();
    for worker in expired {
        state.workers.remove(&worker.worker_id);
        state.reorder(&worker.worker_id);
        effects.extend(lose_worker(
            state,
            at,
            &worker,
            "the worker's lease ran out",
        ));
    }
    effects
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{
        AgentState, Budget, JobSpec, RenewLeases, WorkerLease, command::Command as Body,
    };

    use super::*;
    use crate::testkit::{World, choice, draft, width};

    fn world() -> World {
        let mut world = World::with_job(&choice(width(2)));
        world.go("j");
        world
    }

    #[test]
    fn a_lease_runs_out_and_its_attempts_are_requeued() {
        let mut world = world();
        for _ in 0..LEASE_TTL_MS / MAX_TICK_MS - 1 {
            world.tick(MAX_TICK_MS);
        }
        assert_eq!(world.agents("j", AgentState::Running), [1, 2]);
        let applied = world.tick(MAX_TICK_MS);
        assert!(applied.effects.contains(&Effect::Place));
        assert_eq!(world.agents("j", AgentState::Queued), [1, 2]);
        assert!(world.state.worker("w1").is_none());
    }

    #[test]
    fn one_tick_moves_the_lease_clock_by_one_period_at_most() {
        let mut world = world();
        world.tick(LEASE_TTL_MS * 10);
        assert_eq!(world.state.lease_clock_ms(), MAX_TICK_MS);
        assert_eq!(world.agents("j", AgentState::Running), [1, 2]);
    }

    #[test]
    fn renewals_and_a_new_term_keep_a_lease() {
        let mut world = world();
        for round in 0..12 {
            world.tick(MAX_TICK_MS);
            if round < 6 {
                let lease = WorkerLease {
                    worker_id: "w1".into(),
                    incarnation: "i1".into(),
                };
                world.apply(Body::RenewLeases(RenewLeases {
                    leases: vec![lease],
                }));
            } else if round == 9 {
                let tick = Tick {
                    elapsed_ms: 0,
                    unix_ms: 0,
                    new_term: true,
                };
                world.apply(Body::Tick(tick));
            }
        }
        assert!(world.state.worker("w1").is_some());
        let stranger = WorkerLease {
            worker_id: "w1".into(),
            incarnation: "i0".into(),
        };
        world.apply(Body::RenewLeases(RenewLeases {
            leases: vec![stranger],
        }));
        (0..4).for_each(|_| drop(world.tick(MAX_TICK_MS)));
        assert!(
            world.state.worker("w1").is_none(),
            "a lease belongs to one incarnation"
        );
    }

    #[test]
    fn lapsed_attempts_of_an_ended_job_seal_its_chain() {
        let mut world = world();
        let cancel = conclave_proto::v1::CancelJobCommand {
            job_id: "j".into(),
            ..Default::default()
        };
        world.apply(Body::CancelJob(cancel));
        world.hand_in("j", 1, &draft("y", 1));
        assert!(!world.job("j").audit.is_sealed());
        assert!(world.state.needs_ticks());
        (0..6).for_each(|_| drop(world.tick(MAX_TICK_MS)));
        assert!(world.job("j").audit.is_sealed());
        assert!(
            !world.state.needs_ticks(),
            "an idle cluster proposes no ticks"
        );
    }

    #[test]
    fn a_deadline_wakes_its_job() {
        let budget = Budget {
            deadline_ms: 700,
            ..Budget::default()
        };
        let mut world = World::with_job(&JobSpec {
            budget: Some(budget),
            ..choice(width(2))
        });
        world.go("j");
        assert_eq!(world.state.next_deadline(), Some(1_700));
        assert_eq!(world.tick(600).effects, []);
        assert_eq!(
            world.tick(100).effects,
            [Effect::JobChanged { job_id: "j".into() }]
        );
    }
}
