//! `conclave worker`: one worker, in this process.
use std::{path::PathBuf, time::Duration};

use clap::Args;
use conclave_worker::{Config, StartError, Worker, config::ConfigError};
use serde_json::json;
use toml::Table;

use crate::{
    args::Global,
    duration,
    ending::{asked_to_end, unless_asked_again},
    error::CliError,
    metrics, out,
    settings::{Overrides, SetArgs, Wrong},
};

/// Flags of `worker`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct WorkerArgs {
    /// TOML file with the settings; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Stable name [default: minted, kept in the data folder]
    #[arg(long, value_name = "NAME")]
    pub worker_id: Option<String>,
    /// Folder that keeps the name [default: nothing is kept]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Coordinator to dial; repeat for more, one that answers is enough
    #[arg(long = "coordinator", value_name = "HOST:PORT", value_delimiter = ',')]
    pub coordinators: Vec<String>,
    /// Model to serve: a GGUF file or a safetensors folder; repeat for more
    #[arg(long = "model", value_name = "[NAME=]PATH")]
    pub models: Vec<String>,
    /// Where /metrics, /healthz and /readyz listen [default: a free port on loopback]
    #[arg(long, value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// Rounding of activations, int8 or f32; decides bits [default: int8]
    #[arg(long, value_name = "KIND")]
    pub activation: Option<String>,
    /// What it computes on: cpu, cuda (the first GPU) or cuda:N; decides bits [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads [default: what the machine or cgroup grants]
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// Sequences that run side by side [default: 32]
    #[arg(long, value_name = "N")]
    pub max_sequences: Option<u32>,
    /// Any other setting.
    #[command(flatten)]
    pub set: SetArgs,
    /// How long a drain may take after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    pub drain: Duration,
    /// Say where it listens as JSON: {"worker_id": "w1", "http": "127.0.0.1:9000"}
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Prints one line when the model is loaded; it takes work once a coordinator has
welcomed it, which /readyz and the log say. SIGTERM finishes what runs, hands
back what does not end in time, and then ends; a second signal ends it at once.

Examples:
  conclave worker --coordinator 127.0.0.1:7400 --model smol=/models/smollm2.gguf
  conclave worker --config worker.toml --threads 4 --set kv_memory_mib=1024
  conclave worker --config worker.toml --device cuda --set kv_memory_mib=8192

A file:
  coordinators = [\"10.0.0.5:7400\", \"10.0.0.6:7400\"]
  data_dir = \"/var/lib/conclave-worker\"
  [[models]]
  name = \"smollm2-135m\"
  path = \"/models/SmolLM2-135M-Instruct.Q4_1.gguf\"
  [tls]                                  or --ca, --cert, --key
  ca_file = \"/etc/conclave/ca.crt\"
  cert_file = \"/etc/conclave/tls.crt\"
  key_file = \"/etc/conclave/tls.key\"

Exit status: 2 the settings or a model are wrong, 4 it could not start (e.g. a
port in use), 1 it ended by itself, 0 it drained.";

impl WorkerArgs {
    fn settings(&self, global: &Global) -> Result<Config, CliError> {
        let mut flags = Overrides::default();
        flags
            .set("worker_id", self.worker_id.clone())
            .set_path("data_dir", self.data_dir.as_deref())
            .set_list("coordinators", &self.coordinators)
            .set(
                "models",
                (!self.models.is_empty())
                    .then(|| self.models.iter().map(|m| model(m)).collect::<Vec<_>>()),
            )
            .set("http_listen", self.http_listen.clone())
            .set("activation", self.activation.clone())
            .set("device", self.device.clone())
            .set("threads", self.threads.map(i64::from))
            .set("max_sequences", self.max_sequences.map(i64::from))
            .set_path("token_file", global.token_file.as_deref())
            .set_path("tls.ca_file", global.tls.ca.as_deref())
            .set_path("tls.cert_file", global.tls.cert.as_deref())
            .set_path("tls.key_file", global.tls.key.as_deref())
            .set("tls.server_name", global.tls.server_name.clone())
            .add(&self.set);
        flags.read(self.config.as_deref(), |text| {
            Config::from_toml(text).map_err(wrong)
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
        ConfigError::Invalid { key, problem } => Wrong::Value {
            key: key.to_owned(),
            why: problem,
        },
    }
}

/// `name=path`, or a path whose file names the model.
fn model(text: &str) -> Table {
    let mut table = Table::new();
    let path = match text.split_once('=') {
        Some((name, path)) if !name.contains('/') => {
            table.insert("name".to_owned(), name.into());
            path
        }
        _ => text,
    };
    table.insert("path".to_owned(), path.into());
    table
}

/// Serves until a signal, or until the worker ends by itself.
pub async fn run(global: &Global, args: WorkerArgs) -> Result<(), CliError> {
    let mut config = args.settings(global)?;
    if config.token.is_empty() && config.token_file.is_none() {
        config.token = global.token()?.unwrap_or_default();
    }
    let worker = Worker::start(config, metrics::install()?)
        .await
        .map_err(start_error)?;
    let http = worker.http_addr().to_string();
    if args.json {
        out::json_line(&json!({ "worker_id": worker.worker_id(), "http": http }))?;
    } else {
        out::line(format!(
            "worker {} is up and looks for a coordinator: http://{http}/readyz says when it has one; \
             http://{http}/metrics",
            worker.worker_id()
        ))?;
    }
    tokio::select! {
        asked = asked_to_end() => asked?,
        () = worker.wait() => return Err(CliError::Hosting("the worker ended: see its log".to_owned())),
    }
    unless_asked_again(worker.shutdown(args.drain)).await
}

/// Whether the settings or a model they name are wrong, whatever the machine's state.
pub fn is_request_wrong(error: &StartError) -> bool {
    matches!(
        error,
        StartError::Config(_)
            | StartError::Token(_)
            | StartError::TokenFile(_)
            | StartError::Tls(_)
            | StartError::Name(_)
            | StartError::Traces(_)
            | StartError::ModelMissing { .. }
            | StartError::Model { .. }
            | StartError::ModelTwice { .. }
            | StartError::Isa { .. }
            | StartError::Device(_)
    )
}

/// What a person has to mend: what was asked for, or the machine.
fn start_error(error: StartError) -> CliError {
    match error {
        error if is_request_wrong(&error) => CliError::usage(error.to_string()),
        error => CliError::Start(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use conclave_worker::device::DeviceKind;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        global: Global,
        #[command(flatten)]
        args: WorkerArgs,
    }

    #[test]
    fn flags_alone_make_a_configuration() {
        let only = Only::parse_from([
            "x",
            "--coordinator",
            "127.0.0.1:7400,127.0.0.1:7401",
            "--model",
            "smol=/m/a.gguf",
            "--model",
            "/m/b=c.gguf",
            "--threads",
            "2",
            "--device",
            "cuda:1",
            "--set",
            "kv_memory_mib=64",
        ]);
        let config = only.args.settings(&only.global).unwrap();
        assert_eq!(config.coordinators.len(), 2);
        assert_eq!(
            (
                config.models[0].name.as_str(),
                config.models[0].path.as_path()
            ),
            ("smol", "/m/a.gguf".as_ref())
        );
        assert_eq!(
            (
                config.models[1].name.as_str(),
                config.models[1].path.as_path()
            ),
            ("", "/m/b=c.gguf".as_ref())
        );
        assert_eq!((config.threads, config.kv_memory_mib), (2, 64));
        assert_eq!(config.device, DeviceKind::Cuda(1));
    }
}
