//! One accepted connection, plain or TLS, and what calls may know of it.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Bytes with which every HTTP/2 client begins.
const PREFACE: usize = 24;

/// A connection that was accepted; it has its seat until it ends.
pub struct Connection {
    io: Io,
    origin: Origin,
    /// What is missing of the client's first bytes, and until when.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
    _seat: OwnedSemaphorePermit,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where a call comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The other end.
    pub address: SocketAddr,
    /// It showed a certificate of the cluster's authority.
    pub certified: bool,
}

impl Connection {
    /// Without TLS. `greeting` bounds the wait for the first bytes.
    pub fn plain(
        stream: TcpStream,
        address: SocketAddr,
        seat: OwnedSemaphorePermit,
        greeting: Duration,
    ) -> Self {
        let _ = stream.set_nodelay(true);
        Self::new(Io::Plain(stream), address, false, seat, greeting)
    }

    /// With TLS, after its handshake.
    pub fn tls(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        seat: OwnedSemaphorePermit,
        greeting: Duration,
    ) -> Self {
        let certified = stream.get_ref().1.peer_certificates().is_some();
        Self::new(
            Io::Tls(Box::new(stream)),
            address,
            certified,
            seat,
            greeting,
        )
    }

    fn new(
        io: Io,
        address: SocketAddr,
        certified: bool,
        seat: OwnedSemaphorePermit,
        greeting: Duration,
    ) -> Self {
        Self {
            io,
            origin: Origin { address, certified },
            awaited: Some((PREFACE, Box::pin(tokio::time::sleep(greeting)))),
            _seat: seat,
        }
    }

    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream),
            Io::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

/// What both kinds are.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some((_, until)) = &mut this.awaited
            && until.as_mut().poll(cx).is_ready()
        {
            let slow = "the client did not begin to speak HTTP/2 in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, slow)));
        }
        let before = buffer.filled().len();
        ready!(this.stream().poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        if let Some((missing, _)) = &mut this.awaited {
            *missing = missing.saturating_sub(read);
            if *missing == 0 {
                this.awaited = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().stream().poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_shutdown(cx)
    }
}
