//! Real processes, a real model, real signals: whatever dies, the job is
//! answered once, and an exact job gives the answer of an undisturbed run.

use std::collections::BTreeMap;

use conclave_proto::v1::{AgentState, Job, JobState, Usage};
use conclave_tests::{Client, Cluster, exact_job};

const SEED: u64 = 20_261_121;

/// What must not depend on faults: the answer, and every accepted draft's
/// tokens and log-probability bits.
#[derive(Debug, PartialEq)]
struct Essence {
    answer: String,
    drafts: BTreeMap<u32, DraftEssence>,
}

#[derive(Debug, PartialEq)]
struct DraftEssence {
    token_ids: Vec<u32>,
    logprob_digest: Vec<u8>,
    answer: String,
}

fn essence(job: &Job) -> Essence {
    let drafts = job.agents.iter().filter_map(|agent| {
        let draft = agent.draft.clone()?;
        Some((
            agent.agent,
            DraftEssence {
                token_ids: draft.token_ids,
                logprob_digest: draft.logprob_digest,
                answer: draft.answer,
            },
        ))
    });
    Essence {
        answer: job.answer.clone().expect("an answer").text,
        drafts: drafts.collect(),
    }
}

/// The job is done, every agent handed in one draft, and the usage is the sum
/// of the drafts': nothing lost, nothing counted twice.
fn assert_whole(job: &Job) {
    assert_eq!(job.state(), JobState::Done, "{}", job.message);
    let mut sum = Usage::default();
    for agent in &job.agents {
        assert_eq!(agent.state(), AgentState::Done, "agent {}", agent.agent);
        let usage = agent
            .draft
            .as_ref()
            .and_then(|d| d.usage.as_ref())
            .expect("a draft with usage");
        sum.prompt_tokens += usage.prompt_tokens;
        sum.cached_tokens += usage.cached_tokens;
        sum.thought_tokens += usage.thought_tokens;
        sum.answer_tokens += usage.answer_tokens;
    }
    assert_eq!(job.usage.as_ref(), Some(&sum));
    assert_eq!(job.agents.len(), 5, "four proposers and a chair");
}

async fn undisturbed(client: &Client) -> Job {
    let id = client
        .submit("undisturbed", &exact_job(SEED))
        .await
        .expect("accepted");
    let job = client.finished(&id).await;
    assert_whole(&job);
    job
}

#[tokio::test]
async fn a_killed_leader_changes_no_answer() {
    let mut cluster = Cluster::start(3, 2).await;
    let client = cluster.client();
    let reference = undisturbed(&client).await;

    let id = client
        .submit("leader dies", &exact_job(SEED))
        .await
        .expect("accepted");
    client.until_mid_draft(&id, 8).await;
    let leader = cluster.leader().await;
    cluster.kill_coordinator(leader).await;

    let job = client.finished(&id).await;
    assert_whole(&job);
    assert_eq!(essence(&job), essence(&reference));
    let again = client.submit("leader dies", &exact_job(SEED)).await;
    assert_eq!(again.expect("the same job"), id);
}

#[tokio::test]
async fn a_killed_worker_changes_no_answer() {
    let mut cluster = Cluster::start(3, 2).await;
    let client = cluster.client();
    let reference = undisturbed(&client).await;

    let id = client
        .submit("worker dies", &exact_job(SEED))
        .await
        .expect("accepted");
    client.until_mid_draft(&id, 8).await;
    let busy = client
        .job(&id)
        .await
        .expect("the job")
        .agents
        .iter()
        .find(|agent| agent.state() == AgentState::Running)
        .expect("a running agent")
        .worker
        .clone();
    let index = busy
        .strip_prefix("worker-")
        .and_then(|n| n.parse().ok())
        .expect("its name");
    cluster.kill_worker(index).await;

    let job = client.finished(&id).await;
    assert_whole(&job);
    assert_eq!(essence(&job), essence(&reference));
    assert!(
        job.agents.iter().any(|agent| agent.attempt > 1),
        "some agent was tried again"
    );
}

#[tokio::test]
async fn a_restart_of_all_coordinators_changes_no_answer() {
    let mut cluster = Cluster::start(3, 2).await;
    let client = cluster.client();
    let reference = undisturbed(&client).await;

    let id = client
        .submit("all restart", &exact_job(SEED))
        .await
        .expect("accepted");
    client.until_mid_draft(&id, 8).await;
    for index in 0..3 {
        cluster.kill_coordinator(index).await;
    }
    for index in 0..3 {
        cluster.start_coordinator(index).await;
    }

    let job = client.finished(&id).await;
    assert_whole(&job);
    assert_eq!(essence(&job), essence(&reference));
    let first = client.job(&reference.job_id).await.expect("kept on disk");
    assert_eq!(essence(&first), essence(&reference));
}
