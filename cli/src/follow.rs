//! Following a job for a person: the live view on a terminal, lines otherwise,
//! and Ctrl-C, which SIGTERM is taken for.
use std::time::{Duration, Instant};

use conclave_proto::v1::{
    CancelJobRequest, GetJobRequest, Job, JobState, StatusRequest, watch_job_response::Update,
};
use tokio::sync::{Notify, watch};
use tonic::Request;

use crate::{
    client::Client,
    ending::asked_to_end,
    error::CliError,
    out,
    view::{
        live::Live,
        plain,
        progress::{Change, Progress},
    },
    watching::{self, Seen},
};

/// How progress is shown. All of it goes to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Redrawn in place.
    Live,
    /// One line a change.
    Lines,
    /// Not at all.
    Nothing,
}

impl Show {
    /// Live for a person, lines for anything else or if asked for.
    pub fn choose(plain: bool, json: bool) -> Self {
        match (json, plain || !out::is_interactive()) {
            (true, _) => Self::Nothing,
            (false, true) => Self::Lines,
            (false, false) => Self::Live,
        }
    }
}

/// What Ctrl-C does to the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Cancels it: the caller who asked is gone.
    Cancel,
    /// Leaves it: a watcher owns nothing.
    Leave,
}

/// How often the view asks who leads.
const LEADER_PERIOD: Duration = Duration::from_secs(2);

/// Follows `job_id` to its end, or until its answer awaits review. The first
/// Ctrl-C does as `on_interrupt` says and returns [`CliError::Interrupted`]; a
/// second one aborts at once.
pub async fn follow(
    client: &Client,
    job_id: &str,
    show: Show,
    on_interrupt: OnInterrupt,
) -> Result<Job, CliError> {
    let (leader_out, leader) = watch::channel(None);
    let held = Notify::new();
    tokio::select! {
        result = draw(client, job_id, show, leader, &held) => result,
        job = awaiting_review(client, job_id, &held) => Ok(job),
        () = poll_leader(client, leader_out, show) => Err(CliError::Interrupted),
        asked = asked_to_end() => {
            if asked.is_ok() && on_interrupt == OnInterrupt::Cancel {
                cancel_after_interrupt(client, job_id).await;
            } else {
                out::note(format!("The job goes on: `conclave watch {job_id}` resumes."));
            }
            Err(CliError::Interrupted)
        }
    }
}

/// The watch itself, drawn.
async fn draw(
    client: &Client,
    job_id: &str,
    show: Show,
    leader: watch::Receiver<Option<String>>,
    held: &Notify,
) -> Result<Job, CliError> {
    let start = Instant::now();
    let mut progress = Progress::default();
    let mut live = (show == Show::Live).then(Live::new);
    let tokens = show != Show::Nothing;
    watching::follow(client, job_id, tokens, Vec::new(), |seen, _| {
        match seen {
            Seen::Update(update) => {
                let change = progress.apply(update, start.elapsed());
                if change == Change::State(JobState::AwaitingReview) {
                    held.notify_one();
                }
                if show == Show::Lines
                    && let Some(line) = plain::line(&progress, &change)
                {
                    out::note(format!("{:7.1}s  {line}", start.elapsed().as_secs_f64()));
                }
                let is_end = matches!(update, Update::Done(_));
                if let Some(live) = live.as_mut().filter(|_| !is_end) {
                    live.draw(&progress, leader.borrow().as_deref(), start.elapsed());
                }
            }
            Seen::Resuming { endpoint, reason } => {
                let text = format!("lost {endpoint} ({reason}); resuming elsewhere");
                match &live {
                    Some(live) => live.note(&text),
                    None => out::note(text),
                }
            }
        }
        Ok(())
    })
    .await
}

/// The job, once it awaits review. A watch from the beginning tells of reviews long past too, so
/// the job itself is asked.
async fn awaiting_review(client: &Client, job_id: &str, held: &Notify) -> Job {
    loop {
        held.notified().await;
        let message = GetJobRequest {
            job_id: job_id.to_owned(),
        };
        let job = client
            .unary("GetJob", message, async |link, request| {
                link.contemplation().get_job(request).await
            })
            .await;
        match job {
            Ok(job) if job.state() == JobState::AwaitingReview => return job,
            // Asked in vain for as long as a call may take: the next one may find somebody.
            Err(CliError::Unavailable(_)) => held.notify_one(),
            // It went on, and the watch tells how.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Keeps the leader's address known while a live view wants it. Never returns.
async fn poll_leader(client: &Client, leader: watch::Sender<Option<String>>, show: Show) {
    if show != Show::Live {
        std::future::pending::<()>().await;
    }
    loop {
        let mut request = Request::new(StatusRequest {});
        request.set_timeout(LEADER_PERIOD);
        let reply = client.preferred().cluster().status(request).await;
        let address = reply
            .ok()
            .map(|reply| reply.into_inner().leader_address)
            .filter(|address| !address.is_empty());
        leader.send_replace(address);
        tokio::time::sleep(LEADER_PERIOD).await;
    }
}

/// Cancels the job, unless a second Ctrl-C comes first.
async fn cancel_after_interrupt(client: &Client, job_id: &str) {
    out::note("Cancelling the job; press Ctrl-C again to leave at once.");
    tokio::select! {
        result = cancel(client, job_id, "interrupted by the user") => {
            if let Err(error) = result {
                out::note(format!("The job may still run: {error}"));
            }
        }
        _ = asked_to_end() => out::note(format!("Job {job_id} may still run.")),
    }
}

/// Cancels a job and returns it as it then is.
pub async fn cancel(client: &Client, job_id: &str, reason: &str) -> Result<Job, CliError> {
    let message = CancelJobRequest {
        job_id: job_id.to_owned(),
        reason: reason.to_owned(),
    };
    client
        .unary("CancelJob", message, async |link, request| {
            link.contemplation().cancel_job(request).await
        })
        .await
}
