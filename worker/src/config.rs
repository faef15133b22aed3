//! The settings of a worker: read here, checked once, nowhere else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use conclave_traces::SettingsError;
use serde::Deserialize;

use crate::device::DeviceKind;

/// Every key of the file, in the order of the documentation.
const KEYS: [&str; 22] = [
    "worker_id",
    "data_dir",
    "coordinators",
    "http_listen",
    "models",
    "activation",
    "kv_dtype",
    "device",
    "isa",
    "kv_blocks",
    "kv_memory_mib",
    "max_sequences",
    "step_tokens",
    "threads",
    "token",
    "token_file",
    "dial_timeout_ms",
    "keepalive_ms",
    "silence_ms",
    "healthy_step_ms",
    "tls",
    "traces",
];

/// Keys of a `[[models]]` table.
const MODEL_KEYS: [&str; 2] = ["name", "path"];

/// Keys of the `[tls]` table.
const TLS_KEYS: [&str; 4] = ["ca_file", "cert_file", "key_file", "server_name"];

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML, or a value has the wrong type.
    #[error("the worker's configuration does not parse: {0}")]
    Parse(#[from] toml::de::Error),
    /// A key that no version of this worker knows.
    #[error("unknown key `{key}` in the worker's configuration{}", hint(.nearest))]
    UnknownKey {
        /// The key as written.
        key: String,
        /// The known key that resembles it most, if any does.
        nearest: Option<&'static str>,
    },
    /// A value that no worker can run with.
    #[error("`{key}`: {problem}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

/// A model to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
    /// The name that jobs ask for. Empty: taken from the file.
    pub name: String,
    /// A GGUF file, a folder with safetensors, or a name in the cache of models. Empty: `name` is looked
    /// for in the cache.
    pub path: PathBuf,
}

/// TLS towards the coordinators. The files are PEM, and read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TlsConfig {
    /// The authorities that coordinators' certificates are checked against.
    pub ca_file: PathBuf,
    /// The worker's own certificate; coordinators ask for one unless told otherwise.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key.
    pub key_file: Option<PathBuf>,
    /// The name in the coordinators' certificates; empty: the host that is dialed.
    pub server_name: String,
}

/// How activations are rounded before they meet quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationKind {
    /// To 8 bits, per block of 32: fast.
    #[default]
    Int8,
    /// Not at all: what the reference implementation does.
    F32,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvKind {
    /// Half precision.
    #[default]
    F16,
    /// Single precision.
    F32,
}

/// Instruction set of the kernels. It is part of the numeric class: pin it where machines differ and
/// answers must not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsaKind {
    /// The best that the processor has.
    #[default]
    Auto,
    /// Plain Rust.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512,
}

/// The settings of a worker. Fill the fields, or read a file with [`Config::from_toml`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Stable name of the worker. Empty: minted once and kept in `data_dir`.
    pub worker_id: String,
    /// Where the worker's name is kept. Unset: nothing is kept, and an unset `worker_id` is new at each
    /// start.
    pub data_dir: Option<PathBuf>,
    /// Addresses of coordinators, `host:port`. One that answers is enough: it names the others.
    pub coordinators: Vec<String>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served. Default: a free port on loopback.
    pub http_listen: SocketAddr,
    /// What is served; at least one.
    pub models: Vec<ModelConfig>,
    /// Rounding of activations; part of the numeric class.
    pub activation: ActivationKind,
    /// Storage of keys and values; part of the numeric class.
    pub kv_dtype: KvKind,
    /// What the model is computed on; part of the numeric class.
    pub device: DeviceKind,
    /// Instruction set of the processor, where the device is that; part of the numeric class.
    pub isa: IsaKind,
    /// KV blocks of 16 tokens for each model. 0: as many as `kv_memory_mib` holds.
    pub kv_blocks: u32,
    /// Memory of the device for KV blocks for each model, MiB; used if `kv_blocks` is 0.
    pub kv_memory_mib: u32,
    /// Sequences that run side by side on each model.
    pub max_sequences: u32,
    /// The most tokens that one engine step computes. A step must end well within the lease (6 s), even on
    /// a busy machine: leases are renewed only by steps that end.
    pub step_tokens: u32,
    /// Compute threads of the process; the first worker of a process decides. 0: what the cgroup grants.
    pub threads: u32,
    /// Bearer token shown to the coordinators. Empty: none, or `token_file`.
    pub token: String,
    /// File that holds the token; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// The longest that a dial, its welcome included, may take, ms.
    pub dial_timeout_ms: u64,
    /// A silent link is asked for a sign of life this often, ms.
    pub keepalive_ms: u64,
    /// A link that owes a sign of life for so long is given up, ms.
    pub silence_ms: u64,
    /// `/healthz` fails when there is work and no step has ended for so long, ms.
    pub healthy_step_ms: u64,
    /// TLS towards the coordinators; without it everything is sent as it is.
    pub tls: Option<TlsConfig>,
    /// Where traces of attempts go; without it nothing is exported.
    pub traces: Option<conclave_traces::Settings>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            worker_id: String::new(),
            data_dir: None,
            coordinators: Vec::new(),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            models: Vec::new(),
            activation: ActivationKind::default(),
            kv_dtype: KvKind::default(),
            device: DeviceKind::default(),
            isa: IsaKind::default(),
            kv_blocks: 0,
            kv_memory_mib: 256,
            max_sequences: 32,
            step_tokens: 256,
            threads: 0,
            token: String::new(),
            token_file: None,
            dial_timeout_ms: 3_000,
            keepalive_ms: 1_000,
            silence_ms: 3_000,
            healthy_step_ms: 60_000,
            tls: None,
            traces: None,
        }
    }
}

