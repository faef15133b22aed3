//! `conclave coordinator`: one member of a cluster, in this process.
use std::{path::PathBuf, time::Duration};

use clap::Args;
use conclave_coordinator::{Config, Coordinator, StartError, config::ConfigError};
use serde_json::json;

use crate::{
    args::Global,
    duration,
    ending::{asked_to_end, unless_asked_again},
    error::CliError,
    metrics, out,
    settings::{Overrides, SetArgs, Wrong},
    tls::TlsArgs,
};

/// Flags of `coordinator`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CoordinatorArgs {
    /// TOML file with the settings; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for log, snapshots and identity [default: conclave-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where gRPC listens; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// What members and workers dial [default: the address listened on]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Where /metrics, /healthz and /readyz listen [default: 127.0.0.1:7410]
    #[arg(long, value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// Address of a member, if all of them have moved; repeat for more
    #[arg(long = "seed", value_name = "HOST:PORT", value_delimiter = ',')]
    pub seeds: Vec<String>,
    /// JSON lines of {"token", "tenant", "role"}: who may call
    #[arg(long, value_name = "FILE", conflicts_with = "open")]
    pub tokens_file: Option<PathBuf>,
    /// Serve everybody who reaches it, as operator of tenant `local`
    #[arg(long)]
    pub open: bool,
    /// Any other setting.
    #[command(flatten)]
    pub set: SetArgs,
    /// How long a drain may take after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    pub drain: Duration,
    /// Say where it listens as JSON: {"grpc": "127.0.0.1:7400", "http": "127.0.0.1:7410"}
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
A new coordinator is blank: it waits for `conclave cluster init` or `add`.
Prints one line when it listens. SIGTERM hands leadership over and drains; a
second signal ends it at once.

Examples:
  conclave coordinator --open --data-dir /var/lib/conclave
  conclave coordinator --config coordinator.toml --listen 0.0.0.0:7400 --set snapshot_every=4096

A file:
  data_dir = \"/var/lib/conclave\"
  listen = \"10.0.0.5:7400\"
  http_listen = \"10.0.0.5:9400\"
  tokens_file = \"/etc/conclave/tokens.jsonl\"
  [tls]                                  or --ca, --cert, --key
  ca_file = \"/etc/conclave/ca.crt\"
  cert_file = \"/etc/conclave/tls.crt\"
  key_file = \"/etc/conclave/tls.key\"

