//! `conclave ask`: one question, one answer; with a cluster of its own if none
//! is named.
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use conclave_proto::v1::{Job, JobSpec, JobState};
use serde_json::{Value, json};

use crate::{
    args::Global,
    audit, cache,
    client::Client,
    commands::{audit::fetch, submit},
    duration,
    ending::{unless_asked_again, unless_interrupted},
    error::CliError,
    follow::{OnInterrupt, Show, follow},
    host::{self, LocalCluster, Plan},
    metrics, model_source, out,
    spec::SpecArgs,
    view::{json, summary},
};

/// Flags of `ask`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AskArgs {
    /// The question and its policy.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// The model.
    #[command(flatten)]
    pub model: model_source::ModelArgs,
    /// Coordinators of the temporary cluster
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub coordinators: u16,
    /// Workers of the temporary cluster; they share the model's weights
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub workers: u16,
    /// Where to save the audit record [default: ~/.cache/conclave/audit/JOB.audit]
    #[arg(long, value_name = "FILE")]
    pub audit: Option<PathBuf>,
    /// Progress as lines instead of a live view
    #[arg(long)]
    pub plain: bool,
    /// Print one JSON document: answer, drafts, votes, usage, job_id, audit_file, ...
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Without --endpoint, a cluster is hosted in this process for the one question:
three coordinators (real Raft, real logs in a temporary folder) and two workers
on loopback. The default model is fetched into ~/.cache/conclave if need be.

The answer goes to standard output, everything else to standard error. The
audit record is kept, so that the answer can be checked and replayed after the
temporary cluster is gone. Ctrl-C cancels the job; a second one leaves at once.

Examples:
  conclave ask \"What is 17 * 23?\"
  conclave ask \"Is 221 prime?\" --choices yes,no --aggregator majority
  conclave ask --agents 4 --rounds 1 --seed 7 --exact \"Why is the sky blue?\"
  conclave ask --json --schema user.json - < question.txt | jq .answer
  conclave ask --endpoint 127.0.0.1:7400 \"…\"      asks a cluster that runs already

Exit status: 0 answered, 1 the job failed, 2 the request is wrong,
3 nobody could serve it, 130 interrupted.";

/// How long a finished job's record is waited for until nothing can be added.
const SEAL: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);
/// The temporary cluster has answered: its parts have nothing left to finish.
const DRAIN: Duration = Duration::from_secs(1);

/// Asks, shows, saves the record, prints.
pub async fn run(global: &Global, args: AskArgs) -> Result<(), CliError> {
    let start = Instant::now();
    let hosted = global.endpoints.is_empty();
    if hosted && args.spec.review {
        return Err(CliError::usage(
            "--review: the temporary cluster ends with `ask`, and nobody could review; \
             name one that stays with --endpoint (`conclave up` starts one)",
        ));
    }
    let name = if hosted {
        ""
    } else {
        args.model.name_for_cluster()?
    };
    // Before anything starts: a question that cannot be meant needs no cluster, and while standard
    // input is read, Ctrl-C still ends the process by itself.
    let spec = args.spec.to_spec(name)?;
    if !hosted {
        return ask(&global.client()?, &args, spec, start).await;
    }
    let metrics = metrics::install()?;
    let model = unless_interrupted(args.model.find()).await?;
    let plan = Plan {
        coordinators: args.coordinators,
        workers: args.workers,
        data_dir: None,
        port_base: None,
        model: model.path,
        model_name: model.name,
        activation: args.model.activation(),
        device: args.model.device,
        traces: None,
    };
    if !args.json {
        out::note(format!(
            "Starting {} and {} on loopback.",
            host::count(args.coordinators.into(), "coordinator"),
            host::count(args.workers.into(), "worker"),
        ));
    }
    let (cluster, client) =
        unless_interrupted(LocalCluster::start(&plan, global, &metrics)).await?;
    let result = tokio::select! {
        result = ask(&client, &args, spec, start) => result,
        lost = cluster.lost() => Err(CliError::Hosting(format!("{lost}; --log info shows more"))),
    };
    let ended = unless_asked_again(cluster.shutdown(DRAIN)).await;
    result.and(ended)
}

