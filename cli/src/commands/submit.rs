//! `conclave submit`: hand a job to a cluster.
use clap::Args;
use conclave_proto::v1::{JobSpec, SubmitJobRequest, SubmitJobResponse};
use serde_json::json;
use uuid::Uuid;

use crate::{
    args::Global,
    client::Client,
    error::CliError,
    follow::{OnInterrupt, Show, follow},
    out,
    spec::SpecArgs,
    view::json,
};

/// Flags of `submit`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SubmitArgs {
    /// The question and its policy.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Model name, as `conclave cluster workers` lists it [default: the cluster's only one]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub model: String,
    /// Idempotency key: the same key and request is the same job, however often
    /// it is sent [default: minted, printed on standard error]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Wait for the end, then print the answer
    #[arg(long)]
    pub wait: bool,
    /// Wait and show progress on standard error; Ctrl-C leaves the job running
    #[arg(long)]
    pub watch: bool,
    /// Progress as lines instead of a live view
    #[arg(long)]
    pub plain: bool,
    /// Print one JSON document: the acceptance, or with --wait or --watch the whole job
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Prints the job's id on standard output; with --wait or --watch, the answer.

Examples:
  conclave submit \"Is 221 prime?\" --choices yes,no
  conclave submit --watch \"Name three uses of graphite.\" --agents 4 --rounds 1
  conclave submit --key order-4711 --wait --json - < question.txt
  conclave submit \"Give a user record.\" --schema user.json --mode thinking

A submission that got no clear reply is repeated with the same key, so it
never becomes two jobs. Exit status: 0 accepted (or answered), 1 the job
failed, 2 refused, 3 nobody could take it in time.";

/// Submits, and waits if asked to.
pub async fn run(global: &Global, args: SubmitArgs) -> Result<(), CliError> {
    let client = global.client()?;
    let spec = args.spec.to_spec(&args.model)?;
    let key = args.key.clone().unwrap_or_else(mint_key);
    if args.key.is_none() {
        out::note(format!("key {key}"));
    }
    let accepted = submit(&client, key.clone(), spec).await?;
    if accepted.existing {
        out::note(format!(
            "The key was known: it stands for job {}.",
            accepted.job_id
        ));
    }
    tell_waits(&accepted);
    if !args.wait && !args.watch {
        if args.json {
            let effective = accepted.effective.as_ref();
            return out::document(&json!({
                "job_id": accepted.job_id,
                "idempotency_key": key,
                "existing": accepted.existing,
                "seed": effective.and_then(|spec| spec.seed),
                "model": effective.map(|spec| spec.model.as_str()),
                "waits": (!accepted.waits.is_empty()).then_some(accepted.waits.as_str()),
            }));
        }
        return out::line(&accepted.job_id);
    }
    out::note(format!("job {}", accepted.job_id));
    let show = if args.watch {
        Show::choose(args.plain, false)
    } else {
        Show::Nothing
    };
    let job = follow(&client, &accepted.job_id, show, OnInterrupt::Leave).await?;
    if args.json {
        out::document(&json::job(&job))?;
        return super::verdict(&job);
    }
    super::print_end(&job)
}

/// Says at once that no worker takes the job, where the leader said so.
pub fn tell_waits(accepted: &SubmitJobResponse) {
    if !accepted.waits.is_empty() {
        out::note(format!("The job waits: {}.", accepted.waits));
    }
}

/// A fresh idempotency key.
pub fn mint_key() -> String {
    format!("cli-{}", Uuid::now_v7())
}

/// Submits under `key`; repeated on other endpoints until one accepts.
pub async fn submit(
    client: &Client,
    key: String,
    spec: JobSpec,
) -> Result<SubmitJobResponse, CliError> {
    let message = SubmitJobRequest {
        idempotency_key: key,
        spec: Some(spec),
    };
    client
        .unary("SubmitJob", message, async |link, request| {
            link.contemplation().submit_job(request).await
        })
        .await
}
