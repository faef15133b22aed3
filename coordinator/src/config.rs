//! The settings of a coordinator: read here, checked once, nowhere else.

mod tables;

use std::{
    fs, io,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use conclave_coordinator_core::worker::LEASE_TTL_MS;
use conclave_proto::LOG_VERSION;
use conclave_traces::SettingsError;
use serde::Deserialize;

pub use tables::{JwtConfig, TlsConfig};

/// Every key that a file may hold, in the order of [`Config`]'s fields.
const KEYS: [&str; 25] = [
    "data_dir",
    "listen",
    "advertise",
    "http_listen",
    "seeds",
    "tokens_file",
    "quotas_file",
    "open",
    "open_beyond_loopback",
    "election_ms",
    "heartbeat_ms",
    "request_timeout_ms",
    "max_message_bytes",
    "max_live_jobs",
    "max_watchers",
    "max_keys",
    "retention_hours",
    "retention_bytes",
    "disk_reserve_bytes",
    "snapshot_every",
    "max_log_version",
    "reflection",
    "jwt",
    "tls",
    "traces",
];

/// Settings of one coordinator process.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder that holds the log, snapshots, payloads and the node's identity.
    pub data_dir: PathBuf,
    /// Where gRPC listens, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// What other members and workers dial; empty: the address listened on.
    pub advertise: String,
    /// Where `/metrics`, `/healthz` and `/readyz` listen; empty: nowhere.
    pub http_listen: String,
    /// Addresses of members, for a node whose peers have all moved.
    pub seeds: Vec<String>,
    /// Tokens of tenants, workers and peers; see [`crate::auth::Tokens`].
    pub tokens_file: Option<PathBuf>,
    /// What each tenant may have; see [`crate::quotas`].
    pub quotas_file: Option<PathBuf>,
    /// Serves without tokens: everybody is the operator of tenant `local`.
    pub open: bool,
    /// Allows `open` on an address that other machines reach.
    pub open_beyond_loopback: bool,
    /// Silence of the leader after which a member campaigns, milliseconds.
    pub election_ms: u64,
    /// Period of the leader's heartbeats, milliseconds.
    pub heartbeat_ms: u64,
    /// How long a call without a deadline waits for the cluster, milliseconds.
    pub request_timeout_ms: u64,
    /// Longest gRPC message, bytes.
    pub max_message_bytes: usize,
    /// Jobs that have not ended, of all tenants; more are refused.
    pub max_live_jobs: usize,
    /// Concurrent `WatchJob` streams; more are refused.
    pub max_watchers: usize,
    /// Idempotency keys kept, which each job's is for a day at least; with more,
    /// submissions are refused.
    pub max_keys: usize,
    /// How long an ended job is kept, hours.
    pub retention_hours: u64,
    /// Bytes of ended jobs kept for one tenant; the oldest go first.
    pub retention_bytes: u64,
    /// Free disk below which submissions are refused, bytes.
    pub disk_reserve_bytes: u64,
    /// Entries applied between two snapshots; more, up to 64 MiB of them, if the state is much longer than they
    /// are.
    pub snapshot_every: u64,
    /// The newest log version that this node speaks: lower than the program's,
    /// it is a member of the older program for all that others can tell, and
    /// `cluster upgrade` waits.
    pub max_log_version: u32,
    /// Whether strangers may ask which calls there are (`grpc.reflection`).
    pub reflection: bool,
    /// JSON Web Tokens of users; without it only those of `tokens_file` count.
    pub jwt: Option<JwtConfig>,
    /// TLS; without it everything is sent as it is.
    pub tls: Option<TlsConfig>,
    /// Where traces of jobs go; without it nothing is exported.
    pub traces: Option<conclave_traces::Settings>,
    /// Coordinators that this process hosts: they share its descriptors. Nothing of a file.
    #[serde(skip)]
    pub hosted: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("conclave-data"),
            listen: "127.0.0.1:7400".to_owned(),
            advertise: String::new(),
            // Not the next port: that is where a second coordinator listens.
            http_listen: "127.0.0.1:7410".to_owned(),
            seeds: Vec::new(),
            tokens_file: None,
            quotas_file: None,
            open: false,
            open_beyond_loopback: false,
            election_ms: 1_000,
            heartbeat_ms: 100,
            request_timeout_ms: 10_000,
            max_message_bytes: 4 << 20,
            max_live_jobs: 10_000,
            max_watchers: 10_000,
            max_keys: 1_000_000,
            retention_hours: 72,
            retention_bytes: 1 << 30,
            disk_reserve_bytes: 256 << 20,
            snapshot_every: 10_000,
            max_log_version: LOG_VERSION,
            reflection: true,
            jwt: None,
            tls: None,
            traces: None,
            hosted: 1,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A key that no version of this program knows.
    #[error("unknown setting `{key}`; {}", hint(nearest.as_deref()))]
    UnknownKey {
        /// The key in the file.
        key: String,
        /// The known key that is spelled most like it, if one is spelled like it at all.
        nearest: Option<String>,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("the configuration does not parse: {0}")]
    Parse(#[from] toml::de::Error),
    /// The file that is wrong.
    #[error("{path}: {source}")]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<ConfigError>,
    },
    /// A value out of range, or two that contradict.
    #[error("setting `{key}`: {why}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Config {
    /// Reads a TOML file; keys that are absent keep their defaults.
    ///
    /// # Errors
    /// [`ConfigError`]: unreadable, not TOML, an unknown key, or a value that
    /// [`Config::check`] refuses.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|source| ConfigError::In {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Like [`Config::read`], from the text itself.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = toml::from_str(text)?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let known = KEYS.iter().map(|known| (*known, (*known).to_owned()));
            // One that belongs into a table is named with it.
            return Err(ConfigError::UnknownKey {
                key: key.clone(),
                nearest: nearest(key, known.chain(tables::names())),
            });
        }
        tables::check_keys(&table)?;
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Checks ranges and contradictions; [`crate::Coordinator::start`] calls it.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the first setting that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, why: &str| {
            Err(ConfigError::Invalid {
                key,
                why: why.to_owned(),
            })
        };
        let listen = self.listen_addr()?;
        if self.open && self.tokens_file.is_some() {
            return refuse(
                "open",
                "contradicts `tokens_file`: either everybody or nobody needs one",
            );
        }
        if !self.open && self.tokens_file.is_none() {
            return refuse(
                "tokens_file",
                "needed, unless `open = true` serves everybody",
            );
        }
        if self.open && !listen.ip().is_loopback() && !self.open_beyond_loopback {
            return refuse(
                "open",
                "would let every machine that reaches `listen` in without a token; \
                 use `tokens_file`, or say `open_beyond_loopback = true`",
            );
        }
        if listen.ip().is_unspecified() && self.advertise.is_empty() {
            return refuse(
                "advertise",
                "needed when `listen` names no single address: others must know where to dial",
            );
        }
        if self.heartbeat_ms < 5 {
            return refuse("heartbeat_ms", "must be at least 5");
        }
        if self.election_ms < self.heartbeat_ms.saturating_mul(3) {
            return refuse("election_ms", "must be at least three heartbeats");
        }
        if LEASE_TTL_MS < self.election_ms.saturating_mul(2) {
            return refuse("election_ms", "a worker's lease must outlive two elections");
        }
        if self.request_timeout_ms < self.election_ms {
            return refuse("request_timeout_ms", "must be at least `election_ms`");
        }
        if self.max_message_bytes < 64 << 10 {
            return refuse("max_message_bytes", "must be at least 65536");
        }
        let limits = [
            ("max_live_jobs", self.max_live_jobs),
            ("max_watchers", self.max_watchers),
            ("max_keys", self.max_keys),
        ];
        if let Some((key, _)) = limits.into_iter().find(|(_, limit)| *limit == 0) {
            return refuse(key, "limits must be at least 1");
        }
        if !(1..=LOG_VERSION).contains(&self.max_log_version) {
            return refuse(
                "max_log_version",
                &format!("this program speaks 1 to {LOG_VERSION}"),
            );
        }
        if self.snapshot_every < 16 {
            return refuse("snapshot_every", "must be at least 16");
        }
        self.check_tables()
    }

    fn check_tables(&self) -> Result<(), ConfigError> {
        if let Some(jwt) = &self.jwt {
            jwt.check(self.tokens_file.is_some())?;
        }
        if let Some(traces) = &self.traces {
            let refused = |SettingsError { key, why }| ConfigError::Invalid { key, why };
            traces.check().map_err(refused)?;
        }
        self.tls.as_ref().map_or(Ok(()), TlsConfig::check)
    }

    /// The address of `listen`, resolved.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if it is not `host:port`.
    pub fn listen_addr(&self) -> Result<SocketAddr, ConfigError> {
        resolve("listen", &self.listen)
    }

    /// The address of `http_listen`, resolved; `None` when it is empty.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if it is not `host:port`.
    pub fn http_addr(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.http_listen.is_empty() {
            return Ok(None);
        }
        resolve("http_listen", &self.http_listen).map(Some)
    }

    /// `heartbeat_ms` as a duration: the period of the node's clock too.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// `request_timeout_ms` as a duration.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// `election_ms` as a duration.
    pub fn election(&self) -> Duration {
        Duration::from_millis(self.election_ms)
    }
}

