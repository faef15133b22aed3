//! What became of a job's attempts, and what the job did first, second, ...: read from its replicated events,
//! for those who tell of it.

use std::collections::BTreeMap;

use conclave_proto::v1::{AgentState, AgentStatus, JobState, Role, job_event::Event};

use crate::job::{Job, is_final};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a draft that counts.
    Done,
    /// It was told to stop.
    Cut,
    /// It failed or its worker was lost; the agent is tried again.
    Lost,
    /// It failed, and the agent with it.
    Failed,
}

impl Outcome {
    /// The word in spans and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Cut => "cut",
            Self::Lost => "lost",
            Self::Failed => "failed",
        }
    }
}

/// One attempt of one agent. Times are Unix ms, as replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The agent's number.
    pub agent: u32,
    /// The attempt's, from 1.
    pub attempt: u32,
    /// The agent's role.
    pub role: Role,
    /// The agent's round.
    pub round: u32,
    /// Where it ran.
    pub worker: String,
    /// When it was placed.
    pub began_ms: i64,
    /// It was told to stop.
    told_ms: Option<i64>,
    /// When it was over, and how; `None`: it runs.
    pub end: Option<(i64, Outcome)>,
}

impl Attempt {
    fn begun(status: &AgentStatus, unix_ms: i64) -> Self {
        Self {
            agent: status.agent,
            attempt: status.attempt,
            role: status.role(),
            round: status.round,
            worker: status.worker.clone(),
            began_ms: unix_ms,
            told_ms: None,
            end: None,
        }
    }

    /// Agent and attempt.
    pub fn key(&self) -> (u32, u32) {
        (self.agent, self.attempt)
    }

    /// It is over.
    pub fn ended(&self) -> bool {
        self.end.is_some()
    }

    /// It was over by then.
    pub fn ended_by(&self, unix_ms: i64) -> bool {
        self.end.is_some_and(|(at, _)| at <= unix_ms)
    }

    /// The agent is in this state now, and was running. One that is told to stop says so twice: then, and
    /// when it has reported.
    fn now(&mut self, state: AgentState, unix_ms: i64) {
        let outcome = match state {
            AgentState::Done => Outcome::Done,
            AgentState::Queued => Outcome::Lost,
            AgentState::Failed => Outcome::Failed,
            AgentState::Cancelled if self.told_ms.is_some() => Outcome::Cut,
            AgentState::Cancelled => {
                self.told_ms = Some(unix_ms);
                return;
            }
            AgentState::Running | AgentState::Unspecified => return,
        };
        self.end = Some((unix_ms, outcome));
    }
}

/// What a job does for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// `prepare`, `propose`, `distill`, `refine`, `aggregate` or `review`.
    pub name: &'static str,
    /// The round, if it is one.
    pub round: Option<u32>,
    /// Unix ms, as replicated.
    pub began_ms: i64,
}

/// Attempts and phases of a job.
pub struct Timeline {
    attempts: BTreeMap<(u32, u32), Attempt>,
    phases: Vec<Phase>,
    /// When the last phase ended.
    ended_ms: Option<i64>,
}

impl Timeline {
    /// Of a job, as of now.
    pub fn of(job: &Job) -> Self {
        let mut timeline = Self {
            attempts: BTreeMap::new(),
            phases: Vec::new(),
            ended_ms: None,
        };
        for event in &job.events {
            match &event.event {
                Some(Event::State(state)) => timeline.state(*state, event.unix_ms),
                Some(Event::Agent(status)) => timeline.agent(job, status, event.unix_ms),
                Some(Event::Answer(_) | Event::Message(_)) | None => {}
            }
        }
        timeline.lost_while_stopping(job);
        timeline
    }

    fn state(&mut self, state: i32, unix_ms: i64) {
        match JobState::try_from(state).unwrap_or_default() {
            JobState::Preparing => self.phase("prepare", None, unix_ms),
            JobState::AwaitingReview => self.phase("review", None, unix_ms),
            state if is_final(state) => self.ended_ms = Some(unix_ms),
            // Rounds are told by their agents: two of one kind follow each other without an event.
            _ => {}
        }
    }

    fn agent(&mut self, job: &Job, status: &AgentStatus, unix_ms: i64) {
        let last = self.phases.iter().rev().find_map(|phase| phase.round);
        if last.is_none_or(|last| last < status.round) {
            let record = job.round_record(status.round);
            let state = record.map_or(JobState::Unspecified, |record| record.state());
            self.phase(round_name(state), Some(status.round), unix_ms);
        }
        // 0: not placed yet.
        if status.attempt == 0 {
            return;
        }
        let key = (status.agent, status.attempt);
        match self.attempts.get_mut(&key) {
            None if status.state() == AgentState::Running => {
                self.attempts.insert(key, Attempt::begun(status, unix_ms));
            }
            Some(attempt) if attempt.end.is_none() => attempt.now(status.state(), unix_ms),
            // It waited for another attempt that never came.
            Some(_) | None => {}
        }
    }

