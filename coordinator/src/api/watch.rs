//! `WatchJob`: state events without gaps, text as it comes, resumable (law 8).
//!
//! A watch is a relay: while this node leads, it reads the state and the feed
//! here; while another leads, it passes that node's stream on; and when the
//! leader changes, it goes on behind the last cursor.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use conclave_coordinator_core::{MissingBlob, Payloads, State, job::Job, view, watch::Cursor};
use conclave_proto::v1::{
    JobEvent, WatchJobRequest, WatchJobResponse, contemplation_client::ContemplationClient,
    watch_job_response::Update,
};
use futures::{Stream, StreamExt as _, future, stream};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Channel};

use super::{
    Api, LOOK_UP, REPLY, Route, audit::Fetches, contemplation::USERS, convert, look_again,
};
use crate::{
    auth::Principal,
    feed::{Feed, Seat},
};

/// Updates that wait for one watcher, and their bytes: drafts are long, and there may be many watchers.
const QUEUE: usize = 16;
const QUEUE_BYTES: usize = 64 << 10;
/// How long a watcher may take nothing before its seat is given to another.
const STALL: Duration = Duration::from_secs(60);
/// Events sent between two looks at the feed, and their bytes; one event may have more.
const PAGE: usize = 64;
const PAGE_BYTES: usize = 64 << 10;

type Updates = Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;
type Queue = mpsc::Sender<Waiting>;

/// An update on its way to the watcher, and the room that it takes until then.
type Waiting = (WatchJobResponse, OwnedSemaphorePermit);

fn cursor(bytes: &[u8]) -> Result<Cursor, Status> {
    Cursor::decode(bytes)
        .map_err(|_| Status::invalid_argument("cursor: not one that a watch returned"))
}

/// Why one leg of the relay ended.
enum Leg {
    /// `done` was sent, or the watcher left.
    Over,
    /// The leader changed: go on behind the cursor.
    Next,
    /// The watcher took nothing for too long.
    Stalled,
}

/// One watcher.
struct Watch {
    api: Arc<Api>,
    caller: Principal,
    metadata: MetadataMap,
    job_id: String,
    tokens: bool,
    cursor: Cursor,
    queue: Queue,
    room: Arc<Semaphore>,
    /// Why the watch ends, if not by `done`: it needs no room in the queue.
    end: oneshot::Sender<Status>,
    stall: Duration,
    _seat: Seat,
}

impl Api {
    /// Opens a watch.
    ///
    /// # Errors
    /// NOT_FOUND, INVALID_ARGUMENT for a foreign cursor, RESOURCE_EXHAUSTED
    /// without room for one more watcher.
    pub async fn watch(
        self: Arc<Self>,
        request: Request<WatchJobRequest>,
    ) -> Result<Updates, Status> {
        let caller = self.auth.require(request.metadata(), &USERS)?;
        let wait = self.patience(request.metadata());
        let (metadata, _, request) = request.into_parts();
        let cursor = cursor(&request.cursor)?;
        let Some(seat) = self.feeds.seat() else {
            let text = format!(
                "{} watchers are here, the most there may",
                self.config.max_watchers
            );
            return Err(convert::exhausted(text, Duration::from_secs(1)));
        };
        self.job_seen(&caller, &request.job_id, wait).await?;
        let (queue, updates) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let watch = Watch {
            api: self,
            caller,
            metadata,
            job_id: request.job_id,
            tokens: request.tokens,
            cursor,
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            end,
            stall: STALL,
            _seat: seat,
        };
        tokio::spawn(watch.relay());
        Ok(outbound(updates, ended))
    }

    async fn job_seen(&self, caller: &Principal, id: &str, wait: Duration) -> Result<(), Status> {
        let (job_id, caller) = (id.to_owned(), caller.clone());
        let read = move |s: &State| s.job(&job_id).is_some_and(|job| caller.sees(&job.tenant));
        let seen = self.read(wait, read).await?;
        seen.then_some(()).ok_or_else(|| self.no_job(id))
    }
}

impl Watch {
    async fn relay(mut self) {
        loop {
            let deadline = Instant::now() + self.api.config.request_timeout();
            let queue = self.queue.clone();
            let api = self.api.clone();
            let leg = tokio::select! {
                () = queue.closed() => return,
                () = api.closing.cancelled() => {
                    Err(Status::unavailable("this node is going: resume at another with the cursor"))
                }
                leg = self.leg(deadline) => leg,
            };
            match leg {
                Ok(Leg::Over) => return,
                Ok(Leg::Next) => {}
                Ok(Leg::Stalled) => {
                    let text = format!(
                        "nothing was read for {} s: resume with the cursor",
                        self.stall.as_secs()
                    );
                    let _ = self.end.send(Status::unavailable(text));
                    return;
                }
                Err(status) => {
                    let status = match status.code() {
                        Code::Unavailable => convert::later(status, LOOK_UP),
                        _ => status,
                    };
                    // A watcher that left needs no reason.
                    let _ = self.end.send(status);
                    return;
                }
            }
        }
    }