fn resolve(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    let invalid = |why: String| ConfigError::Invalid { key, why };
    text.to_socket_addrs()
        .map_err(|e| invalid(format!("`{text}` is not host:port ({e})")))?
        .next()
        .ok_or_else(|| invalid(format!("`{text}` names no address")))
}

/// What to do about an unknown key.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    match nearest {
        Some(known) => format!("did you mean `{known}`?"),
        None => "docs/OPERATIONS.md lists those there are".to_owned(),
    }
}

/// Of the known keys, each with its full name, the name of the one that is spelled most like `key`; `None` if
/// none is.
pub(crate) fn nearest<'a>(
    key: &str,
    known: impl Iterator<Item = (&'a str, String)>,
) -> Option<String> {
    known
        .map(|(spelled, name)| (strsim::normalized_damerau_levenshtein(key, spelled), name))
        .filter(|(likeness, _)| *likeness >= 0.5)
        // Of equals the first.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = Config::parse("open = true\nlisten_ = '127.0.0.1:0'").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown setting `listen_`; did you mean `listen`?"
        );
        let error = Config::parse("snapshots_every = 3").unwrap_err();
        assert!(
            matches!(&error, ConfigError::UnknownKey { nearest: Some(n), .. } if n == "snapshot_every"),
            "{error}"
        );
        let error = Config::parse("open = true\ncert_file = 'x'").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown setting `cert_file`; did you mean `tls.cert_file`?"
        );
        for unlike in ["gpu = 3", "tls = {foo = 1}", "jwt = {key = 1}"] {
            let error = Config::parse(unlike).unwrap_err().to_string();
            assert!(
                !error.contains("did you mean"),
                "nothing is like it: {error}"
            );
        }
    }

    #[test]
    fn every_listed_key_is_a_field() {
        for key in KEYS {
            let text = format!("{key} = {{}}");
            if let Err(error) = toml::from_str::<Config>(&text) {
                assert!(
                    !error.to_string().contains("unknown field"),
                    "{key}: {error}"
                );
            }
        }
        assert!(
            KEYS.len() - tables::TABLES.len() <= 24,
            "more settings than an operator can hold in mind"
        );
    }

    #[test]
    fn open_mode_stays_on_loopback_unless_told_otherwise() {
        let error = Config::parse("open = true\nlisten = '0.0.0.0:7400'").unwrap_err();
        assert!(
            error.to_string().contains("open_beyond_loopback"),
            "{error}"
        );
        let beyond = "open = true\nlisten = '0.0.0.0:7400'\nopen_beyond_loopback = true";
        Config::parse(&format!("{beyond}\nadvertise = 'db1:7400'")).unwrap();
        let error = Config::parse(beyond).unwrap_err().to_string();
        assert!(
            error.contains("`advertise`"),
            "nobody can dial 0.0.0.0: {error}"
        );
    }

    #[test]
    fn errors_of_a_file_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coordinator.toml");
        for text in ["listen_ = 1", "not toml", "open = true\nelection_ms = 1"] {
            fs::write(&path, text).unwrap();
            let error = Config::read(&path).unwrap_err().to_string();
            assert!(error.contains("coordinator.toml"), "{error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for text in [
            "",
            "open = true\ntokens_file = 'x'",
            "open = true\nelection_ms = 100\nheartbeat_ms = 100",
            "open = true\nelection_ms = 60000",
            "open = true\nlisten = 'nonsense'",
        ] {
            assert!(
                matches!(Config::parse(text), Err(ConfigError::Invalid { .. })),
                "{text:?}"
            );
        }
        Config::parse("open = true").unwrap();
    }
}
