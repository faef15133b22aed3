//! Requests in flight when one of two workers dies.

use std::time::Duration;

use conclave_proto::v1::{Budget, Job, JobSpec, JobState, Mode};
use conclave_tests::{Client, Cluster, Launch, Process, Tally, exact_job};
use tokio::task::JoinSet;

/// Tokens a second of a mock's attempt.
const RATE: &str = "30";

/// One agent that thinks; it always says the same.
fn request(index: usize, real: bool) -> JobSpec {
    let (thought, answer) = if real { (8, 8) } else { (48, 16) };
    JobSpec {
        mode: Mode::Thinking.into(),
        policy: None,
        budget: Some(Budget {
            thought_tokens: Some(thought),
            answer_tokens: Some(answer),
            ..Budget::default()
        }),
        ..exact_job(index as u64)
    }
}

/// Submits so many requests, kills one of two workers while all are in flight, and returns how many came
/// to no answer. Each answer is compared with that of an undisturbed run.
pub async fn kill_one_of_two(requests: usize, real: bool, tally: &mut Tally) -> usize {
    let mut cluster = Cluster::start(3, if real { 2 } else { 0 }).await;
    let mut mocks = Vec::new();
    if !real {
        for name in ["mock-0", "mock-1"] {
            mocks.push(mock(&cluster, name).await);
        }
        cluster.until_workers(2).await;
    }
    let client = cluster.client();
    let undisturbed = run(&client, "undisturbed", requests, real).await;
    let disturbed = {
        let client = client.clone();
        tokio::spawn(async move { run(&client, "disturbed", requests, real).await })
    };
    until_in_flight(&cluster, requests, real).await;
    match mocks.first_mut() {
        Some(mock) => mock.kill().await,
        None => cluster.kill_worker(0).await,
    }
    let disturbed = disturbed.await.expect("the requests");
    let (mut failed, mut retried) = (0, 0);
    for (job, undisturbed) in disturbed.iter().zip(&undisturbed) {
        match (job, undisturbed) {
            (Ok(job), Ok(undisturbed)) if job.state() == JobState::Done => {
                tally.count(job, undisturbed);
                retried += usize::from(job.agents.iter().any(|a| a.attempt > 1));
            }
            _ => failed += 1,
        }
    }
    println!(
        "{retried} of {requests} requests ran on the worker that was killed, and again on the other"
    );
    failed
}

async fn mock(cluster: &Cluster, name: &str) -> Process {
    let coordinators = cluster.endpoints().join(",");
    let args = [
        "--coordinators",
        &coordinators,
        "--name",
        name,
        "--rate",
        RATE,
    ];
    let log = cluster.folder().join(format!("{name}.log"));
    Process::mock_worker(&Launch::default(), &args, &log).await
}

/// All requests at once; their jobs, in the requests' order.
async fn run(client: &Client, run: &str, requests: usize, real: bool) -> Vec<Result<Job, String>> {
    let mut calls = JoinSet::new();
    for index in 0..requests {
        let (client, key) = (client.clone(), format!("{run}-{index}"));
        calls.spawn(async move {
            let id = client.submit(&key, &request(index, real)).await;
            let id = id.map_err(|e| e.to_string())?;
            Ok::<_, String>((index, client.finished(&id).await))
        });
    }
    let mut jobs = vec![Err("the client failed".to_owned()); requests];
    while let Some(called) = calls.join_next().await {
        match called {
            Ok(Ok((index, job))) => jobs[index] = Ok(job),
            Ok(Err(error)) => println!("a request failed: {error}"),
            Err(error) => println!("a client failed: {error}"),
        }
    }
    jobs
}

/// Waits until the workers hold all requests, or all that they have room for.
async fn until_in_flight(cluster: &Cluster, requests: usize, real: bool) {
    let wanted = if real { requests.min(2 * 32) } else { requests };
    let wait = async {
        loop {
            let agents: u32 = cluster.worker_status().await.iter().map(|w| w.agents).sum();
            if agents as usize >= wanted {
                return;
            }
            // What is placed where is told to those who ask.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .is_err()
    {
        println!(
            "not all requests were in flight at once: the machine is slow, or the answers short"
        );
    }
}
