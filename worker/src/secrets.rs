//! What a worker shows to the coordinators, and how it finds out that they are coordinators: read at the
//! start, and again when files change. A link keeps what it was opened with.

use std::str;
use std::sync::Arc;

use conclave_credentials::{Dial, Files, Watched};
use tonic::metadata::{Ascii, MetadataValue};

use crate::config::{Config, TlsConfig};
use crate::error::{StartError, TokenError};

/// The token, as it is sent.
pub type Token = Arc<Watched<Option<MetadataValue<Ascii>>>>;

/// The configured token, or the one in its file.
///
/// # Errors
/// [`StartError`]: a file that cannot be read, or a token that cannot be sent.
pub fn token(config: &Config) -> Result<Token, StartError> {
    match &config.token_file {
        None => Ok(Watched::fixed(shown(config.token.as_bytes())?)),
        Some(path) => {
            let parse = |contents: &[Vec<u8>]| shown(&contents[0]);
            Ok(Watched::follow("token", vec![path.clone()], parse)?)
        }
    }
}

fn shown(token: &[u8]) -> Result<Option<MetadataValue<Ascii>>, TokenError> {
    let token = str::from_utf8(token).map_err(|_| TokenError)?.trim();
    if token.is_empty() {
        return Ok(None);
    }
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().map_err(|_| TokenError)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// How coordinators are dialed; `worker_id` names the certificate's end in the metrics.
///
/// # Errors
/// [`StartError`]: files that cannot be used, or a name that no certificate can bear.
pub fn dial(tls: Option<&TlsConfig>, worker_id: &str) -> Result<Dial, StartError> {
    let Some(tls) = tls else {
        return Ok(Dial::plain());
    };
    let files = Files {
        cert_file: tls.cert_file.clone(),
        key_file: tls.key_file.clone(),
        ca_file: tls.ca_file.clone(),
    };
    let name = Some(tls.server_name.as_str()).filter(|name| !name.is_empty());
    Ok(Dial::tls(files.follow(worker_id.to_owned())?, name)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use conclave_credentials::watched::LOOK;

    use super::*;
    use crate::session::link::Dialer;

    #[tokio::test]
    async fn a_token_comes_from_the_file_without_its_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let config = Config {
            token_file: Some(file.path().to_owned()),
            ..Config::default()
        };
        let shown = token(&config).unwrap().now();
        assert_eq!(shown.as_ref().as_ref().unwrap(), "Bearer secret");
        assert!(token(&Config::default()).unwrap().now().is_none());
    }

    #[tokio::test]
    async fn a_token_file_that_cannot_be_used_any_more_is_told_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret").unwrap();
        let config = Config {
            token_file: Some(file.path().to_owned()),
            ..Config::default()
        };
        let dialer = Dialer {
            dial: dial(None, "w").unwrap(),
            token: token(&config).unwrap(),
            timeout: Duration::ZERO,
            keepalive: Duration::ZERO,
            silence: Duration::ZERO,
        };
        assert_eq!(dialer.refused_files(), []);
        std::fs::write(file.path(), "two\nlines").unwrap();
        // Nobody tells when the file was looked at.
        let told = async {
            while dialer.refused_files().is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LOOK * 6, told).await.unwrap();
        let told = dialer.refused_files();
        assert_eq!(told[0].setting, "token_file");
        assert_eq!(told[0].paths, [file.path().display().to_string()]);
        assert!(
            !told[0].why.is_empty() && !told[0].why.contains("two"),
            "{told:?}"
        );
    }
}
