//! Following a job for a person: the live view on a terminal, lines otherwise,
//! and Ctrl-C, which SIGTERM is taken for.
use std::time::{Duration, Instant};

use conclave_proto::v1::{
    CancelJobRequest, GetJobRequest, Job, JobState, StatusRequest, WorkerStatus,
    watch_job_response::Update,
};
use tokio::sync::{Notify, watch};
use tonic::Request;

use crate::{
    client::Client,
    commands::cluster,
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

/// How long a job may wait without a word before the workers are listed.
const UNEXPLAINED: Duration = Duration::from_secs(5);
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
    let told = Notify::new();
    tokio::select! {
        result = draw(client, job_id, show, leader, &held, &told) => result,
        job = awaiting_review(client, job_id, &held) => Ok(job),
        () = explain_waiting(client, &told) => Err(CliError::Interrupted),
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
    told: &Notify,
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
                let waits = matches!(progress.state, JobState::Unspecified | JobState::Preparing);
                if !waits || !progress.message.is_empty() {
                    told.notify_one();
                }
                if waits && change == Change::Message && show != Show::Lines {
                    say(live.as_ref(), &progress.message);
                }
                let is_end = matches!(update, Update::Done(_));
                if let Some(live) = live.as_mut().filter(|_| !is_end) {
                    live.draw(&progress, leader.borrow().as_deref());
                }
            }
            Seen::Resuming { endpoint, reason } => {
                let text = format!("lost {endpoint} ({reason}); resuming elsewhere");
                match &live {
                    Some(live) => {
                        live.note(&text);
                        live.reconnecting();
                    }
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
            ..GetJobRequest::default()
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

/// A line for a person, above the live view if there is one.
fn say(live: Option<&Live>, text: &str) {
    match live {
        Some(live) => live.note(text),
        None => out::note(text),
    }
}

/// Says once who could serve a job that has waited a while, unless the watch `told` that it went
/// on or why it waits. Never returns.
async fn explain_waiting(client: &Client, told: &Notify) {
    if tokio::time::timeout(UNEXPLAINED, told.notified())
        .await
        .is_err()
    {
        // Not every caller may list the workers: then there is nothing to add.
        if let Ok(workers) = cluster::workers(client).await {
            out::note(waiting(&workers));
        }
    }
    std::future::pending().await
}

/// Who holds a lease, while a job waits.
fn waiting(workers: &[WorkerStatus]) -> String {
    let live: Vec<String> = workers
        .iter()
        .filter(|worker| worker.lease_remaining_ms > 0)
        .map(|worker| {
            let draining = if worker.draining { ", draining" } else { "" };
            format!(
                "{} ({}{draining})",
                worker.worker_id,
                worker.models.join(", ")
            )
        })
        .collect();
    match live.as_slice() {
        [] => "The job waits: no worker holds a lease. It starts once one registers.".to_owned(),
        live => format!("The job waits. Workers with a lease: {}.", live.join("; ")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_job_names_the_workers_that_hold_a_lease() {
        let worker = |name: &str, lease_remaining_ms| WorkerStatus {
            worker_id: name.into(),
            models: vec!["smol".into()],
            lease_remaining_ms,
            ..Default::default()
        };
        let text = waiting(&[worker("w1", 900), worker("gone", 0)]);
        assert!(
            text.contains("w1 (smol)") && !text.contains("gone"),
            "{text}"
        );
        assert!(waiting(&[worker("gone", 0)]).contains("no worker"));
    }
}
