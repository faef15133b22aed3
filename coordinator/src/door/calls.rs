//! Round every call: the door's own word on the connection; no message is awaited of one who is not known, nor of
//! anybody for ever; and a look at who was refused.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

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
    body::{PATIENCE, Timely},
};
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

/// Puts [`Calls`] round a service.
#[derive(Clone)]
pub struct CallsLayer {
    /// Who is known.
    pub auth: Auth,
    /// Where refusals are told.
    pub refusals: Refusals,
}

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        let (auth, refusals) = (self.auth.clone(), self.refusals.clone());
        Calls {
            inner,
            auth,
            refusals,
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    auth: Auth,
    refusals: Refusals,
}

impl<S> Calls<S> {
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
        let answer = self.known(&request).map(|()| {
            let streamed = STREAMED.contains(&uri.path());
            let timely = |body| Body::new(Timely::new(body, PATIENCE));
            self.inner.call(match streamed {
                true => request,
                false => request.map(timely),
            })
        });
        let refusals = self.refusals.clone();
        Box::pin(async move {
            let answer = match answer {
                Ok(answer) => answer.await?,
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