    async fn leg(&mut self, deadline: Instant) -> Result<Leg, Status> {
        match self.api.route(&self.metadata, deadline).await? {
            Route::Here => self.here().await,
            Route::Leader { id, channel } => self.there(id, channel).await,
        }
    }

    /// Passes the leader's stream on.
    async fn there(&mut self, leader: u64, channel: Channel) -> Result<Leg, Status> {
        let mut status = self.api.node.status();
        status.mark_unchanged();
        let request = WatchJobRequest {
            job_id: self.job_id.clone(),
            cursor: self.cursor.encode(),
            tokens: self.tokens,
        };
        let mut request = self.api.pass_on(&self.metadata, request, Duration::ZERO);
        request.metadata_mut().remove("grpc-timeout");
        let mut client = ContemplationClient::new(channel).max_decoding_message_size(REPLY);
        let api = self.api.clone();
        let passed = async {
            let mut stream = client.watch_job(request).await?.into_inner();
            while let Some(message) = stream.message().await? {
                let done = matches!(message.update, Some(Update::Done(_)));
                let behind = cursor(&message.cursor)?;
                if let Err(leg) = self.pass(message).await {
                    return Ok(leg);
                }
                // After it was passed: this may be broken off while it waits.
                self.cursor = behind;
                if done {
                    // To its end: HTTP/2 closes a connection, which all callers share, once very many
                    // streams on it were let go before theirs.
                    let _ = tokio::time::timeout(LOOK_UP, stream.message()).await;
                    return Ok(Leg::Over);
                }
            }
            Ok(Leg::Next)
        };
        let refusal = tokio::select! {
            passed = passed => match passed {
                Ok(leg) => return Ok(leg),
                Err(refusal) => refusal,
            },
            // A leader whose disk hangs, or that is cut off, ends no stream.
            () = api.succeeded(leader) => return Ok(Leg::Next),
            refusal = api.cut_off() => return Err(refusal),
        };
        if !look_again(&refusal, true) {
            return Err(refusal);
        }
        // Whichever is first: news of a leader, or time to try the same again.
        let _ = tokio::time::timeout(LOOK_UP, status.changed()).await;
        Ok(Leg::Next)
    }

    /// Reads the state and the feed here, until the job ends or this node no
    /// longer leads.
    async fn here(&mut self) -> Result<Leg, Status> {
        let feed = self.api.feeds.of(&self.job_id);
        let mut bell = feed.subscribe();
        let mut status = self.api.node.status();
        // The version up to which the events were read, and whether the job had ended by then.
        let (mut read, mut ended) = (None, false);
        loop {
            let version = *bell.borrow_and_update();
            if version.closed {
                return Ok(Leg::Next);
            }
            let spoke = match self.text(&feed).await {
                Ok(spoke) => spoke,
                Err(leg) => return Ok(leg),
            };
            // Text alone asks nothing of the node's loop, which all watchers share.
            if read != Some(version.events) {
                let (events, more, over) = self.events().await?;
                for event in events {
                    if let Err(leg) = self.send(Update::Event(event)).await {
                        return Ok(leg);
                    }
                }
                if !more {
                    (read, ended) = (Some(version.events), over);
                }
                // Text came while a slow watcher was waited for: it goes before the end.
                continue;
            }
            if spoke {
                continue;
            }
            if ended {
                if let Err(leg) = self.emptied().await {
                    return Ok(leg);
                }
                // The feed of an ended job may have been made by this very watch.
                self.api.feeds.ended(&self.job_id);
                let wait = self.api.config.request_timeout();
                let job = self.api.show(&self.caller, &self.job_id, 0, wait).await?;
                let sent = self.send(Update::Done(job)).await;
                // The seat is the watcher's until it has that, too.
                let taken = match sent {
                    Ok(()) => self.emptied().await,
                    refused => refused,
                };
                return Ok(taken.err().unwrap_or(Leg::Over));
            }
            tokio::select! {
                rung = bell.changed() => if rung.is_err() { return Ok(Leg::Next) },
                _ = status.wait_for(|s| !s.serving) => return Ok(Leg::Next),
            }
        }
    }

