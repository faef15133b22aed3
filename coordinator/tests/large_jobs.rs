//! The largest jobs there may be, read by clients that know nothing of them: no reply is longer than clients of gRPC
//! read by default.

mod harness;

use std::collections::BTreeMap;

use conclave_proto::v1::{
    GetJobRequest, Job, JobState, ListJobsRequest, SubmitJobRequest, WatchJobRequest,
    contemplation_client::ContemplationClient, export_job_response::Item,
    watch_job_response::Update,
};
use harness::{Cluster, PATIENCE, assert_done, done, export, request, worker::Mock};
use prost::Message as _;
use tonic::transport::Channel;

/// What a client reads of one message, unless told otherwise.
const CLIENT: usize = 4 << 20;
/// Characters of each draft: close to the longest that is taken.
const THOUGHT: usize = 1_500_000;
/// Drafts of it.
const WIDTH: u32 = 8;

/// A question to so many.
fn wide(width: u32) -> SubmitJobRequest {
    let mut request = request("what colour?");
    let policy = request.spec.as_mut().and_then(|spec| spec.policy.as_mut());
    policy.unwrap().width = Some(width);
    request
}

/// The agents whose drafts these bring, each with the length of its thought.
fn drafts(job: &Job) -> BTreeMap<u32, usize> {
    let of = |draft: &conclave_proto::v1::Draft| draft.thought.len();
    let agents = job.agents.iter();
    agents
        .filter_map(|agent| Some((agent.agent, of(agent.draft.as_ref()?))))
        .collect()
}

async fn page(client: &mut ContemplationClient<Channel>, job_id: &str, drafts_from: u32) -> Job {
    let get = GetJobRequest {
        job_id: job_id.to_owned(),
        drafts_from,
    };
    client.get_job(get).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_longer_than_a_message_is_read_by_a_client_that_was_told_nothing() {
    let cluster = Cluster::new(3).await;
    let _worker = Mock::new("w1", cluster.addresses())
        .with_thought(THOUGHT)
        .run();
    let mut client = cluster.client(cluster.follower().await).await;
    let job_id = client.submit_job(wide(WIDTH)).await.unwrap().into_inner();
    let job_id = job_id.job_id;
    // The watch ends with the job, and not with an error of its decoder.
    let job = done(&mut client, &job_id).await;
    assert_done(&job);
    assert!(job.next_draft > 0 && job.encoded_len() <= CLIENT);
    assert_eq!(job.agents.len(), WIDTH as usize, "only drafts are left out");
    let usage = job.usage;
    // The same, page by page; every draft is in one of them.
    let (mut from, mut found, mut pages) = (0, BTreeMap::new(), 0);
    loop {
        let job = page(&mut client, &job_id, from).await;
        assert_eq!(job.usage, usage);
        found.extend(drafts(&job));
        pages += 1;
        let next = job.next_draft;
        assert!(next == 0 || next > from, "{next} behind {from}");
        from = next;
        if from == 0 {
            break;
        }
    }
    let all = (1..=WIDTH).map(|agent| (agent, THOUGHT));
    assert_eq!(found, all.collect(), "in {pages} pages");
    let list = client.list_jobs(ListJobsRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().jobs.len(), 1);
    // In parts, joined without a seam.
    let items = export(&cluster, 0, &job_id).await;
    assert!(items.iter().all(|item| item.encoded_len() < CLIENT));
    let (mut records, mut head) = (Vec::new(), None);
    for item in items {
        assert!(head.is_none(), "the head is the last");
        match item {
            Item::Record(record) => records.push(record),
            Item::Head(signed) => head = Some(signed),
        }
    }
    let found = conclave_coordinator::audit::verify_complete(&records, head.as_ref());
    assert_eq!(found, Ok(()));
    assert!(head.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_no_reply_could_hold_fails_its_agent_and_ends_no_session() {
    let cluster = Cluster::new(1).await;
    let _worker = Mock::new("w1", cluster.addresses())
        .with_thought(5 << 20)
        .run();
    let mut client = cluster.client(0).await;
    for _ in 0..2 {
        let job_id = client.submit_job(wide(1)).await.unwrap().into_inner();
        let job = done(&mut client, &job_id.job_id).await;
        assert_eq!(job.state(), JobState::Failed, "{job:?}");
        let why = &job.agents[0].error;
        assert!(why.contains("max_message_bytes"), "{why}");
        assert_eq!(job.agents[0].attempt, 1, "no other would be shorter");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_job_comes_whole() {
    let cluster = Cluster::new(1).await;
    let _worker = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let job_id = client.submit_job(wide(3)).await.unwrap().into_inner();
    let request = WatchJobRequest {
        job_id: job_id.job_id,
        ..WatchJobRequest::default()
    };
    let mut updates = client.watch_job(request).await.unwrap().into_inner();
    let read = async {
        while let Some(message) = updates.message().await.unwrap() {
            if let Some(Update::Done(job)) = message.update {
                return job;
            }
        }
        panic!("it ends with the job");
    };
    let job = tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert_eq!((drafts(&job).len(), job.next_draft), (3, 0));
}
