//! The quotas file: what each tenant may have, read again when it changes.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use conclave_coordinator_core::quota::{Limits, Quotas};
use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{hint, nearest},
    node::{Handle, Input},
};

/// Period of looking at the file. Its text is compared: a mounted one changes by the turn of a link,
/// and its times may stay.
const LOOK: Duration = Duration::from_secs(2);
/// Tenants that may be named: each has its own series in metrics, and is a key in memory.
const MOST_NAMED: usize = 1_000;
/// What the file may hold.
const TABLES: [&str; 2] = ["default", "tenant"];
/// What a table of limits may hold.
const LIMITS: [&str; 3] = ["live_jobs", "running_agents", "tokens_per_minute"];

/// Why a quotas file is refused.
#[derive(Debug, thiserror::Error)]
pub enum QuotasError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// A key that means nothing.
    #[error("unknown key `{key}`; {}", hint(nearest.as_deref()))]
    UnknownKey {
        /// The key, with the tables that it stands in.
        key: String,
        /// The known one that is spelled most like it, if one is spelled like it at all.
        nearest: Option<String>,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("it does not parse: {0}")]
    Parse(#[from] toml::de::Error),
    /// A limit that nothing could keep to.
    #[error("`{key}` must be at least 1; leave it out for no limit")]
    Zero {
        /// Which.
        key: String,
    },
    /// More tenants than may be named.
    #[error("{count} tenants are named, {MOST_NAMED} may be: give the others the default")]
    TooMany {
        /// How many are.
        count: usize,
    },
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    default: Table,
    tenant: BTreeMap<String, Table>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    live_jobs: Option<u64>,
    running_agents: Option<u64>,
    tokens_per_minute: Option<u64>,
}

impl Table {
    fn limits(&self, name: &str) -> Result<Limits, QuotasError> {
        if self.tokens_per_minute == Some(0) {
            let key = format!("{name}.tokens_per_minute");
            return Err(QuotasError::Zero { key });
        }
        Ok(Limits {
            live_jobs: self.live_jobs,
            running_agents: self.running_agents,
            tokens_per_minute: self.tokens_per_minute,
        })
    }
}

/// What a look at the file came to.
#[derive(Debug, PartialEq)]
enum News {
    /// It says what it said.
    Same,
    /// Something else: these, or why it cannot be used.
    Other(Result<Quotas, String>),
}

/// Quotas from the text of a file.
///
/// # Errors
/// [`QuotasError`] names the key.
pub fn parse(text: &str) -> Result<Quotas, QuotasError> {
    let table: toml::Table = toml::from_str(text)?;
    known(&table, "", &TABLES)?;
    let limits = |name: &str, value: Option<&toml::Value>| match value {
        Some(toml::Value::Table(limits)) => known(limits, &format!("{name}."), &LIMITS),
        _ => Ok(()),
    };
    limits("default", table.get("default"))?;
    if let Some(toml::Value::Table(tenants)) = table.get("tenant") {
        for (name, value) in tenants {
            limits(&format!("tenant.{name}"), Some(value))?;
        }
    }
    let file: File = toml::from_str(text)?;
    let count = file.tenant.len();
    if count > MOST_NAMED {
        return Err(QuotasError::TooMany { count });
    }
    let mut tenants = BTreeMap::new();
    for (name, table) in file.tenant {
        let limits = table.limits(&format!("tenant.{name}"))?;
        tenants.insert(name, limits);
    }
    Ok(Quotas::new(file.default.limits("default")?, tenants))
}

fn known(table: &toml::Table, within: &str, keys: &[&'static str]) -> Result<(), QuotasError> {
    let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) else {
        return Ok(());
    };
    Err(QuotasError::UnknownKey {
        key: format!("{within}{key}"),
        nearest: nearest(key, keys.iter().map(|known| (*known, (*known).to_owned()))),
    })
}

/// The file, and its text when it was last looked at.
struct Watched {
    path: PathBuf,
    /// What was found: the text, or why there is none.
    last: Result<String, String>,
}

/// What tenants may have at the start, by the file if there is one: it is looked at until `stop`.
///
/// # Errors
/// [`QuotasError`]: a coordinator does not start on a file that it cannot use.
pub fn begin(
    path: Option<&Path>,
    node: &Handle,
    stop: &CancellationToken,
) -> Result<Quotas, QuotasError> {
    let Some(path) = path else {
        return Ok(Quotas::default());
    };
    let (quotas, watched) = Watched::read(path)?;
    let follow = watched.follow(node.clone());
    tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
    Ok(quotas)
}

