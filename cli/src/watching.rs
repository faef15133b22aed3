//! Following one job over broken connections and changes of leader.
use std::time::Duration;

use conclave_proto::v1::{Job, WatchJobRequest, WatchJobResponse, watch_job_response::Update};
use tokio::time::Instant;
use tonic::{Request, Status};

use crate::{
    client::{Client, Pause, may_retry},
    commands::jobs,
    error::CliError,
    refusal::is_misfit,
};

/// Longest time without a word from any endpoint before giving up. A watch
/// that gives up ends nothing: the job goes on.
const PATIENCE: Duration = Duration::from_secs(60);
/// A stream that stood this long was served: its end is a word, however little it carried.
const SERVED: Duration = Duration::from_secs(1);

/// What a watcher is told.
pub enum Seen<'a> {
    /// The next update of the stream.
    Update(&'a Update),
    /// The stream broke and is being resumed where it stopped.
    Resuming {
        /// The endpoint that was lost.
        endpoint: &'a str,
        /// Why, as far as is known.
        reason: &'a str,
    },
}

/// Follows `job_id` to its end and returns it as it ended, with all of its drafts. `tokens` asks for
/// the agents' text as well as state events; `cursor` resumes an earlier watch
/// (empty: from the beginning).
pub async fn follow(
    client: &Client,
    job_id: &str,
    tokens: bool,
    cursor: Vec<u8>,
    seen: impl FnMut(Seen<'_>, &[u8]) -> Result<(), CliError>,
) -> Result<Job, CliError> {
    follow_within(PATIENCE, client, job_id, tokens, cursor, seen).await
}

/// [`follow`], giving up after another time without a word.
async fn follow_within(
    patience: Duration,
    client: &Client,
    job_id: &str,
    tokens: bool,
    cursor: Vec<u8>,
    mut seen: impl FnMut(Seen<'_>, &[u8]) -> Result<(), CliError>,
) -> Result<Job, CliError> {
    let mut watch = Watch::new(client, cursor);
    loop {
        let link = client.preferred().clone();
        let request = WatchJobRequest {
            job_id: job_id.to_owned(),
            cursor: watch.cursor.clone(),
            tokens,
        };
        let status = match open(&link, request).await {
            Ok(stream) => match watch.drain(stream, &mut seen).await? {
                Ended::Done(job) => return jobs::complete(client, *job).await,
                Ended::Broken(status) => status,
            },
            Err(status) => status,
        };
        watch.misfits = if is_misfit(&status) {
            watch.misfits + 1
        } else {
            0
        };
        if watch.misfits >= client.links().len() {
            return Err(client.misfit("WatchJob", &link, &status));
        }
        if !may_retry(&status) {
            return Err(CliError::Refused {
                call: "WatchJob",
                status: Box::new(status),
            });
        }
        seen(
            Seen::Resuming {
                endpoint: link.address(),
                reason: status.message(),
            },
            &watch.cursor,
        )?;
        client.pass_over();
        let wait = watch.pause.next(&status);
        if watch.last_word.elapsed() + wait > patience {
            let error = client.unreachable("WatchJob", &link, &status);
            return Err(CliError::Unavailable(format!(
                "{error}\n  The job goes on: `conclave watch {job_id}` resumes."
            )));
        }
        tokio::time::sleep(wait).await;
    }
}

/// How a stream ended.
enum Ended {
    /// With the job.
    Done(Box<Job>),
    /// Before the job did.
    Broken(Status),
}

/// Where a watch stands, over all of its streams.
struct Watch<'a> {
    client: &'a Client,
    cursor: Vec<u8>,
    last_word: Instant,
    pause: Pause,
    /// Endpoints, one after the other, that cannot serve before something is changed.
    misfits: usize,
}

impl<'a> Watch<'a> {
    fn new(client: &'a Client, cursor: Vec<u8>) -> Self {
        Self {
            client,
            cursor,
            last_word: Instant::now(),
            pause: Pause::new(client.links().len()),
            misfits: 0,
        }
    }

    /// The cluster spoke: waiting starts over.
    fn heard(&mut self) {
        self.last_word = Instant::now();
        self.pause = Pause::new(self.client.links().len());
    }

    /// Tells `seen` every update of one stream.
    async fn drain(
        &mut self,
        mut stream: tonic::Streaming<WatchJobResponse>,
        seen: &mut impl FnMut(Seen<'_>, &[u8]) -> Result<(), CliError>,
    ) -> Result<Ended, CliError> {
        let opened = Instant::now();
        let status = loop {
            let WatchJobResponse {
                update,
                cursor: next,
            } = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => break Status::unavailable("the stream ended before the job did"),
                Err(status) => break status,
            };
            self.heard();
            if !next.is_empty() {
                self.cursor = next;
            }
            // Of an update that this build does not know only the cursor counts.
            let Some(update) = update else { continue };
            seen(Seen::Update(&update), &self.cursor)?;
            if let Update::Done(job) = update {
                return Ok(Ended::Done(Box::new(job)));
            }
        };
        // An agent may think for minutes between two events: keepalive vouched for
        // the peer until now.
        if opened.elapsed() >= SERVED {
            self.heard();
        }
        Ok(Ended::Broken(status))
    }
}

/// Opens the stream. The first answer has a deadline; the stream itself lasts
/// as long as the job, and HTTP/2 keepalive notices a peer that went silent.
async fn open(
    link: &crate::client::Link,
    request: WatchJobRequest,
) -> Result<tonic::Streaming<WatchJobResponse>, Status> {
    let mut service = link.contemplation();
    match tokio::time::timeout(
        Duration::from_secs(15),
        service.watch_job(Request::new(request)),
    )
    .await
    {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("no answer within 15 s")),
    }
}

#[cfg(test)]
#[path = "watching_tests.rs"]
mod tests;
