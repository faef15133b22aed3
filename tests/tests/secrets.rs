//! Processes that speak mutual TLS: a job is answered, also past its leader's death; who may not is refused;
//! and no secret stands in any log, however much is logged.

use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use conclave_tests::{
    Launch, MODEL, Process, collector::Collector, conclave_binary, free_port, model_path,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, process::Command};

/// No command takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What nobody may read in a log.
const SECRETS: [&str; 7] = [
    "operator-secret-6f1d",
    "submitter-secret-0b2c",
    "worker-secret-93ae",
    "peer-secret-41fd",
    "guessed-secret-77aa",
    "other-secret-2201",
    "collector-secret-c01d",
];
const OPERATOR: &str = SECRETS[0];
const SUBMITTER: &str = SECRETS[1];
const WORKER: &str = SECRETS[2];
const PEER: &str = SECRETS[3];
const GUESSED: &str = SECRETS[4];
const NEW: &str = SECRETS[5];
const COLLECTOR: &str = SECRETS[6];
/// What was asked: that is nobody's to read in a log, either.
const QUESTIONS: [&str; 2] = ["Is 221 a prime number?", "Is 223 a prime number?"];

/// A cluster's files and processes.
struct Site {
    folder: TempDir,
    ports: [u16; 3],
    collector: Collector,
    coordinators: Vec<Option<Process>>,
    worker: Option<Process>,
}

impl Site {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn show(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn endpoint(&self, index: usize) -> String {
        format!("localhost:{}", self.ports[index])
    }

    fn endpoints(&self) -> String {
        [0, 1, 2].map(|index| self.endpoint(index)).join(",")
    }

    /// Certificates, tokens and settings.
    async fn new() -> Self {
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            ports: [free_port(), free_port(), free_port()],
            collector: Collector::start().await,
            coordinators: Vec::new(),
            worker: None,
        };
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(site.path("ca.crt"), ca.pem()).unwrap();
        for name in ["node", "worker"] {
            let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            fs::write(site.path(&format!("{name}.crt")), certificate.pem()).unwrap();
            fs::write(site.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        site.tokens(OPERATOR);
        fs::write(site.path("worker-token"), WORKER).unwrap();
        let headers = format!("authorization: Bearer {COLLECTOR}\n");
        fs::write(site.path("headers"), headers).unwrap();
        site
    }

    /// Writes the tokens file.
    fn tokens(&self, operator: &str) {
        let of_acme = |token: &str, role: &str| {
            format!("{{\"token\": \"{token}\", \"tenant\": \"acme\", \"role\": \"{role}\"}}\n")
        };
        let of_all =
            |token: &str, role: &str| format!("{{\"token\": \"{token}\", \"role\": \"{role}\"}}\n");
        let lines = [
            of_acme(operator, "operator"),
            of_acme(SUBMITTER, "submitter"),
            of_all(WORKER, "worker"),
            of_all(PEER, "peer"),
        ];
        fs::write(self.path("tokens.jsonl"), lines.concat()).unwrap();
    }

    fn tls(&self, name: &str) -> String {
        format!(
            "[tls]\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n\
             [traces]\nendpoint = {:?}\nheaders_file = {:?}\n",
            self.path(&format!("{name}.crt")),
            self.path(&format!("{name}.key")),
            self.path("ca.crt"),
            self.collector.endpoint,
            self.path("headers"),
        )
    }

    async fn run(&self, role: &str, name: &str, settings: &str) -> Process {
        let file = self.path(&format!("{name}.toml"));
        fs::write(&file, settings).unwrap();
        let args = [role, "--config", &file.display().to_string(), "--json"];
        let launch = Launch {
            env: vec![("CONCLAVE_LOG".to_owned(), "trace".to_owned())],
            ..Launch::default()
        };
        let log = self.path(&format!("{name}.log"));
        let started = Process::launch(&launch, &args, &log).await;
        started.unwrap_or_else(|code| panic!("{name} ended with {code:?}; see {}", log.display()))
    }

    async fn start(&mut self) {
        for index in 0..3 {
            let settings = format!(
                "data_dir = {:?}\nlisten = \"127.0.0.1:{}\"\nadvertise = \"{}\"\nhttp_listen = \"127.0.0.1:0\"\n\
                 tokens_file = {:?}\nreflection = false\n{}",
                self.path(&format!("data-{index}")),
                self.ports[index],
                self.endpoint(index),
                self.path("tokens.jsonl"),
                self.tls("node"),
            );
            let process = self
                .run("coordinator", &format!("node-{index}"), &settings)
                .await;
            self.coordinators.push(Some(process));
        }
        let join = format!("{},{}", self.endpoint(1), self.endpoint(2));
        let init = [
            "cluster",
            "init",
            "--join",
            &join,
            "--endpoint",
            &self.endpoint(0),
        ];
        succeeded(&self.conclave(OPERATOR, &init).await);
        let settings = format!(
            "coordinators = [{:?}]\ntoken_file = {:?}\nthreads = 2\n{}[[models]]\nname = {MODEL:?}\npath = {:?}\n",
            self.endpoint(0),
            self.path("worker-token"),
            self.tls("worker"),
            model_path(),
        );
        self.worker = Some(self.run("worker", "worker", &settings).await);
    }

    /// One command of the command line, with everything logged to a file of this site.
    async fn conclave(&self, token: &str, args: &[&str]) -> Output {
        let mut command = Command::new(conclave_binary());
        command
            .args(args)
            .args(["--ca", &self.show("ca.crt"), "--log", "trace"])
            .env("CONCLAVE_TOKEN", token)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = output.expect("an end in time").unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("commands.log"));
        let mut said = output.stdout.clone();
        said.extend(&output.stderr);
        std::io::Write::write_all(&mut log.unwrap(), &said).unwrap();
        output
    }

    /// Asks, and waits for the answer.
    async fn answered(&self, question: &str) {
        let endpoints = self.endpoints();
        let ask = [
            "submit",
            "--watch",
            "--plain",
            "--agents",
            "2",
            "--choices",
            "yes,no",
            "--thought-tokens",
            "16",
            "--endpoint",
            &endpoints,
            question,
        ];
        succeeded(&self.conclave(SUBMITTER, &ask).await);
    }

    /// Index of the coordinator that leads.
    async fn leader(&self) -> usize {
        let endpoints = self.endpoints();
        let status = ["cluster", "status", "--json", "--endpoint", &endpoints];
        let began = Instant::now();
        loop {
            let output = self.conclave(NEW, &status).await;
            let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let nodes = said["nodes"].as_array().unwrap();
            if let Some(index) = nodes.iter().position(|node| node["role"] == "leader") {
                return index;
            }
            assert!(began.elapsed() < PATIENCE, "no leader: {said}");
        }
    }

    /// Every log, by its name.
    fn logs(&self) -> Vec<(String, String)> {
        let files = fs::read_dir(self.folder.path()).unwrap().flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|e| e == "log"));
        logs.map(|file| {
            let bytes = fs::read(file.path()).unwrap();
            (
                file.file_name().display().to_string(),
                String::from_utf8_lossy(&bytes).into_owned(),
            )
        })
        .collect()
    }
}

