//! What an endpoint's refusal means: whether another may serve the call, what it tells, what to do.
use std::{error::Error as _, time::Duration};

use conclave_credentials::dial::NO_TLS;
use tonic::{Code, Status};

use crate::error::{causes, with_causes};

/// Whether another endpoint, or the same one later, may serve the call.
pub fn may_retry(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => retry_after(status).is_some(),
        // A connection that broke under the call; the peer said nothing.
        Code::Unknown | Code::Cancelled | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

/// How a coordinator without a cluster begins its refusal.
pub const BLANK: &str = "this node belongs to no cluster yet";

/// Whether the node that answered is a member of no cluster.
pub fn is_blank(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().starts_with(BLANK)
}

/// How much an endpoint's answer tells of why the cluster does not serve a call: a leader's
/// refusal more than that there is no leader, that more than a blank node's, and any answer more
/// than none.
pub fn weight(status: &Status) -> u8 {
    match status.code() {
        _ if is_outcome(status, "unknown") => 4,
        Code::ResourceExhausted => 3,
        _ if is_blank(status) => 1,
        Code::DeadlineExceeded => 0,
        _ if status.source().is_some() => 0,
        _ => 2,
    }
}

/// What the reason of a failed plain connection holds, and what to do about it.
const PLAIN: [(&str, &str); 3] = [
    // How a TLS alert reads as HTTP/2.
    ("frame with invalid size", SPEAK_TLS),
    ("broken pipe", MAYBE_TLS),
    ("connection reset", MAYBE_TLS),
];
const SPEAK_TLS: &str = "TLS is spoken there, it seems: name the authority that signed its certificate, --ca FILE (or CONCLAVE_CA).";
const MAYBE_TLS: &str = "If TLS is spoken there, name the authority that signed its certificate, --ca FILE (or CONCLAVE_CA).";

/// The same of a TLS connection.
const TLS: [(&str, &str); 5] = [
    (
        NO_TLS,
        "The endpoint is plain: leave --ca (and CONCLAVE_CA) out, or set [tls] at the coordinator.",
    ),
    (
        "UnknownIssuer",
        "Its certificate is signed by another authority than those in the file of --ca.",
    ),
    (
        "not valid for name",
        "Dial the name that its certificate bears, or say --server-name NAME.",
    ),
    (
        "certificate expired",
        "Its certificate has ended: docs/OPERATIONS.md, \"Rotate certificates\".",
    ),
    (
        "CertificateRequired",
        "It asks for a certificate of yours: --cert FILE and --key FILE.",
    ),
];

/// What to do about a connection that failed for how TLS is spoken or not, if it did for that; `tls`: we did
/// speak it.
pub fn tls_hint(reason: &str, tls: bool) -> Option<&'static str> {
    let known = if tls { &TLS[..] } else { &PLAIN[..] };
    let found = known.iter().find(|(word, _)| reason.contains(word));
    found.map(|(_, hint)| *hint)
}

/// What to do about it; `tls`: the call was to go over TLS.
pub fn hint(status: &Status, tls: bool) -> &'static str {
    if weight(status) == 0
        && let Some(hint) = tls_hint(&reason(status), tls)
    {
        return hint;
    }
    match weight(status) {
        4 => "It may yet take effect: repeat it with the same --key.",
        3 if status.message().contains("disk_reserve_bytes") => {
            "Free space there, or hand leadership to a member with room: `conclave cluster transfer`."
        }
        3 => "Try again later.",
        2 => {
            "The cluster needs a majority of its members: `conclave cluster status` shows who answers. If a majority is lost for good, see docs/OPERATIONS.md, \"A lost quorum\"."
        }
        1 => "No other endpoint answered: start the members, or name one with --endpoint.",
        _ if was_never_sent(status) => {
            "Is a cluster running there? `conclave up` starts a local one; --endpoint names another."
        }
        _ => "`conclave cluster status` shows who answers; --endpoint names another.",
    }
}

/// Whether the call failed before any of it left: nobody listens there.
pub fn was_never_sent(status: &Status) -> bool {
    causes(status.source()).any(|error| error.is::<tonic::ConnectError>())
}

/// The wait that the server asked for.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let value = status.metadata().get("retry-after-ms")?.to_str().ok()?;
    value.parse().ok().map(Duration::from_millis)
}

/// What the server says of whether the call was carried out: `unknown`, or `none` where nothing was.
pub fn is_outcome(status: &Status, what: &str) -> bool {
    let outcome = status.metadata().get("outcome");
    outcome.is_some_and(|value| value == what)
}

/// A status with the causes that tonic hides behind "transport error".
pub fn reason(status: &Status) -> String {
    with_causes(status.message(), status.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_about_tls_says_what_to_set_at_this_end() {
        // As the two ends of a mistaken connection were seen to say it.
        let alert = "h2 protocol error: http2 error: transport error: connection error detected: frame with invalid size";
        let plain = tls_hint(alert, false).unwrap();
        assert!(plain.contains("--ca FILE"), "{plain}");
        assert_eq!(tls_hint(alert, true), None);
        let reason = format!("{NO_TLS} (received corrupt message of type InvalidContentType)");
        let over_tls = tls_hint(&reason, true).unwrap();
        assert!(over_tls.contains("leave --ca"), "{over_tls}");
        assert_eq!(tls_hint("connection refused", false), None);
    }
}
