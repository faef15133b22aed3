//! `conclave recover`: the member that is left of a cluster without a quorum goes on alone.
use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use conclave_coordinator::offline::recover::{Loss, RecoverError, Recovered, Survivor};
use conclave_proto::v1::StatusRequest;
use serde_json::json;
use tokio::net::TcpStream;
use tonic::{Code, Request};

use crate::{args::Global, client::Client, error::CliError, out, view::time::utc};

/// How long another member is given to say that it is there.
const PROBE: Duration = Duration::from_secs(3);
/// Entries that are listed one by one.
const LISTED: usize = 10;

/// Flags of `recover`.
#[derive(Debug, Args)]
#[command(after_help = "\
For a cluster whose quorum is lost for good: most of its data folders are gone.
While a majority can still be started, start it: nothing is lost then.

Stop the member, and choose the one with the longest log if several are left:
without --yes and off a terminal, this only says what the member has and what
may be lost. Then it begins a NEW cluster with this member as the only voter.
Whatever is left of the old cluster is refused by it; those machines come back
with empty folders, by `conclave cluster add`.

Examples:
  conclave recover --force-single --data-dir /var/lib/conclave < /dev/null
  conclave recover --force-single --data-dir /var/lib/conclave --yes")]
pub struct RecoverArgs {
    /// Make this member the only voter
    #[arg(long, required = true)]
    pub force_single: bool,
    /// Its data folder; no coordinator may run on it
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Even though other members answer, or the folder is marked as one that must not be used
    #[arg(long)]
    pub force: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// What was found at another member's address.
struct Answer {
    id: u64,
    address: String,
    votes: bool,
    /// What it says, if it belongs to the cluster or does not tell.
    found: Option<Found>,
}

/// What a member says of itself.
struct Found {
    /// In words.
    text: String,
    /// The last entry that it has committed, if it tells.
    committed: Option<u64>,
}

impl Found {
    /// It is there, and does not tell.
    fn silent(text: String) -> Found {
        let committed = None;
        Found { text, committed }
    }
}

/// Does it.
pub async fn run(global: &Global, args: RecoverArgs) -> Result<(), CliError> {
    let survivor = Survivor::open(&args.data_dir).map_err(refused)?;
    let answers = ask_others(global, &survivor.loss).await?;
    if !args.json {
        out::note(story(&survivor.loss, &answers));
    }
    let up: Vec<_> = answers.iter().filter(|a| a.found.is_some()).collect();
    if !up.is_empty() && !args.force {
        return Err(CliError::usage(format!(
            "{} of the {} other members answer: what they have and this one lacks would be lost, \
             and they would go on as the old cluster. If they are a majority, nothing needs to be \
             recovered; if not, stop them, or say --force",
            up.len(),
            answers.len()
        )));
    }
    if let Some(doubt) = survivor.loss.doubt.as_ref().filter(|_| !args.force) {
        return Err(CliError::usage(format!(
            "this folder is marked as one that its cluster must not use any more ({doubt}). A new \
             cluster may begin with what it holds, if no other folder holds more: say --force"
        )));
    }
    if !args.yes && !confirmed()? {
        return Err(CliError::usage(
            "nothing was changed: say --yes to go on with this",
        ));
    }
    let done = survivor.go_on_alone().map_err(refused)?;
    told(&args, &done)
}

async fn ask_others(global: &Global, loss: &Loss) -> Result<Vec<Answer>, CliError> {
    let mut answers = Vec::new();
    for (id, address, votes) in &loss.others {
        answers.push(Answer {
            id: *id,
            address: address.clone(),
            votes: *votes,
            found: ask(global, loss, *id, address).await?,
        });
    }
    Ok(answers)
}

/// What answers at the address, unless that is surely no member of this cluster.
async fn ask(
    global: &Global,
    loss: &Loss,
    id: u64,
    address: &str,
) -> Result<Option<Found>, CliError> {
    if address.is_empty() {
        return Ok(None);
    }
    let client: Client = global.client_of(&[address.to_owned()])?;
    let mut request = Request::new(StatusRequest {});
    request.set_timeout(PROBE);
    let mut service = client.preferred().cluster();
    let Ok(answer) = tokio::time::timeout(PROBE, service.status(request)).await else {
        return Ok(None);
    };
    Ok(match answer {
        Ok(status) => {
            let status = status.into_inner();
            let same = status.cluster_id == loss.cluster_id && status.node_id == id;
            same.then(|| Found {
                text: format!(
                    "answers: {}, term {}, committed up to {}",
                    status.role, status.term, status.commit_index
                ),
                committed: Some(status.commit_index),
            })
        }
        Err(status) => match status.code() {
            Code::DeadlineExceeded => None,
            Code::Unavailable | Code::Cancelled | Code::Unknown => {
                listens(address).await.map(Found::silent)
            }
            code => Some(Found::silent(format!(
                "answers and does not say what it is ({code:?})"
            ))),
        },
    })
}

/// A member that speaks TLS gives a plain caller, or one with the wrong certificates, no answer: it is
/// there all the same.
async fn listens(address: &str) -> Option<String> {
    let dialled = tokio::time::timeout(PROBE, TcpStream::connect(address)).await;
    let there = matches!(dialled, Ok(Ok(_)));
    there.then(|| {
        "is there, and no call gets through: if it speaks TLS, name --ca, --cert and --key"
            .to_owned()
    })
}

/// What the others have and this member does not.
fn lost(loss: &Loss, answers: &[Answer]) -> String {
    let committed = answers.iter().filter_map(|a| a.found.as_ref()?.committed);
    match committed.max().filter(|most| *most > loss.last) {
        Some(most) => format!(
            "Lost: {} entries, {} to {most}, which another member that answers has committed: jobs \
             accepted, results and reviews of which clients were told.",
            most - loss.last,
            loss.last + 1
        ),
        None => format!(
            "Lost: whatever the others committed behind entry {}, if they did: jobs accepted, \
             results and reviews of which clients may have been told. This member cannot know of \
             them.",
            loss.last
        ),
    }
}

/// What this member has, what may be lost, what follows.
fn story(loss: &Loss, answers: &[Answer]) -> String {
    let mut lines = vec![format!(
        "Member {:016x}{} of cluster {} would go on alone. It gives up:",
        loss.node_id,
        if loss.learner { ", a learner," } else { "" },
        loss.cluster_id
    )];
    for answer in answers {
        let place = if answer.address.is_empty() {
            "address unknown"
        } else {
            &answer.address
        };
        let votes = if answer.votes { "voter" } else { "learner" };
        let found = answer
            .found
            .as_ref()
            .map_or("does not answer", |found| found.text.as_str());
        lines.push(format!(
            "  {:016x}  {votes:<7}  {place}  {found}",
            answer.id
        ));
    }
    lines.push(format!(
        "It has: {} jobs ({} live), log up to entry {}, term {}; its last news is of {}.",
        loss.jobs,
        loss.live_jobs,
        loss.last,
        loss.term,
        utc(loss.unix_ms)
    ));
    lines.push(lost(loss, answers));
    if let Some(doubt) = &loss.doubt {
        lines.push(format!("In doubt: {doubt}"));
    }
    if !loss.unconfirmed.is_empty() {
        lines.push(format!(
            "Kept: {} entries behind {}, the last one that it knows to be committed; a client may \
             have been told of them:",
            loss.unconfirmed.len(),
            loss.committed
        ));
        let listed = loss.unconfirmed.iter().take(LISTED);
        lines.extend(listed.map(|(index, name)| format!("  {index}  {name}")));
        if loss.unconfirmed.len() > LISTED {
            lines.push(format!("  and {} more", loss.unconfirmed.len() - LISTED));
        }
    }
    if loss.missing_payloads > 0 {
        lines.push(format!(
            "Lost: {} payloads (long prompts and drafts) that are not in this folder; their jobs \
             stay and cannot be read.",
            loss.missing_payloads
        ));
    }
    lines.join("\n")
}

fn confirmed() -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut error = io::stderr().lock();
    let _ = write!(
        error,
        "Begin a new cluster with this member alone? Type yes: "
    );
    let _ = error.flush();
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.map_err(|e| CliError::file("standard input", e))?;
    Ok(line.trim() == "yes")
}

fn told(args: &RecoverArgs, done: &Recovered) -> Result<(), CliError> {
    if args.json {
        return out::document(&json!({
            "cluster_id": done.cluster_id,
            "node_id": done.node_id.to_string(),
            "index": done.index,
            "term": done.term,
        }));
    }
    out::line(format!(
        "recovered: new cluster {}  voter {:016x}  index {}  term {}",
        done.cluster_id, done.node_id, done.index, done.term
    ))?;
    out::note(format!(
        "Next: `conclave coordinator --data-dir {}` with this machine's settings; on each other \
         machine move the old folder away, start an empty one, and `conclave cluster add \
         HOST:PORT`.",
        args.data_dir.display()
    ));
    Ok(())
}

fn refused(error: RecoverError) -> CliError {
    match error {
        RecoverError::Blank(_) | RecoverError::Alone { .. } | RecoverError::Identity(_) => {
            CliError::usage(error.to_string())
        }
        other => CliError::Start(other.to_string()),
    }
}
