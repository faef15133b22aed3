//! Who comes in, and who does not: one test a door.

mod harness;

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    sync::OnceLock,
    time::{Duration, Instant},
};

use conclave_coordinator::{Config, config::TlsConfig};
use conclave_credentials::Dial;
use conclave_proto::v1::{
    ExportJobRequest, GetJobRequest, IdentifyRequest, InitRequest, ListJobsRequest, MembersRequest,
    ReviewJobRequest, StatusRequest, SubmitJobRequest, SubmitJobResponse, Verdict, WorkerMessage,
    audit_client::AuditClient, cluster_client::ClusterClient,
    contemplation_client::ContemplationClient, raft_client::RaftClient,
    workers_client::WorkersClient,
};
use harness::{
    Cluster, PATIENCE, assert_done, done, get,
    pki::{EXPIRED, Pki, VALID},
    request, spec, submit, with, with_tokens,
    worker::Mock,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status, codegen::http::uri::PathAndQuery, transport::Channel};

/// Longer than a handshake may take.
const GREETING: Duration = Duration::from_secs(8);
/// Longer than files that change are left unread.
const RELOAD: Duration = Duration::from_secs(15);

/// One member with TLS and tokens, a cluster already. Users dial it without a certificate.
async fn guarded(pki: &Pki) -> Cluster {
    counted("before anything else");
    pki.issue("node", VALID);
    let tls = pki.tls("node");
    let mut cluster = Cluster::blank(1, move |config| {
        with_tokens(config);
        config.tls = Some(tls.clone());
    })
    .await;
    cluster.dial = pki.dial(None);
    let init = with("admin-token", InitRequest::default());
    cluster.admin(0).await.init(init).await.unwrap();
    cluster
}

/// A metric of this process, 0 if nobody has touched it.
fn counted(series: &str) -> f64 {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    let metrics = METRICS.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap());
    let text = metrics.render();
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    value.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// A fresh connection, dialled thus.
fn fresh(dial: &Dial, address: &str) -> Channel {
    dial.lazily(&dial.endpoint(address).unwrap())
}

/// A call that any user may make.
async fn list(channel: Channel, token: &str) -> Result<(), Status> {
    let mut client = ContemplationClient::new(channel);
    let call = client.list_jobs(with(token, ListJobsRequest::default()));
    let answer = tokio::time::timeout(PATIENCE, call).await;
    answer.expect("an answer in time").map(drop)
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.err().map_or(Code::Ok, |status| status.code())
}

