//! The `[traces]` table of a program's settings.

use std::path::PathBuf;

use serde::Deserialize;

/// Keys of the table, in the order of [`Settings`]' fields.
pub const KEYS: [&str; 10] = [
    "endpoint",
    "sampling_ratio",
    "instance",
    "headers_file",
    "ca_file",
    "cert_file",
    "key_file",
    "server_name",
    "timeout_ms",
    "queue_spans",
];

/// Where spans go, and which. Files are read again when they change.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The collector's OTLP/gRPC port, `http://host:port` or, with TLS, `https://host:port`.
    pub endpoint: String,
    /// The share of jobs whose traces are kept, 0 to 1. Coordinators and workers are told the same: it is
    /// decided by the job's id.
    pub sampling_ratio: f64,
    /// `service.instance.id`; empty: the node's id, or the worker's name.
    pub instance: String,
    /// Metadata of every call, one `name: value` a line, e.g. a collector's token. Never logged.
    pub headers_file: Option<PathBuf>,
    /// The authorities that the collector's certificate is checked against; needed with `https://`.
    pub ca_file: Option<PathBuf>,
    /// This program's certificate, if the collector asks for one.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key.
    pub key_file: Option<PathBuf>,
    /// The name in the collector's certificate; empty: the host that is dialled.
    pub server_name: String,
    /// The longest that a call to the collector may take, ms.
    pub timeout_ms: u64,
    /// Spans that wait for the collector; more are dropped, and counted.
    pub queue_spans: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            sampling_ratio: 1.0,
            instance: String::new(),
            headers_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: String::new(),
            timeout_ms: 5_000,
            queue_spans: 8_192,
        }
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {why}")]
pub struct SettingsError {
    /// The setting.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl Settings {
    /// Checks ranges and contradictions.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn check(&self) -> Result<(), SettingsError> {
        let refuse = |key, why: &str| {
            let why = why.to_owned();
            Err(SettingsError { key, why })
        };
        let (scheme, address) = self.endpoint.split_once("://").unwrap_or_default();
        if !matches!(scheme, "http" | "https") || !is_address(address) {
            return refuse(
                "traces.endpoint",
                "needed: where the collector takes OTLP over gRPC, e.g. \"http://127.0.0.1:4317\"",
            );
        }
        if scheme == "https" && self.ca_file.is_none() {
            return refuse(
                "traces.ca_file",
                "needed with https://: whom to believe that it is the collector",
            );
        }
        if scheme == "http" && (self.ca_file.is_some() || self.cert_file.is_some()) {
            return refuse(
                "traces.endpoint",
                "http:// is plain, and ca_file or cert_file is set: say https://, or drop them",
            );
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return refuse("traces.cert_file", "goes together with `key_file`");
        }
        if !(0.0..=1.0).contains(&self.sampling_ratio) {
            return refuse("traces.sampling_ratio", "must be 0 to 1");
        }
        if self.timeout_ms == 0 {
            return refuse("traces.timeout_ms", "must be at least 1");
        }
        if !(1..=1_000_000).contains(&self.queue_spans) {
            return refuse("traces.queue_spans", "must be 1 to 1000000");
        }
        Ok(())
    }

    /// Whether the collector is spoken to over TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.endpoint.starts_with("https://")
    }
}

/// `host:port` and nothing behind it.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let plain = !host.is_empty() && !host.contains(['/', '@', ' ']);
        plain && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn every_listed_key_is_a_field() {
        for key in KEYS {
            let error = toml::from_str::<Settings>(&format!("{key} = {{}}")).unwrap_err();
            let known = !error.to_string().contains("unknown field");
            assert!(known, "{key}: {error}");
        }
        assert!(toml::from_str::<Settings>("endpont = 'x'").is_err());
    }

    #[test]
    fn an_endpoint_is_enough_and_what_cannot_work_names_its_key() {
        parsed("endpoint = 'http://127.0.0.1:4317'")
            .check()
            .unwrap();
        parsed("endpoint = 'https://collector:4317'\nca_file = 'ca.crt'")
            .check()
            .unwrap();
        for (text, key) in [
            ("", "traces.endpoint"),
            ("endpoint = '127.0.0.1:4317'", "traces.endpoint"),
            ("endpoint = 'http://127.0.0.1'", "traces.endpoint"),
            (
                "endpoint = 'http://127.0.0.1:4317/v1/traces'",
                "traces.endpoint",
            ),
            ("endpoint = 'http://user:secret@c:4317'", "traces.endpoint"),
            ("endpoint = 'https://c:4317'", "traces.ca_file"),
            (
                "endpoint = 'http://c:4317'\nca_file = 'a'",
                "traces.endpoint",
            ),
            (
                "endpoint = 'https://c:4317'\nca_file = 'a'\ncert_file = 'b'",
                "traces.cert_file",
            ),
            (
                "endpoint = 'http://c:4317'\nsampling_ratio = 1.5",
                "traces.sampling_ratio",
            ),
            (
                "endpoint = 'http://c:4317'\nsampling_ratio = nan",
                "traces.sampling_ratio",
            ),
            (
                "endpoint = 'http://c:4317'\ntimeout_ms = 0",
                "traces.timeout_ms",
            ),
            (
                "endpoint = 'http://c:4317'\nqueue_spans = 0",
                "traces.queue_spans",
            ),
        ] {
            assert_eq!(parsed(text).check().unwrap_err().key, key, "{text}");
        }
    }
}
