//! The command line.
use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use conclave_credentials::Dial;

use crate::{
    client::{Client, DEFAULT_ENDPOINTS},
    commands::{
        ask, audit, cancel, cluster, coordinator, doctor, jobs, model, recover, review, snapshot,
        submit, up, watch, worker,
    },
    duration,
    error::CliError,
    tls::TlsArgs,
};

/// Contemplating mode, served: many short thinkers work on one question, a
/// chair answers, and the answer can be replayed token for token.
#[derive(Debug, Parser)]
#[command(name = "conclave", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  conclave ask \"What is 17 * 23?\"                 a temporary cluster of its own, then the answer
  conclave up                                     a local cluster that stays, on 127.0.0.1:7400..7402
  conclave submit --watch \"Is 221 prime?\" --choices yes,no
  conclave audit export JOB -o job.audit && conclave audit verify job.audit
  conclave audit replay job.audit                 run every agent again and compare token for token

Exit status:
  0 answered or done   1 the job failed, or a check found differences
  2 the command, its settings, its token or the request is wrong: change it
  3 nobody could serve it in time: try again
  4 a part could not start, e.g. its port is in use   130 interrupted

Every command explains itself: conclave COMMAND --help";

const AUDIT_EXAMPLES: &str = "\
Examples:
  conclave audit export JOB -o job.audit
  conclave audit verify job.audit
  conclave audit replay job.audit --model smollm2-135m";

const MODEL_EXAMPLES: &str = "\
Examples:
  conclave model list
  conclave model pull smollm2-135m
  conclave model check smollm2-135m reference.json --activation f32";

const CLUSTER_EXAMPLES: &str = "\
Examples:
  conclave cluster init --endpoint 127.0.0.1:7400 --join 127.0.0.1:7401,127.0.0.1:7402
  conclave cluster status
  conclave cluster add 127.0.0.1:7403
  conclave cluster transfer 00c0ffee00000017";

const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  conclave snapshot save nightly.snapshot
  conclave snapshot status nightly.snapshot
  conclave snapshot restore nightly.snapshot --data-dir /var/lib/conclave";

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection and logs")]
pub struct Global {
    /// Coordinator to talk to, HOST:PORT; repeat to name more, all are tried
    /// [default: 127.0.0.1:7400, :7401 and :7402, where `up` listens]
    #[arg(
        long = "endpoint",
        global = true,
        value_name = "HOST:PORT",
        env = "CONCLAVE_ENDPOINT",
        value_delimiter = ','
    )]
    pub endpoints: Vec<String>,
    /// File that holds the bearer token [default: the variable CONCLAVE_TOKEN]
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Longest time a call may take, its retries included
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    pub timeout: Duration,
    /// What to log to standard error, e.g. `info` or `warn,conclave_worker=debug`
    /// [default: info for coordinator and worker, warn otherwise]
    #[arg(long, global = true, value_name = "FILTER", env = "CONCLAVE_LOG")]
    pub log: Option<String>,
    /// Shape of a log line
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        env = "CONCLAVE_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask one question, with a cluster of its own if none is named
    Ask(Box<ask::AskArgs>),
    /// Keep a local cluster running
    Up(up::UpArgs),
    /// Run one coordinator
    Coordinator(coordinator::CoordinatorArgs),
    /// Run one worker
    Worker(worker::WorkerArgs),
    /// Hand a job to a cluster; prints its id
    Submit(Box<submit::SubmitArgs>),
    /// Follow a job to its end
    Watch(watch::WatchArgs),
    /// List jobs, or show one
    Jobs(jobs::JobsArgs),
    /// Cancel a job; its agents stop within one decode step
    Cancel(cancel::CancelArgs),
    /// Approve, edit or reject an answer that awaits review
    Review(review::ReviewArgs),
    /// Take a job's record along, check it, run it again
    #[command(subcommand, after_help = AUDIT_EXAMPLES)]
    Audit(audit::AuditCommand),
    /// Fetch models, check them against a reference
    #[command(subcommand, after_help = MODEL_EXAMPLES)]
    Model(model::ModelCommand),
    /// Create a cluster, change its members, see its health
    #[command(subcommand, after_help = CLUSTER_EXAMPLES)]
    Cluster(cluster::ClusterCommand),
    /// Look at a cluster from outside: what is wrong, and what to do
    Doctor(doctor::DoctorArgs),
    /// Save the state of a cluster to a file, begin a new one on it
    #[command(subcommand, after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(snapshot::SnapshotCommand),
    /// Go on with the one member that is left of a cluster
    Recover(recover::RecoverArgs),
}

