//! Jobs a second from submission to answer with mock workers, and the memory that a job takes.

use std::time::{Duration, Instant};

use conclave_tests::load::{Bench, Memory, Plan};
use conclave_tests::{Cluster, Process};

const WAVES: usize = 4;
/// Jobs that run when the memory of one is measured, and how often it is tried.
const RUNNING: usize = 2_000;
const RUNNING_TRIES: usize = 4;
/// The allocator's counters are shown so often; twice, to be sure that a look is behind the work.
const SHOWN: Duration = Duration::from_secs(11);

/// Prints the table.
pub async fn print() {
    println!("\n## Jobs, three processes, fsync on, mock workers\n\n| what | figure |\n|---|---|");
    let plan = Plan {
        max_live_jobs: 10_000,
        retention_bytes: 1 << 30,
        rate: 1_000_000.0,
        ..Plan::crowd(2_000, 8, 8)
    };
    let mut bench = Bench::start(plan).await;
    // Connections and caches come to their size: they are no job's.
    let mut told = bench.wave().await.answered;
    let before = memory(&bench.cluster).await;
    let mut best = 0.0_f64;
    let mut answered = 0;
    for _ in 0..WAVES {
        let wave = bench.wave().await;
        best = best.max(wave.answered as f64 / wave.took.as_secs_f64());
        answered += wave.answered;
    }
    told += answered;
    println!(
        "| jobs answered a second, two agents each, 2,000 clients, best of {WAVES} | {best:.0} |"
    );
    println!(
        "| jobs answered in all, of {} | {told} |",
        (WAVES + 1) * plan.clients
    );
    let mut after = memory(&bench.cluster).await;
    row("finished", before, after, answered);
    // Without workers that answer, jobs stay where they are.
    bench.mocks.iter().for_each(|mock| mock.hang(true));
    for _ in 0..RUNNING_TRIES {
        let running = bench.submit_only(RUNNING).await;
        let held = memory(&bench.cluster).await;
        // A snapshot that was saved between gives back more than its entries' bytes: once more.
        if held.log >= after.log {
            row("running", after, held, running);
            break;
        }
        after = held;
    }
}

/// The log's entries are left out: how many there are is a matter of when the last snapshot was saved.
fn row(what: &str, before: Memory, after: Memory, jobs: usize) {
    let without_log = |memory: Memory| memory.allocated.saturating_sub(memory.log);
    let bytes = without_log(after).saturating_sub(without_log(before));
    let each = bytes as f64 / jobs.max(1) as f64 / 1024.0;
    println!(
        "| memory of a {what} job at the leader, its key included, the log's entries left out | {each:.1} KiB |"
    );
}

/// The leader's, once its counters are behind what was done.
async fn memory(cluster: &Cluster) -> Memory {
    let started = Instant::now();
    let leader = cluster.leader().await;
    // Counters are shown by a timer: there is no event to wait for.
    tokio::time::sleep(SHOWN.saturating_sub(started.elapsed())).await;
    let process: Option<&Process> = cluster.coordinators[leader].as_ref();
    Memory::of(process.expect("the leader runs")).await
}
