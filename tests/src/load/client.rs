//! One client: submits with a key, comes again when it is told to, and watches to the end. Every call
//! has a deadline, and to reach one is a failure.

use std::future::Future;
use std::time::{Duration, Instant};

use conclave_proto::v1::contemplation_client::ContemplationClient;
use conclave_proto::v1::{
    Aggregator, AnswerKind, Budget, Choices, ContemplationPolicy, Job, JobSpec, JobState, Message,
    Mode, SubmitJobRequest, WatchJobRequest, WatchJobResponse, answer_kind::Kind,
    watch_job_response::Update,
};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::Times;
use crate::bearer::{Bearer, Shown};

/// Longest that a call may take: longer than a coordinator's own deadline, so that to reach it is to hang.
const CALL: Duration = Duration::from_secs(15);
/// Longest between two messages of a watch; a job on a hung worker is idle for a lease.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest that a client goes on coming again.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a client met that it never should.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// A call reached its deadline.
    #[error("{0} hung")]
    Hung(&'static str),
    /// A refusal without `retry-after-ms` or an unknown outcome.
    #[error("{0} was refused without a hint: {1}")]
    NoHint(&'static str, Status),
    /// It was refused, and told when to come again.
    #[error("refused, to come again in {1:?}: {0}")]
    Later(Status, Duration),
    /// It was refused again and again.
    #[error("{0} was refused for {PATIENCE:?}: {1}")]
    Refused(&'static str, Status),
    /// The job ended in this state.
    #[error("the job ended as {0:?}: {1}")]
    Job(JobState, String),
    /// A watch left events out, or sent them twice.
    #[error("event {1} follows event {0}")]
    Gap(u64, u64),
}

/// A job's end, as its watcher saw it.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// From the submission's acknowledgement.
    pub took: Duration,
    /// Some agent had more than one attempt.
    pub again: bool,
}

/// What a client met.
pub(super) struct Ended {
    /// Of the accepted submission.
    pub(super) submit: Option<Duration>,
    pub(super) refusals: Times,
    pub(super) answered: Result<Answered, Failure>,
}

pub(super) struct Caller {
    channels: Vec<Channel>,
    bearer: Bearer,
    refusals: Times,
}

/// Two agents that choose; a tenth of a second of decoding.
fn small(seed: u64) -> JobSpec {
    let options = vec!["red".into(), "green".into(), "blue".into()];
    JobSpec {
        mode: Mode::Contemplating.into(),
        messages: vec![Message {
            role: "user".into(),
            content: "Which colour is it?".into(),
        }],
        policy: Some(ContemplationPolicy {
            width: Some(2),
            exact: true,
            aggregator: Aggregator::Majority.into(),
            ..ContemplationPolicy::default()
        }),
        budget: Some(Budget {
            thought_tokens: Some(8),
            answer_tokens: Some(4),
            ..Budget::default()
        }),
        answer: Some(AnswerKind {
            kind: Some(Kind::Choices(Choices { options })),
        }),
        seed: Some(seed),
        ..JobSpec::default()
    }
}

/// Eight agents that write a thousand tokens each.
fn wordy() -> JobSpec {
    JobSpec {
        policy: Some(ContemplationPolicy {
            width: Some(8),
            aggregator: Aggregator::BestOf.into(),
            ..ContemplationPolicy::default()
        }),
        budget: Some(Budget {
            thought_tokens: Some(900),
            answer_tokens: Some(100),
            ..Budget::default()
        }),
        answer: None,
        ..small(1)
    }
}

async fn within<T>(what: &'static str, call: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(CALL, call).await.map_err(|_| Failure::Hung(what))
}

/// When to come again: what the refusal says, or soon where the outcome is unknown or the connection broke.
fn hint(status: &Status) -> Option<Duration> {
    let metadata = status.metadata();
    let after = metadata.get("retry-after-ms").and_then(|v| v.to_str().ok());
    let after = after.and_then(|ms| ms.parse().ok());
    let unknown = status.code() == Code::Unavailable;
    after.or(unknown.then_some(100)).map(Duration::from_millis)
}

impl Caller {
    pub(super) fn new(channels: Vec<Channel>, bearer: Bearer) -> Caller {
        Caller {
            channels,
            bearer,
            refusals: Times::default(),
        }
    }

    /// The same client, which has met nothing.
    pub(super) fn again(&self) -> Caller {
        Caller::new(self.channels.clone(), self.bearer.clone())
    }

    fn client(&self) -> ContemplationClient<Shown> {
        ContemplationClient::with_interceptor(self.channels[0].clone(), self.bearer.clone())
    }

    /// Waits as the refusal says, and goes to another connection.
    async fn refused(
        &mut self,
        what: &'static str,
        since: Instant,
        status: Status,
    ) -> Result<(), Failure> {
        let Some(wait) = hint(&status) else {
            return Err(Failure::NoHint(what, status));
        };
        if since.elapsed() > PATIENCE {
            return Err(Failure::Refused(what, status));
        }
        self.channels.rotate_left(1);
        sleep(wait).await;
        Ok(())
    }

    /// Returns the job's id, and what the accepted call took.
    async fn submit(&mut self, key: &str, spec: JobSpec) -> Result<(String, Duration), Failure> {
        let since = Instant::now();
        loop {
            let request = SubmitJobRequest {
                idempotency_key: key.to_owned(),
                spec: Some(spec.clone()),
            };
            let started = Instant::now();
            let mut client = self.client();
            match within("SubmitJob", client.submit_job(request)).await? {
                Ok(answer) => return Ok((answer.into_inner().job_id, started.elapsed())),
                Err(status) => {
                    self.refusals.add(started.elapsed());
                    self.refused("SubmitJob", since, status).await?;
                }
            }
        }
    }

    /// Submits once; a refusal with a hint is [`Failure::Later`].
    pub(super) async fn offer(&mut self, key: &str, seed: u64) -> Result<(), Failure> {
        let request = SubmitJobRequest {
            idempotency_key: key.to_owned(),
            spec: Some(small(seed)),
        };
        let mut client = self.client();
        let answer = within("SubmitJob", client.submit_job(request)).await?;
        answer.map(drop).map_err(|status| match hint(&status) {
            Some(after) => Failure::Later(status, after),
            None => Failure::NoHint("SubmitJob", status),
        })
    }

    async fn watch(
        &mut self,
        job_id: &str,
        cursor: Vec<u8>,
    ) -> Result<Streaming<WatchJobResponse>, Failure> {
        let since = Instant::now();
        loop {
            let request = WatchJobRequest {
                job_id: job_id.to_owned(),
                cursor: cursor.clone(),
                tokens: true,
            };
            let mut client = self.client();
            match within("WatchJob", client.watch_job(request)).await? {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => self.refused("WatchJob", since, status).await?,
            }
        }
    }

    pub(super) async fn submit_and_watch(mut self, key: String, seed: u64) -> Ended {
        let (submit, answered) = match self.submit(&key, small(seed)).await {
            Ok((id, took)) => {
                let acknowledged = Instant::now();
                let job = self.watch_to_the_end(&id).await;
                let answered = job.and_then(|job| answered(&job, acknowledged.elapsed()));
                (Some(took), answered)
            }
            Err(failure) => (None, Err(failure)),
        };
        Ended {
            submit,
            refusals: self.refusals,
            answered,
        }
    }

    pub(super) async fn submit_only(mut self, key: String, seed: u64) -> Result<(), Failure> {
        self.submit(&key, small(seed)).await.map(|_| ())
    }

    async fn watch_to_the_end(&mut self, id: &str) -> Result<Job, Failure> {
        let (mut cursor, mut last) = (Vec::new(), 0);
        loop {
            let since = Instant::now();
            let mut updates = self.watch(id, cursor.clone()).await?;
            let broke = loop {
                let message = timeout(SILENCE, updates.message()).await;
                match message.map_err(|_| Failure::Hung("a watch"))? {
                    Ok(Some(response)) => {
                        cursor = response.cursor;
                        match response.update {
                            Some(Update::Done(job)) => {
                                // A stream that is let go before its end is reset, and HTTP/2
                                // closes a connection that has reset very many.
                                let _ = timeout(SILENCE, updates.message()).await;
                                return Ok(job);
                            }
                            Some(Update::Event(event)) if event.index != last + 1 => {
                                return Err(Failure::Gap(last, event.index));
                            }
                            Some(Update::Event(event)) => last = event.index,
                            _ => {}
                        }
                    }
                    Ok(None) => break Status::unavailable("the watch ended without an end"),
                    Err(status) => break status,
                }
            };
            self.refused("a watch", since, broke).await?;
        }
    }

    /// A watch of a wordy job that nobody reads.
    pub(super) async fn watch_deaf(mut self, key: String) -> Result<impl Sized, Failure> {
        let (id, _) = self.submit(&key, wordy()).await?;
        self.watch(&id, Vec::new()).await
    }
}

fn answered(job: &Job, took: Duration) -> Result<Answered, Failure> {
    if job.state() != JobState::Done {
        return Err(Failure::Job(job.state(), job.message.clone()));
    }
    Ok(Answered {
        took,
        again: job.agents.iter().any(|agent| agent.attempt > 1),
    })
}
