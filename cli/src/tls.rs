//! How endpoints are dialled: plain, or TLS with the files that the user names.
use std::path::PathBuf;

use clap::Args;
use conclave_credentials::{Dial, Files, Watched};

use crate::error::CliError;

/// Flags of TLS, which every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsArgs {
    /// Speak TLS to the endpoints, and believe certificates that an authority in this PEM file signed
    #[arg(long, global = true, value_name = "FILE", env = "CONCLAVE_CA")]
    pub ca: Option<PathBuf>,
    /// Own certificate, PEM: workers and coordinators need one
    #[arg(long, global = true, value_name = "FILE", env = "CONCLAVE_CERT")]
    pub cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, global = true, value_name = "FILE", env = "CONCLAVE_KEY")]
    pub key: Option<PathBuf>,
    /// Name in the endpoints' certificates, if it is not the host that is dialled
    #[arg(long, global = true, value_name = "NAME", env = "CONCLAVE_SERVER_NAME")]
    pub server_name: Option<String>,
}

impl TlsArgs {
    /// How `endpoints` are dialled: with TLS if there is an authority to believe.
    ///
    /// # Errors
    /// A usage error: an endpoint that asks for another way, or files that cannot be used.
    pub fn dial(&self, endpoints: &[String]) -> Result<Dial, CliError> {
        let asks = |scheme: &str| endpoints.iter().find(|e| e.starts_with(scheme));
        let Some(ca) = &self.ca else {
            return match (asks("https://"), &self.cert) {
                (Some(endpoint), _) => Err(CliError::usage(format!(
                    "endpoint `{endpoint}`: whose certificates are believed? Name the authority with --ca FILE (for a public one, e.g. /etc/ssl/certs/ca-certificates.crt)"
                ))),
                (None, Some(_)) => Err(CliError::usage("--cert goes with --ca FILE")),
                (None, None) => Ok(Dial::plain()),
            };
        };
        if let Some(endpoint) = asks("http://") {
            return Err(CliError::usage(format!(
                "endpoint `{endpoint}` is plain, and --ca (or CONCLAVE_CA) asks for TLS: use https:// or leave --ca out"
            )));
        }
        let files = Files {
            cert_file: self.cert.clone(),
            key_file: self.key.clone(),
            ca_file: ca.clone(),
        };
        let wrong = |error: &dyn std::fmt::Display| {
            CliError::usage(format!("--ca, --cert, --key: {error}"))
        };
        let material = files.read().map_err(|error| wrong(&error))?;
        Dial::tls(Watched::fixed(material), self.server_name.as_deref())
            .map_err(|error| CliError::usage(format!("--server-name: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_needs_somebody_to_believe_and_a_scheme_must_agree() {
        let dial = |tls: &TlsArgs, endpoint: &str| tls.dial(&[endpoint.to_owned()]);
        let none = TlsArgs::default();
        assert!(!dial(&none, "a:1").unwrap().is_tls());
        let error = dial(&none, "https://a:1").unwrap_err().to_string();
        assert!(error.contains("--ca FILE"), "{error}");
        let ca = TlsArgs {
            ca: Some("/nowhere/ca.crt".into()),
            ..TlsArgs::default()
        };
        let error = dial(&ca, "http://a:1").unwrap_err().to_string();
        assert!(error.contains("is plain"), "{error}");
        let error = dial(&ca, "a:1").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("/nowhere/ca.crt"), "{error}");
    }
}
