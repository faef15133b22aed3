//! `conclave doctor` on clusters of processes: sound, with a member that was killed, a worker that was lost, and
//! over TLS with a certificate that ends soon.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use conclave_tests::{
    Cluster, MockOptions, MockWorker, Process, conclave_binary, free_port, model_path,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tokio::process::Command;

/// Longest that a diagnosis may take.
const DIAGNOSIS: Duration = Duration::from_secs(30);

/// Its exit code, and what it said.
async fn doctor(endpoints: &[String]) -> (Option<i32>, Value) {
    doctor_with(endpoints, &[]).await
}

async fn doctor_with(endpoints: &[String], flags: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(conclave_binary());
    command.args(["doctor", "--json", "--endpoint", &endpoints.join(",")]);
    command.args(flags);
    let done = tokio::time::timeout(DIAGNOSIS, command.kill_on_drop(true).output()).await;
    let done = done.expect("in time").expect("it runs");
    let said = String::from_utf8_lossy(&done.stdout);
    let document = serde_json::from_str(&said);
    let document = document.unwrap_or_else(|e| panic!("{e}: {said}"));
    (done.status.code(), document)
}

/// `about: what` of each problem.
fn problems(document: &Value) -> Vec<String> {
    let findings = document["findings"].as_array().expect("a list");
    let problems = findings.iter().filter(|f| f["level"] == "problem");
    let text = |f: &Value| format!("{}: {}", f["about"], f["what"]).replace('"', "");
    problems.map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_member_is_found_whoever_is_asked_and_nothing_before() {
    let mut cluster = Cluster::start(3, 0).await;
    let _mock = MockWorker::spawn(MockOptions::new("mock-0", cluster.endpoints()));
    cluster.until_workers(1).await;
    let leader = cluster.leader().await;
    let endpoints = cluster.endpoints();
    // One endpoint is enough: it names the others. A node that has just joined may lag for a moment.
    let started = Instant::now();
    let (code, document) = loop {
        let (code, document) = doctor(&endpoints[..1]).await;
        if code == Some(0) || started.elapsed() > DIAGNOSIS {
            break (code, document);
        }
    };
    assert_eq!(
        (code, problems(&document)),
        (Some(0), Vec::new()),
        "{document:#}"
    );
    assert_eq!(document["healthy"], true);
    assert_eq!(document["nodes"].as_array().map(Vec::len), Some(3));
    assert_eq!(document["workers"].as_array().map(Vec::len), Some(1));
    let killed = (leader + 1) % 3;
    cluster.kill_coordinator(killed).await;
    for asked in [&endpoints[..], &endpoints[leader..=leader]] {
        let (code, document) = doctor(asked).await;
        let problems = problems(&document);
        assert_eq!(code, Some(1), "{document:#}");
        let gone = format!("{}: does not answer", endpoints[killed]);
        assert!(
            problems.iter().any(|p| p.starts_with(&gone)),
            "{problems:?}"
        );
        let risk = "the quorum: 2 of 3 voters answer: after one more loss";
        assert!(problems.iter().any(|p| p.starts_with(risk)), "{problems:?}");
    }
    // With another gone nobody decides; whoever is left still names both, and that is one problem.
    cluster.kill_coordinator(leader).await;
    let left = 3 - leader - killed;
    let (code, document) = doctor(&endpoints[left..=left]).await;
    assert_eq!(code, Some(1), "{document:#}");
    let problems = problems(&document);
    assert_eq!(problems.len(), 1, "{document:#}");
    assert!(
        problems[0].starts_with("the quorum: is lost: 1 of 3 voters answers"),
        "{problems:?}"
    );
    for gone in [killed, leader] {
        let cure = document["findings"].to_string();
        assert!(cure.contains(&endpoints[gone]), "{document:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_lost_is_named_until_it_is_back() {
    let cluster = Cluster::start(1, 0).await;
    let mock = MockWorker::spawn(MockOptions::new("mock-0", cluster.endpoints()));
    cluster.until_workers(1).await;
    let options = mock.crash().await;
    let named = async |wanted: bool| {
        let started = Instant::now();
        loop {
            let (code, document) = doctor(&cluster.endpoints()).await;
            let problems = problems(&document);
            let named = problems.iter().any(|p| p.starts_with("mock-0: was lost"));
            let last = started.elapsed() > DIAGNOSIS;
            // A lease of six seconds has to run out; doctor tells when.
            if named == wanted || last {
                assert_eq!(code, Some(i32::from(wanted)), "{document:#}");
                return document;
            }
        }
    };
    let document = named(true).await;
    assert_eq!(document["lost_workers"][0]["worker_id"], "mock-0");
    let back = MockWorker::spawn(options);
    back.until(|seen| seen.connected).await;
    let document = named(false).await;
    assert_eq!(document["lost_workers"].as_array().map(Vec::len), Some(0));
}

/// A certificate of `localhost` that ends in so many days, and its key, where a coordinator reads them.
fn certify(folder: &Path, ca: &CertifiedIssuer<'_, KeyPair>, days: u64) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_after = (SystemTime::now() + Duration::from_secs(days * 24 * 3_600)).into();
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, ca).expect("a certificate");
    fs::write(folder.join("node.key"), key.serialize_pem()).expect("a file");
    fs::write(folder.join("node.crt"), certificate.pem()).expect("a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_token_file_that_cannot_be_read_again_is_told_until_it_is_mended() {
    let cluster = Cluster::start(1, 0).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let token = path("token");
    fs::write(&token, "a token that nobody asks for").expect("a file");
    let endpoints = cluster.endpoints();
    let model = model_path().display().to_string();
    let args = [
        "worker",
        "--json",
        "--worker-id=w1",
        "--coordinator",
        &endpoints[0],
        "--model",
        &model,
        "--token-file",
        &token,
    ];
    let _worker = Process::start(&args, &folder.path().join("worker.log")).await;
    cluster.until_workers(1).await;
    for (text, told) in [("two\nlines", true), ("mended", false)] {
        fs::write(&token, text).expect("a file");
        let started = Instant::now();
        loop {
            let (_, document) = doctor(&endpoints).await;
            let names = |problem: &String| problem.starts_with("w1: token_file changed");
            if problems(&document).iter().any(names) == told {
                break;
            }
            assert!(started.elapsed() < DIAGNOSIS, "{document:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_it_tells_what_to_set_and_which_certificate_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut params = CertificateParams::new(Vec::new()).expect("no name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let ca = ca.expect("an authority");
    fs::write(path("ca.crt"), ca.pem()).expect("a file");
    certify(folder.path(), &ca, 3);
    let endpoint = format!("localhost:{}", free_port());
    let settings = format!(
        "open = true\nlisten = {endpoint:?}\nadvertise = {endpoint:?}\nhttp_listen = \"127.0.0.1:0\"\n\
         data_dir = {:?}\n[tls]\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n",
        path("data"),
        path("node.crt"),
        path("node.key"),
        path("ca.crt"),
    );
    fs::write(path("node.toml"), settings).expect("a file");
    let log = folder.path().join("node.log");
    let args = ["coordinator", "--config", &path("node.toml"), "--json"];
    let _node = Process::start(&args, &log).await;
    let believed = path("ca.crt");
    let flags = ["--ca", &believed];
    let mut init = Command::new(conclave_binary());
    init.args(["cluster", "init", "--endpoint", &endpoint])
        .args(flags);
    let begun = init.output().await.expect("it runs");
    assert!(begun.status.success(), "{begun:?}");

    let endpoints = [endpoint.clone()];
    let (code, document) = doctor_with(&endpoints, &flags).await;
    let found = problems(&document);
    assert_eq!((code, found.len()), (Some(1), 1), "{document:#}");
    assert!(
        found[0].starts_with(&format!("{endpoint}: its certificate ends in ")),
        "{found:?}"
    );
    let (code, document) = doctor(&endpoints).await;
    assert_eq!(code, Some(1));
    assert!(document.to_string().contains("--ca FILE"), "{document:#}");

    // Nor does a call go on trying where no later one could go better.
    let (_, port) = endpoint.split_once(':').expect("a port");
    let other_name = format!("127.0.0.1:{port}");
    for (asked, flags, word) in [
        (&other_name, &flags[..], "--server-name NAME"),
        (&endpoint, &[][..], "--ca FILE"),
    ] {
        let mut jobs = Command::new(conclave_binary());
        jobs.args(["jobs", "--endpoint", asked]).args(flags);
        let asked = tokio::time::timeout(DIAGNOSIS / 2, jobs.kill_on_drop(true).output());
        let ended = asked.await.expect("at once").expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains(word), "{said}");
    }

    // Renewed while it runs: the files are read again within seconds, and nobody tells when.
    certify(folder.path(), &ca, 90);
    let started = Instant::now();
    loop {
        let (code, document) = doctor_with(&endpoints, &flags).await;
        if code == Some(0) {
            break;
        }
        assert!(started.elapsed() < DIAGNOSIS, "{document:#}");
    }
}
