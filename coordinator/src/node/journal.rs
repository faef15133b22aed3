//! Whom a leader tells what becomes of jobs: watchers, metrics, traces, and the log. In the log, and in traces,
//! a job is `job`, its agents `agent`, their attempts `attempt`, and so on everywhere; what people or models
//! wrote is in neither.

use conclave_coordinator_core::{
    Reply, contemplate, contemplate::expand::Expansion, job::Job, view,
};
use conclave_proto::v1::{
    AttemptError, AttemptFinished, AttemptKey, ErrorKind, Job as Shown, RegisterWorker,
    SubmitJobCommand, attempt_finished, command::Command as Body,
};

use super::task::Task;
use crate::{
    api::convert::{self, job_state_name, mode_name},
    metrics,
};

impl Task {
    pub(super) fn attempt_begins(&mut self, key: &AttemptKey) {
        self.feeds.of(&key.job_id).begin(key.agent, key.attempt);
        if let Some(traces) = &mut self.traces {
            traces.attempt_begins(key);
        }
        tracing::debug!(
            job = key.job_id,
            agent = key.agent,
            attempt = key.attempt,
            worker = worker_of(self.state.job(&key.job_id), key),
            tenant = tenant_of(self.state.job(&key.job_id)),
            "an attempt begins"
        );
    }

    pub(super) fn job_changed(&mut self, job_id: &str) {
        self.feeds.changed(job_id);
        if let (Some(traces), Some(job)) = (&mut self.traces, self.state.job(job_id)) {
            traces.job_changed(job);
        }
    }

    pub(super) fn job_ended(&mut self, job_id: &str) {
        self.feeds.ended(job_id);
        let Some(job) = self.state.job(job_id) else {
            return;
        };
        match contemplate::expand::of(job, &self.blobs.local) {
            Ok(Expansion::WouldHelp) => metrics::answers::would_expand(),
            Ok(Expansion::Done) => metrics::answers::expanded(),
            Ok(Expansion::None) | Err(_) => {}
        }
        if let Ok(true) = contemplate::agreement::was_early(job, &self.blobs.local) {
            metrics::answers::agreed_early();
        }
        let Ok(shown) = view::job(job, &self.blobs.local, None) else {
            return;
        };
        convert::count_ended(&shown);
        self.count_tokens(&shown);
        log_end(&shown);
        if let Some(traces) = &mut self.traces {
            traces.job_ended(job, &shown);
        }
    }

    /// A command was applied while this node leads, and answered so.
    pub(super) fn log_applied(&self, body: Option<&Body>, reply: &Reply) {
        match body {
            Some(Body::SubmitJob(submit)) => log_submission(submit, reply),
            Some(Body::AttemptFinished(finished)) => self.log_result(finished, reply),
            Some(Body::RegisterWorker(register)) if *reply == Reply::Ok => log_worker(register),
            _ => {}
        }
    }

    fn log_result(&self, finished: &AttemptFinished, reply: &Reply) {
        let Some(key) = &finished.key else { return };
        let (job, agent, attempt) = (&key.job_id, key.agent, key.attempt);
        let known = self.state.job(job);
        let (worker, tenant) = (worker_of(known, key), tenant_of(known));
        if *reply != Reply::Ok {
            tracing::debug!(
                job,
                agent,
                attempt,
                worker,
                tenant,
                "a result came too late"
            );
            return;
        }
        let Some(attempt_finished::Result::Error(error)) = &finished.result else {
            tracing::debug!(
                job,
                agent,
                attempt,
                worker,
                tenant,
                "an attempt handed in its draft"
            );
            return;
        };
        match error.kind() {
            ErrorKind::Drained => tracing::debug!(
                job,
                agent,
                attempt,
                worker,
                tenant,
                "an attempt was given back by a worker that drains"
            ),
            // What is wrong is the job, and its own words may be in it.
            ErrorKind::Permanent => tracing::warn!(
                job,
                agent,
                attempt,
                worker,
                tenant,
                "an agent cannot run: the job's message says why"
            ),
            ErrorKind::Transient | ErrorKind::Unspecified => {
                let AttemptError { message: why, .. } = error;
                tracing::warn!(
                    job,
                    agent,
                    attempt,
                    worker,
                    tenant,
                    why,
                    "an attempt failed: it is made again, three times at most"
                );
            }
        }
    }
}

fn log_submission(submit: &SubmitJobCommand, reply: &Reply) {
    if let Reply::Submitted { job_id, existing } = reply {
        let tenant = &submit.tenant;
        tracing::debug!(job = job_id, tenant, existing, "a job is accepted");
    }
}

fn log_worker(register: &RegisterWorker) {
    tracing::info!(
        worker = register.worker_id,
        incarnation = register.incarnation,
        models = register.models.len(),
        max_sequences = register.max_sequences,
        version = register.version,
        "a worker is registered"
    );
}

/// One line a job.
fn log_end(job: &Shown) {
    let usage = job.usage.unwrap_or_default();
    let mode = job
        .spec
        .as_ref()
        .map(|spec| spec.mode())
        .unwrap_or_default();
    tracing::info!(
        job = job.job_id,
        tenant = job.tenant,
        mode = mode_name(mode),
        outcome = job_state_name(job.state()),
        agents = job.agents.len(),
        prompt_tokens = usage.prompt_tokens,
        cached_tokens = usage.cached_tokens,
        generated_tokens = usage.thought_tokens + usage.answer_tokens,
        took_ms = job.ended_unix_ms - job.submitted_unix_ms,
        "a job ended"
    );
}

fn tenant_of(job: Option<&Job>) -> &str {
    job.map_or("", |job| job.tenant.as_str())
}

/// Where the attempt runs or ran, if it is the agent's last.
fn worker_of<'a>(job: Option<&'a Job>, key: &AttemptKey) -> &'a str {
    let agent = job.and_then(|job| job.agent(key.agent));
    let placed = agent.filter(|agent| agent.attempt == key.attempt);
    let placement = placed.and_then(|agent| agent.placement.as_ref());
    placement.map_or("", |placement| placement.worker_id.as_str())
}
