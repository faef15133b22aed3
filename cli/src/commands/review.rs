//! `conclave review`: decide on an answer that waits for it.
use clap::{ArgGroup, Args};
use conclave_proto::v1::{ReviewJobRequest, Verdict};

use crate::{
    args::Global,
    error::CliError,
    out,
    view::{json, names},
};

/// Flags of `review`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("verdict").required(true),
    after_help = "\
For jobs submitted with --review. `conclave jobs JOB` shows the answer that waits.

Examples:
  conclave review 0190c3f2-… --approve
  conclave review 0190c3f2-… --edit \"391\" --note \"dropped the chatter\"
  conclave review 0190c3f2-… --reject --note \"wrong unit\""
)]
pub struct ReviewArgs {
    /// The job's id
    pub job_id: String,
    /// Release the answer as it is
    #[arg(long, group = "verdict")]
    pub approve: bool,
    /// Release this text instead
    #[arg(long, group = "verdict", value_name = "TEXT")]
    pub edit: Option<String>,
    /// End the job without its answer
    #[arg(long, group = "verdict")]
    pub reject: bool,
    /// Why; kept in the audit record
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub note: String,
    /// Print the job as one JSON document
    #[arg(long)]
    pub json: bool,
}

impl ReviewArgs {
    fn to_request(&self) -> ReviewJobRequest {
        let verdict = match (&self.edit, self.approve) {
            (Some(_), _) => Verdict::Edit,
            (None, true) => Verdict::Approve,
            (None, false) => Verdict::Reject,
        };
        ReviewJobRequest {
            job_id: self.job_id.clone(),
            verdict: verdict.into(),
            text: self.edit.clone().unwrap_or_default(),
            note: self.note.clone(),
        }
    }
}

/// Decides, and says in which state the job then is.
pub async fn run(global: &Global, args: ReviewArgs) -> Result<(), CliError> {
    let job = global
        .client()?
        .once(
            "ReviewJob",
            args.to_request(),
            &format!("conclave jobs {}", args.job_id),
            async |link, request| link.contemplation().review_job(request).await,
        )
        .await?;
    if args.json {
        return out::document(&json::job(&job));
    }
    out::line(format!(
        "{}  {}",
        job.job_id,
        names::job_state(job.state()).to_lowercase()
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: ReviewArgs,
    }

    fn parse(args: &[&str]) -> Result<ReviewJobRequest, clap::Error> {
        Only::try_parse_from([&["x", "j1"], args].concat()).map(|only| only.args.to_request())
    }

    #[test]
    fn a_review_is_exactly_one_verdict() {
        assert_eq!(parse(&["--approve"]).unwrap().verdict(), Verdict::Approve);
        assert_eq!(parse(&["--reject"]).unwrap().verdict(), Verdict::Reject);
        let edit = parse(&["--edit", "391"]).unwrap();
        assert_eq!((edit.verdict(), edit.text.as_str()), (Verdict::Edit, "391"));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--approve", "--reject"]).is_err());
    }
}
