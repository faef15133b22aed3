//! Why a job waits, in words: read from the state, never replicated.

use conclave_proto::v1::{AgentState, Job, JobState};

use crate::{state::State, worker::Worker};

/// The workers of one moment, as far as jobs wait for them.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    leased: Vec<Worker>,
}

impl Workers {
    /// Those that hold a lease.
    pub fn of(state: &State) -> Workers {
        Workers {
            leased: state.workers().cloned().collect(),
        }
    }

    /// What `job` waits for that only an operator can bring: a worker that serves its model.
    /// `None` if it waits for nothing of that kind.
    pub fn awaited_by(&self, job: &Job) -> Option<String> {
        let queued = |agent: &&conclave_proto::v1::AgentStatus| agent.state() == AgentState::Queued;
        let running = job.agents.iter().any(|a| a.state() == AgentState::Running);
        let waits = match job.state() {
            JobState::Preparing => true,
            JobState::Proposing
            | JobState::Distilling
            | JobState::Refining
            | JobState::Aggregating => !running && job.agents.iter().any(|a| queued(&a)),
            _ => false,
        };
        let model = job.spec.as_ref().map_or("", |spec| spec.model.as_str());
        let serving = |worker: &&Worker| worker.model(model).is_some();
        let takes = |worker: &&Worker| serving(worker) && !worker.draining;
        if !waits || self.leased.iter().any(|w| takes(&w)) {
            return None;
        }
        let wanted = match model {
            "" => "no worker serves the job's model".to_owned(),
            name => format!("no worker serves the model `{name}`"),
        };
        let draining = self.leased.iter().filter(|w| w.draining).count();
        let held = match (self.leased.len(), draining) {
            (0, _) => "no worker holds a lease".to_owned(),
            (1, 0) => "1 worker holds a lease".to_owned(),
            (n, 0) => format!("{n} workers hold a lease"),
            (1, _) => "1 worker holds a lease, and is leaving".to_owned(),
            (n, leaving) => format!("{n} workers hold a lease, {leaving} of them leaving"),
        };
        Some(format!("waiting: {wanted}; {held}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        payload::InlineOnly,
        testkit::{World, choice, width},
        view,
    };

    fn said(world: &World, workers: &Workers) -> Option<String> {
        let job = view::job(world.job("j"), &InlineOnly, None).expect("all is inline");
        workers.awaited_by(&job)
    }

    #[test]
    fn a_job_that_no_worker_can_take_says_so_and_others_say_nothing() {
        let mut world = World::with_job(&choice(width(1)));
        let nobody = Workers::default();
        let said_now = said(&world, &nobody).expect("it waits");
        assert!(
            said_now.starts_with("waiting: no worker serves"),
            "{said_now}"
        );
        assert!(said_now.ends_with("no worker holds a lease"), "{said_now}");
        assert_eq!(said(&world, &Workers::of(&world.state)), None);
        let mut leaving = Workers::of(&world.state);
        leaving.leased.iter_mut().for_each(|w| w.draining = true);
        assert!(said(&world, &leaving).is_some_and(|text| text.contains("leaving")));
        world.go("j");
        assert_eq!(said(&world, &nobody), None, "it runs");
        world.all_answer("j", "yes");
        world.go("j");
        assert_eq!(said(&world, &nobody), None, "it has ended");
    }
}
