//! The tables of a coordinator's settings: what belongs together and is given together.

use std::path::PathBuf;

use conclave_credentials::Files;
use serde::Deserialize;

use super::ConfigError;

/// Keys of `[tls]`, in the order of [`TlsConfig`]'s fields.
const TLS_KEYS: [&str; 5] = [
    "cert_file",
    "key_file",
    "ca_file",
    "server_name",
    "require_client_cert",
];

/// Keys of `[jwt]`, in the order of [`JwtConfig`]'s fields.
const JWT_KEYS: [&str; 5] = [
    "jwks_file",
    "issuer",
    "audience",
    "tenant_claim",
    "role_claim",
];

/// Every table with its keys.
pub(super) const TABLES: [(&str, &[&str]); 3] = [
    ("jwt", &JWT_KEYS),
    ("tls", &TLS_KEYS),
    ("traces", &conclave_traces::KEYS),
];

/// TLS on the gRPC port and between coordinators. The files are PEM, and read again when they change.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// This node's certificate, then those between it and the authority. It is shown to callers, and to
    /// the coordinators that this node dials: it must be good for servers and for clients.
    pub cert_file: PathBuf,
    /// The certificate's private key.
    pub key_file: PathBuf,
    /// The authorities that certificates of coordinators, workers and other clients are checked against.
    pub ca_file: PathBuf,
    /// The name in other coordinators' certificates; empty: the host that is dialled.
    pub server_name: String,
    /// Workers and coordinators show a certificate too, beside their token. Users never need one.
    pub require_client_cert: bool,
}

/// JSON Web Tokens of users, beside those of `tokens_file`. The file is read again when it changes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// The keys that sign tokens, a JSON Web Key Set.
    pub jwks_file: PathBuf,
    /// Who must have issued a token (`iss`).
    pub issuer: String,
    /// Whom a token must be for (`aud`).
    pub audience: String,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The claim that names the role: submitter, reviewer or operator.
    pub role_claim: String,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            jwks_file: PathBuf::new(),
            issuer: String::new(),
            audience: String::new(),
            tenant_claim: "tenant".to_owned(),
            role_claim: "role".to_owned(),
        }
    }
}

impl JwtConfig {
    /// None of them may be empty: a token for whomever would be one for us.
    pub(super) fn check(&self, tokens_file: bool) -> Result<(), ConfigError> {
        let refuse = |key, why: &str| {
            let why = why.to_owned();
            Err(ConfigError::Invalid { key, why })
        };
        if !tokens_file {
            let why = "goes with `tokens_file`: workers and coordinators show tokens of it";
            return refuse("jwt", why);
        }
        let given = [
            ("jwt.jwks_file", self.jwks_file.as_os_str().is_empty()),
            ("jwt.issuer", self.issuer.is_empty()),
            ("jwt.audience", self.audience.is_empty()),
            ("jwt.tenant_claim", self.tenant_claim.is_empty()),
            ("jwt.role_claim", self.role_claim.is_empty()),
        ];
        match given.into_iter().find(|(_, empty)| *empty) {
            Some((key, _)) => refuse(key, "needed: [jwt] takes jwks_file, issuer and audience"),
            None => Ok(()),
        }
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            server_name: String::new(),
            require_client_cert: true,
        }
    }
}

impl TlsConfig {
    /// The three files go together: a coordinator serves and dials.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let files = [
            ("tls.cert_file", &self.cert_file),
            ("tls.key_file", &self.key_file),
            ("tls.ca_file", &self.ca_file),
        ];
        for (key, path) in files {
            if path.as_os_str().is_empty() {
                let why = "needed: [tls] takes cert_file, key_file and ca_file".to_owned();
                return Err(ConfigError::Invalid { key, why });
            }
        }
        Ok(())
    }

    /// What is read.
    pub(crate) fn files(&self) -> Files {
        Files {
            cert_file: Some(self.cert_file.clone()),
            key_file: Some(self.key_file.clone()),
            ca_file: self.ca_file.clone(),
        }
    }

    /// The name to look for in certificates, if it is not the host's.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(self.server_name.as_str()).filter(|name| !name.is_empty())
    }
}

/// The keys of all tables, each with its full name.
pub(super) fn names() -> impl Iterator<Item = (&'static str, String)> {
    let of = |(table, keys): (&'static str, &'static [&'static str])| {
        keys.iter().map(move |key| (*key, format!("{table}.{key}")))
    };
    TABLES.into_iter().flat_map(of)
}

/// Refuses a key that no table has.
pub(super) fn check_keys(table: &toml::Table) -> Result<(), ConfigError> {
    for (name, keys) in TABLES {
        let given = table.get(name).and_then(toml::Value::as_table);
        for key in given.into_iter().flat_map(toml::Table::keys) {
            if !keys.contains(&key.as_str()) {
                return Err(ConfigError::UnknownKey {
                    key: format!("{name}.{key}"),
                    nearest: super::nearest(key, keys.iter().map(|k| (*k, (*k).to_owned()))),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn an_unknown_key_of_a_table_names_the_nearest() {
        let error = Config::parse("open = true\n[tls]\ncertfile = 'x'").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown setting `tls.certfile`; did you mean `cert_file`?"
        );
    }

    #[test]
    fn a_jwt_of_whomever_for_whomever_is_not_configured() {
        let tokens = "tokens_file = 't'\n[jwt]\n";
        for (text, want) in [
            (
                format!("{tokens}jwks_file = 'k'\nissuer = 'i'"),
                "`jwt.audience`",
            ),
            (
                format!("{tokens}jwks_file = 'k'\naudience = 'a'"),
                "`jwt.issuer`",
            ),
            (format!("{tokens}role_clam = 'r'"), "`role_claim`"),
            (
                "open = true\n[jwt]\njwks_file = 'k'".to_owned(),
                "`tokens_file`",
            ),
        ] {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        let whole = format!("{tokens}jwks_file = 'k'\nissuer = 'i'\naudience = 'a'");
        assert_eq!(
            Config::parse(&whole).unwrap().jwt.unwrap().role_claim,
            "role"
        );
    }

    #[test]
    fn traces_need_an_endpoint_and_their_keys_are_known() {
        let wrong = |text: &str| {
            let text = format!("open = true\n[traces]\n{text}");
            Config::parse(&text).unwrap_err().to_string()
        };
        let error = wrong("sampling_ratio = 0.5");
        assert!(error.contains("`traces.endpoint`"), "{error}");
        let error = wrong("endpont = 'http://c:4317'");
        assert!(error.contains("did you mean `endpoint`"), "{error}");
        let text = "open = true\n[traces]\nendpoint = 'http://c:4317'";
        let traces = Config::parse(text).unwrap().traces.unwrap();
        assert!((traces.sampling_ratio - 1.0).abs() < f64::EPSILON);
        assert_eq!(Config::parse("open = true").unwrap().traces, None, "off");
    }

    #[test]
    fn half_a_table_is_refused() {
        let error = Config::parse("open = true\n[tls]\ncert_file = 'a'\nkey_file = 'b'");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`tls.ca_file`"), "{error}");
        let whole = "open = true\n[tls]\ncert_file = 'a'\nkey_file = 'b'\nca_file = 'c'";
        assert!(
            Config::parse(whole)
                .unwrap()
                .tls
                .unwrap()
                .require_client_cert
        );
    }
}
