//! `conclave cancel`: cancel a job.
use clap::Args;

use crate::{
    args::Global,
    error::CliError,
    follow, out,
    view::{json, names},
};

/// Flags of `cancel`.
#[derive(Debug, Args)]
#[command(after_help = "\
Cancelling a job that has ended changes nothing.

Example:
  conclave cancel 0190c3f2-… --reason \"asked the wrong question\"")]
pub struct CancelArgs {
    /// The job's id
    pub job_id: String,
    /// Why; kept in the audit record
    #[arg(long, value_name = "TEXT", default_value = "cancelled by the user")]
    pub reason: String,
    /// Print the job as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Cancels, and says in which state the job then is.
pub async fn run(global: &Global, args: CancelArgs) -> Result<(), CliError> {
    let job = follow::cancel(&global.client()?, &args.job_id, &args.reason).await?;
    if args.json {
        return out::document(&json::job(&job));
    }
    out::line(format!(
        "{}  {}",
        job.job_id,
        names::job_state(job.state()).to_lowercase()
    ))
}
