//! The gRPC port: every service, and what the port says of this node's health.

use std::{sync::Arc, time::Duration};

use conclave_credentials::{Material, Watched};
use conclave_proto::v1::{
    audit_server::AuditServer, cluster_server::ClusterServer,
    contemplation_server::ContemplationServer, raft_server::RaftServer,
    workers_server::WorkersServer,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::ENVELOPE;
use crate::{
    api::{
        Api,
        audit::AuditService,
        cluster::ClusterService,
        contemplation::ContemplationService,
        workers::{SESSION_BYTES, WorkersService},
    },
    auth::Refusals,
    door::{Door, calls::CallsLayer},
    node::NodeStatus,
    transport::service::PeerService,
};

/// Period of keepalive pings on every connection, and how long they may go unanswered.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// The longest message to a service that anybody may ask, bytes.
const QUESTION: usize = 16 << 10;
/// Calls that may be on one connection at once, beside its watches: another member passes on those of all its
/// callers.
const CALLS: u32 = 4096;

/// Serves every call on `listener` until `stop`, with TLS if there is something to show.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Watched<Material>>>,
    api: Arc<Api>,
    peers: PeerService,
    stop: CancellationToken,
) {
    let (health, health_service) = tonic_health::server::health_reporter();
    let asked = api.config.reflection;
    let built = (reflection().build_v1(), reflection().build_v1alpha());
    let (reflection, reflection_alpha) = match built {
        (Ok(v1), Ok(alpha)) => (
            asked.then(|| v1.max_decoding_message_size(QUESTION)),
            asked.then(|| alpha.max_decoding_message_size(QUESTION)),
        ),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "the descriptors of this build are broken");
            return;
        }
    };
    let refusals = Refusals::default();
    let most = api.config.max_message_bytes;
    let jobs =
        ContemplationServer::new(ContemplationService(api.clone())).max_decoding_message_size(most);
    let workers = WorkersServer::new(WorkersService(api.clone()))
        .max_decoding_message_size(most.max(SESSION_BYTES));
    let raft = RaftServer::new(peers)
        .max_decoding_message_size(most + ENVELOPE)
        .max_encoding_message_size(most + ENVELOPE);
    let doors = u64::from(api.config.hosted.max(1));
    let watchers = u32::try_from(api.config.max_watchers).unwrap_or(u32::MAX);
    let layer = CallsLayer::new(api.auth.clone(), refusals.clone());
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(CALLS.saturating_add(watchers))
        .layer(layer)
        .add_service(health_service.max_decoding_message_size(QUESTION))
        .add_optional_service(reflection)
        .add_optional_service(reflection_alpha)
        .add_service(jobs)
        .add_service(ClusterServer::new(ClusterService(api.clone())))
        .add_service(AuditServer::new(AuditService(api.clone())))
        .add_service(workers)
        .add_service(raft);
    let (door, incoming) = Door::new(tls, refusals, doors);
    let accept = door.run(listener, stop.clone());
    let report = report_health(health, api.node.status());
    let served = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    tokio::select! {
        result = served => if let Err(error) = result {
            tracing::error!(%error, "the gRPC listener ended");
        },
        () = report => {}
        () = accept => {}
    }
}

/// What both versions of `grpc.reflection` tell: v1, and v1alpha, which is all
/// that many clients speak.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(conclave_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// `grpc.health.v1`: serving once this replica has caught up with a leader. A node that leaves ends the streams
/// of those that watch it: a drain would wait for them.
async fn report_health(
    mut health: tonic_health::server::HealthReporter,
    mut status: watch::Receiver<NodeStatus>,
) {
    type Jobs = ContemplationServer<ContemplationService>;
    let names = ["", <Jobs as tonic::server::NamedService>::NAME];
    loop {
        let (ready, leaving) = {
            let now = status.borrow_and_update();
            (now.unready().is_none(), now.leaving)
        };
        let word = if ready {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        for name in names {
            health.set_service_status(name, word).await;
        }
        // Or the node is gone, and the sockets close by themselves.
        if leaving || status.changed().await.is_err() {
            break;
        }
    }
    for name in names {
        let gone = tonic_health::ServingStatus::NotServing;
        health.set_service_status(name, gone).await;
        health.clear_service_status(name).await;
    }
    std::future::pending::<()>().await;
}
