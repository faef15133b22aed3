//! `conclave up`: a local cluster that stays.
use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::{Map, json};

use crate::{
    args::Global,
    duration,
    ending::{asked_to_end, unless_asked_again, unless_interrupted},
    error::CliError,
    host::{self, LocalCluster, Plan},
    metrics, model_source, out,
};

/// Flags of `up`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct UpArgs {
    /// What to host.
    #[command(flatten)]
    pub model: model_source::ModelArgs,
    /// Coordinators
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub coordinators: u16,
    /// Workers; they share the model's weights
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub workers: u16,
    /// Keep the cluster here across restarts [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// First port: gRPC from here, coordinators' HTTP from +10, workers' HTTP from +20
    #[arg(long, value_name = "PORT", default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1024..=65500))]
    pub port_base: u16,
    /// Send traces of jobs to a collector (OTLP over gRPC), e.g. http://127.0.0.1:4317
    #[arg(long, value_name = "URL")]
    pub traces: Option<String>,
    /// How long a drain may take after Ctrl-C or SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    pub drain: Duration,
    /// Say where it listens as one JSON document on one line
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Hosts coordinators and workers in this process, open to everybody on this
machine. Ctrl-C or SIGTERM drains it; a second signal ends it at once.

Examples:
  conclave up
  conclave up --data-dir ./cluster --workers 1
  conclave up --traces http://127.0.0.1:4317 --log info --log-format json
  conclave up --port-base 7500         then: conclave jobs --endpoint 127.0.0.1:7500";

/// Serves until a signal.
pub async fn run(global: &Global, args: UpArgs) -> Result<(), CliError> {
    let metrics = metrics::install()?;
    let model = unless_interrupted(args.model.find()).await?;
    let plan = Plan {
        coordinators: args.coordinators,
        workers: args.workers,
        data_dir: args.data_dir.clone(),
        port_base: Some(args.port_base),
        model: model.path,
        model_name: model.name,
        activation: args.model.activation(),
        device: args.model.device,
        traces: args.traces.clone(),
    };
    let (cluster, _) = unless_interrupted(LocalCluster::start(&plan, global, &metrics)).await?;
    if args.json {
        let http: Map<_, _> = cluster
            .http()
            .into_iter()
            .map(|(name, address)| (name, address.into()))
            .collect();
        out::json_line(
            &json!({ "grpc": cluster.endpoints(), "http": http, "data_dir": cluster.folder() }),
        )?;
    } else {
        describe(&cluster, &args)?;
    }
    tokio::select! {
        asked = asked_to_end() => asked?,
        lost = cluster.lost() => return Err(CliError::Hosting(format!("{lost}; --log info shows more"))),
    }
    out::note("Draining; once more ends it at once.");
    unless_asked_again(cluster.shutdown(args.drain)).await
}

fn describe(cluster: &LocalCluster, args: &UpArgs) -> Result<(), CliError> {
    let endpoints = cluster.endpoints();
    out::line(format!(
        "Cluster of {} and {} is up.",
        host::count(args.coordinators.into(), "coordinator"),
        host::count(args.workers.into(), "worker"),
    ))?;
    out::line(format!("  gRPC     {}", endpoints.join(" ")))?;
    for (name, address) in cluster.http() {
        out::line(format!("  metrics  http://{address}/metrics  {name}"))?;
    }
    let kept = if args.data_dir.is_some() {
        "kept"
    } else {
        "removed at the end; --data-dir keeps it"
    };
    out::line(format!(
        "  data     {} ({kept})",
        cluster.folder().display()
    ))?;
    let endpoint = if args.port_base == 7400 {
        String::new()
    } else {
        format!(" --endpoint {}", endpoints[0])
    };
    out::line("From another terminal:")?;
    out::line(format!(
        "  conclave submit --watch{endpoint} \"Is 221 a prime number?\" --choices yes,no"
    ))?;
    out::line(format!("  conclave jobs{endpoint}"))?;
    out::line(format!("  conclave cluster members{endpoint}"))
}
