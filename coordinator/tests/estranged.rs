//! A member that the others do not take for one says why, and what to compare: in its readiness, which `doctor`
//! shows, and with it in its log.

mod harness;

use std::fs;

use conclave_coordinator::{Config, offline::recover::Survivor};
use conclave_proto::v1::InitRequest;
use harness::{
    Cluster, PATIENCE,
    pki::{Pki, VALID},
    with, with_tokens,
};

/// Waits until member `i` says that it is cut off in words that hold `all` of these.
async fn says(cluster: &Cluster, i: usize, all: &[&str]) {
    let mut status = cluster.members[i].running.as_ref().unwrap().status();
    let told = status.wait_for(|status| {
        let why = status.unready().unwrap_or_default();
        all.iter().all(|word| why.contains(word))
    });
    let told = tokio::time::timeout(PATIENCE, told).await.map(|_| ());
    let now = status.borrow().unready();
    assert!(told.is_ok(), "{all:?} in {now:?}");
}

async fn guarded() -> Cluster {
    let cluster = Cluster::blank(3, with_tokens).await;
    let join = cluster.members[1..].iter().map(|m| m.address.clone());
    let init = InitRequest {
        join: join.collect(),
    };
    let mut admin = cluster.admin(0).await;
    admin.init(with("admin-token", init)).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_peer_token_names_the_setting() {
    let mut cluster = guarded().await;
    let odd = cluster.follower().await;
    cluster.stop(odd).await;
    cluster.extra = Box::new(|config| {
        with_tokens(config);
        let path = config.tokens_file.as_ref().unwrap();
        let text = fs::read_to_string(path).unwrap();
        fs::write(path, text.replace("peers-token", "other-token")).unwrap();
    });
    cluster.start(odd).await;
    let words = ["tokens_file", "role `peer`", "the same at every member"];
    says(&cluster, odd, &words).await;
}

/// Members 0 to 2, of which those that `tls` names have it.
async fn mixed(pki: &Pki, tls: &'static [usize]) -> Box<dyn Fn(&mut Config) + Send + Sync> {
    pki.issue("node", VALID);
    let settings = pki.tls("node");
    Box::new(move |config: &mut Config| {
        let folder = config.data_dir.display().to_string();
        let has = tls.iter().any(|i| folder.ends_with(&format!("node-{i}")));
        config.tls = has.then(|| settings.clone());
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_tls_among_members_with_it_names_the_table_and_so_the_other_way_round() {
    let pki = Pki::new();
    let all = mixed(&pki, &[0, 1, 2]).await;
    let mut cluster = Cluster::blank(3, all).await;
    cluster.dial = pki.dial(Some("node"));
    cluster.init().await;
    cluster.stop(2).await;
    cluster.extra = mixed(&pki, &[0, 1]).await;
    cluster.start(2).await;
    says(&cluster, 2, &["speaks TLS", "no [tls]"]).await;
    // Now it is the only one that has it.
    for i in 0..3 {
        cluster.stop(i).await;
    }
    cluster.extra = mixed(&pki, &[2]).await;
    for i in 0..3 {
        cluster.start(i).await;
    }
    says(&cluster, 2, &["speaks no TLS", "has [tls]"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_member_beside_a_recovered_cluster_is_told_to_empty_its_folder() {
    let mut cluster = Cluster::new(3).await;
    for i in 0..3 {
        cluster.crash(i).await;
    }
    let survivor = Survivor::open(&cluster.members[0].folder).unwrap();
    let recovered = survivor.go_on_alone().unwrap();
    cluster.start(0).await;
    cluster.leader().await;
    cluster.start(1).await;
    let words = [
        recovered.cluster_id.as_str(),
        "began anew",
        "empty its data folder",
        "conclave cluster add",
    ];
    says(&cluster, 1, &words).await;
}