impl Watched {
    /// Reads the file for the first time.
    fn read(path: &Path) -> Result<(Quotas, Watched), QuotasError> {
        let text = std::fs::read_to_string(path)?;
        let quotas = parse(&text)?;
        let watched = Watched {
            path: path.to_owned(),
            last: Ok(text),
        };
        Ok((quotas, watched))
    }

    /// Looks at the file until the process ends, and tells the node what it says now. A file that
    /// cannot be used changes nothing, and is complained of once.
    async fn follow(mut self, node: Handle) {
        let mut clock = tokio::time::interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let path = self.path.clone();
            let read = move || std::fs::read_to_string(path).map_err(|e| e.to_string());
            // A disk that hangs holds up nothing but this look.
            let Ok(found) = tokio::task::spawn_blocking(read).await else {
                continue;
            };
            if let News::Other(quotas) = self.look(found) {
                node.tell(Input::Quotas(quotas)).await;
            }
        }
    }

    fn look(&mut self, found: Result<String, String>) -> News {
        if found == self.last {
            return News::Same;
        }
        self.last = found;
        let text = self
            .last
            .as_ref()
            .map_err(|why| format!("cannot read it: {why}"));
        let quotas = text.and_then(|text| parse(text).map_err(|e| e.to_string()));
        match &quotas {
            Ok(_) => tracing::info!(file = %self.path.display(), "the quotas file changed"),
            Err(why) => tracing::warn!(
                file = %self.path.display(),
                why,
                "the quotas file cannot be used: the quotas before it go on"
            ),
        }
        News::Other(quotas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[default]\nlive_jobs = 10\n\n[tenant.acme]\nlive_jobs = 100\n\
                        tokens_per_minute = 60000\n\n[tenant.\"a b\"]\nrunning_agents = 0\n";

    #[test]
    fn a_file_says_what_each_tenant_may_have() {
        let quotas = parse(FILE).unwrap();
        let of = |tenant| {
            let limits = quotas.of(tenant);
            let numbers = (limits.live_jobs, limits.running_agents);
            (numbers, limits.tokens_per_minute)
        };
        assert_eq!(of("acme"), ((Some(100), None), Some(60_000)));
        assert_eq!(of("a b"), ((Some(10), Some(0)), None));
        assert_eq!(of("else"), ((Some(10), None), None));
        assert_eq!(parse("").unwrap(), Quotas::default());
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        for (text, want) in [
            ("[defaults]", "`defaults`; did you mean `default`?"),
            (
                "[default]\nlive_job = 1",
                "`default.live_job`; did you mean `live_jobs`?",
            ),
            (
                "[tenant.acme]\ntokens_per_min = 1",
                "`tenant.acme.tokens_per_min`; did you mean `tokens_per_minute`?",
            ),
            (
                "[tenant.acme]\ntokens_per_minute = 0",
                "`tenant.acme.tokens_per_minute` must be at least 1",
            ),
            ("[default]\nlive_jobs = -1", "does not parse"),
            ("[tenant]\nacme = 3", "does not parse"),
            ("default", "does not parse"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        let many: String = (0..=MOST_NAMED)
            .map(|n| format!("[tenant.t{n}]\n"))
            .collect();
        let error = parse(&many).unwrap_err().to_string();
        assert!(error.starts_with("1001 tenants are named"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_used_changes_nothing_until_it_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quotas.toml");
        assert!(Watched::read(&path).is_err(), "there is none");
        std::fs::write(&path, FILE).unwrap();
        let (first, mut watched) = Watched::read(&path).unwrap();
        assert_eq!(first, parse(FILE).unwrap());
        assert_eq!(watched.look(Ok(FILE.to_owned())), News::Same);
        let unusable = |news: News| match news {
            News::Other(Err(why)) => why,
            news => panic!("it cannot be used: {news:?}"),
        };
        let why = unusable(watched.look(Ok("nonsense".to_owned())));
        assert!(why.contains("line 1"), "{why}");
        assert_eq!(
            watched.look(Ok("nonsense".to_owned())),
            News::Same,
            "said once"
        );
        let why = unusable(watched.look(Err("it is gone".to_owned())));
        assert!(why.contains("it is gone"), "{why}");
        let other = "[default]\nlive_jobs = 11";
        let second = watched.look(Ok(other.to_owned()));
        assert_eq!(second, News::Other(Ok(parse(other).unwrap())));
        let back = watched.look(Ok(FILE.to_owned()));
        assert_eq!(back, News::Other(Ok(first)));
    }
}
