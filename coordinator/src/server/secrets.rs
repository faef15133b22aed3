//! What a coordinator shows, and checks callers against: read at the start, and again when files change.

use std::sync::Arc;

use conclave_credentials::{Dial, Material, Watched};

use super::StartError;
use crate::{
    auth::{Auth, Tokens, jwt::Verifier},
    config::Config,
};

/// Both directions.
pub(super) struct Secrets {
    /// Who may call.
    pub auth: Auth,
    /// How other coordinators are dialled.
    pub dial: Dial,
    /// What callers are shown; `None`: no TLS.
    pub tls: Option<Arc<Watched<Material>>>,
}

impl Secrets {
    /// Reads the files that `config` names. `address` is this node's, for the metrics.
    ///
    /// # Errors
    /// [`StartError`] names the setting.
    pub fn read(config: &Config, address: &str) -> Result<Self, StartError> {
        let auth = match &config.tokens_file {
            None => Auth::open(),
            Some(path) => {
                let parse = |contents: &[Vec<u8>]| Tokens::from_bytes(&contents[0]);
                Auth::of(Watched::follow("tokens", vec![path.clone()], parse)?)
            }
        };
        let auth = match &config.jwt {
            None => auth,
            Some(settings) => {
                let (files, settings) = (vec![settings.jwks_file.clone()], settings.clone());
                let parse =
                    move |contents: &[Vec<u8>]| Verifier::parse(&contents[0], settings.clone());
                auth.with_jwt(Watched::follow("jwks", files, parse)?)
            }
        };
        let Some(settings) = &config.tls else {
            return Ok(Self {
                auth,
                dial: Dial::plain(),
                tls: None,
            });
        };
        let tls = settings.files().follow(address.to_owned())?;
        Ok(Self {
            auth: auth.with_certificates(settings.require_client_cert),
            dial: Dial::tls(tls.clone(), settings.name())?,
            tls: Some(tls),
        })
    }
}
