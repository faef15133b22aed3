//! Connections that a program opens: plain, or TLS with what the files say at that moment.

use std::{io, sync::Arc};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

use crate::{
    material::Material,
    misfit::NO_TLS,
    watched::{Refused, Watched},
};

/// How connections are opened. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Dial(Option<Tls>);

#[derive(Clone, Debug)]
struct Tls {
    material: Arc<Watched<Material>>,
    /// The name that certificates must bear, where it is not the host that is dialled.
    name: Option<ServerName<'static>>,
}

/// A name that no certificate can bear.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is neither a DNS name nor an IP address")]
pub struct BadName(String);

impl Dial {
    /// Without TLS.
    pub fn plain() -> Self {
        Self::default()
    }

    /// With TLS: each connection uses what `material` holds when it is opened. Certificates must bear
    /// `name`, or the host that is dialled.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn tls(material: Arc<Watched<Material>>, name: Option<&str>) -> Result<Self, BadName> {
        let name = name.map(server_name).transpose()?;
        Ok(Self(Some(Tls { material, name })))
    }

    /// Whether connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.0.is_some()
    }

    /// Files of TLS that cannot be used as they are now; `None`: they can, or there are none.
    pub fn refused(&self) -> Option<Refused> {
        self.0.as_ref()?.material.refused()
    }

    /// An endpoint of `address`: `host:port`, or with a scheme before it, which decides nothing.
    ///
    /// # Errors
    /// What the parser says.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
        if self.0.is_none() {
            return Ok(endpoint);
        }
        // Requests name the scheme; proxies look at it.
        let origin: Option<Uri> = format!("https://{authority}").parse().ok();
        Ok(match origin {
            Some(origin) => endpoint.origin(origin),
            None => endpoint,
        })
    }

    /// A channel that connects when it is used, and again when the connection is lost.
    pub fn lazily(&self, endpoint: &Endpoint) -> Channel {
        match &self.0 {
            None => endpoint.connect_lazy(),
            Some(tls) => {
                let tls = tls.clone();
                let nodelay = endpoint.get_tcp_nodelay();
                endpoint.connect_with_connector_lazy(service_fn(move |uri| {
                    tls.clone().open(uri, nodelay)
                }))
            }
        }
    }

    /// Connects now.
    ///
    /// # Errors
    /// What the transport says.
    pub async fn now(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        match &self.0 {
            None => endpoint.connect().await,
            Some(tls) => {
                let tls = tls.clone();
                let nodelay = endpoint.get_tcp_nodelay();
                endpoint
                    .connect_with_connector(service_fn(move |uri| tls.clone().open(uri, nodelay)))
                    .await
            }
        }
    }
}

impl Tls {
    /// TCP, then TLS; the endpoint's own timeout bounds both.
    async fn open(self, uri: Uri, nodelay: bool) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let host = uri.host().ok_or_else(|| wrong("no host to dial"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().ok_or_else(|| wrong("no port to dial"))?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(|bad| wrong(&bad.to_string()))?,
        };
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(nodelay)?;
        let config = self.material.now().client.clone();
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(in_words)?;
        Ok(TokioIo::new(stream))
    }
}

/// A peer that answers a handshake with anything else speaks no TLS, most likely.
fn in_words(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|e| e.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidMessage(_)) => {
            io::Error::new(error.kind(), format!("{NO_TLS} ({error})"))
        }
        _ => error,
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, BadName> {
    ServerName::try_from(text.to_owned()).map_err(|_| BadName(text.to_owned()))
}
