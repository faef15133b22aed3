//! `conclave watch`: follow a job to its end.
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::Args;

use crate::{
    args::Global,
    ending::asked_to_end,
    error::CliError,
    follow::{OnInterrupt, Show, follow},
    out,
    view::json,
    watching::{self, Seen},
};

/// Flags of `watch`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct WatchArgs {
    /// The job's id
    pub job_id: String,
    /// Lines instead of a live view
    #[arg(long)]
    pub plain: bool,
    /// One JSON object a line: every event and text delta, each with its cursor
    #[arg(long)]
    pub json: bool,
    /// With --json: leave out the agents' text
    #[arg(long, requires = "json")]
    pub no_tokens: bool,
    /// With --json: resume after this cursor, from an earlier line
    #[arg(long, value_name = "CURSOR", requires = "json")]
    pub cursor: Option<String>,
}

const EXAMPLES: &str = "\
Survives lost connections and changes of leader: it resumes where it stopped,
on whichever endpoint answers. Ctrl-C leaves the job running.

Examples:
  conclave watch 0190c3f2-…
  conclave watch 0190c3f2-… --json --no-tokens | jq -r '.state // empty'
  conclave watch 0190c3f2-… --json --cursor CAcQAQ";

/// Follows the job.
pub async fn run(global: &Global, args: WatchArgs) -> Result<(), CliError> {
    let client = global.client()?;
    if !args.json {
        let job = follow(
            &client,
            &args.job_id,
            Show::choose(args.plain, false),
            OnInterrupt::Leave,
        )
        .await?;
        return super::print_end(&job);
    }
    let cursor = match &args.cursor {
        Some(text) => BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| {
            CliError::usage(format!(
                "--cursor `{text}` is not a cursor: copy it from a line of `watch --json`"
            ))
        })?,
        None => Vec::new(),
    };
    let print = |seen: Seen<'_>, cursor: &[u8]| match seen {
        Seen::Update(update) => out::json_line(&json::update(
            update,
            &BASE64_URL_SAFE_NO_PAD.encode(cursor),
        )),
        Seen::Resuming { endpoint, reason } => {
            out::note(format!("lost {endpoint} ({reason}); resuming elsewhere"));
            Ok(())
        }
    };
    tokio::select! {
        job = watching::follow(&client, &args.job_id, !args.no_tokens, cursor, print) => super::verdict(&job?),
        asked = asked_to_end() => asked.and(Err(CliError::Interrupted)),
    }
}
