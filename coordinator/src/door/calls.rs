//! Round every call: the door's own word on the connection; no message is awaited of one who is not known, nor of
//! anybody for ever; and a look at who was refused.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{
    Status,
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, HeaderValue, Request, Response},
    },
    metadata::MetadataMap,
};
use tower::Layer;

use super::{
    Origin,
    body::{PATIENCE, Timely, seated},
    deadline,
};
use crate::api::convert;
use crate::auth::{
    Auth, CERTIFIED,
    refusals::{HEADER, Reason, Refusals},
};

/// `grpc-status` of PERMISSION_DENIED and of UNAUTHENTICATED.
const REFUSED: [&str; 2] = ["7", "16"];

/// Our own services, whose every call needs a caller that is known.
const OURS: &str = "/conclave.";
/// Calls of many messages: they last.
const STREAMED: [&str; 4] = [
    "/conclave.v1.Raft/Messages",
    "/conclave.v1.Workers/Session",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// An answer without an end, for which nobody need be known.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
/// So many of them at once.
const HEALTH_WATCHES: usize = 8_192;
/// When to come again, where there is no room.
const FULL: Duration = Duration::from_secs(5);

/// Puts [`Calls`] round a service.
#[derive(Clone)]
pub struct CallsLayer {
    auth: Auth,
    refusals: Refusals,
    /// Room for those who watch this node's health.
    health: Arc<Semaphore>,
}

impl CallsLayer {
    /// Who is known, and where refusals are told.
    pub fn new(auth: Auth, refusals: Refusals) -> Self {
        Self {
            auth,
            refusals,
            health: Arc::new(Semaphore::new(HEALTH_WATCHES)),
        }
    }
}

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        let (auth, refusals) = (self.auth.clone(), self.refusals.clone());
        Calls {
            inner,
            auth,
            refusals,
            health: self.health.clone(),
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    auth: Auth,
    refusals: Refusals,
    health: Arc<Semaphore>,
}

impl<S> Calls<S> {
    /// A seat for an answer that lasts, where one is needed.
    fn seat(&self, path: &str) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if path != HEALTH_WATCH {
            return Ok(None);
        }
        self.health
            .clone()
            .try_acquire_owned()
            .map(Some)
            .map_err(|_| {
                let text = format!(
                    "{HEALTH_WATCHES} watch this node's health, the most there may: use Check"
                );
                convert::exhausted(text, FULL)
            })
    }

    /// Who is not known is told so before the message is awaited, which would take memory.
    fn known(&self, request: &Request<Body>) -> Result<(), Status> {
        if !request.uri().path().starts_with(OURS) {
            return Ok(());
        }
        let metadata = MetadataMap::from_headers(request.headers().clone());
        self.auth.caller(&metadata).map(drop)
    }
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let origin = request.extensions().get::<Origin>().copied();
        // What a caller says of itself counts for nothing.
        request.headers_mut().remove(CERTIFIED);
        if origin.is_some_and(|origin| origin.certified) {
            let yes = HeaderValue::from_static("true");
            request.headers_mut().insert(CERTIFIED, yes);
        }
        let uri = request.uri().clone();
        let begun = self.known(&request).and_then(|()| {
            let clock = deadline::clock(deadline::asked(request.headers())?);
            Ok((self.seat(uri.path())?, clock))
        });
        let answer = begun.map(|(seat, clock)| {
            let streamed = STREAMED.contains(&uri.path());
            let timely = |body| Body::new(Timely::new(body, PATIENCE));
            let answer = self.inner.call(match streamed {
                true => request,
                false => request.map(timely),
            });
            (deadline::within(clock, answer), seat)
        });
        let refusals = self.refusals.clone();
        Box::pin(async move {
            let answer = match answer {
                Ok((answer, seat)) => match (answer.await, seat) {
                    (Ok(answer), None) => answer?,
                    (Ok(answer), Some(seat)) => answer?.map(|body| seated(body, seat)),
                    (Err(late), _) => late.into_http(),
                },
                Err(refusal) => refusal.into_http(),
            };
            if let Some(reason) = refused(answer.headers()) {
                let from = origin.map(|origin| origin.address);
                refusals.note(reason, from, method(uri.path()));
            }
            Ok(answer)
        })
    }
}

/// Why a call was refused, if it was for who called.
fn refused(headers: &HeaderMap) -> Option<Reason> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let refused = REFUSED.contains(&text("grpc-status")?);
    refused.then(|| text(HEADER).map_or(Reason::Other, Reason::named))
}

/// A path as the log may have it: a caller chose it.
fn method(path: &str) -> &str {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_');
    match path.len() <= 100 && path.chars().all(plain) {
        true => path,
        false => "an unknown method",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_of_the_caller_are_noted() {
        let answer = |status: Status| status.into_http::<()>();
        let role = answer(Reason::Role.status("no"));
        assert_eq!(refused(role.headers()), Some(Reason::Role));
        let other = answer(Status::permission_denied("no"));
        assert_eq!(refused(other.headers()), Some(Reason::Other));
        for status in [Status::not_found("no"), Status::ok("")] {
            assert_eq!(refused(answer(status).headers()), None);
        }
    }

    #[test]
    fn a_path_that_is_no_method_is_not_repeated() {
        assert_eq!(
            method("/conclave.v1.Audit/ExportJob"),
            "/conclave.v1.Audit/ExportJob"
        );
        assert_eq!(method("/a?token=secret"), "an unknown method");
        assert_eq!(method(&"a".repeat(101)), "an unknown method");
    }
}
