//! Traces of jobs, as this node sees them: what the state says of a job becomes spans once it has ended.
//!
//! Nothing of a trace is kept in the log. A job's trace and the spans in it are named by what they tell of
//! (`conclave_traces::ids`), so whoever leads next goes on with the same one. What ended within the last moments
//! before is said again, for the leader before may not have come to send it: the same span, by its id.

mod spans;
pub mod submission;

use std::{
    collections::{BTreeSet, HashMap},
    time::SystemTime,
};

use conclave_coordinator_core::{State, job::Job, payload, timeline::Timeline, view};
use conclave_proto::v1::{AttemptKey, Job as Shown};
use conclave_traces::{TraceId, Traces, span::unix_nanos};

use crate::disk::blobs::Blobs;
use spans::Times;

/// What ended so long before a leader began is said again, ms: longer than spans wait to be sent, an election
/// included.
const AGAIN_MS: i64 = 5_000;

/// What was said of the jobs that this node follows while it leads.
pub struct JobTraces {
    traces: Traces,
    blobs: Blobs,
    jobs: HashMap<String, Followed>,
}

/// What was said of one job.
struct Followed {
    trace: TraceId,
    times: Times,
    /// Attempts whose spans were handed over, by agent and attempt.
    attempts: BTreeSet<(u32, u32)>,
    /// Phases, from the first on.
    phases: usize,
}

impl JobTraces {
    /// Of no job yet.
    pub fn new(traces: Traces, blobs: Blobs) -> Self {
        Self {
            traces,
            blobs,
            jobs: HashMap::new(),
        }
    }

    /// A term of leading begins: of the jobs there are, what ended long ago was said by others.
    pub fn begin(&mut self, state: &State) {
        self.jobs.clear();
        let since = state.unix_ms() - AGAIN_MS;
        let recent = |job: &&Job| job.is_active() || job.ended_unix_ms > since;
        for job in state.all_jobs().filter(recent) {
            let Some(trace) = self.traces.of_job(&job.id) else {
                continue;
            };
            let timeline = Timeline::of(job);
            let followed = Followed::by_others(trace, &timeline, since);
            self.jobs.insert(job.id.clone(), followed);
            self.look(job, &timeline, None);
            if job.ended_unix_ms > since
                && let Ok(shown) = view::job(job, &self.blobs, None)
            {
                self.traces
                    .say(spans::job(trace, job, &shown, &timeline, &Times::default()));
            }
            self.forget_if_over(job);
        }
    }

    /// This node leads no more.
    pub fn end(&mut self) {
        self.jobs.clear();
    }

    /// An attempt is handed to a worker.
    pub fn attempt_begins(&mut self, key: &AttemptKey) {
        if let Some(followed) = self.followed(&key.job_id) {
            // One that runs is handed over again after a change of leader.
            let times = &mut followed.times;
            times
                .attempts
                .entry((key.agent, key.attempt))
                .or_insert_with(now);
        }
    }

    /// Something of the job changed.
    pub fn job_changed(&mut self, job: &Job) {
        if let Some(followed) = self.followed(&job.id) {
            let timeline = Timeline::of(job);
            followed.times.begin_phases(&timeline);
            self.look(job, &timeline, Some(now()));
            self.forget_if_over(job);
        }
    }

    /// The job reached its end; `shown` is the job as the API has it.
    pub fn job_ended(&mut self, job: &Job, shown: &Shown) {
        let Some(followed) = self.followed(&job.id) else {
            return;
        };
        let timeline = Timeline::of(job);
        followed.times.begin_phases(&timeline);
        followed.times.end();
        let span = spans::job(followed.trace, job, shown, &timeline, &followed.times);
        self.look(job, &timeline, Some(now()));
        self.traces.say(span);
        self.forget_if_over(job);
    }

    /// Says what has ended and was not said. `seen`: now, if it is seen as it happens.
    fn look(&mut self, job: &Job, timeline: &Timeline, seen: Option<u64>) {
        let Self {
            traces,
            blobs,
            jobs,
        } = self;
        let Some(followed) = jobs.get_mut(&job.id) else {
            return;
        };
        let (trace, times) = (followed.trace, &followed.times);
        for attempt in timeline.attempts().filter(|attempt| attempt.ended()) {
            if !followed.attempts.insert(attempt.key()) {
                continue;
            }
            let span = spans::attempt(trace, job, timeline, attempt, (times, seen));
            match spans::draft_of(job, attempt).cloned() {
                // A look at the disk: not on the node's loop.
                Some(draft) if payload::blob_ref(&draft).is_some() => {
                    let blobs = blobs.clone();
                    traces.say_later(move || spans::with_draft(span, Some(&draft), &blobs));
                }
                draft => traces.say(spans::with_draft(
                    span,
                    draft.as_ref(),
                    &payload::InlineOnly,
                )),
            }
        }
        while let Some(span) = spans::phase(trace, job, timeline, followed.phases, times) {
            traces.say(span);
            followed.phases += 1;
        }
    }

    /// What was said of the job; nothing yet of one that is new. `None`: its trace is not kept.
    fn followed(&mut self, job_id: &str) -> Option<&mut Followed> {
        if !self.jobs.contains_key(job_id) {
            let followed = Followed::new(self.traces.of_job(job_id)?);
            self.jobs.insert(job_id.to_owned(), followed);
        }
        self.jobs.get_mut(job_id)
    }

    /// Nothing more can happen to it.
    fn forget_if_over(&mut self, job: &Job) {
        if !job.is_active() {
            self.jobs.remove(&job.id);
        }
    }
}

impl Followed {
    fn new(trace: TraceId) -> Self {
        Self {
            trace,
            times: Times::default(),
            attempts: BTreeSet::new(),
            phases: 0,
        }
    }

    /// Another node led until now: what ended by `since`, Unix ms, was said by it.
    fn by_others(trace: TraceId, timeline: &Timeline, since: i64) -> Self {
        let mut followed = Self::new(trace);
        let said = timeline
            .attempts()
            .filter(|attempt| attempt.ended_by(since));
        followed.attempts.extend(said.map(|attempt| attempt.key()));
        followed.phases = timeline.phases_ended_by(since);
        followed.times.remember(timeline);
        followed
    }
}

/// This node's wall clock, ns of Unix time.
fn now() -> u64 {
    unix_nanos(SystemTime::now())
}
