//! The gRPC port: who gets a connection. TLS handshakes run side by side, so many at a time and so long at
//! most: a client that never ends one holds up nobody.

pub mod body;
pub mod calls;
mod connection;
pub mod deadline;
mod descriptors;

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use conclave_credentials::{Material, Watched};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::auth::{Reason, Refusals};
pub use connection::{Connection, Origin};

/// How long a client may take for TLS, and again until its first bytes of HTTP/2 are here.
const GREETING: Duration = Duration::from_secs(5);
/// Handshakes under way at most; one more ends the oldest.
const HANDSHAKES: usize = 256;
/// Connections at most; fewer where the process may open few files.
const CONNECTIONS: usize = 32_768;
/// Connections that wait to be served.
const READY: usize = 64;
/// The wait after the system gave no connection: it has no more descriptors, as a rule.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);

/// Accepts connections.
pub struct Door {
    tls: Option<Arc<Watched<Material>>>,
    refusals: Refusals,
    seats: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Connection>>,
    /// Handshakes under way, the oldest first.
    greeted: VecDeque<(AbortHandle, SocketAddr)>,
}

impl Door {
    /// A door and the connections that come through it: with TLS, if there is something to show. It is one of
    /// `doors` of this process, which share its descriptors.
    pub fn new(
        tls: Option<Arc<Watched<Material>>>,
        refusals: Refusals,
        doors: u64,
    ) -> (Self, ReceiverStream<io::Result<Connection>>) {
        let (ready, connections) = mpsc::channel(READY);
        let door = Self {
            tls,
            refusals,
            seats: Arc::new(Semaphore::new(descriptors::seats(
                descriptors::raise(),
                doors,
                CONNECTIONS,
            ))),
            ready,
            greeted: VecDeque::new(),
        };
        (door, ReceiverStream::new(connections))
    }

    /// Accepts on `listener` until `stop`. Never ends, so that the port is held as long as this is: one
    /// that refuses says that its node is gone, and calls may still be under way.
    pub async fn run(mut self, listener: TcpListener, stop: CancellationToken) {
        stop.run_until_cancelled(self.accept(&listener)).await;
        std::future::pending::<()>().await;
    }

    async fn accept(&mut self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.greet(stream, from),
                // The client went before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                }
            }
        }
    }

    /// Begins with a client, in a task of its own.
    fn greet(&mut self, stream: TcpStream, from: SocketAddr) {
        let Ok(seat) = self.seats.clone().try_acquire_owned() else {
            self.refusals.note(Reason::Full, Some(from), "connection");
            return;
        };
        if self.greeted.len() >= HANDSHAKES {
            self.greeted.retain(|(task, _)| !task.is_finished());
        }
        if self.greeted.len() >= HANDSHAKES
            && let Some((oldest, from)) = self.greeted.pop_front()
        {
            oldest.abort();
            self.refusals.note(
                Reason::Slow,
                Some(from),
                "TLS handshake, the oldest of too many",
            );
        }
        let (ready, refusals) = (self.ready.clone(), self.refusals.clone());
        // As of now: a certificate that was renewed holds from the next connection on.
        let config = self.tls.as_ref().and_then(|tls| tls.now().server.clone());
        let greeting = async move {
            let connection = match config {
                None => Some(Connection::plain(stream, from, seat, GREETING)),
                Some(config) => {
                    handshake(TlsAcceptor::from(config), stream, from, seat, &refusals).await
                }
            };
            if let Some(connection) = connection {
                let _ = ready.send(Ok(connection)).await;
            }
        };
        let task = tokio::spawn(greeting).abort_handle();
        self.greeted.push_back((task, from));
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    seat: OwnedSemaphorePermit,
    refusals: &Refusals,
) -> Option<Connection> {
    let _ = stream.set_nodelay(true);
    let (reason, what) = match tokio::time::timeout(GREETING, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(Connection::tls(stream, from, seat, GREETING)),
        // A probe that looks whether the port is open, or a client that gave up.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return None,
        Ok(Err(error)) => (failed(&error), error.to_string()),
        Err(_) => (Reason::Slow, "TLS handshake".to_owned()),
    };
    refusals.note(reason, Some(from), &what);
    None
}

/// Why a handshake failed.
fn failed(error: &io::Error) -> Reason {
    use rustls::{Error, InvalidMessage};
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    match error {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Reason::Plaintext,
        Some(Error::InvalidCertificate(_)) => Reason::BadCertificate,
        _ => Reason::Handshake,
    }
}
