//! The public service: jobs.

use std::{pin::Pin, sync::Arc, time::Duration};

use conclave_coordinator_core::{
    Reply, State,
    job::Job as CoreJob,
    view::{self, Drafts},
    waiting::Workers,
};
use conclave_proto::v1::{
    CancelJobCommand, CancelJobRequest, GetJobRequest, Job, JobState, ListJobsRequest,
    ListJobsResponse, Message, ReviewJobCommand, ReviewJobRequest, SubmitJobRequest,
    SubmitJobResponse, Verdict, WatchJobRequest, WatchJobResponse, command::Command as Body,
    contemplation_client::ContemplationClient, contemplation_server::Contemplation,
};
use futures::Stream;
use prost::Message as _;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{Api, REPLY, audit, convert, passed_on, timed};
use crate::{
    auth::{Principal, Role},
    metrics,
    node::task::unix_ms,
    traces::submission::Submission,
};

/// Roles that may use jobs.
pub const USERS: [Role; 3] = [Role::Submitter, Role::Reviewer, Role::Operator];
/// Roles that may review.
const REVIEWERS: [Role; 2] = [Role::Reviewer, Role::Operator];
/// Jobs on a page, unless asked otherwise; and at most.
const PAGE: (usize, usize) = (50, 500);
/// Bytes of jobs on a page, unless a single one is longer.
const PAGE_BYTES: usize = 2 << 20;
/// Bytes of a job's question in a list.
const LISTED_BYTES: usize = 256;
/// Longest reason or note, bytes.
const MAX_NOTE: usize = 4096;

/// Serves `conclave.v1.Contemplation`.
#[derive(Clone)]
pub struct ContemplationService(pub Arc<Api>);

type Updates = Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

/// A job, and what of the same moment goes with it.
pub struct Seen {
    /// The job, without its events.
    pub job: CoreJob,
    /// The cluster's signing seed.
    pub seed: Vec<u8>,
    /// Who could take it.
    pub workers: Workers,
}

impl Api {
    /// A job that the caller sees, linearizably.
    ///
    /// # Errors
    /// NOT_FOUND for an unknown job and for another tenant's alike, or what the
    /// read says.
    pub async fn job(
        &self,
        caller: &Principal,
        job_id: &str,
        wait: Duration,
    ) -> Result<Seen, Status> {
        let (id, caller) = (job_id.to_owned(), caller.clone());
        let read = move |state: &State| {
            let job = state.job(&id).filter(|job| caller.sees(&job.tenant))?;
            Some(Seen {
                job: job.without_events(),
                seed: state.signing_seed().to_vec(),
                workers: Workers::of(state),
            })
        };
        let found = self.read(wait, read).await?;
        found.ok_or_else(|| self.no_job(job_id))
    }

    /// No such job (any more), or another tenant's: the caller cannot tell.
    pub fn no_job(&self, job_id: &str) -> Status {
        Status::not_found(format!(
            "there is no job `{job_id}`, or it ended and its retention is over: ended jobs are kept \
             {} hours, and of each tenant's the newest {} bytes",
            self.config.retention_hours, self.config.retention_bytes
        ))
    }

    /// A job as the API shows it, its head signed: with the drafts of agents from `drafts_from` on that one
    /// message has room for.
    ///
    /// # Errors
    /// As [`Api::job`], and for payloads that are nowhere.
    pub async fn show(
        &self,
        caller: &Principal,
        job_id: &str,
        drafts_from: u32,
        wait: Duration,
    ) -> Result<Job, Status> {
        let drafts = Drafts {
            from: drafts_from,
            most: longest_reply(self.config.max_message_bytes),
        };
        let Seen { job, seed, workers } = self.job(caller, job_id, wait).await?;
        let local = self.blobs.local.clone();
        let mut job = self
            .with_blobs(wait, move || view::job(&job, &local, Some(drafts)))
            .await?;
        say_why_it_waits(&mut job, &workers);
        job.audit = job.audit.map(|head| audit::sign(&seed, job_id, head));
        Ok(job)
    }

