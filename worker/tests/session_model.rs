//! A worker on the default model: prepared, run, cut, replayed; and what its HTTP server says.

mod session_support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use conclave_proto::v1::attempt_result::Result as Outcome;
use conclave_proto::v1::coordinator_message::Message as FromLeader;
use conclave_proto::v1::worker_message::Message as FromWorker;
use conclave_proto::v1::{
    Ack, AgentSpec, Cancel, Draft, Hello, JobSpec, Message, Prepare, Role, Start, StopReason,
};
use conclave_worker::model::Model;
use conclave_worker::replay::{ReplayCase, ReplayResult, replay_agents, settings_of};
use conclave_worker::{Config, ModelConfig, StartError, Worker};
use metrics_exporter_prometheus::PrometheusBuilder;
use session_support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The model file: a missing one fails the tests, for they say nothing without it.
fn model() -> PathBuf {
    let given = std::env::var_os("CONCLAVE_TEST_MODEL").map(PathBuf::from);
    given.unwrap_or_else(|| {
        conclave_worker::model::pull::resolve("smollm2-135m")
            .unwrap_or_else(|error| panic!("{error}"))
    })
}

fn config(coordinator: &str) -> Config {
    Config {
        worker_id: "w1".into(),
        coordinators: vec![coordinator.into()],
        models: vec![ModelConfig {
            name: "smollm2-135m".into(),
            path: model(),
        }],
        kv_blocks: 96,
        max_sequences: 4,
        threads: 2,
        ..Config::default()
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    soon(path, stream.read_to_string(&mut reply)).await.unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, reply)
}

fn question() -> Vec<Message> {
    vec![Message {
        role: "user".into(),
        content: "What is the capital of France, and why?".into(),
    }]
}

fn spec(agent: u32, thought_tokens: u32, answer_tokens: u32) -> AgentSpec {
    AgentSpec {
        agent,
        role: Role::Proposer.into(),
        seed: 40 + u64::from(agent),
        tail: format!("You are thinker number {agent}."),
        thought_tokens,
        answer_tokens,
        ..AgentSpec::default()
    }
}

fn start_of(spec: &AgentSpec, hello: &Hello) -> FromLeader {
    FromLeader::Start(Start {
        key: Some(key(spec.agent)),
        spec: Some(spec.clone()),
        model: "smollm2-135m".into(),
        messages: question(),
        salt: b"tenant".to_vec(),
        incarnation: hello.incarnation.clone(),
        ..Start::default()
    })
}

