//! A client that knows every coordinator and retries as the API asks.

use std::time::{Duration, Instant};

use conclave_proto::v1::contemplation_client::ContemplationClient;
use conclave_proto::v1::{
    Aggregator, Budget, ContemplationPolicy, GetJobRequest, Job, JobSpec, JobState,
    ListJobsRequest, ListJobsResponse, Message, Mode, Sampling, SubmitJobRequest, WatchJobRequest,
    watch_job_response::Update,
};
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Longest any call goes on being retried.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(5);

/// Calls any coordinator that answers.
#[derive(Clone)]
pub struct Client {
    endpoints: Vec<String>,
}

/// An exact job of four proposers and a chair, long enough to be disturbed.
pub fn exact_job(seed: u64) -> JobSpec {
    JobSpec {
        mode: Mode::Contemplating.into(),
        messages: vec![Message {
            role: "user".into(),
            content: "Name three rivers of Europe and say which one is the longest.".into(),
        }],
        sampling: Some(Sampling {
            temperature: Some(0.8),
            ..Sampling::default()
        }),
        policy: Some(ContemplationPolicy {
            width: Some(4),
            exact: true,
            aggregator: Aggregator::Synthesis.into(),
            ..ContemplationPolicy::default()
        }),
        budget: Some(Budget {
            thought_tokens: Some(64),
            answer_tokens: Some(24),
            ..Budget::default()
        }),
        seed: Some(seed),
        ..JobSpec::default()
    }
}

impl Client {
    /// `endpoints`: `host:port` of every coordinator.
    pub fn new(endpoints: Vec<String>) -> Client {
        Client { endpoints }
    }

    async fn connect(endpoint: &str) -> Result<ContemplationClient<Channel>, Status> {
        let channel = Endpoint::from_shared(format!("http://{endpoint}"))
            .map_err(|e| Status::invalid_argument(e.to_string()))?
            .connect_timeout(Duration::from_secs(1))
            .connect()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(ContemplationClient::new(channel))
    }

    /// A connection to the first endpoint.
    pub async fn connected(&self) -> Result<ContemplationClient<Channel>, Status> {
        Self::connect(&self.endpoints[0]).await
    }

    /// Runs `call` against one coordinator after the other until one answers
    /// with something better than UNAVAILABLE.
    async fn retry<T, F: Future<Output = Result<T, Status>>>(
        &self,
        call: impl Fn(ContemplationClient<Channel>) -> F,
    ) -> Result<T, Status> {
        let started = Instant::now();
        let mut turn = 0;
        loop {
            let endpoint = &self.endpoints[turn % self.endpoints.len()];
            turn += 1;
            let result = match Self::connect(endpoint).await {
                Ok(client) => tokio::time::timeout(CALL, call(client))
                    .await
                    .unwrap_or_else(|_| Err(Status::unavailable("no answer in time"))),
                Err(status) => Err(status),
            };
            match result {
                Err(status)
                    if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
                        && started.elapsed() < PATIENCE =>
                {
                    // The pause that the service config asks for between tries.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                result => return result,
            }
        }
    }

    /// Submits until it is known to be accepted; returns the job's id.
    pub async fn submit(&self, key: &str, spec: &JobSpec) -> Result<String, Status> {
        let request = SubmitJobRequest {
            idempotency_key: key.into(),
            spec: Some(spec.clone()),
        };
        self.retry(|mut client| {
            let request = request.clone();
            async move { Ok(client.submit_job(request).await?.into_inner().job_id) }
        })
        .await
    }

    /// Reads one job.
    pub async fn job(&self, id: &str) -> Result<Job, Status> {
        self.retry(|mut client| {
            let request = GetJobRequest {
                job_id: id.into(),
                ..GetJobRequest::default()
            };
            async move { Ok(client.get_job(request).await?.into_inner()) }
        })
        .await
    }

    /// Reads one page of the list of jobs.
    pub async fn list(&self, request: ListJobsRequest) -> Result<ListJobsResponse, Status> {
        self.retry(|mut client| {
            let request = request.clone();
            async move { Ok(client.list_jobs(request).await?.into_inner()) }
        })
        .await
    }

    /// Watches, over reconnects, until `stop` says so or the job ends.
    pub async fn watch_until(&self, id: &str, mut stop: impl FnMut(&Update) -> bool) {
        let mut cursor = Vec::new();
        let started = Instant::now();
        loop {
            assert!(
                started.elapsed() < 2 * PATIENCE,
                "{id}: watched for {:?} in vain",
                started.elapsed()
            );
            let opened = self
                .retry(|mut client| {
                    let request = WatchJobRequest {
                        job_id: id.into(),
                        cursor: cursor.clone(),
                        tokens: true,
                    };
                    async move { Ok(client.watch_job(request).await?.into_inner()) }
                })
                .await;
            let mut stream = opened.unwrap_or_else(|e| panic!("watch {id}: {e}"));
            while let Some(Ok(response)) = stream.next().await {
                cursor = response.cursor;
                let Some(update) = response.update else {
                    continue;
                };
                if stop(&update) || matches!(update, Update::Done(_)) {
                    return;
                }
            }
        }
    }

    /// Waits until some agent has written `tokens` tokens.
    pub async fn until_mid_draft(&self, id: &str, tokens: u32) {
        self.watch_until(
            id,
            |update| matches!(update, Update::Tokens(delta) if delta.offset >= tokens),
        )
        .await;
        let state = self.job(id).await.expect("the job").state();
        assert!(!ended(state), "{id} ended before it could be disturbed");
    }

    /// Waits for the end of the job.
    pub async fn finished(&self, id: &str) -> Job {
        self.watch_until(id, |_| false).await;
        let job = self.job(id).await.expect("the job");
        assert!(ended(job.state()), "{id} is {:?}", job.state());
        job
    }
}

/// Whether the state is final.
fn ended(state: JobState) -> bool {
    matches!(
        state,
        JobState::Done | JobState::Degraded | JobState::Failed | JobState::Cancelled
    )
}