    async fn list(
        &self,
        caller: Principal,
        request: ListJobsRequest,
        wait: Duration,
    ) -> Result<ListJobsResponse, Status> {
        let size = match usize::try_from(request.page_size).unwrap_or(usize::MAX) {
            0 => PAGE.0,
            asked => asked.min(PAGE.1),
        };
        let states: Vec<JobState> = request.states().collect();
        let after = request.page_token;
        // A token is the id of the last job of a page.
        if !after.is_empty() && uuid::Uuid::try_parse(&after).is_err() {
            return Err(Status::invalid_argument(
                "page_token: not one that a list returned",
            ));
        }
        let read = move |state: &State| {
            let wanted = |job: &&CoreJob| {
                (after.is_empty() || job.id < after)
                    && (states.is_empty() || states.contains(&job.state))
            };
            let mut jobs: Vec<CoreJob> = if caller.role == Role::Operator {
                state
                    .all_jobs()
                    .rev()
                    .filter(wanted)
                    .take(size + 1)
                    .map(CoreJob::without_events)
                    .collect()
            } else {
                state
                    .jobs(&caller.tenant)
                    .rev()
                    .filter(wanted)
                    .take(size + 1)
                    .map(CoreJob::without_events)
                    .collect()
            };
            let more = jobs.len() > size;
            jobs.truncate(size);
            (jobs, more, Workers::of(state))
        };
        let (jobs, more, workers) = self.read(wait, read).await?;
        let local = self.blobs.local.clone();
        let show = move || page(jobs.iter().map(|job| view::job(job, &local, None)));
        let (mut jobs, cut) = self.with_blobs(wait, show).await?;
        for job in &mut jobs {
            say_why_it_waits(job, &workers);
        }
        let more = cut || more;
        let next_page_token = jobs
            .last()
            .filter(|_| more)
            .map(|job| job.job_id.clone())
            .unwrap_or_default();
        Ok(ListJobsResponse {
            jobs,
            next_page_token,
        })
    }

    async fn cancel(
        &self,
        metadata: MetadataMap,
        request: CancelJobRequest,
    ) -> Result<Job, Status> {
        let caller = self.auth.require(&metadata, &USERS)?;
        let wait = self.patience(&metadata);
        let job_id = request.job_id;
        check_note("reason", &request.reason)?;
        self.job(&caller, &job_id, wait).await?;
        let cancel = CancelJobCommand {
            job_id: job_id.clone(),
            reason: request.reason,
            unix_ms: unix_ms(),
        };
        self.change_job(Body::CancelJob(cancel), &job_id, wait)
            .await?;
        self.show(&caller, &job_id, 0, wait).await
    }

    async fn review(
        &self,
        metadata: MetadataMap,
        request: ReviewJobRequest,
    ) -> Result<Job, Status> {
        let caller = self.auth.require(&metadata, &REVIEWERS)?;
        let wait = self.patience(&metadata);
        let verdict = request.verdict();
        check_note("note", &request.note)?;
        let named = match verdict {
            Verdict::Unspecified => return Err(Status::invalid_argument("verdict: is required")),
            Verdict::Edit if request.text.is_empty() => {
                return Err(Status::invalid_argument(
                    "text: an edit needs the new answer",
                ));
            }
            Verdict::Approve => "approve",
            Verdict::Edit => "edit",
            Verdict::Reject => "reject",
        };
        if request.text.len() > self.config.max_message_bytes / 4 {
            return Err(Status::invalid_argument("text: is too long"));
        }
        let job_id = request.job_id;
        self.job(&caller, &job_id, wait).await?;
        let review = ReviewJobCommand {
            job_id: job_id.clone(),
            verdict: verdict as i32,
            text: request.text,
            note: request.note,
            reviewer: caller.tenant.clone(),
            unix_ms: unix_ms(),
        };
        self.change_job(Body::ReviewJob(review), &job_id, wait)
            .await?;
        metrics::answers::reviewed(named);
        self.show(&caller, &job_id, 0, wait).await
    }

    async fn change_job(&self, body: Body, job_id: &str, wait: Duration) -> Result<(), Status> {
        let reply: Reply = self
            .node
            .propose(body, wait)
            .await
            .map_err(convert::node_error)?;
        convert::reply(reply, job_id)
    }
}

/// `message` of a job that waits for an operator to act; what the state says goes first.
fn say_why_it_waits(job: &mut Job, workers: &Workers) {
    if job.message.is_empty() {
        job.message = workers.awaited_by(job).unwrap_or_default();
    }
}

/// Of a message of `max_message_bytes`, what a job in it may take: the rest is for what goes round it, a watch's
/// cursor above all. Clients of gRPC read no more than 4 MiB, unless they say so, as that setting does.
fn longest_reply(max_message_bytes: usize) -> usize {
    max_message_bytes - max_message_bytes / 16
}

