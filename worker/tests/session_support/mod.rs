//! A mock coordinator that a test scripts message by message, and a mock model whose steps the test
//! lets through.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use conclave_proto::v1::coordinator_message::Message as FromLeader;
use conclave_proto::v1::worker_message::Message as FromWorker;
use conclave_proto::v1::workers_server::{Workers, WorkersServer};
use conclave_proto::v1::{
    AgentSpec, AttemptError, AttemptKey, AttemptResult, CoordinatorMessage, Draft, Hello,
    ModelInfo, Prepare, Prepared, Start, TokenDelta, Usage, Welcome, WorkerMessage,
};
use conclave_worker::backend::{AgentRunner, Backend, permanent};
use conclave_worker::{Config, ModelConfig, Worker};
use conclave_worker_core::mock::{MockError, MockRunner};
use conclave_worker_core::{
    Batch, Finished, Limits, Outcome, Request as Sequence, Runner, SeqId, StopReason,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// No test waits longer for one thing.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `what`, not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Lets steps of the mock model through; counts them.
#[derive(Default)]
pub struct Gate {
    permits: Mutex<Option<u64>>,
    changed: Condvar,
}

impl Gate {
    /// Every step passes from here on.
    pub fn open(&self) {
        *self.permits.lock().unwrap() = None;
        self.changed.notify_all();
    }

    /// No step passes until [`Gate::let_through`].
    pub fn close(&self) {
        *self.permits.lock().unwrap() = Some(0);
    }

    /// So many more steps pass.
    pub fn let_through(&self, steps: u64) {
        if let Some(permits) = &mut *self.permits.lock().unwrap() {
            *permits += steps;
        }
        self.changed.notify_all();
    }

    fn pass(&self) {
        let permits = self.permits.lock().unwrap();
        let mut permits = self
            .changed
            .wait_while(permits, |permits| *permits == Some(0))
            .unwrap();
        if let Some(permits) = &mut *permits {
            *permits -= 1;
        }
    }
}

/// What a mock model is told and tells.
pub struct MockBackend {
    pub name: &'static str,
    pub gate: Gate,
    /// Bytes of text per token.
    pub text_bytes: usize,
    /// Tokens sampled so far by all agents.
    pub sampled: watch::Sender<u64>,
    /// The next step panics, once.
    pub panic_next: std::sync::atomic::AtomicBool,
    /// Taking on the next agent panics, once.
    pub panic_admit: std::sync::atomic::AtomicBool,
}

impl MockBackend {
    pub fn new(text_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            name: "mock",
            gate: Gate::default(),
            text_bytes,
            sampled: watch::Sender::new(0),
            panic_next: false.into(),
            panic_admit: false.into(),
        })
    }
}

/// Text and counts of one agent.
#[derive(Default)]
pub struct MockPlan {
    prompt_tokens: u32,
    text: String,
    told: usize,
    ids: Vec<u32>,
    told_ids: usize,
}

pub struct MockAgents {
    inner: MockRunner,
    shared: Arc<MockBackend>,
    plans: BTreeMap<SeqId, MockPlan>,
}

/// A handle that can be both shared with the test and handed to the worker.
pub struct Shared(pub Arc<MockBackend>);

impl Backend for Shared {
    type Runner = MockAgents;
    type Plan = MockPlan;

    fn model(&self) -> ModelInfo {
        ModelInfo {
            name: self.0.name.into(),
            digest: vec![7; 32],
            numeric_class: "mock-1".into(),
            context_tokens: 4096,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            blocks: 512,
            ..Limits::default()
        }
    }

    fn runner(&self) -> Result<MockAgents, String> {
        Ok(MockAgents {
            inner: MockRunner::new(512),
            shared: Arc::clone(&self.0),
            plans: BTreeMap::new(),
        })
    }