/// Whether the connection failed: no node said anything to the call.
fn broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_needs_a_token_that_is_known_and_of_a_role_that_may() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let address = &cluster.members[0].address;
    let mut jobs = cluster.client(0).await;
    assert_eq!(
        code(jobs.list_jobs(ListJobsRequest::default()).await),
        Code::Unauthenticated
    );
    for wrong in ["alice-toke", "nobodys-token", ""] {
        let refused = list(fresh(&cluster.dial, address), wrong).await;
        assert_eq!(code(refused), Code::Unauthenticated, "{wrong:?}");
    }
    // Another tenant's job is no job.
    let submitted = jobs.submit_job(with("alice-token", request("mine"))).await;
    let job_id = submitted.unwrap().into_inner().job_id;
    let get = |job_id: &str| GetJobRequest {
        job_id: job_id.to_owned(),
        ..GetJobRequest::default()
    };
    assert_eq!(
        code(jobs.get_job(with("bobby-token", get(&job_id))).await),
        Code::NotFound
    );
    let mut audit = AuditClient::new(fresh(&cluster.dial, address));
    let export = ExportJobRequest {
        job_id: job_id.clone(),
    };
    assert_eq!(
        code(audit.export_job(with("bobby-token", export)).await),
        Code::NotFound
    );
    // A role that is too low.
    let review = ReviewJobRequest {
        job_id,
        verdict: Verdict::Approve as i32,
        ..ReviewJobRequest::default()
    };
    let refused = jobs.review_job(with("alice-token", review)).await;
    assert_eq!(code(refused), Code::PermissionDenied);
    let mut admin = cluster.admin(0).await;
    let refused = admin
        .init(with("alice-token", InitRequest::default()))
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.metadata().get("refusal").unwrap(), "role");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_and_coordinators_show_a_certificate_and_users_need_none() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    pki.issue("worker", VALID);
    let address = &cluster.members[0].address;
    for (certificate, want) in [(None, Code::Unauthenticated), (Some("worker"), Code::Ok)] {
        let dial = pki.dial(certificate);
        let mut peer = RaftClient::new(fresh(&dial, address));
        let answer = peer.identify(with("peers-token", IdentifyRequest {})).await;
        assert_eq!(code(answer), want, "{certificate:?}");
        let mut worker = WorkersClient::new(fresh(&dial, address));
        let hello = tokio_stream::pending::<WorkerMessage>();
        let answer = worker.session(with("labor-token", hello)).await;
        assert_eq!(code(answer), want, "{certificate:?}");
        // Calls that observers of the cluster share with operators.
        let mut admin = ClusterClient::new(fresh(&dial, address));
        let answer = admin.members(with("labor-token", MembersRequest {})).await;
        assert_eq!(code(answer), want, "{certificate:?}");
        let answer = list(fresh(&dial, address), "alice-token").await;
        assert_eq!(code(answer), Code::Ok, "{certificate:?}");
    }
    // To say that one has a certificate is to have none.
    let mut peer = RaftClient::new(fresh(&cluster.dial, address));
    let mut claim = with("peers-token", IdentifyRequest {});
    let yes = "true".parse().unwrap();
    claim.metadata_mut().insert("conclave-certified", yes);
    let refused = peer.identify(claim).await.unwrap_err();
    assert_eq!(refused.metadata().get("refusal").unwrap(), "no_certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ended_and_one_of_another_authority_are_turned_away() {
    let (pki, others) = (Pki::new(), Pki::new());
    let cluster = guarded(&pki).await;
    let address = &cluster.members[0].address;
    pki.issue("expired", EXPIRED);
    others.issue("stranger", VALID);
    for wrong in [(&pki, "expired"), (&others, "stranger")] {
        let dial = pki.dial_with(Some(wrong));
        let refused = list(fresh(&dial, address), "alice-token").await;
        assert!(broken(&refused.unwrap_err()), "{}", wrong.1);
    }
    // And the other way round: who believes another authority does not talk to this node.
    let refused = list(fresh(&others.dial(None), address), "alice-token").await;
    assert!(broken(&refused.unwrap_err()));
    assert_eq!(
        code(list(fresh(&cluster.dial, address), "alice-token").await),
        Code::Ok
    );
    assert!(counted("conclave_refusals_total{reason=\"bad_certificate\"}") >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_own_certificate_ended_is_not_believed() {
    let pki = Pki::new();
    pki.issue("node", EXPIRED);
    let tls = pki.tls("node");
    let mut cluster = Cluster::blank(1, move |config| config.tls = Some(tls.clone())).await;
    cluster.dial = pki.dial(None);
    let refused = cluster.admin(0).await.status(StatusRequest {}).await;
    assert!(broken(&refused.unwrap_err()));
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_to_a_port_that_speaks_tls_gets_no_answer() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let plain = fresh(&Dial::plain(), &cluster.members[0].address);
    let refused = list(plain, "alice-token").await.unwrap_err();
    assert!(broken(&refused), "{refused:?}");
    assert!(counted("conclave_refusals_total{reason=\"plaintext\"}") >= 1.0);
}

/// Waits until the other end closes the connection; what it says before is let go.
async fn closed(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    let end = async {
        loop {
            match stream.read(&mut bytes).await {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(GREETING, end)
        .await
        .expect("the node lets go of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_hold_no_seat() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let address = cluster.members[0].address.clone();
    let mut slow = Vec::new();
    // More than may be under way at once: each begins, and stops in the middle.
    for _ in 0..400 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    let answer = list(fresh(&cluster.dial, &address), "alice-token").await;
    assert_eq!(code(answer), Code::Ok);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let first = slow.remove(0);
    closed(first).await;
    closed(slow.pop().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_that_says_nothing_is_let_go_and_one_that_idles_is_not() {
    let cluster = Cluster::new(1).await;
    let address = &cluster.members[0].address;
    let silent = TcpStream::connect(address).await.unwrap();
    let mut channel = cluster.admin(0).await;
    channel.status(StatusRequest {}).await.unwrap();
    closed(silent).await;
    // The same connection, after longer than a greeting may take.
    channel.status(StatusRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_is_refused_and_the_next_call_is_served() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let mut jobs = cluster.client(0).await;
    let mut long = request("x");
    long.spec = Some(spec(&"x".repeat(5 << 20)));
    let refused = jobs.submit_job(with("alice-token", long)).await;
    assert_eq!(code(refused), Code::OutOfRange);
    jobs.submit_job(with("alice-token", request("short")))
        .await
        .unwrap();
}

/// A call of one message, which never arrives.
async fn begun(channel: Channel, token: &str) -> Result<(), Status> {
    let codec = tonic_prost::ProstCodec::<SubmitJobRequest, SubmitJobResponse>::default();
    let path = PathAndQuery::from_static("/conclave.v1.Contemplation/SubmitJob");
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let never = with(token, tokio_stream::pending());
    let answer = grpc.client_streaming(never, path, codec);
    answer.await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_before_the_message_is_here() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let address = &cluster.members[0].address;
    let refused = begun(fresh(&cluster.dial, address), "nobodys-token");
    let refused = tokio::time::timeout(PATIENCE, refused).await;
    let refused = refused.expect("nobody waits for it");
    assert_eq!(code(refused), Code::Unauthenticated);
    assert!(counted("conclave_refusals_total{reason=\"unknown_token\"}") >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_answers_only_where_it_is_on() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    for (on, want) in [(true, Code::Ok), (false, Code::Unimplemented)] {
        let cluster = Cluster::blank(1, move |config| config.reflection = on).await;
        let mut client = ServerReflectionClient::new(cluster.channel(0).await);
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answer = client.server_reflection_info(tokio_stream::once(ask)).await;
        assert_eq!(code(answer), want);
    }
}

/// Which certificate a new connection is shown, by its bytes.
async fn shown(pki: &Pki, address: &str) -> Vec<u8> {
    use rustls::pki_types::ServerName;
    let files = conclave_credentials::Files {
        ca_file: pki.path("ca.crt"),
        ..Default::default()
    };
    let client = files.read().unwrap().client;
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = tokio_rustls::TlsConnector::from(client);
    let stream = tls.connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_calls_run_and_none_fails() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let address = cluster.members[0].address.clone();
    let before = shown(&pki, &address).await;
    let held = fresh(&cluster.dial, &address);
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let (dial, to) = (cluster.dial.clone(), address.clone());
    let calls = tokio::spawn(async move {
        let mut count = 0;
        while !*stopped.borrow_and_update() {
            list(held.clone(), "alice-token").await.unwrap();
            list(fresh(&dial, &to), "alice-token").await.unwrap();
            count += 2;
        }
        count
    });
    // As a careless operator would: one file, then the other.
    pki.issue("node", VALID);
    let renewed = async {
        while shown(&pki, &address).await == before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(RELOAD, renewed).await.unwrap();
    stop.send_replace(true);
    assert!(calls.await.unwrap() > 10);

    // What does not fit leaves the renewed one, and is told.
    let renewed = shown(&pki, &address).await;
    let failures = || counted("conclave_credentials_reload_failures_total{what=\"tls\"}");
    let failed_before = failures();
    fs::write(pki.path("node.key"), "no key").unwrap();
    let told = async {
        while failures() == failed_before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(RELOAD, told).await.unwrap();
    assert_eq!(shown(&pki, &address).await, renewed);
    let expires = format!("conclave_certificate_expires_seconds{{of=\"{address}\"}}");
    assert_eq!(counted(&expires), 3_786_912_000.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_ended_replaces_none_that_holds() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let address = &cluster.members[0].address;
    let before = shown(&pki, address).await;
    let failures = "conclave_credentials_reload_failures_total{what=\"tls\"}";
    let failed = counted(failures);
    pki.issue("node", EXPIRED);
    let began = Instant::now();
    while counted(failures) <= failed {
        assert!(began.elapsed() < RELOAD);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(shown(&pki, address).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_may_watch_a_nodes_health_and_the_others_are_served() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let cluster = Cluster::new(1).await;
    let mut health = HealthClient::new(cluster.channel(0).await);
    let mut watches = Vec::new();
    let full = loop {
        match health.watch(HealthCheckRequest::default()).await {
            Ok(watch) => watches.push(watch),
            Err(full) => break full,
        }
        assert!(watches.len() < 10_000, "a stranger takes what it likes");
    };
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    health.check(HealthCheckRequest::default()).await.unwrap();
    submit(&mut cluster.client(0).await, "and now?").await;
    watches.clear();
    let began = Instant::now();
    while health.watch(HealthCheckRequest::default()).await.is_err() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn rewrite(path: &Path, change: impl Fn(&str) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(&text)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_and_go_with_their_file() {
    let pki = Pki::new();
    let cluster = guarded(&pki).await;
    let address = &cluster.members[0].address;
    let path = cluster.members[0].folder.with_extension("tokens");
    let until = async |token: &str, want: Code| {
        let wait = async {
            while code(list(fresh(&cluster.dial, address), token).await) != want {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(RELOAD, wait).await.unwrap();
    };
    until("alice-token", Code::Ok).await;
    rewrite(&path, |text| text.replace("alice-token", "carol-token"));
    until("carol-token", Code::Ok).await;
    until("alice-token", Code::Unauthenticated).await;
}

/// Three members, each with a certificate of its own, and clients that show one too.
async fn three(pki: &Pki) -> Cluster {
    let tls = ["node-0", "node-1", "node-2"].map(|name| {
        pki.issue(name, VALID);
        (name, pki.tls(name))
    });
    pki.issue("client", VALID);
    let own = move |config: &mut Config| {
        let folder = config.data_dir.display().to_string();
        let found = tls.iter().find(|(name, _)| folder.ends_with(name));
        config.tls = found.map(|(_, tls): &(_, TlsConfig)| tls.clone());
    };
    let mut cluster = Cluster::blank(3, own).await;
    cluster.dial = pki.dial(Some("client"));
    cluster.init().await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn three_coordinators_a_worker_and_a_client_answer_over_mutual_tls_past_a_leaders_death() {
    let pki = Pki::new();
    let mut cluster = three(&pki).await;
    let _worker = Mock::new("w1", cluster.addresses())
        .with_dial(pki.dial(Some("client")))
        .run();
    let through = cluster.follower().await;
    let mut client = cluster.client(through).await;
    let job_id = submit(&mut client, "before").await.job_id;
    assert_done(&done(&mut client, &job_id).await);
    let leader = cluster.leader().await;
    cluster.crash(leader).await;
    cluster.leader().await;
    let mut client = cluster.client(cluster.follower().await).await;
    let wait = async {
        loop {
            match client.submit_job(request("after")).await {
                Ok(answer) => return answer.into_inner().job_id,
                // An election may be under way.
                Err(status) if status.code() == Code::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(status) => panic!("{status:?}"),
            }
        }
    };
    let after = tokio::time::timeout(PATIENCE, wait).await.unwrap();
    assert_done(&done(&mut client, &after).await);
    assert_done(&get(&mut client, &job_id).await);
    // Nobody of this cluster is one without a certificate of it.
    let member = cluster.leader().await;
    let mut peer = RaftClient::new(fresh(&pki.dial(None), &cluster.members[member].address));
    let refused = peer.identify(IdentifyRequest {}).await;
    assert_eq!(code(refused), Code::Unauthenticated);
}