impl Config {
    /// Reads a TOML document. What it does not set has its default; what it sets must be known.
    ///
    /// # Errors
    /// [`ConfigError`]; an unknown key is answered with the nearest known one.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse()?;
        table.keys().try_for_each(|key| known(key, "", &KEYS))?;
        let models = table.get("models").and_then(toml::Value::as_array);
        for model in models
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_table)
        {
            model
                .keys()
                .try_for_each(|key| known(key, "models.", &MODEL_KEYS))?;
        }
        let tables: [(&str, &str, &'static [&'static str]); 2] = [
            ("tls", "tls.", &TLS_KEYS),
            ("traces", "traces.", &conclave_traces::KEYS),
        ];
        for (name, prefix, keys) in tables {
            let given = table.get(name).and_then(toml::Value::as_table);
            given
                .into_iter()
                .flat_map(toml::Table::keys)
                .try_for_each(|key| known(key, prefix, keys))?;
        }
        // From the text again, not from the table, so that errors name the line.
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// What no worker can run with is refused. Called by [`crate::Worker::start`] as well.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first such value.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key, problem: &str| {
            let problem = problem.to_owned();
            Err(ConfigError::Invalid { key, problem })
        };
        if self.coordinators.is_empty() {
            return invalid(
                "coordinators",
                "name at least one coordinator, as \"host:port\"",
            );
        }
        if let Some(bad) = self
            .coordinators
            .iter()
            .find(|address| !is_address(address))
        {
            return invalid(
                "coordinators",
                &format!("\"{bad}\" is not of the form \"host:port\""),
            );
        }
        if self.models.is_empty() {
            return invalid(
                "models",
                "name at least one model: [[models]] with a `path` or a `name`",
            );
        }
        if self
            .models
            .iter()
            .any(|model| model.path.as_os_str().is_empty() && model.name.is_empty())
        {
            return invalid("models", "a model has neither `path` nor `name`");
        }
        if self.worker_id.len() > 128 {
            return invalid("worker_id", "at most 128 bytes");
        }
        if self.kv_blocks == 0 && self.kv_memory_mib == 0 {
            return invalid(
                "kv_memory_mib",
                "the KV cache needs memory: set it or `kv_blocks`",
            );
        }
        for (key, value) in [
            ("max_sequences", u64::from(self.max_sequences)),
            ("step_tokens", u64::from(self.step_tokens)),
            ("dial_timeout_ms", self.dial_timeout_ms),
            ("keepalive_ms", self.keepalive_ms),
            ("silence_ms", self.silence_ms),
            ("healthy_step_ms", self.healthy_step_ms),
        ] {
            if value == 0 {
                return invalid(key, "must be at least 1");
            }
        }
        if !self.token.is_empty() && self.token_file.is_some() {
            return invalid("token_file", "set either `token` or `token_file`");
        }
        if let Some(traces) = &self.traces {
            let refused =
                |SettingsError { key, why: problem }| ConfigError::Invalid { key, problem };
            traces.check().map_err(refused)?;
        }
        self.check_tls()
    }

    /// What is dialed, and how, must agree.
    fn check_tls(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError::Invalid { key, problem });
        let unwanted = if self.tls.is_some() {
            "http://"
        } else {
            "https://"
        };
        let wrong = |address: &&String| address.starts_with(unwanted);
        if let Some(address) = self.coordinators.iter().find(wrong) {
            let problem = match self.tls {
                Some(_) => format!("\"{address}\" is plain, and [tls] is set: drop one of them"),
                None => format!("\"{address}\" needs TLS: set ca_file in [tls]"),
            };
            return refuse("coordinators", problem);
        }
        match &self.tls {
            Some(tls) if tls.ca_file.as_os_str().is_empty() => {
                let problem = "needed: whom to believe that it is a coordinator".to_owned();
                refuse("tls.ca_file", problem)
            }
            Some(tls) if tls.cert_file.is_some() != tls.key_file.is_some() => {
                refuse("tls.cert_file", "goes together with `key_file`".to_owned())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn dial_timeout(&self) -> Duration {
        Duration::from_millis(self.dial_timeout_ms)
    }

    pub(crate) fn keepalive(&self) -> Duration {
        Duration::from_millis(self.keepalive_ms)
    }

    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms)
    }

    pub(crate) fn healthy_step(&self) -> Duration {
        Duration::from_millis(self.healthy_step_ms)
    }
}

