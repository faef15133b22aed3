//! Why two ends never come to speak: no later try goes better until somebody changes a setting or a file.

use std::{error::Error, iter::successors};

/// How an error begins where the peer speaks no TLS.
pub const NO_TLS: &str = "no TLS is spoken there";

/// What stands between two ends that reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// This end is plain, and the other speaks TLS, or no gRPC at all.
    NotPlain,
    /// This end speaks TLS, and the other does not.
    NoTls,
    /// The other's certificate is signed by none of the authorities that are believed here.
    Issuer,
    /// It bears another name than the one that was dialled.
    Name,
    /// It has ended, or has not begun.
    Dates,
    /// Something else is wrong with it.
    Certificate,
    /// The other asks for a certificate, and none was shown.
    NoneShown,
    /// The other does not take the certificate that it was shown.
    Shown,
}

/// What an error holds, and what that tells. The first that is found counts.
const WORDS: [(&str, Misfit); 12] = [
    // How a TLS alert, or an answer of HTTP/1, reads as HTTP/2.
    ("frame with invalid size", Misfit::NotPlain),
    (NO_TLS, Misfit::NoTls),
    ("UnknownIssuer", Misfit::Issuer),
    ("not valid for name", Misfit::Name),
    ("certificate expired", Misfit::Dates),
    ("certificate not valid yet", Misfit::Dates),
    ("invalid peer certificate", Misfit::Certificate),
    ("alert: CertificateRequired", Misfit::NoneShown),
    ("alert: UnknownCA", Misfit::Shown),
    ("alert: BadCertificate", Misfit::Shown),
    ("alert: CertificateExpired", Misfit::Shown),
    ("alert: CertificateUnknown", Misfit::Shown),
];

impl Misfit {
    /// What the words of an error, those of its causes among them, tell.
    pub fn told(words: &str) -> Option<Self> {
        let found = WORDS.iter().find(|(word, _)| words.contains(word));
        found.map(|(_, misfit)| *misfit)
    }

    /// What an error or one of its causes tells.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        successors(Some(error), |&error| error.source()).find_map(|e| Self::told(&e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_misfit_is_found_behind_what_hides_it_and_nowhere_else() {
        #[derive(Debug, thiserror::Error)]
        #[error("transport error")]
        struct Hides(#[source] io::Error);
        let of = |why: &str| Misfit::of(&Hides(io::Error::other(why.to_owned())));
        // As the two ends of a mistaken connection were seen to say it.
        for (why, misfit) in [
            (
                "connection error detected: frame with invalid size",
                Misfit::NotPlain,
            ),
            (
                "no TLS is spoken there (received corrupt message of type InvalidContentType)",
                Misfit::NoTls,
            ),
            ("invalid peer certificate: UnknownIssuer", Misfit::Issuer),
            (
                "invalid peer certificate: certificate not valid for name \"a\"; certificate is only valid for b",
                Misfit::Name,
            ),
            (
                "invalid peer certificate: certificate expired: verification time 9 (UNIX)",
                Misfit::Dates,
            ),
            (
                "invalid peer certificate: BadSignature",
                Misfit::Certificate,
            ),
            (
                "received fatal alert: CertificateRequired",
                Misfit::NoneShown,
            ),
            ("received fatal alert: UnknownCA", Misfit::Shown),
        ] {
            assert_eq!(of(why), Some(misfit), "{why}");
        }
        for passes in ["connection refused", "broken pipe", "deadline has elapsed"] {
            assert_eq!(of(passes), None, "{passes}");
        }
    }
}
