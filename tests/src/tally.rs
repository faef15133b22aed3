//! Whether every job that was submitted came to one answer, and to the right one.

use std::collections::BTreeSet;

use conclave_proto::v1::{Job, JobSpec, JobState, ListJobsRequest};
use tonic::Status;

use crate::Client;

/// Counts over a whole run; the three below `jobs` are to be zero.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Jobs that were accepted.
    pub jobs: usize,
    /// Of these, how many did not come to a full answer, or are not known any more.
    pub lost: usize,
    /// How often a key stood for a second job, or an agent's tokens were counted twice.
    pub doubled: usize,
    /// How many answered otherwise than where nothing failed.
    pub different: usize,
}

impl Tally {
    /// Counts a job, beside the same one where nothing failed.
    pub fn count(&mut self, job: &Job, undisturbed: &Job) {
        self.jobs += 1;
        if job.state() != JobState::Done {
            self.lost += 1;
        } else {
            self.different += usize::from(essence(job) != essence(undisturbed));
            self.doubled += usize::from(!counted_once(job));
        }
    }

    /// Submits each of `(key, spec, job_id)` again, and counts what the cluster has beyond these jobs.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn audit(
        &mut self,
        client: &Client,
        submitted: &[(String, JobSpec, String)],
    ) -> Result<(), Status> {
        for (key, spec, id) in submitted {
            self.doubled += usize::from(client.submit(key, spec).await? != *id);
        }
        let known: BTreeSet<&String> = submitted.iter().map(|(_, _, id)| id).collect();
        let ids = all_jobs(client).await?;
        self.doubled += ids.iter().filter(|id| !known.contains(id)).count();
        self.lost += known.iter().filter(|id| !ids.contains(**id)).count();
        Ok(())
    }

    /// `0 lost, 0 doubled, 0 different of 120 jobs`.
    pub fn summary(&self) -> String {
        let Tally {
            jobs,
            lost,
            doubled,
            different,
        } = self;
        format!("{lost} lost, {doubled} doubled, {different} different of {jobs} jobs")
    }

    /// Nothing was lost, doubled or different.
    pub fn clean(&self) -> bool {
        (self.lost, self.doubled, self.different) == (0, 0, 0)
    }
}

/// What must not depend on faults.
#[derive(PartialEq)]
struct Essence {
    answer: String,
    /// Each agent's tokens and the digest of their log-probabilities.
    drafts: Vec<(u32, Vec<u32>, Vec<u8>)>,
}

fn essence(job: &Job) -> Essence {
    let drafts = job.agents.iter().filter_map(|agent| {
        let draft = agent.draft.clone()?;
        Some((agent.agent, draft.token_ids, draft.logprob_digest))
    });
    Essence {
        answer: job.answer.clone().unwrap_or_default().text,
        drafts: drafts.collect(),
    }
}

/// The job's usage is the sum of its drafts'.
fn counted_once(job: &Job) -> bool {
    let drafts = job.agents.iter().filter_map(|a| a.draft.as_ref()?.usage);
    let generated: u64 = drafts.map(|u| u.thought_tokens + u.answer_tokens).sum();
    let usage = job.usage.unwrap_or_default();
    usage.thought_tokens + usage.answer_tokens == generated
}

async fn all_jobs(client: &Client) -> Result<BTreeSet<String>, Status> {
    let (mut ids, mut page_token) = (BTreeSet::new(), String::new());
    loop {
        let page = client
            .list(ListJobsRequest {
                page_size: 500,
                page_token: page_token.clone(),
                ..ListJobsRequest::default()
            })
            .await?;
        ids.extend(page.jobs.into_iter().map(|job| job.job_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(ids);
        }
    }
}
