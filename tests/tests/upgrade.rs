//! A rolling upgrade of processes, forth, back and forth again, with jobs under way; and `conclave cluster
//! upgrade`, which waits for the last of them. The older program is this one, held at its log version: a member
//! of it for all that others can tell.

use std::process::Output;
use std::time::{Duration, Instant};

use conclave_proto::{LOG_VERSION, v1::JobState};
use conclave_tests::{Cluster, MockOptions, MockWorker, Place, Places, conclave_binary, exact_job};
use tokio::process::Command;

/// No command takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn older() -> String {
    format!("max_log_version = {}", LOG_VERSION - 1)
}

/// Ends coordinator `index` as a rolling upgrade does, and starts the other program on its folder.
async fn replace(cluster: &mut Cluster, index: usize, settings: &str) {
    if let Some(mut process) = cluster.coordinators[index].take() {
        assert!(process.terminate(PATIENCE).await, "it drains");
    }
    cluster.set_coordinator(index, settings);
    cluster.start_coordinator(index).await;
    cluster.leader().await;
}

/// `conclave cluster upgrade`, asked of every endpoint.
async fn upgrade(cluster: &Cluster) -> Output {
    let endpoints = cluster.endpoints().join(",");
    let mut command = Command::new(conclave_binary());
    command.args(["cluster", "upgrade", "--endpoint", &endpoints]);
    let done = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
    done.expect("in time").expect("it runs")
}

async fn uses(cluster: &Cluster, index: usize) -> u32 {
    let status = cluster.status(index).await.expect("it answers");
    status.cluster_log_version
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_upgraded_back_and_forth_until_the_version_is_raised() {
    let place = Place {
        settings: older(),
        ..Place::default()
    };
    let places = Places {
        coordinators: vec![place; 3],
        ..Places::default()
    };
    let mut cluster = Cluster::start_at(places).await;
    let _mock = MockWorker::spawn(MockOptions::new("mock-0", cluster.endpoints()));
    cluster.until_workers(1).await;
    let client = cluster.client();
    let mut jobs = Vec::new();
    // Two go forth, one of them back, and forth again; each finds what the others wrote meanwhile.
    for (step, (index, newer)) in [(0, true), (1, true), (0, false), (0, true)]
        .iter()
        .enumerate()
    {
        let id = client.submit(&format!("step {step}"), &exact_job(7)).await;
        jobs.push(id.expect("accepted"));
        let settings = if *newer { String::new() } else { older() };
        replace(&mut cluster, *index, &settings).await;
        assert_eq!(uses(&cluster, *index).await, LOG_VERSION - 1);
    }
    let refused = upgrade(&cluster).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_ne!(refused.status.code(), Some(0), "{said}");
    let named = &cluster.endpoints()[2];
    let why = format!("speaks up to {}", LOG_VERSION - 1);
    assert!(
        said.contains(named.as_str()) && said.contains(&why),
        "{said}"
    );
    assert_eq!(uses(&cluster, 2).await, LOG_VERSION - 1);

    replace(&mut cluster, 2, "").await;
    let raised = upgrade(&cluster).await;
    let said = String::from_utf8_lossy(&raised.stderr);
    assert_eq!(raised.status.code(), Some(0), "{said}");
    let leader = cluster.leader().await;
    assert_eq!(uses(&cluster, leader).await, LOG_VERSION);
    // There is no way back: the older program ends at once, and says why.
    let follower = (leader + 1) % 3;
    let began = Instant::now();
    while uses(&cluster, follower).await != LOG_VERSION {
        assert!(began.elapsed() < PATIENCE, "it does not follow");
        // Its status is no event to wait for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // That it is committed reaches its disk with what comes after.
    let after = client.submit("after", &exact_job(8)).await;
    jobs.push(after.expect("accepted"));
    client.finished(&jobs[jobs.len() - 1]).await;
    cluster.kill_coordinator(follower).await;
    cluster.set_coordinator(follower, &older());
    let ended = cluster.try_start_coordinator(follower).await;
    assert_eq!(ended.err(), Some(Some(4)));
    let log = cluster.coordinator_log(follower);
    let why = format!("the cluster uses log version {LOG_VERSION}");
    assert!(log.contains(&why), "{log}");
    for id in jobs {
        let job = client.finished(&id).await;
        assert_eq!(job.state(), JobState::Done, "{}", job.message);
    }
}
