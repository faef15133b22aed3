//! Our side: three coordinators, two mock workers, jobs in flight, the leader killed.

use std::time::{Duration, Instant};

use conclave_proto::v1::contemplation_client::ContemplationClient;
use conclave_proto::v1::{Job, JobSpec, SubmitJobRequest};
use conclave_tests::{Client, Cluster, MockOptions, MockWorker, Place, Places, Tally, exact_job};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::{ELECTION_MS, HEARTBEAT_MS, PAUSE, TRY};

/// Jobs in flight at each kill.
const IN_FLIGHT: usize = 5;
/// Tokens a second of an attempt: a job takes some two seconds.
const RATE: f64 = 50.0;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Ours {
    cluster: Cluster,
    client: Client,
    mocks: Vec<MockWorker>,
    /// What the jobs in flight answer where nothing fails.
    undisturbed: Vec<Job>,
    submitted: Vec<(String, JobSpec, String)>,
}

fn spec(index: usize) -> JobSpec {
    exact_job(index as u64)
}

impl Ours {
    pub async fn start() -> Ours {
        let mut places = Places::loopback(3, 0);
        for place in &mut places.coordinators {
            *place = Place {
                settings: format!("heartbeat_ms = {HEARTBEAT_MS}\nelection_ms = {ELECTION_MS}"),
                ..Place::default()
            };
        }
        let cluster = Cluster::start_at(places).await;
        let mock = |index: usize| MockOptions {
            rate: RATE,
            ..MockOptions::new(&format!("mock-{index}"), cluster.endpoints())
        };
        let mocks = (0..2).map(|i| MockWorker::spawn(mock(i))).collect();
        let mut ours = Ours {
            client: cluster.client(),
            cluster,
            mocks,
            undisturbed: Vec::new(),
            submitted: Vec::new(),
        };
        let ids = ours.submit_all("undisturbed").await;
        for id in ids {
            ours.undisturbed.push(ours.client.finished(&id).await);
        }
        ours
    }

    async fn submit_all(&mut self, round: &str) -> Vec<String> {
        let mut ids = Vec::new();
        for index in 0..IN_FLIGHT {
            let key = format!("{round}-{index}");
            let id = self.client.submit(&key, &spec(index)).await;
            let id = id.unwrap_or_else(|e| panic!("{key}: {e}"));
            self.submitted.push((key, spec(index), id.clone()));
            ids.push(id);
        }
        ids
    }

    /// SIGKILL to the leader; returns the times from there to the next placement of an agent that a
    /// worker sees, and to the acknowledgement of a job that is submitted from then on, both ends tried
    /// in turn over connections that the client had before. Waits until the cluster is whole again.
    pub async fn kill_leader(&mut self, round: usize, tally: &mut Tally) -> (Duration, Duration) {
        let ids = self.submit_all(&format!("round-{round}")).await;
        self.client.until_mid_draft(&ids[0], 4).await;
        let leader = self.cluster.leader().await;
        let term = self.cluster.status(leader).await.map_or(0, |s| s.term);
        let others: Vec<Channel> = (0..3)
            .filter(|index| *index != leader)
            .map(|index| channel(&self.cluster.endpoints()[index]))
            .collect();
        for other in &others {
            let warm = SubmitJobRequest::default();
            // Refused, over a connection that then is there.
            let _ = ContemplationClient::new(other.clone())
                .submit_job(warm)
                .await;
        }
        let key = format!("round-{round}-next");
        let started = Instant::now();
        let killed = self.cluster.coordinators[leader].take().expect("runs");
        killed.signal(libc::SIGKILL);
        let placement = placed(&self.mocks, term);
        let submit = submit(&others, &key);
        let (placed, (id, submitted)) = tokio::join!(placement, submit);
        drop(killed);
        self.submitted.push((key, spec(0), id.clone()));
        self.cluster.start_coordinator(leader).await;
        for (index, id) in ids.iter().enumerate() {
            let job = self.client.finished(id).await;
            tally.count(&job, &self.undisturbed[index]);
        }
        let job = self.client.finished(&id).await;
        tally.count(&job, &self.undisturbed[0]);
        self.until_whole().await;
        (placed - started, submitted - started)
    }

    /// Waits until all three follow one leader and have applied what it has.
    async fn until_whole(&self) {
        let started = Instant::now();
        loop {
            let mut said = Vec::new();
            for index in 0..3 {
                let status = self.cluster.status(index).await;
                said.extend(status.map(|s| (s.leader_id, s.applied_index)));
            }
            if said.len() == 3 && said[0].0 != 0 && said.iter().all(|s| s == &said[0]) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "not whole: {said:?}");
            // A process that starts sends no event.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn audit(&self, tally: &mut Tally) {
        let audited = tally.audit(&self.client, &self.submitted).await;
        audited.unwrap_or_else(|e| panic!("the cluster does not answer: {e}"));
    }
}

fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.tcp_nodelay(true).connect_lazy()
}

/// When some worker got a new attempt from a leader of a later term.
async fn placed(mocks: &[MockWorker], term: u64) -> Instant {
    let one = async |mock: &MockWorker| {
        let seen = mock.until(|s| s.placed.is_some_and(|(t, _)| t > term));
        let (_, at) = seen.await.placed.expect("waited for");
        at
    };
    tokio::select! {
        at = one(&mocks[0]) => at,
        at = one(&mocks[1]) => at,
    }
}

async fn submit(others: &[Channel], key: &str) -> (String, Instant) {
    let started = Instant::now();
    for turn in 0.. {
        assert!(started.elapsed() < PATIENCE, "no submission is taken");
        let request = SubmitJobRequest {
            idempotency_key: key.to_owned(),
            spec: Some(spec(0)),
        };
        let mut client = ContemplationClient::new(others[turn % others.len()].clone());
        if let Ok(Ok(answer)) = timeout(TRY, client.submit_job(request)).await {
            return (answer.into_inner().job_id, Instant::now());
        }
        tokio::time::sleep(PAUSE).await;
    }
    unreachable!("the loop ends by its deadline")
}
