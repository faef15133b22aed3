//! One connection to one coordinator, from the dial to its end.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use conclave_credentials::{Dial, Watched};
use conclave_proto::v1::workers_client::WorkersClient;
use conclave_proto::v1::{CoordinatorMessage, Hello, RefusedFile, WorkerMessage, worker_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status, Streaming};

use crate::error::chain;

/// Messages that wait for the link. What waits longer waits in the desk, where it is merged.
const OUTBOUND: usize = 16;

/// The longest message in either direction, bytes: a hello with its results, a start with its
/// conversation.
const MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The address makes no URL.
    #[error("{address} is no address: {source}")]
    Address {
        /// As given.
        address: String,
        /// What the parser says.
        source: tonic::transport::Error,
    },
    /// Nobody answers there.
    #[error("{address} does not answer: {}", chain(.source))]
    Unreachable {
        /// Who was dialed.
        address: String,
        /// What the transport says.
        source: tonic::transport::Error,
    },
    /// It answers, and not with a session.
    #[error("{address} {}", refusal(.status))]
    Refused {
        /// Who was dialed.
        address: String,
        /// Its words.
        status: Box<Status>,
    },
    /// The time for a dial is over.
    #[error("{address} gave no session within {waited:?}")]
    Timeout {
        /// Who was dialed.
        address: String,
        /// The bound.
        waited: Duration,
    },
}

impl LinkError {
    /// The coordinator refuses who we are: no later try goes better until an operator acts.
    pub fn is_token(&self) -> bool {
        let Self::Refused { status, .. } = self else {
            return false;
        };
        matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied
        )
    }
}

/// A refusal in its own words; or, where no coordinator said anything, why the connection broke.
fn refusal(status: &Status) -> String {
    match status.source() {
        None => format!("refuses the session: {}", status.message()),
        Some(cause) => format!("gave no session: {}", chain(cause)),
    }
}

/// How links are made.
#[derive(Clone)]
pub struct Dialer {
    /// How connections are opened.
    pub dial: Dial,
    /// Shown as `authorization`.
    pub token: Arc<Watched<Option<MetadataValue<Ascii>>>>,
    /// Bound of a whole dial.
    pub timeout: Duration,
    /// HTTP/2 pings are sent this often, with or without traffic.
    pub keepalive: Duration,
    /// A ping without an answer for so long ends the link.
    pub silence: Duration,
}

/// An open stream. The coordinator has not welcomed us yet.
pub struct Link {
    /// Who is at the other end.
    pub address: String,
    /// To it.
    pub outbound: mpsc::Sender<WorkerMessage>,
    /// From it.
    pub inbound: Streaming<CoordinatorMessage>,
}

impl Dialer {
    /// Files that changed and cannot be used as they are, each with its setting.
    pub fn refused_files(&self) -> Vec<RefusedFile> {
        let found = [
            ("token_file", self.token.refused()),
            ("[tls]", self.dial.refused()),
        ];
        let found = found
            .into_iter()
            .filter_map(|(setting, refused)| Some((setting, refused?)));
        found
            .map(|(setting, refused)| RefusedFile {
                setting: setting.to_owned(),
                paths: refused.paths(),
                why: refused.why,
            })
            .collect()
    }

    /// Dials and says hello.
    ///
    /// # Errors
    /// [`LinkError`]; within the dialer's timeout.
    pub async fn dial(self, address: String, hello: Hello) -> Result<Link, LinkError> {
        let waited = self.timeout;
        let name = address.clone();
        match tokio::time::timeout(waited, self.open(address, hello)).await {
            Ok(link) => link,
            Err(_elapsed) => Err(LinkError::Timeout {
                address: name,
                waited,
            }),
        }
    }

    async fn open(self, address: String, hello: Hello) -> Result<Link, LinkError> {
        let endpoint = match self.dial.endpoint(&address) {
            Ok(endpoint) => endpoint,
            Err(source) => return Err(LinkError::Address { address, source }),
        };
        let endpoint = endpoint
            .connect_timeout(self.timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keepalive)
            .keep_alive_timeout(self.silence)
            .keep_alive_while_idle(true);
        let channel = match self.dial.now(&endpoint).await {
            Ok(channel) => channel,
            Err(source) => return Err(LinkError::Unreachable { address, source }),
        };
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let hello = WorkerMessage {
            message: Some(worker_message::Message::Hello(hello)),
        };
        // The channel is empty and open: there is room.
        let _sent = outbound.try_send(hello);
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = self.token.now().as_ref() {
            let token = token.clone();
            request.metadata_mut().insert("authorization", token);
        }
        let mut client = WorkersClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        match client.session(request).await {
            Ok(response) => Ok(Link {
                address,
                outbound,
                inbound: response.into_inner(),
            }),
            Err(status) => Err(LinkError::Refused {
                address,
                status: Box::new(status),
            }),
        }
    }
}
