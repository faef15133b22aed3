//! A worker looks at a job's prompt before anything is decided: token counts, validation.

use conclave_proto::v1::{
    PrepareDone, Prepared, command::Command as Body, coordinator_message::Message as ToWorker,
};

use super::{Act, Leader, Moment, Purpose, roster::Able};
use crate::{job::Job, view, worker::LEASE_TTL_MS};

/// How long a job waits for a worker that serves its model, while others are here: workers that a
/// new leader inherits are given a lease to find it. ms.
const MODEL_MS: u64 = 3_000;
/// When another worker is asked after one could not look at a prompt, ms.
const LOOK_AGAIN_MS: u64 = 200;

/// A job whose model no worker here serves.
#[derive(Debug)]
pub(super) struct NoModel {
    /// Known already: the spec is not read again for it.
    model: String,
    since_ms: u64,
}

impl Leader {
    /// Has every prompt looked at that no worker has looked at.
    pub(super) fn prepare_all(&mut self, moment: &Moment<'_>) {
        // Asked with every tick: without a worker no job is looked at, however many wait.
        if self.roster.has_workers() {
            for job in moment.state.unprepared() {
                self.prepare_job(job, moment);
            }
        }
        let needed = |id: &str| moment.state.job(id).is_some_and(Job::needs_prepare);
        self.roster.retain_looks(needed);
        self.no_model.retain(|job_id, _| needed(job_id));
    }

    pub(super) fn prepare(&mut self, job_id: &str, moment: &Moment<'_>) {
        if let Some(job) = moment.state.job(job_id).filter(|job| job.needs_prepare()) {
            self.prepare_job(job, moment);
        }
    }

    fn prepare_job(&mut self, job: &Job, moment: &Moment<'_>) {
        // Asked every tick: the spec is read from the disk only to be sent.
        if !self.roster.may_look(&job.id, moment.now_ms) {
            return;
        }
        let mut prepare = None;
        let model = match self.no_model.get(&job.id) {
            Some(known) => known.model.clone(),
            None => match view::prepare(moment.state, job, moment.payloads) {
                Err(missing) => return self.wait_for(missing),
                Ok(built) => {
                    let spec = prepare.insert(built).spec.as_ref();
                    spec.map(|spec| spec.model.clone()).unwrap_or_default()
                }
            },
        };
        match self.roster.able(&model) {
            Able::NoWorker => drop(self.no_model.remove(&job.id)),
            Able::NoModel(served) => self.no_model(job, model, &served, moment),
            Able::Session(session) => {
                self.no_model.remove(&job.id);
                let built =
                    prepare.map_or_else(|| view::prepare(moment.state, job, moment.payloads), Ok);
                match built {
                    Err(missing) => self.wait_for(missing),
                    Ok(prepare) => {
                        self.roster.looks(&job.id, session, moment.now_ms);
                        let message = ToWorker::Prepare(prepare);
                        self.acts.push(Act::Send { session, message });
                    }
                }
            }
        }
    }

    /// The job ends if its model stays unserved: unless a worker that serves it is on its way here.
    fn no_model(&mut self, job: &Job, model: String, served: &[String], moment: &Moment<'_>) {
        let now_ms = moment.now_ms;
        let leased = moment.state.workers().any(|w| w.model(&model).is_some());
        let waiting = self.no_model.entry(job.id.clone());
        let since_ms = now_ms;
        let waiting = waiting.or_insert(NoModel { model, since_ms });
        if leased || now_ms < self.begun_ms + LEASE_TTL_MS || now_ms - waiting.since_ms < MODEL_MS {
            return;
        }
        let wanted = match waiting.model.as_str() {
            "" => "the job names no model and there are several".to_owned(),
            model => format!("no worker serves the model `{model}`"),
        };
        self.no_model.remove(&job.id);
        let prepared = Prepared {
            job_id: job.id.clone(),
            error: format!("{wanted}; served: {}", served.join(", ")),
            ..Prepared::default()
        };
        self.propose_prepared(prepared);
    }

    /// A worker looked at a prompt, or could not.
    pub fn prepared(&mut self, prepared: Prepared, now_ms: u64) {
        if prepared.retry {
            let again_ms = Some(now_ms + LOOK_AGAIN_MS);
            return self.roster.looked(&prepared.job_id, again_ms);
        }
        self.roster.looked(&prepared.job_id, None);
        self.propose_prepared(prepared);
    }

    fn propose_prepared(&mut self, prepared: Prepared) {
        let prepared = Some(prepared);
        let done = PrepareDone { prepared };
        self.propose(Body::PrepareDone(done), Purpose::Nothing);
    }
}
