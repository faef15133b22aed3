//! Why a worker does not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use conclave_credentials::TlsError;
use conclave_credentials::dial::BadName;
use conclave_credentials::watched::FirstError;

use crate::config::ConfigError;
use crate::device::OpenError;
use crate::model::ModelError;

/// A token that cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("the token holds characters that no header may carry: use visible ASCII")]
pub struct TokenError;

/// Why a worker does not start. The message names what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder that keeps the worker's name.
    #[error("data_dir {path}: {source}; name a folder that can be written", path = .path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file with the token.
    #[error("token_file: {0}")]
    TokenFile(#[from] FirstError<TokenError>),
    /// The token cannot be sent.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The files of `[tls]`.
    #[error("[tls]: {0}")]
    Tls(#[from] FirstError<TlsError>),
    /// A name in `[tls]`.
    #[error("tls.server_name: {0}")]
    Name(#[from] BadName),
    /// Where traces go.
    #[error(transparent)]
    Traces(#[from] conclave_traces::StartError),
    /// Another process listens there.
    #[error(
        "http_listen {address} is in use: end the other process or choose another port (0 takes a free one)"
    )]
    PortInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("http_listen {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// There is no model at this path.
    #[error("no model at {path}: `conclave model pull smollm2-135m` fetches the default one and prints its path", path = .path.display())]
    ModelMissing {
        /// As configured.
        path: PathBuf,
    },
    /// The model cannot be used.
    #[error("model {path}: {source}", path = .path.display())]
    Model {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: ModelError,
    },
    /// Two models of one name.
    #[error("two models are named `{name}`: set another `name` for one of them")]
    ModelTwice {
        /// The name.
        name: String,
    },
    /// The processor lacks what the configuration demands.
    #[error("isa = \"{asked}\" is not what this processor has (it has {has}): use \"auto\"")]
    Isa {
        /// As configured.
        asked: &'static str,
        /// The best there is.
        has: &'static str,
    },
    /// What the model was to be computed on is not there.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// The system gives no thread.
    #[error("the engine's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line.push_str(": ");
        line.push_str(&inner.to_string());
        cause = inner.source();
    }
    line
}