impl Global {
    /// The client of the endpoints given, or of those where `up` listens.
    pub fn client(&self) -> Result<Client, CliError> {
        if self.endpoints.is_empty() {
            return self.client_of(&DEFAULT_ENDPOINTS.map(str::to_owned));
        }
        self.client_of(&self.endpoints)
    }

    /// A client of `endpoints` with this user's token, certificates and timeout.
    pub fn client_of(&self, endpoints: &[String]) -> Result<Client, CliError> {
        let dial = self.tls.dial(endpoints)?;
        Client::new(endpoints, &dial, self.token()?.as_deref(), self.timeout)
    }

    /// A client of a cluster in this process, which is plain and open.
    pub fn local_client(&self, endpoints: &[String]) -> Result<Client, CliError> {
        Client::new(endpoints, &Dial::plain(), None, self.timeout)
    }

    /// The bearer token: from the file, or the variable CONCLAVE_TOKEN. It is
    /// no flag, because every user of the machine can read a command line.
    pub fn token(&self) -> Result<Option<String>, CliError> {
        let Some(path) = &self.token_file else {
            let text = std::env::var("CONCLAVE_TOKEN").unwrap_or_default();
            let token = text.trim();
            return Ok((!token.is_empty()).then(|| token.to_owned()));
        };
        let wrong = |why: &dyn std::fmt::Display| {
            CliError::usage(format!("--token-file {}: {why}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        match text.trim() {
            "" => Err(wrong(&"it is empty: it holds the token, and nothing else")),
            lines if lines.starts_with('{') => Err(wrong(
                &"it holds JSON lines, as a coordinator's tokens_file does: put one token into a \
                  file of its own, and nothing else",
            )),
            token => Ok(Some(token.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoints_repeat_and_split_and_may_follow_the_command() {
        let cli = Cli::try_parse_from([
            "conclave",
            "jobs",
            "--endpoint",
            "a:1,b:2",
            "--endpoint",
            "c:3",
        ])
        .unwrap();
        assert_eq!(cli.global.endpoints, ["a:1", "b:2", "c:3"]);
        assert_eq!(cli.global.timeout, Duration::from_secs(30));
    }

    #[test]
    fn every_command_explains_itself() {
        for command in Cli::command().get_subcommands() {
            assert!(
                command.get_about().is_some(),
                "{} says nothing",
                command.get_name()
            );
            let has_examples = command.get_after_help().is_some()
                || command
                    .get_subcommands()
                    .any(|inner| inner.get_about().is_some());
            assert!(has_examples, "{} shows no example", command.get_name());
        }
    }

    #[test]
    fn the_token_is_read_trimmed_from_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret-token\n").unwrap();
        let path = file.path().display().to_string();
        let cli = Cli::try_parse_from(["conclave", "jobs", "--token-file", &path]).unwrap();
        assert_eq!(cli.global.token().unwrap().as_deref(), Some("secret-token"));
        for (text, words) in [("\n", "is empty"), ("{\"token\": \"x\"}", "JSON lines")] {
            std::fs::write(file.path(), text).unwrap();
            let error = cli.global.token().unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn a_token_file_that_is_not_there_is_named_with_its_option() {
        let args = ["conclave", "jobs", "--token-file", "/nowhere/token"];
        let cli = Cli::try_parse_from(args).unwrap();
        let error = cli.global.token().unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("--token-file /nowhere/token: "), "{text}");
        assert_eq!(error.exit_code(), 2);
    }
}
