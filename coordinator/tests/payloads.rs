//! Payloads by hash (law 9): where they are looked for, and when again.

mod harness;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use conclave_proto::v1::{AddRequest, InitRequest, LackedBlobsRequest, raft_client::RaftClient};
use harness::{Cluster, PATIENCE, get, status, submit};

/// The payloads of a folder; what is on its way into it ends in `.tmp`.
fn payloads(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for shard in fs::read_dir(folder.join("blobs"))? {
        for file in fs::read_dir(shard?.path())? {
            let path = file?.path();
            if path.extension().is_none() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_went_is_fetched_again_after_the_next_snapshot() {
    let cluster = Cluster::blank(3, |c| c.snapshot_every = 16).await;
    cluster.init().await;
    let mut client = cluster.client(cluster.leader().await).await;
    let job_id = submit(&mut client, &"why? ".repeat(20_000)).await.job_id;
    let follower = cluster.follower().await;
    // The member has it, once it has answered.
    get(&mut cluster.client(follower).await, &job_id).await;
    let lost = payloads(&cluster.members[follower].folder).unwrap();
    let [lost] = lost.as_slice() else {
        panic!("one payload: {lost:?}");
    };
    fs::remove_file(lost).unwrap();
    let comes_back = async {
        // Nothing asks for it but the member's own look at what it lacks.
        while !lost.exists() {
            submit(&mut client, "what colour?").await;
        }
    };
    tokio::time::timeout(PATIENCE, comes_back)
        .await
        .expect("the payload stays away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_added_though_its_leader_lost_a_payload() {
    let cluster = Cluster::blank(4, |_| {}).await;
    let join = cluster.members[1..3]
        .iter()
        .map(|m| m.address.clone())
        .collect();
    let init = InitRequest { join };
    cluster.admin(0).await.init(init).await.unwrap();
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader).await;
    let job_id = submit(&mut client, &"why? ".repeat(20_000)).await.job_id;
    for i in 0..3 {
        get(&mut cluster.client(i).await, &job_id).await;
    }
    let held = payloads(&cluster.members[leader].folder).unwrap();
    assert_eq!(held.len(), 1);
    fs::remove_file(&held[0]).unwrap();
    let add = AddRequest {
        address: cluster.members[3].address.clone(),
        learner: false,
    };
    let members = cluster.admin(leader).await.add(add).await.unwrap();
    let members = members.into_inner().members;
    assert_eq!(members.iter().filter(|m| !m.learner).count(), 4);
    // It is asked what it lacks, and sent nothing else.
    let held = payloads(&cluster.members[3].folder).unwrap();
    assert_eq!(held.len(), 1);
    let name = held[0].file_name().unwrap().to_str().unwrap();
    let hashes = vec![hex::decode(name).unwrap(), vec![7; 32], vec![7]];
    let asked = LackedBlobsRequest {
        cluster_id: status(&cluster, 3).cluster_id.unwrap(),
        hashes: hashes.clone(),
    };
    let mut peer = RaftClient::new(cluster.channel(3).await);
    let lacked = peer.lacked_blobs(asked).await.unwrap().into_inner().hashes;
    assert_eq!(lacked, hashes[1..]);
}
