//! Members that answer each other, and not as members do: which setting is to be compared.

use std::{error::Error, time::Duration};

use conclave_credentials::Misfit;
use conclave_proto::v1::IdentifyResponse;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, ConnectError, Status};

use super::Network;
use crate::auth::{Reason, refusals::HEADER};

/// How long a port may take to say what it speaks.
const SPEAKS: Duration = Duration::from_millis(500);
/// With what every client of HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a TLS alert, and of a handshake's message.
const TLS_RECORDS: [u8; 2] = [21, 22];

impl Network {
    /// Why nothing came of a question to the member at `address`, as an operator has to hear it; `None`: it does
    /// not answer, as far as this node can know.
    pub async fn estranged(&self, address: &str, refusal: &Status) -> Option<String> {
        if let Some(advice) = refused(refusal) {
            return Some(advice.to_owned());
        }
        let cause = refusal.source()?;
        if self.dial.is_tls() {
            return by_tls(cause);
        }
        if is::<ConnectError>(cause) || refusal.code() == Code::Cancelled {
            return None;
        }
        speaks_tls(address).await.then(|| {
            "it speaks TLS, and this node has no [tls] in its settings: all members have it, or none"
                .to_owned()
        })
    }
}

/// What to do about a refusal for who this node is.
pub fn refused(refusal: &Status) -> Option<&'static str> {
    if !matches!(
        refusal.code(),
        Code::Unauthenticated | Code::PermissionDenied
    ) {
        return None;
    }
    let reason = refusal.metadata().get(HEADER);
    let reason = reason.and_then(|reason| reason.to_str().ok());
    Some(match reason.map(Reason::named) {
        Some(Reason::NoToken) => {
            "it asks for a token, and this node is `open`: give it the tokens_file that the others have"
        }
        Some(Reason::NoCertificate) => {
            "it asks for a certificate of the cluster's authority: compare [tls] with the other members'"
        }
        Some(Reason::Role) => {
            "it takes this node's token for another role's: its line in tokens_file must say `peer` at every \
             member"
        }
        _ => {
            "it does not know this node's token: the line of role `peer` in tokens_file must be the same at \
             every member"
        }
    })
}

/// What a member of another cluster is told from here: this node's began anew as that one, or they never met.
pub fn other_cluster(found: &IdentifyResponse, mine: &str) -> Option<String> {
    let theirs = found.cluster_id.as_str();
    if theirs.is_empty() || theirs == mine {
        return None;
    }
    Some(match found.came_from.iter().any(|before| before == mine) {
        true => begun_anew(mine, theirs),
        false => format!("it belongs to cluster {theirs}, not to {mine}"),
    })
}

/// What a member of `past` is to do now that `now` came out of it.
pub fn begun_anew(past: &str, now: &str) -> String {
    format!(
        "cluster {past} began anew as {now} (recovered, or restored), and what is left of it has no part in \
         that: stop the old member, empty its data folder, and add it to {now} with `conclave cluster add`"
    )
}

fn by_tls(cause: &(dyn Error + 'static)) -> Option<String> {
    let why = match Misfit::of(cause)? {
        Misfit::NoTls => {
            "it speaks no TLS, and this node has [tls] in its settings: all members have it, or none"
        }
        Misfit::NotPlain => "it speaks no gRPC",
        Misfit::Issuer | Misfit::Name | Misfit::Dates | Misfit::Certificate => {
            "this node does not believe its certificate: compare ca_file and server_name in [tls], and look \
             whether the certificate has ended"
        }
        Misfit::NoneShown | Misfit::Shown => {
            "it does not believe this node's certificate: compare cert_file and ca_file in [tls]"
        }
    };
    Some(why.to_owned())
}

fn is<E: Error + 'static>(cause: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(cause), |&error| error.source()).any(|error| error.is::<E>())
}

/// Whether what listens there answers HTTP/2's first words with a record of TLS.
async fn speaks_tls(address: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(PREFACE).await.ok()?;
        stream.read_u8().await.ok()
    };
    let first = timeout(SPEAKS, ask).await;
    matches!(first, Ok(Some(byte)) if TLS_RECORDS.contains(&byte))
}
