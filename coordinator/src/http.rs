//! `/metrics`, `/healthz` and `/readyz`.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use conclave_probes::Probed;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::node::{NodeRole, NodeStatus};

/// A member that finds no leader for so long is ready all the same: no readiness of its own would bring
/// one, and a rollout that waits for it would never bring the member that is missing.
const LEADERLESS: Duration = Duration::from_secs(30);

/// What the port says of a node.
struct View {
    status: watch::Receiver<NodeStatus>,
    readiness: Arc<Mutex<Readiness>>,
}

/// What `/readyz` said before.
#[derive(Debug, Default)]
struct Readiness {
    /// It was caught up once in this process.
    once: bool,
    leaderless_since: Option<Instant>,
}

impl Readiness {
    /// Why this replica is not ready; `None` if it is. A member that was ready stays so without a leader:
    /// it is not its fault, and to a supervisor all members would break at once. `grpc.health.v1` tells
    /// clients what holds at the moment.
    fn look(&mut self, status: &NodeStatus, now: Instant) -> Option<String> {
        let Some(why) = status.unready() else {
            (self.once, self.leaderless_since) = (true, None);
            return None;
        };
        let outside = matches!(status.role, NodeRole::Blank | NodeRole::Removed);
        let broken = status.stopped.is_some() || status.leaving || status.stuck;
        if outside || broken || !status.leaderless() {
            self.leaderless_since = None;
            return Some(why);
        }
        let since = *self.leaderless_since.get_or_insert(now);
        let long = now.duration_since(since) >= LEADERLESS;
        (!self.once && !long).then_some(why)
    }
}

/// Serves on `listener` until `stop`, what the node says of itself.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    status: watch::Receiver<NodeStatus>,
    stop: CancellationToken,
) {
    let view = View::new(status.clone());
    let readiness = Arc::clone(&view.readiness);
    let served = conclave_probes::serve(listener, metrics, view, stop.clone());
    tokio::join!(
        served,
        stop.run_until_cancelled(remember(readiness, status))
    );
}

/// Looks at every change, so that readiness does not hang on when somebody asks: a member that was caught up
/// before its leader went is ready, also where nobody asked until then.
async fn remember(readiness: Arc<Mutex<Readiness>>, mut status: watch::Receiver<NodeStatus>) {
    loop {
        let now = status.borrow_and_update().clone();
        lock(&readiness).look(&now, Instant::now());
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn lock(readiness: &Mutex<Readiness>) -> MutexGuard<'_, Readiness> {
    readiness.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Binds the socket.
///
/// # Errors
/// What the system says, with the address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
}

impl View {
    /// Of the node that says this of itself.
    fn new(status: watch::Receiver<NodeStatus>) -> Self {
        Self {
            status,
            readiness: Arc::default(),
        }
    }
}

impl Probed for View {
    /// Alive as long as the node's loop runs.
    fn healthy(&self) -> Result<String, String> {
        if self.status.has_changed().is_err() {
            // The disk failed under the loop (law 11): its thread is gone.
            return Err("the node's thread ended".to_owned());
        }
        match &self.status.borrow().stopped {
            None => Ok("ok".to_owned()),
            Some(why) => Err(format!("the node stopped: {why}")),
        }
    }

    /// Ready once this replica has caught up with a leader that it knows; see [`Readiness::look`].
    fn ready(&self) -> Result<String, String> {
        let status = self.status.borrow().clone();
        match lock(&self.readiness).look(&status, Instant::now()) {
            None if status.leaderless() => Ok("ready, without a leader".to_owned()),
            None => Ok("ready".to_owned()),
            Some(why) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::node::MemberInfo;

    fn caught_up() -> NodeStatus {
        NodeStatus {
            role: NodeRole::Follower,
            leader_id: 1,
            commit: 5,
            applied: 5,
            members: BTreeMap::from([(1, MemberInfo::default())]),
            ..NodeStatus::default()
        }
    }

    fn without_leader() -> NodeStatus {
        NodeStatus {
            leader_id: 0,
            ..caught_up()
        }
    }

    #[test]
    fn losing_the_quorum_does_not_clear_readiness_and_its_own_faults_do() {
        let (mut readiness, now) = (Readiness::default(), Instant::now());
        assert_eq!(readiness.look(&caught_up(), now), None);
        assert_eq!(readiness.look(&without_leader(), now), None);
        let unheard = NodeStatus {
            cut_off: Some("a test".to_owned()),
            ..caught_up()
        };
        assert_eq!(readiness.look(&unheard, now), None, "it hears a leader");
        for fault in [
            |s: &mut NodeStatus| s.stuck = true,
            |s: &mut NodeStatus| s.leaving = true,
            |s: &mut NodeStatus| s.stopped = Some("a test".to_owned()),
            |s: &mut NodeStatus| s.role = NodeRole::Removed,
        ] {
            let mut status = without_leader();
            fault(&mut status);
            assert!(readiness.look(&status, now).is_some(), "{status:?}");
        }
    }

    #[tokio::test]
    async fn a_member_that_nobody_asked_is_ready_without_a_leader_too() {
        let status = watch::Sender::new(NodeStatus::default());
        let view = View::new(status.subscribe());
        let readiness = Arc::clone(&view.readiness);
        let looking = tokio::spawn(remember(Arc::clone(&readiness), status.subscribe()));
        status.send_replace(caught_up());
        let seen = async {
            while !lock(&readiness).once {
                tokio::task::yield_now().await;
            }
        };
        let within = Duration::from_secs(10);
        tokio::time::timeout(within, seen).await.unwrap();
        status.send_replace(without_leader());
        assert_eq!(view.ready(), Ok("ready, without a leader".to_owned()));
        drop(status);
        looking.await.unwrap();
    }

    #[test]
    fn a_start_without_a_leader_is_ready_after_a_while_and_a_blank_node_never() {
        let (mut readiness, start) = (Readiness::default(), Instant::now());
        let nearly = start + LEADERLESS - Duration::from_millis(1);
        assert!(readiness.look(&without_leader(), start).is_some());
        assert!(readiness.look(&without_leader(), nearly).is_some());
        assert_eq!(readiness.look(&without_leader(), start + LEADERLESS), None);
        let blank = NodeStatus::default();
        assert!(readiness.look(&blank, start).is_some());
        assert!(readiness.look(&blank, start + LEADERLESS * 9).is_some());
    }

    #[test]
    fn one_that_has_a_leader_to_catch_up_with_is_not_ready_before() {
        let (mut readiness, now) = (Readiness::default(), Instant::now());
        let behind = NodeStatus {
            applied: 4,
            ..caught_up()
        };
        assert!(readiness.look(&without_leader(), now).is_some());
        assert!(readiness.look(&behind, now + LEADERLESS).is_some());
        let later = now + LEADERLESS * 2;
        assert!(readiness.look(&without_leader(), later).is_some());
    }
}
