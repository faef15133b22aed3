//! The same death, of etcd's leader.

use std::time::{Duration, Instant};

pub use conclave_tests::etcd::Etcd;
use conclave_tests::etcd::{channel, put};
use tokio::time::timeout;

use super::{PAUSE, TRY};

const PATIENCE: Duration = Duration::from_secs(60);

/// SIGKILL to the leader; returns the time from there to the next put that a client gets answered
/// which tries the other two in turn, over connections that it had before.
pub async fn kill_leader(etcd: &mut Etcd, round: usize) -> Duration {
    let (leader, others) = etcd.leader().await;
    let addresses: Vec<String> = others.iter().map(|index| etcd.address(*index)).collect();
    let channels: Vec<_> = addresses.iter().map(|address| channel(address)).collect();
    let value = || b"o".to_vec();
    for other in &channels {
        let warm = put(other, "warm".into(), value()).await;
        warm.expect("a put before the kill");
    }
    let key = format!("{round:04}");
    let started = Instant::now();
    etcd.kill(leader);
    for other in channels.iter().cycle() {
        assert!(started.elapsed() < PATIENCE, "etcd takes no puts");
        if let Ok(Ok(())) = timeout(TRY, put(other, key.clone(), value())).await {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let took = started.elapsed();
    etcd.start_again(leader).await;
    took
}
