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

/// Every table with its keys.
pub(super) const TABLES: [(&str, &[&str]); 1] = [("tls", &TLS_KEYS)];

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

/// Refuses a key that no table has.
pub(super) fn check_keys(table: &toml::Table) -> Result<(), ConfigError> {
    for (name, keys) in TABLES {
        let given = table.get(name).and_then(toml::Value::as_table);
        for key in given.into_iter().flat_map(toml::Table::keys) {
            if !keys.contains(&key.as_str()) {
                return Err(ConfigError::UnknownKey {
                    key: format!("{name}.{key}"),
                    nearest: super::nearest(key, keys),
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