fn succeeded(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = errors.lines().rev().take(5).collect();
    assert!(output.status.success(), "{last:?}");
}

fn refused(output: &Output, words: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        errors.contains(words),
        "{words}: {:?}",
        errors.lines().last()
    );
}

fn assert_tells_no_secret(site: &Site) {
    let keys = ["node.key", "worker.key"].map(|name| fs::read_to_string(site.path(name)).unwrap());
    let lines = keys.iter().flat_map(|key| key.lines());
    let lines: Vec<&str> = lines.filter(|line| !line.starts_with("-----")).collect();
    let logs = site.logs();
    assert!(logs.len() >= 5);
    for (name, log) in &logs {
        assert!(log.len() > 1_000, "{name} is all but empty");
        // The commands were given the questions, and show them.
        let asked: &[&str] = if name == "commands.log" {
            &[]
        } else {
            &QUESTIONS
        };
        for secret in SECRETS.iter().chain(&lines).chain(asked) {
            let found = log.lines().find(|line| line.contains(secret));
            assert!(found.is_none(), "{name} tells a secret: {found:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_answered_over_mutual_tls_past_a_leaders_death_and_no_log_tells_a_secret() {
    let mut site = Site::new().await;
    site.start().await;
    site.answered(QUESTIONS[0]).await;

    let first = site.endpoint(0);
    let wrong = site
        .conclave(GUESSED, &["jobs", "--endpoint", &first])
        .await;
    refused(&wrong, "UNAUTHENTICATED");
    let low = ["cluster", "transfer", "--endpoint", &first];
    refused(&site.conclave(SUBMITTER, &low).await, "PERMISSION_DENIED");
    // The worker's token without its certificate.
    let members = ["cluster", "members", "--endpoint", &first];
    refused(&site.conclave(WORKER, &members).await, "cert_file");
    let mut plain = TcpStream::connect(("127.0.0.1", site.ports[0]))
        .await
        .unwrap();
    let words = format!("GET / HTTP/1.1\r\nAuthorization: Bearer {OPERATOR}\r\n\r\n");
    plain.write_all(words.as_bytes()).await.unwrap();

    // A new operator's token, while all of it runs.
    site.tokens(NEW);
    let began = Instant::now();
    while !site.conclave(NEW, &members).await.status.success() {
        assert!(
            began.elapsed() < PATIENCE,
            "the tokens file was not read again"
        );
    }
    let leader = site.leader().await;
    site.coordinators[leader].take().unwrap().kill().await;
    site.answered(QUESTIONS[1]).await;

    for process in site
        .coordinators
        .iter_mut()
        .flatten()
        .chain(&mut site.worker)
    {
        process.terminate(PATIENCE).await;
    }
    assert_tells_no_secret(&site);
    let logs = site.logs();
    let shown = format!("Bearer {COLLECTOR}");
    assert_eq!(
        site.collector.tokens(),
        [shown],
        "spans came, with the token"
    );
    let told = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        logs.iter().any(|(_, log)| log.contains(&reason))
    };
    for reason in ["unknown_token", "role", "no_certificate", "plaintext"] {
        assert!(told(reason), "no log tells of {reason}");
    }
}
