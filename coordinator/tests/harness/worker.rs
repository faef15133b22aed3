//! The mock worker: speaks `Workers.Session`, answers with canned drafts. It
//! keeps results until they are acknowledged, and goes where the leader is, as
//! a real one does.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use conclave_credentials::Dial;
use conclave_proto::v1::{
    AttemptKey, AttemptResult, CoordinatorMessage, Draft, Heartbeat, Hello, ModelInfo, Prepare,
    Prepared, Progress, Start, StopReason, TokenDelta, Usage, WorkerMessage, attempt_result,
    coordinator_message::Message as FromCoordinator, worker_message::Message,
    workers_client::WorkersClient,
};
use tokio::{sync::mpsc, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

type Name = (String, u32, u32);

fn name(key: &AttemptKey) -> Name {
    (key.job_id.clone(), key.agent, key.attempt)
}

#[derive(Default)]
struct Book {
    running: BTreeMap<Name, Start>,
    finished: BTreeMap<Name, AttemptResult>,
    /// The newest session: results go there, whichever session began them.
    session: Option<mpsc::Sender<WorkerMessage>>,
}

/// What tests see and turn.
#[derive(Clone)]
pub struct Mock {
    id: String,
    incarnation: String,
    members: Arc<Vec<String>>,
    token: Option<String>,
    dial: Dial,
    book: Arc<Mutex<Book>>,
    /// Attempts wait in mid-text until this is true.
    gate: watch::Sender<bool>,
    /// Attempts that were ever started.
    pub started: Arc<AtomicU64>,
    /// Characters of thought in each draft.
    pub thought: usize,
    stuck: Arc<AtomicBool>,
}

/// A running mock; stops when dropped.
pub struct Running {
    pub mock: Mock,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mock {
    pub fn new(id: &str, members: Vec<String>) -> Mock {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Mock {
            id: id.to_owned(),
            incarnation: format!("start-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            members: Arc::new(members),
            token: None,
            dial: Dial::plain(),
            book: Arc::default(),
            gate: watch::Sender::new(true),
            started: Arc::default(),
            thought: 10,
            stuck: Arc::default(),
        }
    }

    /// Attempts stop in the middle of their text.
    pub fn close_gate(&self) {
        self.gate.send_replace(false);
    }

    pub fn open_gate(&self) {
        self.gate.send_replace(true);
    }

    /// From now on heartbeats show work without steps.
    pub fn get_stuck(&self) {
        self.stuck.store(true, Ordering::Relaxed);
    }

    pub fn with_token(mut self, token: &str) -> Mock {
        self.token = Some(format!("Bearer {token}"));
        self
    }

    pub fn with_dial(mut self, dial: Dial) -> Mock {
        self.dial = dial;
        self
    }

    pub fn with_thought(mut self, characters: usize) -> Mock {
        self.thought = characters;
        self
    }

    pub fn run(self) -> Running {
        let mock = self.clone();
        let task = tokio::spawn(async move {
            let mut next = 0;
            let mut hint: Option<String> = None;
            loop {
                let address = hint.take().unwrap_or_else(|| {
                    next += 1;
                    self.members[next % self.members.len()].clone()
                });
                hint = self.session(&address).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Running { mock, task }
    }

    /// One session; returns where the leader is said to be.
    async fn session(&self, address: &str) -> Option<String> {
        let endpoint = self.dial.endpoint(address).unwrap();
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(1));
        let channel = self.dial.lazily(&endpoint);
        let (send, receive) = mpsc::channel(256);
        self.book.lock().unwrap().session = Some(send.clone());
        send.send(WorkerMessage {
            message: Some(Message::Hello(self.hello())),
        })
        .await
        .ok()?;
        let mut request = tonic::Request::new(ReceiverStream::new(receive));
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", token.parse().unwrap());
        }
        let answer = WorkersClient::new(channel).session(request).await.ok()?;
        let mut messages = answer.into_inner();
        let mut beat = tokio::time::interval(Duration::from_millis(200));
        let mut steps = 0;
        loop {
            let message = tokio::select! {
                _ = beat.tick() => {
                    steps += u64::from(!self.stuck.load(Ordering::Relaxed));
                    let has_work = !self.book.lock().unwrap().running.is_empty();
                    let beat = Heartbeat { steps, has_work, kv_blocks_free: 1000, ..Heartbeat::default() };
                    let beat = WorkerMessage { message: Some(Message::Heartbeat(beat)) };
                    send.send(beat).await.ok()?;
                    continue;
                }
                message = messages.message() => message.ok()??,
            };
            match self.take(message, &send).await {
                Ok(()) => {}
                Err(hint) => return hint,
            }
        }
    }

    fn hello(&self) -> Hello {
        let book = self.book.lock().unwrap();
        Hello {
            worker_id: self.id.clone(),
            incarnation: self.incarnation.clone(),
            models: vec![ModelInfo {
                name: "mock".to_owned(),
                digest: vec![1; 32],
                numeric_class: "mock/1".to_owned(),
                context_tokens: 1 << 20,
            }],
            max_sequences: 16,
            kv_blocks: 1 << 20,
            version: "mock".to_owned(),
            running: book
                .running
                .values()
                .filter_map(|s| s.key.clone())
                .collect(),
            finished: book.finished.values().cloned().collect(),
            ..Hello::default()
        }
    }

    async fn take(
        &self,
        message: CoordinatorMessage,
        send: &mpsc::Sender<WorkerMessage>,
    ) -> Result<(), Option<String>> {
        let reply = |message| {
            send.send(WorkerMessage {
                message: Some(message),
            })
        };
        match message.message.unwrap() {
            FromCoordinator::Welcome(_) => {}
            FromCoordinator::NotLeader(not) => {
                return Err(Some(not.leader).filter(|leader| !leader.is_empty()));
            }
            FromCoordinator::Prepare(prepare) => {
                reply(Message::Prepared(prepared(prepare)))
                    .await
                    .map_err(|_| None)?;
            }
            FromCoordinator::Start(start) => {
                let key = start.key.clone().unwrap();
                let known = {
                    let mut book = self.book.lock().unwrap();
                    book.finished.contains_key(&name(&key))
                        || book.running.insert(name(&key), start.clone()).is_some()
                };
                if !known {
                    self.started.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(self.clone().decode(start, send.clone()));
                }
            }
            FromCoordinator::Cancel(cancel) => {
                let key = cancel.key.unwrap();
                let running = self.book.lock().unwrap().running.remove(&name(&key));
                if running.is_some() {
                    self.finish(key).await;
                }
            }
            FromCoordinator::Ack(ack) => {
                let mut book = self.book.lock().unwrap();
                for key in ack.keys {
                    book.finished.remove(&name(&key));
                }
            }
            FromCoordinator::Resend(resend) => {
                let key = resend.key.unwrap();
                let running = self.book.lock().unwrap().running.get(&name(&key)).cloned();
                if let Some(start) = running {
                    // The rest of the text, and the result, on this session.
                    tokio::spawn(self.clone().decode(start, send.clone()));
                }
            }
        }
        Ok(())
    }

    async fn decode(self, start: Start, send: mpsc::Sender<WorkerMessage>) {
        let key = start.key.unwrap();
        for (offset, text) in ["think", "ing"].into_iter().enumerate() {
            let delta = TokenDelta {
                agent: key.agent,
                attempt: key.attempt,
                offset: u32::try_from(offset).unwrap(),
                tokens: 1,
                text: text.to_owned(),
                thought: true,
                ..TokenDelta::default()
            };
            let progress = Progress {
                key: Some(key.clone()),
                delta: Some(delta),
            };
            let _ = send
                .send(WorkerMessage {
                    message: Some(Message::Progress(progress)),
                })
                .await;
            let mut gate = self.gate.subscribe();
            gate.wait_for(|open| *open).await.unwrap();
        }
        if self
            .book
            .lock()
            .unwrap()
            .running
            .remove(&name(&key))
            .is_some()
        {
            self.finish(key).await;
        }
    }

    async fn finish(&self, key: AttemptKey) {
        let draft = Draft {
            thought: "t".repeat(self.thought),
            answer: "blue".to_owned(),
            canonical: "blue".to_owned(),
            valid: true,
            usage: Some(Usage {
                prompt_tokens: 5,
                thought_tokens: 2,
                answer_tokens: 1,
                cached_tokens: 0,
            }),
            stop: StopReason::End as i32,
            token_ids: vec![1, 2, 3],
            prompt_digest: vec![2; 32],
            logprob_digest: vec![3; 32],
            model_digest: vec![1; 32],
            numeric_class: "mock/1".to_owned(),
            ..Draft::default()
        };
        let result = AttemptResult {
            key: Some(key.clone()),
            incarnation: self.incarnation.clone(),
            result: Some(attempt_result::Result::Draft(draft)),
        };
        let session = {
            let mut book = self.book.lock().unwrap();
            book.finished.insert(name(&key), result.clone());
            book.session.clone()
        };
        let Some(send) = session else { return };
        let _ = send
            .send(WorkerMessage {
                message: Some(Message::Result(result)),
            })
            .await;
    }
}

fn prepared(prepare: Prepare) -> Prepared {
    Prepared {
        job_id: prepare.job_id,
        prompt_tokens: 5,
        model_digest: vec![1; 32],
        numeric_class: "mock/1".to_owned(),
        model: "mock".to_owned(),
        context_tokens: 1 << 20,
        ..Prepared::default()
    }
}
