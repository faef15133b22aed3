//! What an endpoint's refusal means: whether another may serve the call, what it tells, what to do.
use std::{error::Error as _, time::Duration};

use conclave_credentials::Misfit;
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
/// refusal more than that there is no leader, that more than a blank node's or that the two ends do not
/// fit, and any answer more than none.
pub fn weight(status: &Status) -> u8 {
    match status.code() {
        _ if is_outcome(status, "unknown") => 4,
        Code::ResourceExhausted => 3,
        _ if is_blank(status) || is_misfit(status) => 1,
        Code::DeadlineExceeded => 0,
        _ if status.source().is_some() => 0,
        _ => 2,
    }
}

/// What to do about a misfit; `tls`: we spoke it.
fn advice(misfit: Misfit, tls: bool) -> &'static str {
    match misfit {
        Misfit::NotPlain if !tls => {
            "TLS is spoken there, it seems: name the authority that signed its certificate, --ca FILE (or CONCLAVE_CA). Or it is no gRPC port: metrics have one of their own."
        }
        Misfit::NotPlain => "It is no gRPC port, it seems: metrics have one of their own.",
        Misfit::NoTls => {
            "The endpoint is plain: leave --ca (and CONCLAVE_CA) out, or set [tls] at the coordinator."
        }
        Misfit::Issuer => {
            "Its certificate is signed by another authority than those in the file of --ca."
        }
        Misfit::Name => "Dial the name that its certificate bears, or say --server-name NAME.",
        Misfit::Dates => {
            "Its certificate has ended, or not begun: docs/OPERATIONS.md, \"Rotate certificates\". Or this machine's clock is wrong."
        }
        Misfit::Certificate => "Its certificate cannot be believed: give the coordinator another.",
        Misfit::NoneShown => {
            "It asks for a certificate of yours: --cert FILE and --key FILE (or CONCLAVE_CERT, CONCLAVE_KEY)."
        }
        Misfit::Shown => "It does not take the certificate in the file of --cert.",
    }
}

/// What the reason of a connection that broke may mean, if it was plain.
const MAYBE_TLS: &str = "If TLS is spoken there, name the authority that signed its certificate, --ca FILE (or CONCLAVE_CA).";

/// What to do about a connection that failed for how TLS is spoken or not, if it did for that; `tls`: we did
/// speak it.
pub fn tls_hint(reason: &str, tls: bool) -> Option<&'static str> {
    if let Some(misfit) = Misfit::told(reason) {
        return Some(advice(misfit, tls));
    }
    // Which of them it is depends on whether its alert, its end or our first words came first.
    let broke = ["broken pipe", "connection reset", "connection closed"];
    let broke = broke.iter().any(|word| reason.contains(word));
    (broke && !tls).then_some(MAYBE_TLS)
}

/// Whether no later try goes better before somebody changes a setting or a file at one of the two ends.
pub fn is_misfit(status: &Status) -> bool {
    status.source().and_then(Misfit::of).is_some()
}

/// How tonic tells of an answer that is no gRPC.
const NO_GRPC: &str = "grpc-status header missing";

/// What to do about a refusal that no later try goes better than: of a token, or by a port that is another's.
pub fn refused_hint(status: &Status) -> Option<&'static str> {
    match status.code() {
        Code::Unauthenticated => Some(
            "Name the file with a token that it knows: --token-file FILE (or set CONCLAVE_TOKEN).",
        ),
        Code::PermissionDenied => {
            Some("Name another token: --token-file FILE (or CONCLAVE_TOKEN).")
        }
        _ if status.message().starts_with(NO_GRPC) => {
            Some("It is no gRPC port, it seems: metrics have one of their own.")
        }
        _ => None,
    }
}

/// What an endpoint that gave no answer to a plain question did instead.
pub fn instead(status: &Status) -> String {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            format!("answers, and refuses this caller: {}", status.message())
        }
        _ => format!("does not answer: {}", reason(status)),
    }
}

/// What to do about it; `tls`: the call was to go over TLS.
pub fn hint(status: &Status, tls: bool) -> &'static str {
    let broke = status.source().is_some();
    if let Some(hint) = tls_hint(&reason(status), tls).filter(|_| broke) {
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
        let no_grpc = tls_hint(alert, true).unwrap();
        assert!(!no_grpc.contains("--ca"), "{no_grpc}");
        let closed = "operation was canceled: transport error: connection closed";
        for broke in ["broken pipe", closed] {
            let hint = tls_hint(broke, false).unwrap();
            assert!(hint.contains("--ca FILE"), "{hint}");
        }
        assert_eq!(tls_hint("broken pipe", true), None);
        let reason = "no TLS is spoken there (received corrupt message of type InvalidContentType)";
        let over_tls = tls_hint(reason, true).unwrap();
        assert!(over_tls.contains("leave --ca"), "{over_tls}");
        assert_eq!(tls_hint("connection refused", false), None);
        let metrics =
            Status::unimplemented("grpc-status header missing, mapped from HTTP status code 404");
        assert!(refused_hint(&metrics).is_some_and(|hint| hint.contains("no gRPC port")));
        assert_eq!(refused_hint(&Status::unimplemented("not here")), None);
    }
}
