//! `conclave jobs`: list jobs, or show one.
use clap::{Args, ValueEnum};
use conclave_proto::v1::{GetJobRequest, Job, JobState, ListJobsRequest};
use serde_json::json;

use crate::{
    args::Global,
    client::Client,
    error::CliError,
    out,
    view::{json, names, summary},
};

/// Flags of `jobs`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct JobsArgs {
    /// Show this job instead of a list
    pub job_id: Option<String>,
    /// Only jobs in this state; repeat for more
    #[arg(long = "state", value_enum, value_name = "STATE")]
    pub states: Vec<State>,
    /// Jobs to list, newest first, at most 500
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
    /// Where an earlier list stopped
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true
    )]
    pub page_token: String,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  conclave jobs
  conclave jobs --state done --state degraded --limit 100 --json
  conclave jobs 0190c3f2-… --json | jq .drafts";

/// A job's state, as a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    Preparing,
    Proposing,
    Distilling,
    Refining,
    Aggregating,
    AwaitingReview,
    Done,
    Degraded,
    Failed,
    Cancelled,
}

impl State {
    fn wire(self) -> JobState {
        match self {
            Self::Preparing => JobState::Preparing,
            Self::Proposing => JobState::Proposing,
            Self::Distilling => JobState::Distilling,
            Self::Refining => JobState::Refining,
            Self::Aggregating => JobState::Aggregating,
            Self::AwaitingReview => JobState::AwaitingReview,
            Self::Done => JobState::Done,
            Self::Degraded => JobState::Degraded,
            Self::Failed => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
        }
    }
}

/// Lists, or shows one.
pub async fn run(global: &Global, args: JobsArgs) -> Result<(), CliError> {
    let client = global.client()?;
    if let Some(job_id) = args.job_id {
        let job = get(&client, &job_id).await?;
        return if args.json {
            out::document(&json::job(&job))
        } else {
            show(&job)
        };
    }
    let message = ListJobsRequest {
        page_size: args.limit,
        page_token: args.page_token,
        states: args
            .states
            .iter()
            .map(|state| state.wire().into())
            .collect(),
    };
    let list = client
        .unary("ListJobs", message, async |link, request| {
            link.contemplation().list_jobs(request).await
        })
        .await?;
    if args.json {
        let jobs: Vec<_> = list.jobs.iter().map(json::job_row).collect();
        return out::document(&json!({ "jobs": jobs, "next_page_token": list.next_page_token }));
    }
    for job in &list.jobs {
        out::line(row(job))?;
    }
    if !list.next_page_token.is_empty() {
        out::note(format!(
            "More: conclave jobs --limit {} --page-token {}",
            args.limit, list.next_page_token
        ));
    }
    Ok(())
}

/// Reads one job, with all of its drafts.
pub async fn get(client: &Client, job_id: &str) -> Result<Job, CliError> {
    let job = page(client, job_id, 0).await?;
    complete(client, job).await
}

/// Adds the drafts that one message had no room for.
pub async fn complete(client: &Client, mut job: Job) -> Result<Job, CliError> {
    while job.next_draft != 0 {
        let next = page(client, &job.job_id, job.next_draft).await?;
        for (agent, paged) in job.agents.iter_mut().zip(next.agents) {
            if agent.agent == paged.agent && agent.attempt == paged.attempt {
                agent.draft = agent.draft.take().or(paged.draft);
            }
        }
        let goes_on = next.next_draft > job.next_draft;
        job.next_draft = if goes_on { next.next_draft } else { 0 };
    }
    Ok(job)
}

async fn page(client: &Client, job_id: &str, drafts_from: u32) -> Result<Job, CliError> {
    let message = GetJobRequest {
        job_id: job_id.to_owned(),
        drafts_from,
    };
    client
        .unary("GetJob", message, async |link, request| {
            link.contemplation().get_job(request).await
        })
        .await
}

fn show(job: &Job) -> Result<(), CliError> {
    if let Some(spec) = &job.spec {
        out::line(format!("question  {}", json::question(spec)))?;
    }
    if let Some(answer) = &job.answer {
        out::line(format!("answer    {}", answer.text))?;
        if answer.edited {
            out::line("edited    by a reviewer")?;
        }
    } else if !job.message.is_empty() {
        out::line(format!("message   {}", job.message))?;
    }
    out::line(summary::of(job))
}

/// `id  state  question -> answer`, on one line.
fn row(job: &Job) -> String {
    let question = job.spec.as_ref().map_or("", json::question);
    let answer = job
        .answer
        .as_ref()
        .map(|answer| format!(" -> {}", one_line(&answer.text, 40)));
    format!(
        "{}  {:<15} {}{}",
        job.job_id,
        names::job_state(job.state()).to_lowercase(),
        one_line(question, 50),
        answer.unwrap_or_default(),
    )
}

fn one_line(text: &str, limit: usize) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= limit {
        return flat;
    }
    flat.chars().take(limit - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{Answer, JobSpec, Message};

    use super::*;

    #[test]
    fn a_row_is_one_line_whatever_was_asked() {
        let message = Message {
            role: "user".into(),
            content: format!("why\n\nis {}", "this long ".repeat(20)),
        };
        let job = Job {
            job_id: "j1".into(),
            spec: Some(JobSpec {
                messages: vec![message],
                ..Default::default()
            }),
            answer: Some(Answer {
                text: "because\nso".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let row = row(&job);
        assert!(
            !row.contains('\n') && row.contains('…') && row.ends_with("-> because so"),
            "{row}"
        );
    }
}
