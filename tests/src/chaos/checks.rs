//! What must hold after every scenario, asked of the healed cluster.

use std::collections::BTreeMap;

use conclave_coordinator_core::audit::verify_chain;
use conclave_proto::v1::audit_client::AuditClient;
use conclave_proto::v1::contemplation_client::ContemplationClient;
use conclave_proto::v1::{
    AuditHead, AuditRecord, ExportJobRequest, GetJobRequest, Job, JobState, ListJobsRequest,
    export_job_response::Item,
};
use tokio_stream::StreamExt as _;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::specs::{Essence, KEY, Kind, essence, is_complete, usage_is_the_sum};
use super::{Row, load};

/// The longest reply: a job with its drafts.
const REPLY: usize = 64 << 20;

/// What the checks need to know.
pub struct Evidence<'a> {
    /// `host:port` of every coordinator.
    pub endpoints: &'a [String],
    /// Every acknowledged job.
    pub accepted: &'a [load::Accepted],
    /// The kinds of jobs.
    pub kinds: &'a [Kind],
    /// What each exact kind answers where nothing fails.
    pub references: &'a BTreeMap<usize, Essence>,
}

/// Asks every coordinator for every job; counts into `row`, returns what does
/// not hold.
pub async fn check(evidence: &Evidence<'_>, row: &mut Row) -> Vec<String> {
    let mut wrong = Vec::new();
    for accepted in evidence.accepted {
        row.accepted += 1;
        match &accepted.answered {
            Some((_, job)) => {
                row.answered += 1;
                let before = wrong.len();
                judge(evidence, accepted, job, &mut wrong);
                row.different += usize::from(wrong.len() > before);
            }
            None => wrong.push(format!("{} ({}) has no end", accepted.key, accepted.id)),
        }
    }
    for endpoint in evidence.endpoints {
        if let Err(status) = replica(evidence, endpoint, row, &mut wrong).await {
            wrong.push(format!("{endpoint} does not answer afterwards: {status}"));
        }
    }
    wrong
}

/// One ended job, by what its kind promises.
fn judge(evidence: &Evidence<'_>, accepted: &load::Accepted, job: &Job, wrong: &mut Vec<String>) {
    let kind = &evidence.kinds[accepted.kind];
    let name = format!("{} ({}, {})", accepted.key, accepted.id, kind.name);
    let expected = match job.state() {
        JobState::Done => true,
        JobState::Cancelled => accepted.cancelled,
        _ => false,
    };
    if !expected {
        wrong.push(format!("{name} ended {:?}: {}", job.state(), job.message));
        return;
    }
    if !usage_is_the_sum(job) {
        wrong.push(format!("{name}: usage is not the sum of its drafts"));
    }
    if kind.exact && essence(job).as_ref() != evidence.references.get(&accepted.kind) {
        wrong.push(format!("{name} differs from the undisturbed run"));
    }
    if kind.exact && !is_complete(job) {
        wrong.push(format!("{name} lacks a draft"));
    }
}

/// What one coordinator shows: every job once, as its client saw it, with a
/// chain that verifies.
async fn replica(
    evidence: &Evidence<'_>,
    endpoint: &str,
    row: &mut Row,
    wrong: &mut Vec<String>,
) -> Result<(), Status> {
    let channel = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|e| Status::invalid_argument(e.to_string()))?
        .connect_timeout(std::time::Duration::from_secs(5))
        .timeout(std::time::Duration::from_secs(30))
        .connect()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let mut jobs = ContemplationClient::new(channel.clone()).max_decoding_message_size(REPLY);
    let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for job in list(&mut jobs).await? {
        let labels = job.spec.as_ref().map(|spec| &spec.labels);
        if let Some(key) = labels.and_then(|labels| labels.get(KEY)) {
            ids.entry(key.clone()).or_default().push(job.job_id.clone());
        }
        if !load::is_final(job.state()) {
            let state = job.state();
            wrong.push(format!("{} on {endpoint} is still {state:?}", job.job_id));
        }
    }
    let doubled: Vec<_> = ids.iter().filter(|(_, ids)| ids.len() > 1).collect();
    row.doubled += doubled.len();
    wrong.extend(doubled.iter().map(|(key, ids)| format!("{key} is {ids:?}")));
    for accepted in evidence.accepted {
        let Some((_, seen)) = &accepted.answered else {
            continue;
        };
        if ids
            .get(&accepted.key)
            .is_none_or(|ids| ids[0] != accepted.id)
        {
            wrong.push(format!("{} is lost on {endpoint}", accepted.key));
            continue;
        }
        let job_id = accepted.id.clone();
        let get = GetJobRequest {
            job_id,
            ..GetJobRequest::default()
        };
        let shown = jobs.get_job(get).await?.into_inner();
        // A straggler of a quorum may report after the end; its draft is no part of the answer.
        let kind = &evidence.kinds[accepted.kind];
        let same = match kind.exact {
            true => essence(&shown) == essence(seen),
            false => shown.answer == seen.answer,
        };
        if !same || shown.state() != seen.state() {
            wrong.push(format!("{} differs on {endpoint}", accepted.key));
        }
        if let Err(why) = audit(channel.clone(), &accepted.id).await? {
            wrong.push(format!("{} on {endpoint}: {why}", accepted.key));
        }
    }
    Ok(())
}

async fn list(client: &mut ContemplationClient<Channel>) -> Result<Vec<Job>, Status> {
    let (mut jobs, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListJobsRequest {
            page_size: 200,
            page_token,
            states: Vec::new(),
        };
        let page = client.list_jobs(request).await?.into_inner();
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return Ok(jobs);
        }
        page_token = page.next_page_token;
    }
}

/// The chain of one job holds up to its signed head.
async fn audit(channel: Channel, job_id: &str) -> Result<Result<(), String>, Status> {
    let mut client = AuditClient::new(channel).max_decoding_message_size(REPLY);
    let job_id = job_id.to_owned();
    let request = ExportJobRequest { job_id };
    let mut stream = client.export_job(request).await?.into_inner();
    let (mut records, mut head): (Vec<AuditRecord>, Option<AuditHead>) = (Vec::new(), None);
    while let Some(item) = stream.next().await {
        match item?.item {
            Some(Item::Record(record)) => records.push(record),
            Some(Item::Head(last)) => head = Some(last),
            None => {}
        }
    }
    Ok(match head {
        Some(head) => verify_chain(&records, Some(&head)).map_err(|e| e.to_string()),
        None => Err("its audit chain has no head".into()),
    })
}
