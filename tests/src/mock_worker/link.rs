//! A mock's connection to one coordinator.

use std::time::Duration;

use conclave_proto::v1::worker_message::Message;
use conclave_proto::v1::workers_client::WorkersClient;
use conclave_proto::v1::{CoordinatorMessage, Hello, WorkerMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};

/// A real worker's: bounds of a dial and of the welcome, of pings.
pub(super) const DIAL: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(3);
/// Longest message either way, bytes.
const MESSAGE_BYTES: usize = 16 << 20;
/// Messages that wait for the link.
const OUTBOUND: usize = 16;

/// Both ends of a stream.
pub(super) struct Link {
    pub(super) outbound: mpsc::Sender<WorkerMessage>,
    pub(super) inbound: Streaming<CoordinatorMessage>,
}

/// Dials, and says hello; `None` if that came to nothing.
pub(super) async fn open(address: String, token: Option<String>, hello: Hello) -> Option<Link> {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .ok()?
        .connect_timeout(DIAL)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(SILENCE)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .ok()?;
    let (outbound, messages) = mpsc::channel(OUTBOUND);
    let hello = WorkerMessage {
        message: Some(Message::Hello(hello)),
    };
    outbound.send(hello).await.ok()?;
    let mut request = Request::new(ReceiverStream::new(messages));
    if let Some(token) = token {
        let token = format!("Bearer {token}").parse().ok()?;
        request.metadata_mut().insert("authorization", token);
    }
    let inbound = WorkersClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
        .session(request)
        .await
        .ok()?
        .into_inner();
    Some(Link { outbound, inbound })
}
