//! Callers of a cluster that asks for tokens.

use tonic::metadata::AsciiMetadataValue;
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Shows a token with each call; none where everybody may call.
#[derive(Debug, Clone, Default)]
pub struct Bearer(Option<AsciiMetadataValue>);

/// A channel whose calls show a token.
pub type Shown = InterceptedService<Channel, Bearer>;

impl Bearer {
    /// Shows this token.
    ///
    /// # Panics
    /// It is not ASCII.
    pub fn of(token: &str) -> Bearer {
        Bearer(Some(format!("Bearer {token}").parse().expect("ASCII")))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", token.clone());
        }
        Ok(request)
    }
}