/// One job on a cluster that runs, from submission to the printed answer.
async fn ask(
    client: &Client,
    args: &AskArgs,
    spec: JobSpec,
    start: Instant,
) -> Result<(), CliError> {
    let accepted = unless_interrupted(submit::submit(client, submit::mint_key(), spec)).await?;
    submit::tell_waits(&accepted);
    let show = Show::choose(args.plain, args.json);
    let job = follow(client, &accepted.job_id, show, OnInterrupt::Cancel).await?;
    let wall = start.elapsed();
    let saved = unless_interrupted(save_record(client, &job, args.audit.as_deref())).await;
    // An answer without its record is an answer still.
    let saved = saved
        .inspect_err(|error| out::note(format!("The audit record was not saved: {error}")))
        .ok();
    let drafted = job.agents.iter().any(|agent| agent.draft.is_some());
    let replay = saved
        .as_deref()
        .filter(|_| drafted)
        .map(|path| replay_command(path, args));
    if args.json {
        out::document(&document(&job, saved.as_deref(), replay.as_deref(), wall))?;
        return super::verdict(&job);
    }
    super::print_answer(&job)?;
    out::note(format!(
        "\n{}\ntime      {}",
        summary::of(&job),
        duration::show(wall)
    ));
    if let Some(path) = saved {
        out::note(format!("audit     {}", path.display()));
    }
    if let Some(replay) = replay {
        out::note(format!("replay    {replay}"));
    }
    super::verdict(&job)
}

/// Fetches the job's record, waits a little until it is sealed, and saves it.
async fn save_record(client: &Client, job: &Job, path: Option<&Path>) -> Result<PathBuf, CliError> {
    let deadline = Instant::now() + SEAL;
    let file = loop {
        let file = fetch(client, &job.job_id).await?;
        let sealed = file.head.as_ref().is_some_and(|head| head.sealed);
        // A job that awaits review is not sealed before somebody decides.
        let open = job.state() == JobState::AwaitingReview;
        if sealed || open || Instant::now() > deadline {
            break file;
        }
        tokio::time::sleep(LOOK).await;
    };
    let path = match path {
        Some(path) => path.to_owned(),
        None => cache::folder("audit")?.join(format!("{}.audit", job.job_id)),
    };
    fs::write(&path, audit::encode(&file)).map_err(|source| CliError::file(&path, source))?;
    Ok(path)
}

/// What to type to replay the record, with this program as it was called.
fn replay_command(record: &Path, args: &AskArgs) -> String {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "conclave".to_owned());
    let model = args
        .model
        .path()
        .map(|path| format!(" --model {}", quoted(path)))
        .unwrap_or_default();
    format!(
        "{} audit replay {}{model}",
        quoted(Path::new(&program)),
        quoted(record)
    )
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The one JSON document of `--json`.
fn document(job: &Job, record: Option<&Path>, replay: Option<&str>, wall: Duration) -> Value {
    let mut value = json::job(job);
    value["audit_file"] = json!(record);
    value["replay_command"] = json!(replay);
    value["wall_ms"] = json!(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_record_command_and_time() {
        let mut job = Job {
            job_id: "j1".into(),
            ..Default::default()
        };
        job.set_state(JobState::Failed);
        let path = Path::new("/a b/j1.audit");
        let value = document(
            &job,
            Some(path),
            Some("conclave audit replay '/a b/j1.audit'"),
            Duration::from_millis(1500),
        );
        assert_eq!(value["audit_file"], "/a b/j1.audit");
        assert_eq!(value["wall_ms"], 1500);
        assert_eq!(
            (&value["state"], &value["answer"]),
            (&json!("FAILED"), &Value::Null)
        );
    }

    #[test]
    fn paths_are_quoted_only_where_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("/a/b-c_1.audit")), "/a/b-c_1.audit");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