/// The drafts of all agents, once they have ended; agent 3 is cancelled as soon as it says something.
async fn run(session: &mut MockSession, hello: &Hello, specs: &[AgentSpec]) -> Vec<Draft> {
    for spec in specs {
        session.send(1, start_of(spec, hello)).await;
    }
    let mut drafts = vec![None; specs.len()];
    let mut cancelled = false;
    while drafts.contains(&None) {
        match session.next().await {
            FromWorker::Progress(progress) => {
                let key = progress.key.unwrap();
                if key.agent == 3 && !cancelled {
                    cancelled = true;
                    let cancel = Cancel {
                        key: Some(key),
                        ..Cancel::default()
                    };
                    session.send(1, FromLeader::Cancel(cancel)).await;
                }
            }
            FromWorker::Result(result) => {
                let key = result.key.unwrap();
                let Some(Outcome::Draft(draft)) = result.result else {
                    panic!("{:?}", result.result)
                };
                drafts[key.agent as usize - 1] = Some(draft);
                session
                    .send(1, FromLeader::Ack(Ack { keys: vec![key] }))
                    .await;
            }
            other => panic!("{other:?} was not asked for"),
        }
    }
    drafts.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_prepared_run_counted_and_replayed() {
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let mut coordinator = MockCoordinator::listen().await;
    let worker = Worker::start(config(&coordinator.address), recorder)
        .await
        .unwrap();
    assert_eq!(get(worker.http_addr(), "/healthz").await.0, 200);
    let mut session = coordinator.accept().await;
    let hello = session.hello().await;
    assert_eq!(
        get(worker.http_addr(), "/readyz").await.0,
        503,
        "not welcomed yet"
    );
    session.send(1, FromLeader::Welcome(welcome())).await;
    let job = JobSpec {
        messages: question(),
        ..JobSpec::default()
    };
    let prepare = Prepare {
        job_id: "job".into(),
        spec: Some(job),
        salt: vec![],
    };
    session.send(1, FromLeader::Prepare(prepare)).await;
    let FromWorker::Prepared(prepared) = session.next().await else {
        panic!("not prepared")
    };
    assert_eq!(prepared.error, "");
    assert!(prepared.prompt_tokens > 8 && prepared.model == "smollm2-135m");
    assert_eq!(get(worker.http_addr(), "/readyz").await.0, 200);

    let specs = [spec(1, 6, 12), spec(2, 0, 12), spec(3, 0, 400)];
    let drafts = run(&mut session, &hello, &specs).await;
    assert_eq!(drafts[2].stop(), StopReason::Cancelled);
    let page = get(worker.http_addr(), "/metrics").await.1;
    for line in [
        "# HELP conclave_tokens_total",
        "conclave_tokens_total{worker=\"w1\",role=\"proposer\",kind=\"answer\"}",
        "conclave_worker_attempts_total{worker=\"w1\",role=\"proposer\",outcome=\"cut\"} 1",
        "conclave_worker_session_connected{worker=\"w1\"} 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    worker.shutdown(Duration::from_secs(5)).await;
    soon(
        "the replay",
        tokio::task::spawn_blocking(move || replay(&specs, drafts)),
    )
    .await
    .unwrap();
}

fn replay(specs: &[AgentSpec], drafts: Vec<Draft>) {
    let (options, kv) = settings_of(&drafts[0].numeric_class).expect("a class of this build");
    let model = Model::shared(&model(), &options).unwrap();
    let case = |(spec, draft): (&AgentSpec, Draft)| ReplayCase {
        spec: spec.clone(),
        messages: question(),
        draft,
        ..ReplayCase::default()
    };
    let mut cases: Vec<ReplayCase> = specs.iter().zip(drafts).map(case).collect();
    let mut agents = 0;
    let mut shown = |progress: conclave_worker::replay::ReplayProgress| agents = progress.agents;
    let same = replay_agents(model.clone(), &options, kv, &cases, &mut shown).unwrap();
    for (case, replayed) in cases.iter().zip(&same) {
        let tokens = case.draft.token_ids.len();
        assert_eq!(replayed.result, ReplayResult::Identical { tokens });
    }
    assert_eq!(agents, 3);

    let told = cases[0].draft.token_ids[4];
    cases[0].draft.token_ids[4] = told + 1;
    cases[1].draft.logprob_digest[0] ^= 1;
    cases[2].draft.numeric_class = "k0-other".into();
    let changed = replay_agents(model, &options, kv, &cases, &mut |_| {}).unwrap();
    let expected = ReplayResult::Differs {
        at: 4,
        expected: Some(told + 1),
        got: Some(told),
    };
    assert_eq!(changed[0].result, expected);
    assert_eq!(changed[1].result, ReplayResult::LogprobsDiffer);
    assert!(matches!(changed[2].result, ReplayResult::WrongClass { .. }));
}

#[tokio::test]
async fn what_keeps_a_worker_from_starting_says_what_to_do() {
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let missing = Config {
        models: vec![ModelConfig {
            path: "/no/such/model.gguf".into(),
            ..ModelConfig::default()
        }],
        ..config("127.0.0.1:1")
    };
    let error = Worker::start(missing, metrics.clone()).await.err().unwrap();
    assert!(error.to_string().contains("conclave model pull"), "{error}");

    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let busy = Config {
        http_listen: taken.local_addr().unwrap(),
        ..config("127.0.0.1:1")
    };
    let error = Worker::start(busy, metrics.clone()).await.err().unwrap();
    assert!(matches!(error, StartError::PortInUse { .. }), "{error}");

    let twice = Config {
        models: vec![config("").models[0].clone(); 2],
        ..config("127.0.0.1:1")
    };
    let error = Worker::start(twice, metrics).await.err().unwrap();
    assert!(matches!(error, StartError::ModelTwice { .. }), "{error}");
}
