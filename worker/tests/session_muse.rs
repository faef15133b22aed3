//! A worker that serves Muse models: jobs are prepared, agents run, and their drafts are replayed to the bit.

mod muse_support;
mod session_support;

use std::path::Path;
use std::time::Duration;

use conclave_proto::v1::attempt_result::Result as Outcome;
use conclave_proto::v1::coordinator_message::Message as FromLeader;
use conclave_proto::v1::worker_message::Message as FromWorker;
use conclave_proto::v1::{Ack, AgentSpec, Draft, Hello, JobSpec, Message, Prepare, Role, Start};
use conclave_worker::model::Model;
use conclave_worker::replay::{ReplayCase, ReplayResult, replay_agents, settings_of};
use conclave_worker::{Config, ModelConfig, Worker};
use metrics_exporter_prometheus::PrometheusBuilder;
use session_support::*;

const AGENTS: u32 = 3;

fn question() -> Vec<Message> {
    let content = "Why is the sky blue at noon, and red where the sun sets?".into();
    let role = "user".into();
    vec![Message { role, content }]
}

fn spec(agent: u32) -> AgentSpec {
    AgentSpec {
        agent,
        role: Role::Proposer.into(),
        seed: u64::from(agent),
        thought_tokens: 12,
        answer_tokens: 20,
        ..AgentSpec::default()
    }
}

fn start(name: &str, agent: u32, hello: &Hello) -> FromLeader {
    FromLeader::Start(Start {
        key: Some(key(agent)),
        spec: Some(spec(agent)),
        model: name.into(),
        messages: question(),
        incarnation: hello.incarnation.clone(),
        ..Start::default()
    })
}

/// The drafts of all agents, which run side by side.
async fn drafts(name: &str, session: &mut MockSession, hello: &Hello) -> Vec<Draft> {
    for agent in 1..=AGENTS {
        session.send(1, start(name, agent, hello)).await;
    }
    let mut drafts = vec![None; AGENTS as usize];
    while drafts.contains(&None) {
        let result = session.result(&mut Vec::new()).await;
        let key = result.key.expect("whose it is");
        let agent = key.agent;
        let ack = FromLeader::Ack(Ack { keys: vec![key] });
        session.send(1, ack).await;
        let Some(Outcome::Draft(draft)) = result.result else {
            panic!("{name}: {:?}", result.result)
        };
        drafts[agent as usize - 1] = Some(draft);
    }
    drafts.into_iter().flatten().collect()
}

fn replayed(path: &Path, drafts: &[Draft]) -> Vec<ReplayResult> {
    let (options, kv) = settings_of(&drafts[0].numeric_class).expect("a class of this build");
    let model = Model::shared(path, &options).expect("the model");
    let case = |(agent, draft): (u32, &Draft)| ReplayCase {
        spec: spec(agent),
        messages: question(),
        draft: draft.clone(),
        ..ReplayCase::default()
    };
    let cases: Vec<ReplayCase> = (1..).zip(drafts).map(case).collect();
    let replayed = replay_agents(model, &options, kv, &cases, &mut |_| {}).expect("a replay");
    replayed.into_iter().map(|case| case.result).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_on_muse_models_are_prepared_run_and_replayed() {
    for name in muse_support::NAMES {
        let folder = muse_support::folder(name);
        let mut coordinator = MockCoordinator::listen().await;
        let config = Config {
            worker_id: "w1".into(),
            coordinators: vec![coordinator.address.clone()],
            models: vec![ModelConfig {
                name: name.into(),
                path: folder.path().into(),
            }],
            kv_blocks: 96,
            threads: 2,
            ..Config::default()
        };
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let worker = Worker::start(config, metrics).await.unwrap();
        let (mut session, hello) = coordinator.welcome(1).await;
        let job = JobSpec {
            messages: question(),
            model: name.into(),
            ..JobSpec::default()
        };
        let prepare = Prepare {
            job_id: "job".into(),
            spec: Some(job),
            salt: vec![],
        };
        session.send(1, FromLeader::Prepare(prepare)).await;
        let FromWorker::Prepared(prepared) = session.next().await else {
            panic!("{name} was not prepared")
        };
        assert_eq!(prepared.error, "", "{name}");
        assert!(prepared.prompt_tokens > 40, "more than a window, in bytes");
        let drafts = drafts(name, &mut session, &hello).await;
        assert!(drafts.iter().all(|draft| !draft.token_ids.is_empty()));
        worker.shutdown(Duration::from_secs(5)).await;
        let path = folder.path().to_owned();
        let replayed = tokio::task::spawn_blocking(move || {
            let tokens = drafts.iter().map(|draft| draft.token_ids.len());
            let expected = tokens.map(|tokens| ReplayResult::Identical { tokens });
            (replayed(&path, &drafts), expected.collect::<Vec<_>>())
        });
        let (replayed, expected) = soon("the replay", replayed).await.unwrap();
        assert_eq!(replayed, expected, "{name}");
    }
}
