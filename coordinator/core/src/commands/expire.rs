//! `ExpireJobs`: finished jobs are forgotten; keys live on for a day at least (law 7).

use conclave_proto::v1::ExpireJobs;

use crate::{
    effect::{Applied, Reply},
    state::State,
};

/// How long a key outlives its job's submission at least, ms. Part of log version 1.
const KEY_RETENTION_MS: i64 = 24 * 60 * 60 * 1000;

pub(crate) fn apply(state: &mut State, command: &ExpireJobs) -> Applied {
    for id in &command.job_ids {
        if state.jobs.get(id).is_none_or(|job| job.is_active()) {
            continue;
        }
        state.forget(id);
    }
    let oldest = state.unix_ms.saturating_sub(KEY_RETENTION_MS);
    state.keys.forget_until(oldest);
    Applied::only(Reply::Ok)
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{Tick, command::Command as Body};

    use super::*;
    use crate::testkit::{World, choice, width};

    fn expire(world: &mut World, ids: Vec<String>) {
        world.apply(Body::ExpireJobs(ExpireJobs { job_ids: ids }));
    }

    #[test]
    fn ended_jobs_are_forgotten_and_their_keys_later() {
        let mut world = World::with_job(&choice(width(1)));
        world.go("j");
        expire(&mut world, vec!["j".into()]);
        assert!(
            world.state.job("j").is_some(),
            "a running job is never forgotten"
        );
        world.all_answer("j", "yes");
        world.go("j");
        let now = world.state.unix_ms();
        assert_eq!(world.state.expirable(now, 1, 10), Vec::<String>::new());
        assert_eq!(world.state.expirable(now, 0, 10), ["j"]);
        expire(&mut world, vec!["j".into()]);
        assert!(world.state.job("j").is_none() && world.state.jobs("t").count() == 0);
        assert!(world.state.key("t", "key-j").is_some());
        let unix_ms = 1_000 + KEY_RETENTION_MS;
        world.apply(Body::Tick(Tick {
            elapsed_ms: 0,
            unix_ms,
            new_term: false,
        }));
        expire(&mut world, Vec::new());
        assert!(world.state.key("t", "key-j").is_none());
    }
}
