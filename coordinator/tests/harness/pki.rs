//! An authority and certificates of its making, as files.

use std::{fs, path::PathBuf};

use conclave_coordinator::config::TlsConfig;
use conclave_credentials::{Dial, Files, Watched};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;

/// Years between which a certificate holds.
pub const VALID: (i32, i32) = (2020, 2090);
/// The same, long over.
pub const EXPIRED: (i32, i32) = (2020, 2021);

/// An authority with a folder of its own.
pub struct Pki {
    pub folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// A new authority; its certificate lies in `ca.crt`.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.crt"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The authority's certificate, PEM.
    pub fn ca(&self) -> String {
        self.issuer.pem()
    }

    /// Writes `name.crt` and `name.key`, for loopback, both as server and as client.
    pub fn issue(&self, name: &str, years: (i32, i32)) {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned).to_vec();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// A coordinator's settings with this certificate.
    pub fn tls(&self, name: &str) -> TlsConfig {
        TlsConfig {
            cert_file: self.path(&format!("{name}.crt")),
            key_file: self.path(&format!("{name}.key")),
            ca_file: self.path("ca.crt"),
            ..TlsConfig::default()
        }
    }

    /// A client that believes this authority, and shows a certificate if one is named.
    pub fn dial(&self, certificate: Option<&str>) -> Dial {
        self.dial_with(certificate.map(|name| (self, name)))
    }

    /// The same, with a certificate of perhaps another authority.
    pub fn dial_with(&self, certificate: Option<(&Pki, &str)>) -> Dial {
        let file =
            |ending: &str| certificate.map(|(pki, name)| pki.path(&format!("{name}.{ending}")));
        let files = Files {
            cert_file: file("crt"),
            key_file: file("key"),
            ca_file: self.path("ca.crt"),
        };
        Dial::tls(Watched::fixed(files.read().unwrap()), None).unwrap()
    }
}