/// The first of these as a list shows them, and whether some were left out: without what only `GetJob` shows. No
/// more are made than one page has.
fn page<E>(jobs: impl Iterator<Item = Result<Job, E>>) -> Result<(Vec<Job>, bool), E> {
    let (mut shown, mut bytes) = (Vec::new(), 0);
    for job in jobs {
        let mut job = job?;
        if let Some(spec) = &mut job.spec {
            shorten(&mut spec.messages);
        }
        bytes += job.encoded_len();
        if bytes > PAGE_BYTES && !shown.is_empty() {
            return Ok((shown, true));
        }
        shown.push(job);
    }
    Ok((shown, false))
}

/// Keeps the beginning of the last message: what a list names a job by.
fn shorten(messages: &mut Vec<Message>) {
    messages.drain(..messages.len().saturating_sub(1));
    if let Some(last) = messages.last_mut() {
        let end = last.content.floor_char_boundary(LISTED_BYTES);
        last.content.truncate(end);
    }
}

fn check_note(field: &str, text: &str) -> Result<(), Status> {
    if text.len() <= MAX_NOTE {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{field}: at most {MAX_NOTE} bytes"
    )))
}

#[tonic::async_trait]
impl Contemplation for ContemplationService {
    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let api = &self.0;
        let there = |channel, request| async move {
            ContemplationClient::new(channel)
                .max_decoding_message_size(REPLY)
                .submit_job(request)
                .await
        };
        let here = |metadata, message| api.submit(metadata, message);
        let traces = api.traces.as_ref();
        let traces = traces.filter(|_| !passed_on(request.metadata()));
        let span = traces.and_then(|traces| Submission::begin(traces, request.metadata()));
        // Some kilobytes, which would be moved with every future around it.
        let call = Box::pin(api.on_leader(request, true, here, there));
        let answer = timed("SubmitJob", call).await;
        if let Some(span) = span {
            span.answered(&answer);
        }
        answer
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let caller = self.0.auth.require(request.metadata(), &USERS)?;
        let wait = self.0.patience(request.metadata());
        let GetJobRequest {
            job_id,
            drafts_from,
        } = request.into_inner();
        timed("GetJob", self.0.show(&caller, &job_id, drafts_from, wait))
            .await
            .map(Response::new)
    }

    type WatchJobStream = Updates;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Updates>, Status> {
        timed("WatchJob", self.0.clone().watch(request))
            .await
            .map(Response::new)
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let caller = self.0.auth.require(request.metadata(), &USERS)?;
        let wait = self.0.patience(request.metadata());
        let list = self.0.list(caller, request.into_inner(), wait);
        timed("ListJobs", list).await.map(Response::new)
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let api = &self.0;
        let there = |channel, request| async move {
            ContemplationClient::new(channel)
                .max_decoding_message_size(REPLY)
                .cancel_job(request)
                .await
        };
        let here = |metadata, message| api.cancel(metadata, message);
        timed("CancelJob", api.on_leader(request, true, here, there)).await
    }

    async fn review_job(
        &self,
        request: Request<ReviewJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let api = &self.0;
        let there = |channel, request| async move {
            ContemplationClient::new(channel)
                .max_decoding_message_size(REPLY)
                .review_job(request)
                .await
        };
        let here = |metadata, message| api.review(metadata, message);
        // A review that was taken is refused the second time.
        timed("ReviewJob", api.on_leader(request, false, here, there)).await
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::JobSpec;

    use super::*;

    #[test]
    fn a_page_is_bounded_by_bytes_and_shows_the_beginnings_of_questions() {
        let long = "x".repeat(PAGE_BYTES / 2);
        let job = |id: &str, message: &str| Job {
            job_id: id.to_owned(),
            message: message.to_owned(),
            spec: Some(JobSpec {
                messages: ["before", &"ü".repeat(LISTED_BYTES)]
                    .map(|content| Message {
                        role: "user".to_owned(),
                        content: content.to_owned(),
                    })
                    .to_vec(),
                ..JobSpec::default()
            }),
            ..Job::default()
        };
        let page = |jobs: Vec<Job>| page(jobs.into_iter().map(Ok::<_, ()>)).unwrap();
        let (jobs, more) = page(vec![job("a", &long), job("b", "short"), job("c", &long)]);
        assert_eq!((jobs.len(), more), (2, true));
        let shown = &jobs[0].spec.as_ref().unwrap().messages;
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].content, "ü".repeat(LISTED_BYTES / 2));
        let (jobs, more) = page(vec![job("a", &long.repeat(3)), job("b", "short")]);
        assert_eq!((jobs.len(), more), (1, true), "a page is never empty");
        assert!(!page(jobs).1);
    }
}
