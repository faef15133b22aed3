//! Commands committed a second, and how long each takes, beside etcd's puts.
//!
//! Ours is `SubmitJob` as clients send it: the spec is validated, the key is looked up linearizably,
//! the command goes through three logs, and the effective spec comes back. etcd's is `Put` of a value as
//! long as that command. Both go to the leader over eight connections.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_proto::v1::contemplation_client::ContemplationClient;
use conclave_proto::v1::{JobSpec, SubmitJobRequest};
use conclave_tests::etcd::{self, Etcd};
use conclave_tests::{Cluster, Place, Places, Times, exact_job};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

const CLIENTS: [usize; 3] = [1, 16, 256];
const CONNECTIONS: usize = 8;
/// As the coordinator's defaults are.
const HEARTBEAT_MS: u64 = 100;
const ELECTION_MS: u64 = 1_000;
/// What a submission's command holds besides key and spec: the job's id and the request's digest.
const COMMAND: usize = 36 + 32;

/// How long it is measured.
#[derive(Clone, Copy)]
pub struct Plan {
    /// One turn.
    pub turn: Duration,
    /// Turns of each side.
    pub rounds: usize,
}

/// Who is asked to commit.
#[derive(Clone)]
enum Side {
    Ours(Arc<JobSpec>),
    Etcd(Arc<Vec<u8>>),
}

impl Side {
    async fn commit(&self, channel: &Channel, key: String) -> Result<(), Status> {
        match self {
            Side::Ours(spec) => {
                let request = SubmitJobRequest {
                    idempotency_key: key,
                    spec: Some(JobSpec::clone(spec)),
                };
                let mut client = ContemplationClient::new(channel.clone());
                client.submit_job(request).await.map(|_| ())
            }
            Side::Etcd(value) => etcd::put(channel, key, value.to_vec()).await,
        }
    }
}

/// One turn's outcome.
struct Turn {
    rate: f64,
    times: Times,
}

async fn turn(side: &Side, channels: &[Channel], clients: usize, name: &str, plan: Plan) -> Turn {
    let started = Instant::now();
    let until = started + plan.turn;
    let mut running = JoinSet::new();
    for client in 0..clients {
        let (side, channel) = (side.clone(), channels[client % channels.len()].clone());
        let name = format!("{name}-{client}");
        running.spawn(async move {
            let mut times = Times::default();
            while Instant::now() < until {
                let key = format!("{name}-{}", times.len());
                let called = Instant::now();
                let done = side.commit(&channel, key).await;
                done.unwrap_or_else(|e| panic!("a commit failed: {e}"));
                times.add(called.elapsed());
            }
            times
        });
    }
    let mut times = Times::default();
    while let Some(of_client) = running.join_next().await {
        times.extend(of_client.expect("a client does not panic"));
    }
    Turn {
        rate: times.len() as f64 / started.elapsed().as_secs_f64(),
        times,
    }
}

/// All turns of one side: the best rate, and its latencies.
#[derive(Default)]
struct Best(Vec<Turn>);

impl Best {
    fn rate(&self) -> f64 {
        self.0.iter().map(|turn| turn.rate).fold(0.0, f64::max)
    }

    /// The least over the turns: the machine may be shared.
    fn percentile(&self, percent: usize) -> f64 {
        let of = |turn: &Turn| turn.times.percentile(percent).as_secs_f64() * 1e3;
        self.0.iter().map(of).fold(f64::INFINITY, f64::min)
    }

    fn row(&self, clients: usize, side: &str) {
        let rates: Vec<String> = self.0.iter().map(|t| format!("{:.0}", t.rate)).collect();
        println!(
            "| {clients} | {side} | {:.0} | {:.2} ms | {:.2} ms | {} |",
            self.rate(),
            self.percentile(50),
            self.percentile(99),
            rates.join(", ")
        );
    }
}

/// Prints the table.
pub async fn print(plan: Plan, program: Option<&Path>) {
    println!(
        "\n## Commits, three processes, fsync on, turns of {} s\n\n\
         | clients | who | best commits/s | p50 | p99 | each turn |\n|---|---|---|---|---|---|",
        plan.turn.as_secs()
    );
    for clients in CLIENTS {
        side_by_side(plan, clients, program).await;
    }
}

async fn side_by_side(plan: Plan, clients: usize, program: Option<&Path>) {
    let mut places = Places::loopback(3, 0);
    for place in &mut places.coordinators {
        *place = Place {
            // Without workers jobs stay: what is measured is their way in.
            settings: "max_live_jobs = 10000000".into(),
            ..Place::default()
        };
    }
    let cluster = Cluster::start_at(places).await;
    let address = cluster.endpoints()[cluster.leader().await].clone();
    let spec = exact_job(1);
    let value = vec![b'x'; spec.encoded_len() + COMMAND];
    let ours = (connect(&address), Side::Ours(Arc::new(spec)));
    let mut theirs = None;
    let mut etcd = None;
    if let Some(program) = program {
        let running = etcd.insert(Etcd::start(program, HEARTBEAT_MS, ELECTION_MS).await);
        let channels = connect(&running.address(running.leader().await.0));
        theirs = Some((channels, Side::Etcd(Arc::new(value))));
    }
    let (mut our_best, mut their_best) = (Best::default(), Best::default());
    // The first turn of each opens connections and files: it is not counted.
    for round in 0..=plan.rounds {
        for (side, best) in [
            (Some(&ours), &mut our_best),
            (theirs.as_ref(), &mut their_best),
        ] {
            let Some((channels, side)) = side else {
                continue;
            };
            let done = turn(side, channels, clients, &format!("r{round}"), plan).await;
            if round > 0 {
                best.0.push(done);
            }
        }
    }
    our_best.row(clients, "conclave SubmitJob");
    if theirs.is_some() {
        their_best.row(clients, "etcd put");
        println!(
            "| {clients} | ratio | {:.2} | {:.2} | {:.2} | |",
            our_best.rate() / their_best.rate(),
            our_best.percentile(50) / their_best.percentile(50),
            our_best.percentile(99) / their_best.percentile(99)
        );
    }
}

fn connect(address: &str) -> Vec<Channel> {
    (0..CONNECTIONS).map(|_| etcd::channel(address)).collect()
}
