//! The span of a `SubmitJob` call: in the caller's trace, if it has one, with a link to the job's; else in the
//! job's own.

use std::time::SystemTime;

use conclave_proto::v1::SubmitJobResponse;
use conclave_traces::{Caller, Kind, Span, SpanId, TraceId, Traces, names, span::unix_nanos};
use tonic::{Response, Status, metadata::MetadataMap};

/// W3C's header.
const TRACEPARENT: &str = "traceparent";
/// As the conventions for RPC have it.
const METHOD: &str = "conclave.v1.Contemplation/SubmitJob";

/// A call under way on the node that took it from the caller.
pub struct Submission {
    traces: Traces,
    caller: Option<Caller>,
    began: SystemTime,
}

impl Submission {
    /// A call with this metadata; `None` if the caller does not keep its trace.
    pub fn begin(traces: &Traces, metadata: &MetadataMap) -> Option<Self> {
        let header = metadata.get(TRACEPARENT).and_then(|v| v.to_str().ok());
        let caller = header.and_then(Caller::parse);
        caller.is_none_or(|caller| caller.sampled).then(|| Self {
            traces: traces.clone(),
            caller,
            began: SystemTime::now(),
        })
    }

    /// The call was answered so.
    pub fn answered(self, answer: &Result<Response<SubmitJobResponse>, Status>) {
        let job = answer.as_ref().ok().map(|response| response.get_ref());
        let trace = job.and_then(|job| TraceId::of_job(&job.job_id));
        if let Some(span) = self.span(trace) {
            let span = match answer {
                Ok(response) => span
                    .with(STATUS, "OK")
                    .with(names::JOB, response.get_ref().job_id.as_str())
                    .with(EXISTING, response.get_ref().existing),
                Err(status) => {
                    let code = code_name(status.code());
                    let span = span.with(STATUS, code);
                    if is_fault(status.code()) {
                        span.failed(code)
                    } else {
                        span
                    }
                }
            };
            self.traces.say(span);
        }
    }

    fn span(&self, job: Option<TraceId>) -> Option<Span> {
        let (began, ended) = (unix_nanos(self.began), unix_nanos(SystemTime::now()));
        let id = SpanId::random().ok()?;
        let span = match (&self.caller, job) {
            (Some(caller), job) => {
                let span = caller.child(id, Kind::Server, METHOD, began, ended);
                match job {
                    Some(job) => span.link(job, SpanId::job(job)),
                    None => span,
                }
            }
            (None, Some(job)) => {
                let kept = self.traces.keeps(job);
                let span = Span::new(job, id, Kind::Server, METHOD, began, ended);
                kept.then(|| span.below(SpanId::job(job)))?
            }
            (None, None) => {
                let own = TraceId::random()
                    .ok()
                    .filter(|own| self.traces.keeps(*own))?;
                Span::new(own, id, Kind::Server, METHOD, began, ended)
            }
        };
        Some(
            span.with("rpc.system.name", "grpc")
                .with("rpc.method", METHOD),
        )
    }
}

/// The call's status.
const STATUS: &str = "rpc.response.status_code";
/// The idempotency key was known.
const EXISTING: &str = "conclave.existing";

/// Codes that are the server's fault, by the conventions; others are the caller's.
fn is_fault(code: tonic::Code) -> bool {
    use tonic::Code as C;
    matches!(
        code,
        C::Unknown
            | C::DeadlineExceeded
            | C::Unimplemented
            | C::Internal
            | C::Unavailable
            | C::DataLoss
    )
}

/// The code's name on the wire of the conventions.
fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code as C;
    match code {
        C::Ok => "OK",
        C::Cancelled => "CANCELLED",
        C::Unknown => "UNKNOWN",
        C::InvalidArgument => "INVALID_ARGUMENT",
        C::DeadlineExceeded => "DEADLINE_EXCEEDED",
        C::NotFound => "NOT_FOUND",
        C::AlreadyExists => "ALREADY_EXISTS",
        C::PermissionDenied => "PERMISSION_DENIED",
        C::ResourceExhausted => "RESOURCE_EXHAUSTED",
        C::FailedPrecondition => "FAILED_PRECONDITION",
        C::Aborted => "ABORTED",
        C::OutOfRange => "OUT_OF_RANGE",
        C::Unimplemented => "UNIMPLEMENTED",
        C::Internal => "INTERNAL",
        C::Unavailable => "UNAVAILABLE",
        C::DataLoss => "DATA_LOSS",
        C::Unauthenticated => "UNAUTHENTICATED",
    }
}