    /// The events behind the cursor, whether there are more, and whether the
    /// job has ended.
    async fn events(&self) -> Result<(Vec<JobEvent>, bool, bool), Status> {
        let wait = self.api.config.request_timeout();
        let mut fetches = Fetches::new(wait);
        loop {
            let (id, from) = (self.job_id.clone(), self.cursor.event);
            let local = self.api.blobs.local.clone();
            let read = move |state: &State| {
                let job = state.job(&id)?;
                let first = usize::try_from(from)
                    .unwrap_or(usize::MAX)
                    .min(job.events.len());
                let behind = &job.events[first..];
                let events = page(job, behind, &local);
                let known = job.events.len() as u64;
                Some(events.map(|page| {
                    let more = behind.len() > page.len();
                    (page, more, job.is_final(), known)
                }))
            };
            // Local state suffices: it only ever grows, and the bell rings for it.
            let found = self
                .api
                .node
                .read(false, wait, read)
                .await
                .map_err(convert::node_error)?;
            let found = found.ok_or_else(|| self.api.no_job(&self.job_id))?;
            let (events, more, ended, known) = match found {
                Ok(found) => found,
                Err(missing) => {
                    fetches.fetch(&self.api, &missing).await?;
                    continue;
                }
            };
            if from > known {
                // Silence until then would leave a gap that nobody sees.
                return Err(Status::out_of_range(format!(
                    "the cursor stands behind event {from}, the job has {known}: the cluster was \
                     begun anew at an earlier moment; watch without a cursor"
                )));
            }
            return Ok((events, more, ended));
        }
    }

    /// Sends what the feed holds behind the cursor, so much as may wait for one watcher. True if it sent any:
    /// there may be more.
    async fn text(&mut self, feed: &Feed) -> Result<bool, Leg> {
        if !self.tokens {
            return Ok(false);
        }
        let mut positions = self.cursor.positions.clone();
        let updates = feed.read(&mut positions, QUEUE_BYTES);
        let sent = !updates.is_empty();
        for update in updates {
            self.send(update).await?;
        }
        Ok(sent)
    }

    async fn send(&mut self, update: Update) -> Result<(), Leg> {
        self.cursor.pass(&update);
        let message = WatchJobResponse {
            update: Some(update),
            cursor: self.cursor.encode(),
        };
        self.pass(message).await
    }

    /// Waits until nothing waits for the watcher: the end is as long as a message may be, and is made for who
    /// takes it.
    async fn emptied(&self) -> Result<(), Leg> {
        let all = self.room.acquire_many(QUEUE_BYTES as u32);
        let emptied = tokio::time::timeout(self.stall, all).await;
        emptied.map(drop).map_err(|_| Leg::Stalled)
    }

    /// Waits until the watcher has room, which is not for ever.
    async fn pass(&self, message: WatchJobResponse) -> Result<(), Leg> {
        let bytes = message.encoded_len().min(QUEUE_BYTES);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let sent = async {
            let room = self.room.clone().acquire_many_owned(bytes).await;
            let room = room.map_err(|_| Leg::Over)?;
            let sent = self.queue.send((message, room)).await;
            sent.map_err(|_| Leg::Over)
        };
        let sent = tokio::time::timeout(self.stall, sent).await;
        sent.unwrap_or(Err(Leg::Stalled))
    }
}

/// What the watcher is sent, and at last why it ends, if not by `done`.
fn outbound(updates: mpsc::Receiver<Waiting>, ended: oneshot::Receiver<Status>) -> Updates {
    let updates = stream::unfold((updates, None), |(mut updates, sent)| async move {
        // Whoever asks for the next has passed on what was sent before: until then it waits here, too.
        drop::<Option<OwnedSemaphorePermit>>(sent);
        let (update, room) = updates.recv().await?;
        Some((Ok(update), (updates, Some(room))))
    });
    let end = stream::once(ended).filter_map(|end| future::ready(end.ok()));
    Box::pin(updates.chain(end.map(Err)))
}

/// The first of the events `behind` a cursor.
fn page(
    job: &Job,
    behind: &[JobEvent],
    blobs: &dyn Payloads,
) -> Result<Vec<JobEvent>, MissingBlob> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for event in behind.iter().take(PAGE) {
        if bytes >= PAGE_BYTES {
            break;
        }
        let event = view::event(job, event, blobs)?;
        bytes += event.encoded_len();
        page.push(event);
    }
    Ok(page)
}

#[cfg(test)]
mod tests;
