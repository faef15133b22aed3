//! Payloads by hash (law 9): where they are looked for, and when again.

mod harness;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use harness::{Cluster, PATIENCE, get, submit};

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
