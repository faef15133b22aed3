//! The client against scripted coordinators: failover, retries, resuming.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use conclave_proto::v1::{
    AgentStatus, CancelJobRequest, Draft, GetJobRequest, Job, JobEvent, JobState, ListJobsRequest,
    ListJobsResponse, ReviewJobRequest, SubmitJobRequest, SubmitJobResponse, TokenDelta,
    WatchJobRequest, WatchJobResponse,
    contemplation_server::{Contemplation, ContemplationServer},
    job_event::Event,
    watch_job_response::Update,
};
use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::{Request, Response, Status, transport::Server};

use super::*;

/// A coordinator that plays a part: what it streams, and how the stream ends.
#[derive(Default)]
struct Script {
    updates: Vec<Update>,
    /// How long the stream is silent once the updates are out.
    silence: Duration,
    /// How the stream ends after that; `None` ends it well.
    end: Option<Status>,
    /// What submissions get.
    submit: Option<Status>,
    /// Drafts of its job, one a page.
    drafts: u32,
    /// What it was asked.
    cursors: Mutex<Vec<Vec<u8>>>,
    keys: Mutex<Vec<String>>,
    tokens: Mutex<Vec<Option<String>>>,
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Contemplation for Script {
    type WatchJobStream = BoxStream<'static, Result<WatchJobResponse, Status>>;

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Reply<Self::WatchJobStream> {
        let cursor = request.into_inner().cursor;
        let from = usize::from(cursor.first().copied().unwrap_or(0));
        self.cursors.lock().unwrap().push(cursor);
        let (silence, end) = (self.silence, self.end.clone());
        let last = stream::once(async move {
            tokio::time::sleep(silence).await;
            end.map(Err)
        });
        let responses: Vec<_> = (self.updates.iter().cloned().enumerate().skip(from))
            .map(|(at, update)| {
                Ok(WatchJobResponse {
                    update: Some(update),
                    cursor: vec![at as u8 + 1],
                })
            })
            .collect();
        let last = last.filter_map(std::future::ready);
        Ok(Response::new(stream::iter(responses).chain(last).boxed()))
    }

    async fn submit_job(&self, request: Request<SubmitJobRequest>) -> Reply<SubmitJobResponse> {
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        self.tokens.lock().unwrap().push(header);
        self.keys
            .lock()
            .unwrap()
            .push(request.into_inner().idempotency_key);
        match &self.submit {
            Some(status) => Err(status.clone()),
            None => Ok(Response::new(SubmitJobResponse {
                job_id: "j1".into(),
                ..Default::default()
            })),
        }
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Reply<Job> {
        match self.drafts {
            0 => Err(Status::not_found("no such job")),
            drafts => Ok(Response::new(page(
                drafts,
                request.into_inner().drafts_from,
            ))),
        }
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Reply<ListJobsResponse> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Reply<Job> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn review_job(&self, request: Request<ReviewJobRequest>) -> Reply<Job> {
        let id = request.into_inner().job_id;
        self.keys.lock().unwrap().push(id);
        Err(Status::unavailable("the leader went away"))
    }
}

/// Serves the script on a free port; ends with the test.
async fn play(script: Script) -> (String, Arc<Script>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let script = Arc::new(script);
    let service = ContemplationServer::from_arc(Arc::clone(&script));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    (address, script)
}

fn state(index: u64, state: JobState) -> Update {
    Update::Event(JobEvent {
        index,
        unix_ms: 0,
        event: Some(Event::State(state.into())),
    })
}

fn text(offset: u32, text: &str) -> Update {
    Update::Tokens(TokenDelta {
        agent: 1,
        attempt: 1,
        offset,
        tokens: 1,
        text: text.into(),
        ..Default::default()
    })
}

fn done() -> Update {
    let mut job = Job {
        job_id: "j1".into(),
        ..Default::default()
    };
    job.set_state(JobState::Done);
    Update::Done(job)
}

/// Of a job with so many drafts, the page with the one of agent `from`.
fn page(drafts: u32, from: u32) -> Job {
    let agent = |agent| AgentStatus {
        agent,
        draft: (agent == from.max(1)).then(|| Draft {
            answer: format!("of {agent}"),
            ..Draft::default()
        }),
        ..AgentStatus::default()
    };
    Job {
        job_id: "j1".into(),
        state: JobState::Done.into(),
        agents: (1..=drafts).map(agent).collect(),
        next_draft: if from.max(1) < drafts {
            from.max(1) + 1
        } else {
            0
        },
        ..Job::default()
    }
}

#[tokio::test]
async fn a_job_longer_than_a_message_is_brought_page_by_page() {
    let long = Script {
        updates: vec![Update::Done(page(4, 0))],
        drafts: 4,
        ..Script::default()
    };
    let (address, _) = play(long).await;
    let client = client(&[address], None);
    let watched = follow(&client, "j1", false, Vec::new(), |_, _| Ok(()));
    let asked = jobs::get(&client, "j1");
    for job in [watched.await.unwrap(), asked.await.unwrap()] {
        let said = |a: &AgentStatus| a.draft.as_ref().map(|d| d.answer.clone());
        let said: Vec<_> = job.agents.iter().filter_map(said).collect();
        assert_eq!(said, ["of 1", "of 2", "of 3", "of 4"]);
        assert_eq!(job.next_draft, 0);
    }
}

fn client(addresses: &[String], token: Option<&str>) -> Client {
    Client::new(
        addresses,
        &conclave_credentials::Dial::plain(),
        token,
        Duration::from_secs(5),
    )
    .unwrap()
}

#[tokio::test]
async fn a_watch_resumes_on_another_endpoint_where_it_stopped() {
    let story = [
        state(1, JobState::Proposing),
        text(0, "a"),
        text(1, "b"),
        done(),
    ];
    let first = Script {
        updates: story[..2].to_vec(),
        end: Some(Status::unavailable("gone")),
        ..Script::default()
    };
    let (first, asked_first) = play(first).await;
    let (second, asked_second) = play(Script {
        updates: story.to_vec(),
        ..Script::default()
    })
    .await;
    let mut seen = Vec::new();
    let mut lost = 0;
    let job = follow(
        &client(&[first, second], None),
        "j1",
        true,
        Vec::new(),
        |item, _| {
            match item {
                Seen::Update(update) => seen.push(update.clone()),
                Seen::Resuming { .. } => lost += 1,
            }
            Ok(())
        },
    )
    .await
    .unwrap();
    assert_eq!(job.state(), JobState::Done);
    assert_eq!(seen, story, "each update once, in order");
    assert_eq!(lost, 1);
    assert_eq!(*asked_first.cursors.lock().unwrap(), [Vec::<u8>::new()]);
    assert_eq!(*asked_second.cursors.lock().unwrap(), [vec![2]]);
}

#[tokio::test]
async fn a_stream_that_ends_early_is_no_end_of_the_job() {
    let cut = Script {
        updates: vec![state(1, JobState::Proposing)],
        ..Script::default()
    };
    let (first, _) = play(cut).await;
    let (second, _) = play(Script {
        updates: vec![state(1, JobState::Proposing), done()],
        ..Script::default()
    })
    .await;
    let job = follow(
        &client(&[first, second], None),
        "j1",
        false,
        Vec::new(),
        |_, _| Ok(()),
    )
    .await
    .unwrap();
    assert_eq!(job.job_id, "j1");
}

#[tokio::test]
async fn a_silent_stream_that_breaks_is_no_silent_cluster() {
    let silent = Script {
        silence: SERVED,
        end: Some(Status::unavailable("gone")),
        ..Script::default()
    };
    let (first, _) = play(silent).await;
    let (second, _) = play(Script {
        updates: vec![done()],
        ..Script::default()
    })
    .await;
    let client = client(&[first, second], None);
    // Longer silent than the patience lasts, yet served all along.
    let patience = SERVED / 2;
    let job = follow_within(patience, &client, "j1", false, Vec::new(), |_, _| Ok(())).await;
    assert_eq!(job.unwrap().state(), JobState::Done);
}

#[tokio::test]
async fn streams_that_only_break_are_given_up() {
    let (address, _) = play(Script {
        end: Some(Status::unavailable("gone")),
        ..Script::default()
    })
    .await;
    let patience = Duration::from_millis(200);
    let client = client(&[address], None);
    let error = follow_within(patience, &client, "j1", false, Vec::new(), |_, _| Ok(()))
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("conclave watch j1"), "{error}");
}

#[tokio::test]
async fn an_unknown_job_is_refused_without_retries() {
    let script = Script {
        end: Some(Status::not_found("no job j9")),
        ..Script::default()
    };
    let (address, asked) = play(script).await;
    let error = follow(
        &client(&[address], None),
        "j9",
        false,
        Vec::new(),
        |_, _| Ok(()),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("no job j9"), "{error}");
    assert_eq!(asked.cursors.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_submission_is_repeated_with_the_same_key_and_token() {
    let (first, refused) = play(Script {
        submit: Some(Status::unavailable("no leader")),
        ..Script::default()
    })
    .await;
    let (second, accepted) = play(Script::default()).await;
    let client = client(&[first, second], Some("secret"));
    let message = SubmitJobRequest {
        idempotency_key: "k".into(),
        spec: None,
    };
    let send =
        async |link: crate::client::Link, request| link.contemplation().submit_job(request).await;
    let reply = client.unary("SubmitJob", message, send).await.unwrap();
    assert_eq!(reply.job_id, "j1");
    assert_eq!(*refused.keys.lock().unwrap(), ["k"]);
    assert_eq!(*accepted.keys.lock().unwrap(), ["k"]);
    assert_eq!(
        *accepted.tokens.lock().unwrap(),
        [Some("Bearer secret".to_owned())]
    );
    // The endpoint that answered is asked first from now on.
    let message = GetJobRequest {
        job_id: "j9".into(),
        ..GetJobRequest::default()
    };
    let get =
        async |link: crate::client::Link, request| link.contemplation().get_job(request).await;
    let error = client.unary("GetJob", message, get).await.unwrap_err();
    assert_eq!(error.to_string(), "GetJob: no such job (NOT_FOUND)");
}

#[tokio::test]
async fn a_call_that_must_not_be_made_twice_is_sent_to_one_endpoint_that_listens() {
    // Bound and dropped, so that nothing listens there.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = socket.local_addr().unwrap().to_string();
    drop(socket);
    let (first, asked_first) = play(Script::default()).await;
    let (second, asked_second) = play(Script::default()).await;
    let client = client(&[dead, first, second], None);
    let message = ReviewJobRequest {
        job_id: "j1".into(),
        ..Default::default()
    };
    let send =
        async |link: crate::client::Link, request| link.contemplation().review_job(request).await;
    let error = client
        .once("ReviewJob", message, "conclave jobs j1", send)
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(
        text.contains("not known") && text.contains("conclave jobs j1"),
        "{text}"
    );
    assert_eq!(*asked_first.keys.lock().unwrap(), ["j1"]);
    assert!(asked_second.keys.lock().unwrap().is_empty());
}
