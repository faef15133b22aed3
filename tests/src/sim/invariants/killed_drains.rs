//! An attempt that is lost with a worker that drained is no failure, from the log version on that says
//! so; before it, it is one on every replica.

use conclave_coordinator_core::{
    State,
    agent::{Agent, KILLED_DRAINS_VERSION},
    job::Job,
};
use conclave_proto::v1::{AgentState, Command, command::Command as Body};

use super::Check;

/// An attempt that runs on a worker that drains, and its agent's failures so far.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    job_id: String,
    agent: u32,
    failures: u32,
}

/// What a command may lose with workers that drain.
#[derive(Debug, Default)]
pub(in super::super) struct Draining(Vec<Attempt>);

impl Draining {
    /// Before the command is applied.
    pub(in super::super) fn before(state: &State, command: &Command) -> Draining {
        let loses = matches!(
            command.command,
            Some(Body::Tick(_) | Body::RegisterWorker(_))
        );
        let workers = state.workers().filter(|w| loses && w.draining);
        let placed = workers.flat_map(|w| state.placed_on(&w.worker_id, &w.incarnation));
        let running = placed.filter(|(_, agent)| !agent.stopping);
        let attempt = |(job, agent): (&Job, &Agent)| Attempt {
            job_id: job.id.clone(),
            agent: agent.spec.agent,
            failures: agent.failures,
        };
        Draining(running.map(attempt).collect())
    }

    /// How many of them it lost; each by the rule of the state's log version.
    pub(super) fn lost(&self, node: u64, state: &State) -> Result<u64, String> {
        let mut lost = 0;
        for before in &self.0 {
            let job = state.job(&before.job_id);
            let Some(after) = job.and_then(|job| job.agent(before.agent)) else {
                continue;
            };
            if after.state == AgentState::Running {
                continue;
            }
            lost += 1;
            check(node, state.log_version(), before.failures, after.failures)?;
        }
        Ok(lost)
    }
}

fn check(node: u64, log_version: u32, before: u32, after: u32) -> Check {
    let counts = u32::from(log_version < KILLED_DRAINS_VERSION);
    if after == before + counts {
        return Ok(());
    }
    Err(format!(
        "node {node}, log version {log_version}: {before} failures became {after} with a worker \
         that drained"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_that_counts_is_found_and_so_is_one_that_did_not_yet() {
        let version = KILLED_DRAINS_VERSION;
        assert_eq!(check(1, version, 1, 1), Ok(()));
        assert!(check(1, version, 1, 2).is_err());
        assert_eq!(check(1, version - 1, 1, 2), Ok(()));
        assert!(check(1, version - 1, 1, 1).is_err(), "old replicas differ");
    }
}