    fn plan(&self, seq: SeqId, start: &Start) -> Result<(Sequence, MockPlan), AttemptError> {
        let spec = start
            .spec
            .as_ref()
            .ok_or_else(|| permanent("no agent spec"))?;
        if start.context.is_empty() {
            return Err(permanent("the prompt is empty"));
        }
        let prompt: Vec<u32> = start.context.bytes().map(u32::from).collect();
        let plan = MockPlan {
            prompt_tokens: prompt.len() as u32,
            ..MockPlan::default()
        };
        Ok((
            Sequence::new(seq, prompt, spec.answer_tokens as usize),
            plan,
        ))
    }

    fn prepare(&self, prepare: &Prepare) -> Prepared {
        Prepared {
            job_id: prepare.job_id.clone(),
            prompt_tokens: 11,
            model: self.0.name.into(),
            ..Prepared::default()
        }
    }
}

impl Runner for MockAgents {
    type Error = MockError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), MockError> {
        self.shared.gate.pass();
        let order = std::sync::atomic::Ordering::SeqCst;
        assert!(
            !self.shared.panic_next.swap(false, order),
            "the test asked for a panic"
        );
        self.inner.run(batch, out)?;
        for outcome in out.iter() {
            if let Some(plan) = self.plans.get_mut(&outcome.seq) {
                plan.ids.push(outcome.token);
                let text = format!("{:_>1$}", outcome.token, self.shared.text_bytes);
                plan.text.push_str(&text);
            }
        }
        self.shared.sampled.send_modify(|n| *n += out.len() as u64);
        Ok(())
    }

    fn release(&mut self, seq: SeqId) {
        self.inner.release(seq);
    }
}

impl AgentRunner for MockAgents {
    type Plan = MockPlan;

    fn admit(&mut self, seq: SeqId, plan: MockPlan) {
        let order = std::sync::atomic::Ordering::SeqCst;
        assert!(
            !self.shared.panic_admit.swap(false, order),
            "the test asked for a panic"
        );
        self.plans.insert(seq, plan);
    }

    fn take_delta(&mut self, seq: SeqId) -> Option<TokenDelta> {
        let plan = self.plans.get_mut(&seq)?;
        let delta = TokenDelta {
            offset: plan.told_ids as u32,
            tokens: (plan.ids.len() - plan.told_ids) as u32,
            text: plan.text[plan.told..].to_owned(),
            prompt_tokens: plan.prompt_tokens,
            ..TokenDelta::default()
        };
        (plan.told, plan.told_ids) = (plan.text.len(), plan.ids.len());
        (delta.tokens > 0).then_some(delta)
    }

    fn finish(&mut self, finished: &Finished) -> Option<Result<Draft, AttemptError>> {
        let plan = self.plans.remove(&finished.seq)?;
        let stop = match finished.reason {
            StopReason::Cancelled => conclave_proto::v1::StopReason::Cancelled,
            _ => conclave_proto::v1::StopReason::Length,
        };
        Some(Ok(Draft {
            answer: plan.text,
            token_ids: plan.ids,
            stop: stop.into(),
            usage: Some(Usage {
                prompt_tokens: u64::from(plan.prompt_tokens),
                answer_tokens: finished.generated as u64,
                ..Usage::default()
            }),
            ..Draft::default()
        }))
    }
}

type Outbound = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// A session as the coordinator sees it.
pub struct MockSession {
    pub inbound: Streaming<WorkerMessage>,
    outbound: Outbound,
    /// What the worker showed as `authorization`.
    pub authorization: Option<String>,
}

/// A coordinator that does only what the test says.
pub struct MockCoordinator {
    pub address: String,
    sessions: mpsc::Receiver<MockSession>,
    server: tokio::task::JoinHandle<()>,
}

struct Service {
    sessions: mpsc::Sender<MockSession>,
}

