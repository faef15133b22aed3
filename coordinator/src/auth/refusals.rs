//! Who was refused, and why: counted by reason, and told in the log, so many lines a second at most.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::{Code, Status, metadata::AsciiMetadataValue};

use crate::metrics;

/// Lines a second that the log takes.
const LINES: u32 = 5;
/// The metadata that carries a [`Reason`]: callers see it, and the door counts it.
pub const HEADER: &str = "refusal";

/// Why somebody was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A call without a token.
    NoToken,
    /// A token that is in no file.
    UnknownToken,
    /// A JWT that cannot be read.
    JwtMalformed,
    /// A JWT with an algorithm that its key has not, or that nobody should use.
    JwtAlgorithm,
    /// A JWT of a key that is not known.
    JwtKey,
    /// A JWT whose signature does not fit.
    JwtSignature,
    /// A JWT that is over.
    JwtExpired,
    /// A JWT that does not hold yet.
    JwtEarly,
    /// A JWT of another issuer.
    JwtIssuer,
    /// A JWT for another audience.
    JwtAudience,
    /// A JWT that lacks a claim, its tenant or its role.
    JwtClaims,
    /// A caller whose role may not do this.
    Role,
    /// A worker's or a coordinator's call without a client certificate.
    NoCertificate,
    /// A client that speaks no TLS where TLS is spoken.
    Plaintext,
    /// A client certificate that has ended, or that another authority signed.
    BadCertificate,
    /// Another TLS handshake that failed.
    Handshake,
    /// A connection that did not get as far as a first call in time.
    Slow,
    /// More connections at once than there are seats.
    Full,
    /// A refusal whose reason is no other.
    Other,
}

impl Reason {
    /// Every reason: each counts from the start.
    pub const ALL: [Self; 19] = [
        Self::NoToken,
        Self::UnknownToken,
        Self::JwtMalformed,
        Self::JwtAlgorithm,
        Self::JwtKey,
        Self::JwtSignature,
        Self::JwtExpired,
        Self::JwtEarly,
        Self::JwtIssuer,
        Self::JwtAudience,
        Self::JwtClaims,
        Self::Role,
        Self::NoCertificate,
        Self::Plaintext,
        Self::BadCertificate,
        Self::Handshake,
        Self::Slow,
        Self::Full,
        Self::Other,
    ];

    /// The metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::UnknownToken => "unknown_token",
            Self::JwtMalformed => "jwt_malformed",
            Self::JwtAlgorithm => "jwt_algorithm",
            Self::JwtKey => "jwt_key",
            Self::JwtSignature => "jwt_signature",
            Self::JwtExpired => "jwt_expired",
            Self::JwtEarly => "jwt_early",
            Self::JwtIssuer => "jwt_issuer",
            Self::JwtAudience => "jwt_audience",
            Self::JwtClaims => "jwt_claims",
            Self::Role => "role",
            Self::NoCertificate => "no_certificate",
            Self::Plaintext => "plaintext",
            Self::BadCertificate => "bad_certificate",
            Self::Handshake => "handshake",
            Self::Slow => "slow",
            Self::Full => "full",
            Self::Other => "other",
        }
    }

    /// The reason of this name; another's is [`Reason::Other`].
    pub fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|reason| reason.name() == name);
        found.unwrap_or(Self::Other)
    }

    /// A call's refusal for this reason.
    pub fn status(self, message: impl Into<String>) -> Status {
        let code = match self {
            Self::Role => Code::PermissionDenied,
            _ => Code::Unauthenticated,
        };
        let mut status = Status::new(code, message);
        let reason = AsciiMetadataValue::from_static(self.name());
        status.metadata_mut().insert(HEADER, reason);
        status
    }
}

/// The log of refusals. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<Window>>);

/// A second of the log.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Window {
    /// Whether there is room for a line now; if so, how many found none since the one before.
    fn room(&mut self, now: Instant) -> Option<u64> {
        let over = self
            .began
            .is_none_or(|began| now.duration_since(began) >= Duration::from_secs(1));
        if over {
            (self.began, self.lines) = (Some(now), 0);
        }
        if self.lines >= LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Refusals {
    /// Counts one, and tells of it if there is room. `what` is the method, or what failed: never anything
    /// that a caller may have put a secret into.
    pub fn note(&self, reason: Reason, from: Option<SocketAddr>, what: &str) {
        metrics::not_let_in(reason.name());
        let room = {
            let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            window.room(Instant::now())
        };
        let Some(suppressed) = room else { return };
        let from = from.map(tracing::field::display);
        tracing::warn!(reason = reason.name(), from, what, suppressed, "refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_takes_so_many_lines_a_second_and_counts_the_rest() {
        let mut window = Window::default();
        let begin = Instant::now();
        let told = (0..1_000).filter(|_| window.room(begin).is_some()).count();
        assert_eq!(told, LINES as usize);
        let later = begin + Duration::from_secs(1);
        assert_eq!(window.room(later), Some(1_000 - u64::from(LINES)));
        assert_eq!(window.room(later), Some(0));
    }

    #[test]
    fn a_status_carries_its_reason() {
        for reason in Reason::ALL {
            let status = reason.status("no");
            let carried = status.metadata().get(HEADER).unwrap().to_str().unwrap();
            assert_eq!(Reason::named(carried), reason);
        }
        assert_eq!(Reason::Role.status("no").code(), Code::PermissionDenied);
        assert_eq!(Reason::named("invented"), Reason::Other);
    }
}
