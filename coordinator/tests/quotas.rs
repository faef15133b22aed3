//! What a tenant may have: what is above it is refused with a reason and a hint, whoever leads.

mod harness;

use std::{fs, path::PathBuf, time::Duration};

use conclave_coordinator::Config;
use conclave_proto::v1::{SubmitJobRequest, TransferRequest};
use harness::{Cluster, PATIENCE, done, request, spec, submit, worker::Mock};
use tonic::{Code, Status};

/// The members' quotas file; written as it is to begin with by the first to start.
fn file(config: &mut Config, text: &str) {
    let path = config.data_dir.with_file_name("quotas.toml");
    if !path.exists() {
        fs::write(&path, text).unwrap();
    }
    config.quotas_file = Some(path);
}

fn path(cluster: &Cluster) -> PathBuf {
    cluster.members[0].folder.with_file_name("quotas.toml")
}

/// Checks that this was refused for a quota, in these words; when it may come again.
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, words: &[&str]) -> Duration {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    for word in words {
        assert!(status.message().contains(word), "{word}: {status:?}");
    }
    let after = status.metadata().get("retry-after-ms").unwrap();
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms"), Some(after));
    Duration::from_millis(after.to_str().unwrap().parse().unwrap())
}

async fn hand_over(cluster: &Cluster) {
    let leader = cluster.leader().await;
    let to_any = TransferRequest::default();
    cluster.admin(leader).await.transfer(to_any).await.unwrap();
    let other = async {
        while cluster.leader().await == leader {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, other).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_above_a_quota_are_refused_and_known_keys_are_answered() {
    let two = |config: &mut Config| file(config, "[tenant.local]\nlive_jobs = 2\n");
    let cluster = Cluster::blank(3, two).await;
    cluster.init().await;
    let mut client = cluster.client(cluster.follower().await).await;
    let first = request("first");
    let job_id = client.submit_job(first.clone()).await.unwrap().into_inner();
    submit(&mut client, "second").await;
    let words = [
        "2 jobs of tenant `local` have not ended",
        "its quota is 2 (live_jobs)",
    ];
    let third = request("third");
    let after = refused(client.submit_job(third.clone()).await, &words);
    assert_eq!(after, Duration::from_secs(1));
    let again = client.submit_job(first.clone()).await.unwrap().into_inner();
    assert_eq!((again.existing, again.job_id), (true, job_id.job_id));
    let other = SubmitJobRequest {
        spec: Some(spec("another under that key")),
        ..first
    };
    let conflict = client.submit_job(other).await.unwrap_err();
    assert_eq!(conflict.code(), Code::AlreadyExists);
    let large = request(&"why? ".repeat(20_000));
    refused(client.submit_job(large).await, &words);
    for member in &cluster.members {
        let blobs = fs::read_dir(member.folder.join("blobs"));
        assert_eq!(
            blobs.map_or(0, Iterator::count),
            0,
            "nothing is stored for it"
        );
    }
    hand_over(&cluster).await;
    refused(client.submit_job(third.clone()).await, &words);
    // Read again without a restart.
    fs::write(path(&cluster), "[tenant.local]\nlive_jobs = 3\n").unwrap();
    let admitted = async {
        while let Err(status) = client.submit_job(third.clone()).await {
            refused(Err::<(), _>(status), &words);
            // The file is looked at every two seconds; nothing tells when.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, admitted).await.unwrap();
    let words = ["3 jobs of tenant `local`", "its quota is 3"];
    refused(client.submit_job(request("fourth")).await, &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_used_too_many_tokens_waits_until_they_are_paid_off() {
    let few = |config: &mut Config| file(config, "[default]\ntokens_per_minute = 10\n");
    let cluster = Cluster::blank(3, few).await;
    cluster.init().await;
    let _mock = Mock::new("w1", cluster.addresses()).run();
    let mut client = cluster.client(0).await;
    let job_id = submit(&mut client, "one").await.job_id;
    let job = done(&mut client, &job_id).await;
    // Each agent of three: five of the prompt, three generated.
    let used = job.usage.unwrap();
    assert!(used.prompt_tokens + used.thought_tokens + used.answer_tokens > 10);
    let words = [
        "tenant `local` has used",
        "quota of 10 a minute (tokens_per_minute)",
    ];
    let before = refused(client.submit_job(request("two")).await, &words);
    // At most 24 - 10, ten of which flow in each minute.
    assert!(before <= Duration::from_secs(84), "{before:?}");
    hand_over(&cluster).await;
    let after = refused(client.submit_job(request("three")).await, &words);
    assert!(
        after <= before && before - after < PATIENCE,
        "{after:?} of {before:?}"
    );
}
