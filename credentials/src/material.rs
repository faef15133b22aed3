//! A certificate, its key, and the authorities that others' certificates are checked against: read from
//! PEM, checked to fit, turned into what rustls wants.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use metrics::{Unit, describe_gauge, gauge};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use x509_cert::der::Decode as _;

use crate::watched::{self, FirstError, Watched};

/// Unix time at which the certificate in use ends.
const EXPIRES: &str = "conclave_certificate_expires_seconds";

/// Where the PEM files lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// This program's certificate, followed by those between it and the authority. A client may have none.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key.
    pub key_file: Option<PathBuf>,
    /// Certificates of the authorities that others' certificates are checked against.
    pub ca_file: PathBuf,
}

/// Why PEM files cannot be used. None of these shows what is in a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate without its key, or the other way round.
    #[error("a certificate and its key go together: name both cert_file and key_file")]
    Half,
    /// No certificate in a file that should hold some.
    #[error("{file} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate {
        /// The setting.
        file: &'static str,
    },
    /// A certificate that cannot be read.
    #[error("{file} holds a certificate that cannot be read: {why}")]
    Certificate {
        /// The setting.
        file: &'static str,
        /// What is wrong.
        why: String,
    },
    /// No key, or one that cannot be read.
    #[error("key_file holds no private key in PEM form that can be used (PKCS#8, PKCS#1 or SEC1)")]
    Key,
    /// They belong to different pairs.
    #[error("the key in key_file is not that of the certificate in cert_file")]
    Mismatch,
    /// It is no better than the one before it.
    #[error("the certificate in cert_file ended {0} s ago")]
    Ended(u64),
    /// rustls does not take them.
    #[error("TLS cannot be set up: {0}")]
    Refused(String),
}

/// Both ends' settings, of one reading of the files.
#[derive(Debug)]
pub struct Material {
    /// For connections that are accepted; `None` without a certificate. A client's certificate is checked
    /// if it shows one.
    pub server: Option<Arc<ServerConfig>>,
    /// For connections that are opened: shows the certificate, if there is one.
    pub client: Arc<ClientConfig>,
    /// When the certificate ends, seconds of Unix time.
    pub expires: Option<u64>,
}

impl Files {
    /// Reads the files, and again when they change; see [`Watched::follow`]. The gauge `conclave_certificate_expires_seconds`
    /// follows the certificate, with the label `of`.
    ///
    /// # Errors
    /// [`FirstError`]: unreadable, or a [`TlsError`].
    pub fn follow(self, of: String) -> Result<Arc<Watched<Material>>, FirstError<TlsError>> {
        describe_gauge!(
            EXPIRES,
            Unit::Seconds,
            "Unix time at which the certificate in use ends, by who shows it"
        );
        // At the start there is nothing better to show, and others say that it has ended.
        let begun = AtomicBool::new(false);
        Watched::follow("tls", self.paths()?, move |contents| {
            let material = Material::parse(contents)?;
            match material.ended(SystemTime::now()) {
                Some(ended) if begun.load(Ordering::Relaxed) => return Err(ended),
                Some(ended) => tracing::warn!(of, "{ended}: nobody will take it"),
                None => {}
            }
            begun.store(true, Ordering::Relaxed);
            if let Some(expires) = material.expires {
                #[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
                gauge!(EXPIRES, "of" => of.clone()).set(expires as f64);
            }
            Ok(material)
        })
    }

    /// Reads the files, this once.
    ///
    /// # Errors
    /// As [`Files::follow`].
    pub fn read(self) -> Result<Material, FirstError<TlsError>> {
        let contents = watched::read(&self.paths()?)
            .map_err(|(path, source)| FirstError::Read { path, source })?;
        Material::parse(&contents).map_err(FirstError::Parse)
    }

    /// The authorities', then certificate and key.
    fn paths(self) -> Result<Vec<PathBuf>, FirstError<TlsError>> {
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(FirstError::Parse(TlsError::Half));
        }
        let paths = [Some(self.ca_file), self.cert_file, self.key_file];
        Ok(paths.into_iter().flatten().collect())
    }
}

