//! What a command can end with, and the exit status each end has.
use std::{io, path::PathBuf};

use tonic::{Code, Status};

use crate::refusal::refused_hint;

/// Every way a command can fail. The message names the fix where there is one.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line or an input file says something that cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// No endpoint answered in time.
    #[error("{0}")]
    Unavailable(String),
    /// The cluster answered with a refusal.
    #[error("{call}: {} ({}){}", .status.message(), code_name(.status.code()), below(refused_hint(.status)))]
    Refused {
        /// The RPC that was refused.
        call: &'static str,
        /// Its status, as received.
        status: Box<Status>,
    },
    /// The job ended without an answer.
    #[error("job {job_id} ended {state}{}", ended_because(state, message))]
    JobFailed {
        /// The job.
        job_id: String,
        /// Its final state, lower case.
        state: String,
        /// Why, in the cluster's words.
        message: String,
    },
    /// A check ran and found differences; they are printed already.
    #[error("{0}")]
    Differs(String),
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Standard output is gone or full.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// A part hosted in this process did not start or did not go on.
    #[error("{0}")]
    Hosting(String),
    /// A hosted part did not start: a port in use, a folder or model that cannot be used.
    #[error("{0}")]
    Start(String),
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// A usage error from anything printable.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// Ties an I/O error to the path it happened on.
    pub fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            path: path.into(),
            source,
        }
    }

    /// The process exit status: see `conclave --help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unavailable(_) => 3,
            Self::Refused { status, .. } => match status.code() {
                Code::InvalidArgument
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unimplemented => 2,
                Code::Unavailable
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Cancelled => 3,
                _ => 1,
            },
            Self::JobFailed { .. } | Self::Differs(_) | Self::File { .. } | Self::Hosting(_) => 1,
            // A closed pipe is the reader's decision (`conclave jobs | head`), not a failure.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Output(_) => 1,
            Self::Start(_) => 4,
            Self::Interrupted => 130,
        }
    }

    /// Whether there is anything to say on standard error.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What to do, on a line of its own.
pub fn below(advice: Option<&str>) -> String {
    advice.map_or_else(String::new, |advice| format!("\n  {advice}"))
}

/// `: why`, without saying again that it was cancelled.
fn ended_because(state: &str, message: &str) -> String {
    let message = message
        .strip_prefix(state)
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(message);
    if message == state {
        String::new()
    } else {
        format!(": {message}")
    }
}

/// An error and what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    with_causes(&error.to_string(), error.source())
}

/// `text`, and of `cause` and its causes what it does not say already.
pub fn with_causes(text: &str, cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    causes(cause).fold(text.to_owned(), |text, error| {
        let more = error.to_string();
        if text.contains(&more) {
            text
        } else {
            format!("{text}: {more}")
        }
    })
}

/// `cause`, its cause, and so on.
pub fn causes<'a>(
    cause: Option<&'a (dyn std::error::Error + 'static)>,
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(cause, |error| error.source())
}

/// gRPC's own spelling of a status code.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_help_text() {
        let refused = |status: Status| CliError::Refused {
            call: "X",
            status: Box::new(status),
        };
        assert_eq!(CliError::usage("x").exit_code(), 2);
        assert_eq!(CliError::Unavailable(String::new()).exit_code(), 3);
        assert_eq!(refused(Status::invalid_argument("x")).exit_code(), 2);
        assert_eq!(refused(Status::not_found("x")).exit_code(), 2);
        assert_eq!(refused(Status::failed_precondition("x")).exit_code(), 2);
        assert_eq!(refused(Status::cancelled("Timeout expired")).exit_code(), 3);
        assert_eq!(refused(Status::internal("x")).exit_code(), 1);
        assert_eq!(CliError::Start("port in use".into()).exit_code(), 4);
        assert_eq!(refused(Status::unavailable("x")).exit_code(), 3);
        assert_eq!(CliError::Interrupted.exit_code(), 130);
        let closed = CliError::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!((closed.exit_code(), closed.is_silent()), (0, true));
    }

    #[test]
    fn the_state_is_told_once() {
        let ended = |message: &str| {
            CliError::JobFailed {
                job_id: "j".into(),
                state: "cancelled".into(),
                message: message.into(),
            }
            .to_string()
        };
        assert_eq!(
            ended("cancelled: asked wrong"),
            "job j ended cancelled: asked wrong"
        );
        assert_eq!(ended("cancelled"), "job j ended cancelled");
        assert_eq!(ended("no quorum"), "job j ended cancelled: no quorum");
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Told {
            text: &'static str,
            source: io::Error,
        }
        let told = |text| {
            chain(&Told {
                text,
                source: io::Error::other("disk full"),
            })
        };
        assert_eq!(told("cannot write"), "cannot write: disk full");
        assert_eq!(told("cannot write: disk full"), "cannot write: disk full");
    }

    #[test]
    fn a_refusal_says_call_reason_and_code() {
        let error = CliError::Refused {
            call: "GetJob",
            status: Box::new(Status::not_found("no job x")),
        };
        assert_eq!(error.to_string(), "GetJob: no job x (NOT_FOUND)");
        for refused in [
            Status::unauthenticated("who?"),
            Status::permission_denied("not you"),
        ] {
            let error = CliError::Refused {
                call: "GetJob",
                status: Box::new(refused),
            };
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("--token-file FILE"), "{error}");
        }
    }
}
