//! From a client's SubmitJob to its acknowledgement by three coordinator
//! processes with fsync on: validation, proposal, commit, apply, reply.

use std::error::Error;
use std::time::{Duration, Instant};

use conclave_tests::{Cluster, exact_job};

const JOBS: usize = 300;
const WARM_UP: usize = 20;

pub async fn print() -> Result<(), Box<dyn Error>> {
    let cluster = Cluster::start(3, 0).await;
    let leader = cluster.leader().await;
    let endpoint = cluster.endpoints()[leader].clone();
    let mut client = conclave_tests::Client::new(vec![endpoint])
        .connected()
        .await?;
    let spec = exact_job(1);
    let mut times = Vec::with_capacity(JOBS);
    for job in 0..JOBS + WARM_UP {
        let started = Instant::now();
        client
            .submit_job(conclave_proto::v1::SubmitJobRequest {
                idempotency_key: format!("bench-{job}"),
                spec: Some(spec.clone()),
            })
            .await?;
        if job >= WARM_UP {
            times.push(started.elapsed());
        }
    }
    times.sort_unstable();
    println!(
        "| SubmitJob acknowledged, 3 processes, one client | median {}, p99 {} |",
        millis(times[JOBS / 2]),
        millis(times[JOBS * 99 / 100])
    );
    Ok(())
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