impl Material {
    /// From the bytes of the authorities' file and, in this order, those of certificate and key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn parse(contents: &[Vec<u8>]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (roots, own) = match contents {
            [ca] => (roots(ca)?, None),
            [ca, cert, key] => (roots(ca)?, Some(certified(cert, key, &provider)?)),
            _ => return Err(TlsError::Half),
        };
        let expires = own.as_ref().and_then(|own| expires(own.cert.first()?));
        Ok(Self {
            server: match &own {
                Some(own) => Some(server(own, &roots, &provider)?),
                None => None,
            },
            client: client(own, roots, &provider)?,
            expires,
        })
    }
}

impl Material {
    /// That the certificate has ended by `now`, if it has.
    fn ended(&self, now: SystemTime) -> Option<TlsError> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let ago = now.checked_sub(self.expires?)?;
        Some(TlsError::Ended(ago))
    }
}

fn refused(error: impl std::fmt::Display) -> TlsError {
    TlsError::Refused(error.to_string())
}

fn certificates(file: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| TlsError::Certificate {
        file,
        why: error.to_string(),
    })?;
    match found.is_empty() {
        true => Err(TlsError::NoCertificate { file }),
        false => Ok(found),
    }
}

fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca_file", pem)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Certificate {
                file: "ca_file",
                why: error.to_string(),
            })?;
    }
    Ok(Arc::new(roots))
}

fn certified(
    cert: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("cert_file", cert)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Key)?;
    let key = provider.key_provider.load_private_key(key);
    let own = CertifiedKey::new(chain, key.map_err(|_| TlsError::Key)?);
    match own.keys_match() {
        Ok(()) => Ok(Arc::new(own)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch),
        Err(error) => Err(TlsError::Certificate {
            file: "cert_file",
            why: error.to_string(),
        }),
    }
}

/// A client's certificate is checked if it shows one; which calls need one is not decided here.
fn server(
    own: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(refused)?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not be checked again: its certificate may have ended meanwhile.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client(
    own: Option<Arc<CertifiedKey>>,
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// When a certificate ends, seconds of Unix time.
fn expires(certificate: &CertificateDer<'_>) -> Option<u64> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let end = parsed.tbs_certificate.validity.not_after;
    Some(end.to_unix_duration().as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (rcgen::CertifiedIssuer<'static, rcgen::KeyPair>, String) {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        let pem = issuer.pem();
        (issuer, pem)
    }

    fn leaf() -> (String, String, String) {
        let (issuer, ca) = authority();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        (ca, cert.pem(), key.serialize_pem())
    }

    fn parse(texts: &[&str]) -> Result<Material, TlsError> {
        let contents: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        Material::parse(&contents)
    }

    #[test]
    fn a_pair_and_an_authority_serve_and_dial_and_the_end_is_known() {
        let (ca, cert, key) = leaf();
        let material = parse(&[&ca, &cert, &key]).unwrap();
        assert!(material.server.is_some());
        assert_eq!(material.expires, Some(2_208_988_800));
        let material = parse(&[&ca]).unwrap();
        assert!(material.server.is_none() && material.expires.is_none());
    }

    #[test]
    fn what_cannot_be_used_is_told_and_no_key_is_shown() {
        let (ca, cert, key) = leaf();
        let (_, _, other) = leaf();
        for (texts, want) in [
            ([&ca, &cert, &other], "is not that of the certificate"),
            ([&ca, &cert, &ca], "no private key"),
            ([&ca, &key, &key], "cert_file holds no certificate"),
            ([&key, &cert, &key], "ca_file holds no certificate"),
            (
                [&"nonsense".to_owned(), &cert, &key],
                "ca_file holds no certificate",
            ),
        ] {
            let error = parse(&texts.map(String::as_str)).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            assert!(!error.contains("BEGIN PRIVATE"), "{error}");
        }
        let half = Files {
            cert_file: Some("a".into()),
            ..Files::default()
        };
        let error = half.follow("a test".to_owned()).unwrap_err().to_string();
        assert!(error.contains("name both"), "{error}");
    }
}
