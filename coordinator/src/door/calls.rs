//! Round every call: the door's own word on the connection, and a look at who was refused.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tonic::codegen::{
    Service,
    http::{HeaderMap, HeaderValue, Request, Response},
};
use tower::Layer;

use super::Origin;
use crate::auth::{
    CERTIFIED,
    refusals::{HEADER, Reason, Refusals},
};

/// `grpc-status` of PERMISSION_DENIED and of UNAUTHENTICATED.
const REFUSED: [&str; 2] = ["7", "16"];

/// Puts [`Calls`] round a service.
#[derive(Clone)]
pub struct CallsLayer(pub Refusals);

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls {
            inner,
            refusals: self.0.clone(),
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    refusals: Refusals,
}

impl<S, A, B> Service<Request<A>> for Calls<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let origin = request.extensions().get::<Origin>().copied();
        // What a caller says of itself counts for nothing.
        request.headers_mut().remove(CERTIFIED);
        if origin.is_some_and(|origin| origin.certified) {
            let yes = HeaderValue::from_static("true");
            request.headers_mut().insert(CERTIFIED, yes);
        }
        let uri = request.uri().clone();
        let answer = self.inner.call(request);
        let refusals = self.refusals.clone();
        Box::pin(async move {
            let answer = answer.await?;
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
        let answer = |status: tonic::Status| status.into_http::<()>();
        let role = answer(Reason::Role.status("no"));
        assert_eq!(refused(role.headers()), Some(Reason::Role));
        let other = answer(tonic::Status::permission_denied("no"));
        assert_eq!(refused(other.headers()), Some(Reason::Other));
        for status in [tonic::Status::not_found("no"), tonic::Status::ok("")] {
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
