//! `conclave doctor` on a cluster of processes, sound and with a member that was killed.

use std::time::{Duration, Instant};

use conclave_tests::{Cluster, MockOptions, MockWorker, conclave_binary};
use serde_json::Value;
use tokio::process::Command;

/// Longest that a diagnosis may take.
const DIAGNOSIS: Duration = Duration::from_secs(30);

/// Its exit code, and what it said.
async fn doctor(endpoints: &[String]) -> (Option<i32>, Value) {
    let mut command = Command::new(conclave_binary());
    command.args(["doctor", "--json", "--endpoint", &endpoints.join(",")]);
    let done = tokio::time::timeout(DIAGNOSIS, command.kill_on_drop(true).output()).await;
    let done = done.expect("in time").expect("it runs");
    let said = String::from_utf8_lossy(&done.stdout);
    let document = serde_json::from_str(&said);
    let document = document.unwrap_or_else(|e| panic!("{e}: {said}"));
    (done.status.code(), document)
}

/// `about: what` of each problem.
fn problems(document: &Value) -> Vec<String> {
    let findings = document["findings"].as_array().expect("a list");
    let problems = findings.iter().filter(|f| f["level"] == "problem");
    let text = |f: &Value| format!("{}: {}", f["about"], f["what"]).replace('"', "");
    problems.map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_member_is_found_whoever_is_asked_and_nothing_before() {
    let mut cluster = Cluster::start(3, 0).await;
    let _mock = MockWorker::spawn(MockOptions::new("mock-0", cluster.endpoints()));
    cluster.until_workers(1).await;
    let leader = cluster.leader().await;
    let endpoints = cluster.endpoints();
    // One endpoint is enough: it names the others. A node that has just joined may lag for a moment.
    let started = Instant::now();
    let (code, document) = loop {
        let (code, document) = doctor(&endpoints[..1]).await;
        if code == Some(0) || started.elapsed() > DIAGNOSIS {
            break (code, document);
        }
    };
    assert_eq!(
        (code, problems(&document)),
        (Some(0), Vec::new()),
        "{document:#}"
    );
    assert_eq!(document["healthy"], true);
    assert_eq!(document["nodes"].as_array().map(Vec::len), Some(3));
    assert_eq!(document["workers"].as_array().map(Vec::len), Some(1));
    let killed = (leader + 1) % 3;
    cluster.kill_coordinator(killed).await;
    for asked in [&endpoints[..], &endpoints[leader..=leader]] {
        let (code, document) = doctor(asked).await;
        let problems = problems(&document);
        assert_eq!(code, Some(1), "{document:#}");
        let gone = format!("{}: does not answer", endpoints[killed]);
        assert!(
            problems.iter().any(|p| p.starts_with(&gone)),
            "{problems:?}"
        );
        let risk = "the quorum: 2 of 3 voters answer: after one more loss";
        assert!(problems.iter().any(|p| p.starts_with(risk)), "{problems:?}");
    }
    // With another gone nobody decides; whoever is left still says what it sees.
    cluster.kill_coordinator(leader).await;
    let left = 3 - leader - killed;
    let (code, document) = doctor(&endpoints[left..=left]).await;
    assert_eq!(code, Some(1), "{document:#}");
    assert!(!problems(&document).is_empty(), "{document:#}");
}