    fn phase(&mut self, name: &'static str, round: Option<u32>, began_ms: i64) {
        self.phases.push(Phase {
            name,
            round,
            began_ms,
        });
    }

    /// One that was told to stop and lost its worker before it reported has no event of it.
    fn lost_while_stopping(&mut self, job: &Job) {
        for attempt in self.attempts.values_mut().filter(|a| a.end.is_none()) {
            let stopping = job.agent(attempt.agent).is_some_and(|agent| agent.stopping);
            if let Some(told_ms) = attempt.told_ms.filter(|_| !stopping) {
                attempt.end = Some((told_ms, Outcome::Cut));
            }
        }
    }

    /// By agent and attempt.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values()
    }

    /// In the order in which they came; each ends where the next begins.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// When phase `index` ended, Unix ms; `None` while it lasts.
    pub fn phase_ended_ms(&self, index: usize) -> Option<i64> {
        let next = self.phases.get(index + 1);
        next.map_or(self.ended_ms, |next| Some(next.began_ms))
    }

    /// How many phases, from the first on, had ended by then.
    pub fn phases_ended_by(&self, unix_ms: i64) -> usize {
        let ended = |index: &usize| self.phase_ended_ms(*index).is_some_and(|at| at <= unix_ms);
        (0..self.phases.len()).take_while(ended).count()
    }

    /// The phase that is a round.
    pub fn phase_of_round(&self, round: u32) -> Option<usize> {
        self.phases.iter().position(|p| p.round == Some(round))
    }
}

fn round_name(state: JobState) -> &'static str {
    match state {
        JobState::Proposing => "propose",
        JobState::Distilling => "distill",
        JobState::Refining => "refine",
        JobState::Aggregating => "aggregate",
        _ => "round",
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{ContemplationPolicy, ErrorKind, command::Command as Body};

    use super::*;
    use crate::testkit::{World, choice, draft, width};

    fn ends(world: &World) -> Vec<(u32, u32, Option<Outcome>)> {
        let timeline = Timeline::of(world.job("j"));
        let end = |a: &Attempt| (a.agent, a.attempt, a.end.map(|(_, outcome)| outcome));
        timeline.attempts().map(end).collect()
    }

    fn names(world: &World) -> Vec<&'static str> {
        let timeline = Timeline::of(world.job("j"));
        timeline.phases().iter().map(|phase| phase.name).collect()
    }

    #[test]
    fn attempts_that_fail_are_followed_by_others_and_stragglers_end_when_they_report() {
        let policy = ContemplationPolicy {
            quorum: Some(1),
            ..width(3)
        };
        let mut world = World::with_job(&choice(policy));
        world.go("j");
        world.fail("j", 1, ErrorKind::Transient);
        world.place();
        assert_eq!(
            ends(&world)[..2],
            [(1, 1, Some(Outcome::Lost)), (1, 2, None)]
        );
        world.hand_in("j", 1, &draft("yes", 1));
        let decide = world.next("j").expect("the quorum is there");
        world.apply(Body::Decide(decide));
        let open = ends(&world)
            .iter()
            .filter(|(.., end)| end.is_none())
            .count();
        assert_eq!(open, 2, "they were told to stop, and have not reported");
        world.hand_in("j", 2, &draft("ye", 1));
        world.fail("j", 3, ErrorKind::Transient);
        assert_eq!(
            ends(&world),
            [
                (1, 1, Some(Outcome::Lost)),
                (1, 2, Some(Outcome::Done)),
                (2, 1, Some(Outcome::Cut)),
                (3, 1, Some(Outcome::Cut)),
            ]
        );
    }

    #[test]
    fn every_round_is_a_phase_also_two_of_one_kind() {
        let policy = ContemplationPolicy {
            refine_rounds: Some(2),
            ..width(2)
        };
        let mut world = World::with_job(&choice(policy));
        assert_eq!(names(&world), ["prepare"]);
        while !world.job("j").is_final() {
            world.go("j");
            world.all_answer("j", "yes");
        }
        assert_eq!(names(&world), ["prepare", "propose", "refine", "refine"]);
        let timeline = Timeline::of(world.job("j"));
        let ended = |index| timeline.phase_ended_ms(index).is_some();
        assert!((0..4).all(ended));
        assert_eq!(timeline.phases_ended_by(i64::MAX), 4);
        assert_eq!(timeline.phase_of_round(1), Some(2));
    }
}
