//! The mock worker against a real coordinator process: what tests and benches rest on.

use std::time::Duration;

use conclave_proto::v1::{Job, JobState};
use conclave_tests::{Cluster, Launch, MockOptions, MockWorker, Process, exact_job};

fn drafts(job: &Job) -> Vec<Vec<u32>> {
    assert_eq!(job.state(), JobState::Done, "{}", job.message);
    let draft = |agent: &conclave_proto::v1::AgentStatus| {
        let draft = agent.draft.clone().expect("a draft");
        draft.token_ids
    };
    job.agents.iter().map(draft).collect()
}

#[tokio::test]
async fn whatever_befalls_a_mock_an_exact_job_answers_the_same() {
    let cluster = Cluster::start(1, 0).await;
    let client = cluster.client();
    let spec = exact_job(7);
    let first = MockWorker::spawn(MockOptions::new("first", cluster.endpoints()));
    let id = client.submit("undisturbed", &spec).await.expect("accepted");
    let reference = client.finished(&id).await;
    let seen = first.until(|seen| seen.acknowledged == 5).await;
    assert_eq!((seen.started, seen.finished, seen.kept), (5, 5, 0));

    // It hangs in mid-draft: heartbeats do not renew its lease, and another takes over.
    let id = client.submit("hung", &spec).await.expect("accepted");
    first.set_rate(20.0);
    client.until_mid_draft(&id, 4).await;
    first.hang(true);
    let second = MockWorker::spawn(MockOptions::new("second", cluster.endpoints()));
    let job = client.finished(&id).await;
    assert_eq!(drafts(&job), drafts(&reference));
    assert_eq!(second.seen().finished, 5, "the hung one gave nothing");
    assert!(job.agents.iter().any(|agent| agent.attempt > 1));
    drop(first);

    // A crash in mid-draft, and a new incarnation of the same name.
    second.set_rate(20.0);
    let id = client.submit("crashed", &spec).await.expect("accepted");
    client.until_mid_draft(&id, 4).await;
    let options = second.crash().await;
    let second = MockWorker::spawn(options);
    assert_eq!(drafts(&client.finished(&id).await), drafts(&reference));

    // A drain ends with everything handed over.
    second.set_rate(20.0);
    let id = client.submit("drained", &spec).await.expect("accepted");
    client.until_mid_draft(&id, 4).await;
    let third = MockWorker::spawn(MockOptions::new("third", cluster.endpoints()));
    assert!(second.drain(Duration::from_secs(30)).await);
    assert_eq!(drafts(&client.finished(&id).await), drafts(&reference));
    assert!(third.seen().finished > 0, "the chair ran elsewhere");
}

#[tokio::test]
async fn a_mock_process_can_be_killed() {
    let cluster = Cluster::start(1, 0).await;
    let client = cluster.client();
    let coordinators = cluster.endpoints().join(",");
    let log = cluster.folder().join("mock.log");
    let arguments = ["--coordinators", &coordinators, "--name", "a", "--rate"];
    let mut slow = Process::mock_worker(
        &Launch::default(),
        &[&arguments[..], &["20"]].concat(),
        &log,
    )
    .await;
    let id = client.submit("k", &exact_job(7)).await.expect("accepted");
    client.until_mid_draft(&id, 4).await;
    slow.kill().await;
    let mut again = Process::mock_worker(
        &Launch::default(),
        &[&arguments[..], &["500"]].concat(),
        &log,
    )
    .await;
    let job = client.finished(&id).await;
    assert_eq!(job.state(), JobState::Done, "{}", job.message);
    assert!(again.terminate(Duration::from_secs(20)).await);
}