#[tonic::async_trait]
impl Workers for Service {
    type SessionStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let shown = request.metadata().get("authorization");
        let authorization = shown.map(|value| value.to_str().unwrap().to_owned());
        let (outbound, messages) = mpsc::channel(64);
        let session = MockSession {
            inbound: request.into_inner(),
            outbound,
            authorization,
        };
        self.sessions.send(session).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl MockCoordinator {
    /// Listens on a free port of loopback.
    pub async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tx, sessions) = mpsc::channel(16);
        let service = WorkersServer::new(Service { sessions: tx });
        let server = tonic::transport::Server::builder()
            // Small, so that a reader that stops is felt soon.
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(64 * 1024)
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self {
            address,
            sessions,
            server,
        }
    }

    /// The next session that a worker opens.
    pub async fn accept(&mut self) -> MockSession {
        soon("a session", self.sessions.recv()).await.unwrap()
    }

    /// The next session, welcomed in this term.
    pub async fn welcome(&mut self, term: u64) -> (MockSession, Hello) {
        let mut session = self.accept().await;
        let hello = session.hello().await;
        session.send(term, FromLeader::Welcome(welcome())).await;
        (session, hello)
    }
}

impl Drop for MockCoordinator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl MockSession {
    /// The next message, heartbeats aside.
    pub async fn next(&mut self) -> FromWorker {
        loop {
            let message = soon("a message", self.inbound.message()).await.unwrap();
            match message.expect("the worker closed").message.unwrap() {
                FromWorker::Heartbeat(_) => {}
                message => return message,
            }
        }
    }

    pub async fn hello(&mut self) -> Hello {
        match self.next().await {
            FromWorker::Hello(hello) => hello,
            other => panic!("{other:?} is no hello"),
        }
    }

    /// The next result; text goes to `text`.
    pub async fn result(&mut self, text: &mut Vec<TokenDelta>) -> AttemptResult {
        loop {
            match self.next().await {
                FromWorker::Result(result) => return result,
                FromWorker::Progress(progress) => text.extend(progress.delta),
                other => panic!("{other:?} is no result"),
            }
        }
    }

    pub async fn send(&self, term: u64, message: FromLeader) {
        let message = CoordinatorMessage {
            term,
            message: Some(message),
        };
        self.outbound.send(Ok(message)).await.unwrap();
    }

    /// Whether the worker ends the stream.
    pub async fn closed(&mut self) -> bool {
        // Heartbeats would put off a deadline of each message for ever.
        let end = async { while let Ok(Some(_message)) = self.inbound.message().await {} };
        soon("the end", end).await;
        true
    }
}

pub fn welcome() -> Welcome {
    Welcome {
        heartbeat_ms: 50,
        lease_ttl_ms: 1_000,
        ..Welcome::default()
    }
}

pub fn key(agent: u32) -> AttemptKey {
    AttemptKey {
        job_id: "job".into(),
        agent,
        attempt: 1,
    }
}

/// An agent that generates so many tokens.
pub fn start(agent: u32, tokens: u32, hello: &Hello) -> FromLeader {
    FromLeader::Start(Start {
        key: Some(key(agent)),
        spec: Some(AgentSpec {
            agent,
            answer_tokens: tokens,
            ..AgentSpec::default()
        }),
        model: "mock".into(),
        context: format!("question for agent {agent}"),
        incarnation: hello.incarnation.clone(),
        ..Start::default()
    })
}

/// A worker on the mock model that knows these coordinators.
pub async fn worker(backend: &Arc<MockBackend>, coordinators: &[&str]) -> Worker {
    let config = Config {
        worker_id: "w1".into(),
        coordinators: coordinators.iter().map(ToString::to_string).collect(),
        models: vec![ModelConfig {
            name: "mock".into(),
            path: "mock".into(),
        }],
        http_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        token: "secret".into(),
        ..Config::default()
    };
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let backends = vec![Arc::new(Shared(Arc::clone(backend)))];
    Worker::start_with(config, backends, metrics).await.unwrap()
}

/// The text of contiguous deltas.
pub fn joined(deltas: &[TokenDelta]) -> String {
    let mut end = 0;
    let mut text = String::new();
    for delta in deltas {
        assert_eq!(delta.offset, end, "no gap and no overlap");
        end += delta.tokens;
        text.push_str(&delta.text);
    }
    text
}