A tokens file, one JSON object a line:
  {\"token\": \"…\", \"tenant\": \"team-a\", \"role\": \"submitter\"}
Roles: submitter (jobs), reviewer (also decides reviews), operator (also the
cluster), worker (serves models), peer (another coordinator; each needs one).

Exit status: 2 the settings are wrong, 4 it could not start (a port in use, a
data folder that cannot be used), 1 it ended by itself, 0 it drained.";

impl CoordinatorArgs {
    fn settings(&self, tls: &TlsArgs) -> Result<Config, CliError> {
        let mut flags = Overrides::default();
        flags
            .set_path("data_dir", self.data_dir.as_deref())
            .set("listen", self.listen.clone())
            .set("advertise", self.advertise.clone())
            .set("http_listen", self.http_listen.clone())
            .set_list("seeds", &self.seeds)
            .set_path("tokens_file", self.tokens_file.as_deref())
            .set("open", self.open.then_some(true))
            .set_path("tls.ca_file", tls.ca.as_deref())
            .set_path("tls.cert_file", tls.cert.as_deref())
            .set_path("tls.key_file", tls.key.as_deref())
            .set("tls.server_name", tls.server_name.clone())
            .add(&self.set);
        flags.read(self.config.as_deref(), |text| {
            Config::parse(text).map_err(wrong)
        })
    }
}

fn wrong(error: ConfigError) -> Wrong {
    match error {
        ConfigError::Parse(error) => Wrong::Shape {
            at: error.span(),
            why: error.message().to_owned(),
        },
        ConfigError::UnknownKey { ref key, .. } => Wrong::Unknown {
            key: key.clone(),
            why: error.to_string(),
        },
        ConfigError::Invalid { key, why } => Wrong::Value {
            key: key.to_owned(),
            why,
        },
        ConfigError::In { source, .. } => wrong(*source),
        // Not of a text.
        ConfigError::Read { .. } => Wrong::Shape {
            at: None,
            why: error.to_string(),
        },
    }
}

/// Serves until a signal, or until the coordinator ends by itself.
pub async fn run(global: &Global, args: CoordinatorArgs) -> Result<(), CliError> {
    let config = args.settings(&global.tls)?;
    let coordinator = Coordinator::start(config, metrics::install()?)
        .await
        .map_err(start_error)?;
    let grpc = coordinator.grpc_addr().to_string();
    let http = coordinator
        .http_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    if args.json {
        out::json_line(&json!({ "grpc": grpc, "http": http }))?;
    } else {
        let metrics = match http.as_str() {
            "" => "no metrics are served".to_owned(),
            http => format!("http://{http}/metrics"),
        };
        out::line(format!("coordinator listens on {grpc}; {metrics}"))?;
    }
    tokio::select! {
        asked = asked_to_end() => asked?,
        why = coordinator.wait() => return Err(CliError::Hosting(format!("the coordinator ended: {why}"))),
    }
    unless_asked_again(coordinator.shutdown(args.drain)).await
}

/// What a person has to mend: what was asked for, or the machine.
fn start_error(error: StartError) -> CliError {
    match error {
        StartError::Config(_)
        | StartError::Tokens(_)
        | StartError::Quotas { .. }
        | StartError::Jwks(_)
        | StartError::Tls(_)
        | StartError::Name(_)
        | StartError::Traces(_) => CliError::usage(error.to_string()),
        other => CliError::Start(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: CoordinatorArgs,
    }

    #[test]
    fn flags_alone_make_a_configuration() {
        let only = Only::parse_from([
            "x",
            "--open",
            "--listen",
            "127.0.0.1:0",
            "--set",
            "snapshot_every=64",
        ]);
        let config = only.args.settings(&TlsArgs::default()).unwrap();
        assert!(config.open);
        assert_eq!(
            (config.listen.as_str(), config.snapshot_every),
            ("127.0.0.1:0", 64)
        );
    }

    /// What is told of these arguments.
    fn refused(args: &[&str]) -> String {
        let only = Only::parse_from([&["x"], args].concat());
        let error = only.args.settings(&TlsArgs::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn what_is_wrong_with_an_option_is_told_of_the_option() {
        let text = refused(&["--open", "--set", "snapshots_every=64"]);
        assert!(
            text.starts_with("--set snapshots_every: ")
                && text.contains("did you mean `snapshot_every`"),
            "{text}"
        );
        for (option, told) in [
            (
                "snapshot_every=abc",
                "--set snapshot_every: a whole number, 0 or more, is needed, not the text \"abc\"",
            ),
            (
                "snapshot_every=3",
                "--set snapshot_every: must be at least 16",
            ),
        ] {
            assert_eq!(refused(&["--open", "--set", option]), told);
        }
        let text = refused(&["--open", "--listen", "nonsense"]);
        assert!(text.starts_with("--listen: "), "{text}");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told_with_its_line_whatever_the_options_say() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        let told = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            refused(&["--config", &path, "--set", "max_keys=7"])
        };
        for (text, line, words) in [
            (
                "open = true\n\nelection_ms = \"1s\"\n",
                3,
                "`election_ms`: a whole number",
            ),
            (
                "open = true\nelection_ms = 1\n",
                2,
                "`election_ms`: must be",
            ),
            (
                "open = true\n[tls]\ncertfile = 'x'\n",
                3,
                "did you mean `cert_file`",
            ),
            ("open = true\nnonsense here\n", 2, ""),
        ] {
            let told = told(text);
            let place = format!("{path}, line {line}: ");
            assert!(told.starts_with(&place) && told.contains(words), "{told}");
        }
    }
}