/// `host:port`, with or without a scheme before it.
pub(crate) fn is_address(address: &str) -> bool {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn known(key: &str, prefix: &str, keys: &'static [&'static str]) -> Result<(), ConfigError> {
    if keys.contains(&key) {
        return Ok(());
    }
    let nearest = keys
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(key, known), *known))
        .filter(|(likeness, _)| *likeness >= 0.5)
        // Of equals the first.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, known)| known);
    let key = format!("{prefix}{key}");
    Err(ConfigError::UnknownKey { key, nearest })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str =
        "coordinators = [\"127.0.0.1:7000\"]\n[[models]]\nname = \"m\"\npath = \"m.gguf\"\n";

    #[test]
    fn a_minimal_file_is_enough_and_listens_on_loopback() {
        let config = Config::from_toml(MINIMAL).unwrap();
        assert_eq!(config.coordinators, ["127.0.0.1:7000"]);
        assert!(config.http_listen.ip().is_loopback());
        assert_eq!(config.max_sequences, 32);
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_known_one() {
        let error = Config::from_toml(&format!("max_sequenses = 3\n{MINIMAL}"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`max_sequenses`") && error.contains("did you mean `max_sequences`?"),
            "{error}"
        );
        let error = Config::from_toml(&MINIMAL.replace("path", "paht"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`models.paht`") && error.contains("`path`"),
            "{error}"
        );
        let error = Config::from_toml(&format!("tls = {{ca_flie = \"a\"}}\n{MINIMAL}"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`tls.ca_flie`") && error.contains("`ca_file`"),
            "{error}"
        );
        // Alike in a letter or an ending, and that is all.
        for unlike in ["zzz = 3", "tls = {foo = 1}", "kernel = 1", "step = 1"] {
            let error = Config::from_toml(&format!("{unlike}\n{MINIMAL}"));
            let error = error.unwrap_err().to_string();
            assert!(!error.contains("did you mean"), "{error}");
        }
    }

    #[test]
    fn every_field_is_a_known_key() {
        // Serde names a missing field only when asked for it: an unknown type in each must be refused.
        for key in KEYS {
            let wrong = if ["tls", "traces"].contains(&key) {
                "3"
            } else {
                "{}"
            };
            let text = format!("{key} = {wrong}\n");
            assert!(
                matches!(Config::from_toml(&text), Err(ConfigError::Parse(_))),
                "{key} is not read"
            );
        }
    }

    #[test]
    fn values_that_cannot_work_name_their_key() {
        for (line, key) in [
            ("max_sequences = 0", "max_sequences"),
            ("kv_memory_mib = 0", "kv_memory_mib"),
            ("token = \"a\"\ntoken_file = \"b\"", "token_file"),
            ("tls = {}", "tls.ca_file"),
            ("traces = {}", "traces.endpoint"),
            ("tls = {ca_file = \"a\", key_file = \"b\"}", "tls.cert_file"),
        ] {
            let error = Config::from_toml(&format!("{line}\n{MINIMAL}")).unwrap_err();
            assert!(
                matches!(error, ConfigError::Invalid { key: found, .. } if found == key),
                "{error}"
            );
        }
        for bad in ["localhost", ":7000", "a:b", "a:0"] {
            assert!(!is_address(bad), "{bad}");
        }
        assert!(is_address("http://host:7000") && is_address("[::1]:7000"));
    }
}
