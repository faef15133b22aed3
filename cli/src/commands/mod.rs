//! One command, one file.
use conclave_proto::v1::{Job, JobState};

use crate::{
    args::{Cli, Command},
    error::CliError,
    out,
    view::{names, summary},
};

pub mod ask;
pub mod audit;
pub mod cancel;
pub mod cluster;
pub mod coordinator;
pub mod doctor;
pub mod jobs;
pub mod membership;
pub mod model;
pub mod recover;
pub mod replay;
pub mod review;
pub mod snapshot;
pub mod status;
pub mod submit;
pub mod up;
pub mod watch;
pub mod worker;

impl Command {
    /// The log filter when the user gave none.
    pub fn default_log(&self) -> &'static str {
        match self {
            // What the log store's library says at a start after a crash sounds worse than it is; what it
            // means for the node, the coordinator says itself.
            Self::Coordinator(_) | Self::Worker(_) => "info,raft_engine=error",
            _ => "warn",
        }
    }
}

/// Runs the command that was asked for.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Ask(args) => ask::run(global, *args).await,
        Command::Up(args) => up::run(global, args).await,
        Command::Coordinator(args) => coordinator::run(global, args).await,
        Command::Worker(args) => worker::run(global, args).await,
        Command::Submit(args) => submit::run(global, *args).await,
        Command::Watch(args) => watch::run(global, args).await,
        Command::Jobs(args) => jobs::run(global, args).await,
        Command::Cancel(args) => cancel::run(global, args).await,
        Command::Review(args) => review::run(global, args).await,
        Command::Audit(command) => audit::run(global, command).await,
        Command::Model(command) => model::run(command).await,
        Command::Cluster(command) => cluster::run(global, command).await,
        Command::Doctor(args) => doctor::run(global, args).await,
        Command::Snapshot(command) => snapshot::run(global, command).await,
        Command::Recover(args) => recover::run(global, args).await,
    }
}

/// Prints an ended job for a person: the answer on standard output, how it
/// came about on standard error.
fn print_end(job: &Job) -> Result<(), CliError> {
    print_answer(job)?;
    out::note(summary::of(job));
    verdict(job)
}

/// The answer on standard output; one that awaits review is not released, and goes to standard
/// error with what releases it.
fn print_answer(job: &Job) -> Result<(), CliError> {
    let Some(answer) = &job.answer else {
        return Ok(());
    };
    if job.state() != JobState::AwaitingReview {
        return out::line(&answer.text);
    }
    out::note(format!(
        "The answer awaits review: `conclave review {} --approve` releases it.\n{}",
        job.job_id, answer.text
    ));
    Ok(())
}

/// Success if the job has an answer, be it one that awaits review; else why not.
fn verdict(job: &Job) -> Result<(), CliError> {
    match job.state() {
        JobState::Done | JobState::Degraded | JobState::AwaitingReview => Ok(()),
        state => Err(CliError::JobFailed {
            job_id: job.job_id.clone(),
            state: names::job_state(state).to_lowercase(),
            message: if job.message.is_empty() {
                "no reason given".to_owned()
            } else {
                job.message.clone()
            },
        }),
    }
}
