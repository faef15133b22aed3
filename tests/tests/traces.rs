//! Traces of real clusters, as a collector gets them: one tree a job, whoever led; and a collector that is away
//! or hangs takes nothing from anybody.

use std::time::{Duration, Instant};

use conclave_proto::v1::{Job, JobState, SubmitJobRequest};
use conclave_tests::collector::{Collector, Seen, Trace, hex};
use conclave_tests::{Cluster, MockOptions, MockWorker, Place, Places, exact_job, scrape};

/// Drafts of [`exact_job`]: four proposers and a chair.
const AGENTS: usize = 5;

/// A cluster whose programs trace to `endpoint`.
fn traced(coordinators: usize, workers: usize, endpoint: &str, more: &str) -> Places {
    let place = Place {
        // A table in one line: lines follow it.
        settings: format!("traces = {{ endpoint = {endpoint:?}{more} }}"),
        ..Place::default()
    };
    Places {
        coordinators: vec![place.clone(); coordinators],
        workers: vec![place; workers],
        tokens: None,
    }
}

/// The job and all of its attempts are there, and what workers say of them, if they do.
fn whole(workers: bool) -> impl Fn(&Trace) -> bool {
    move |trace| {
        let of = |word: &str| {
            let said = trace
                .0
                .iter()
                .filter(|seen| seen.text("gen_ai.operation.name") == word);
            said.count()
        };
        of("invoke_workflow") == 1
            && of("invoke_agent") >= AGENTS
            && (!workers || of("chat") >= AGENTS)
    }
}

fn sum(spans: &[&Seen], key: &str) -> u64 {
    let sum: i64 = spans.iter().filter_map(|seen| seen.number(key)).sum();
    u64::try_from(sum).unwrap()
}

fn operation<'a>(trace: &'a Trace, word: &str) -> Vec<&'a Seen> {
    let of = |seen: &&Seen| seen.text("gen_ai.operation.name") == word;
    trace.0.iter().filter(of).collect()
}

/// Every span but the root has a parent in the trace, which begins no later than it.
fn assert_is_one_tree(trace: &Trace) {
    let (mut roots, tree) = (0, trace.tree());
    for seen in &trace.0 {
        if seen.parent().is_empty() {
            roots += 1;
            continue;
        }
        let parent = trace.parent_of(seen);
        let parent = parent.unwrap_or_else(|| panic!("{} has no parent:\n{tree}", seen.span.name));
        let (name, above) = (&seen.span.name, &parent.span.name);
        // The worker's clock is this machine's, too.
        let early = parent.span.start_time_unix_nano > seen.span.start_time_unix_nano;
        // A job's replicated time has milliseconds.
        let by = parent
            .span
            .start_time_unix_nano
            .saturating_sub(seen.span.start_time_unix_nano);
        assert!(
            !early || by < 1_000_000,
            "{name} begins {by} ns before {above}:\n{tree}"
        );
    }
    assert_eq!(roots, 1, "{tree}");
}

/// The attempts' usage is the job's.
fn assert_usage(trace: &Trace, job: &Job) {
    let usage = job.usage.unwrap();
    for spans in [
        operation(trace, "invoke_workflow"),
        operation(trace, "invoke_agent"),
    ] {
        assert_eq!(
            sum(&spans, "gen_ai.usage.input_tokens"),
            usage.prompt_tokens
        );
        assert_eq!(
            sum(&spans, "gen_ai.usage.cache_read.input_tokens"),
            usage.cached_tokens
        );
        assert_eq!(
            sum(&spans, "gen_ai.usage.reasoning.output_tokens"),
            usage.thought_tokens
        );
        let generated = usage.thought_tokens + usage.answer_tokens;
        assert_eq!(sum(&spans, "gen_ai.usage.output_tokens"), generated);
    }
}

fn assert_is_private(trace: &Trace, job: &Job) {
    let spec = job.spec.as_ref().unwrap();
    let mut written: Vec<&str> = spec.messages.iter().map(|m| m.content.as_str()).collect();
    let drafts = job.agents.iter().filter_map(|agent| agent.draft.as_ref());
    written.extend(drafts.flat_map(|draft| [draft.answer.as_str(), draft.thought.as_str()]));
    written.extend(job.answer.as_ref().map(|answer| answer.text.as_str()));
    let said = format!("{:?}", trace.0);
    for text in written
        .into_iter()
        .map(str::trim)
        .filter(|text| text.len() > 3)
    {
        assert!(!said.contains(text), "a span tells `{text}`");
    }
}

#[tokio::test]
async fn a_job_is_one_tree_with_the_models_own_work_in_it() {
    let collector = Collector::start().await;
    let cluster = Cluster::start_at(traced(1, 1, &collector.endpoint, "")).await;
    let client = cluster.client();
    let id = client.submit("traced", &exact_job(7)).await.unwrap();
    let job = client.finished(&id).await;
    assert_eq!(job.state(), JobState::Done, "{}", job.message);
    let trace = collector
        .job(&id, |t| whole(true)(t) && !t.named("prefill").is_empty())
        .await;
    eprintln!("{}", trace.tree());
    assert_is_one_tree(&trace);
    assert_usage(&trace, &job);
    assert_is_private(&trace, &job);

    let [root] = trace.named("invoke_workflow contemplating")[..] else {
        panic!("{}", trace.tree())
    };
    assert_eq!(root.text("gen_ai.provider.name"), "conclave");
    assert_eq!(root.text("gen_ai.request.model"), conclave_tests::MODEL);
    assert_eq!(root.text("conclave.outcome"), "done");
    assert_eq!(root.text("conclave.tenant"), "local");
    assert_eq!(root.number("conclave.rounds"), Some(2));
    assert_eq!(root.number("conclave.agents"), Some(AGENTS as i64));
    for (name, parent, count) in [
        ("prepare", "invoke_workflow contemplating", 1),
        ("propose", "invoke_workflow contemplating", 1),
        ("aggregate", "invoke_workflow contemplating", 1),
        (
            "conclave.v1.Contemplation/SubmitJob",
            "invoke_workflow contemplating",
            1,
        ),
        ("invoke_agent proposer", "propose", AGENTS - 1),
        ("invoke_agent chair", "aggregate", 1),
    ] {
        let spans = trace.named(name);
        assert_eq!(spans.len(), count, "{name}:\n{}", trace.tree());
        for seen in spans {
            assert_eq!(trace.parent_of(seen).unwrap().span.name, parent, "{name}");
        }
    }
    for chat in operation(&trace, "chat") {
        let attempt = trace.parent_of(chat).unwrap();
        assert_eq!(attempt.text("gen_ai.operation.name"), "invoke_agent");
        assert_eq!(chat.service, "conclave-worker");
        assert_eq!(chat.instance, "worker-0");
        assert_eq!(attempt.text("conclave.worker"), "worker-0");
        for key in ["gen_ai.usage.output_tokens", "gen_ai.usage.input_tokens"] {
            assert_eq!(attempt.number(key), chat.number(key), "both say the same");
        }
        assert!(attempt.has("gen_ai.response.finish_reasons"));
        let parts = |name| {
            trace
                .named(name)
                .into_iter()
                .filter(|s| s.parent() == chat.id())
                .count()
        };
        assert_eq!(["plan", "queue", "prefill", "decode"].map(parts), [1; 4]);
    }
}

#[tokio::test]
async fn a_job_that_outlives_its_leader_is_one_trace_of_two_nodes() {
    let collector = Collector::start().await;
    let mut cluster = Cluster::start_at(traced(3, 0, &collector.endpoint, "")).await;
    let client = cluster.client();
    let mock = MockWorker::spawn(MockOptions::new("mock", cluster.endpoints()));
    mock.set_rate(40.0);
    let id = client.submit("outlives", &exact_job(7)).await.unwrap();
    client.until_mid_draft(&id, 4).await;
    // Spans are sent once they have ended; the call that brought the job has.
    let submitted = |t: &Trace| !t.named("prepare").is_empty();
    let first = collector.job(&id, submitted).await;
    let old = first.named("prepare")[0].instance.clone();
    let leader = cluster.leader().await;
    cluster.kill_coordinator(leader).await;
    mock.set_rate(2_000.0);
    let job = client.finished(&id).await;
    let trace = collector.job(&id, whole(false)).await;
    eprintln!("{}", trace.tree());
    assert_is_one_tree(&trace);
    assert_usage(&trace, &job);
    let [root] = operation(&trace, "invoke_workflow")[..] else {
        panic!("{}", trace.tree())
    };
    assert_ne!(root.instance, old, "another node led at the end");
    assert!(trace.instances().contains(old.as_str()));
    // What ran on is not begun anew by the next leader.
    for proposer in trace.named("invoke_agent proposer") {
        let worked = proposer.span.end_time_unix_nano - proposer.span.start_time_unix_nano;
        assert!(worked > 100_000_000, "{}", trace.tree());
    }
}

#[tokio::test]
async fn a_call_joins_its_callers_trace_and_links_to_the_jobs() {
    const CALLER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let collector = Collector::start().await;
    // Whichever node leads: the call may take a hop.
    let cluster = Cluster::start_at(traced(3, 0, &collector.endpoint, "")).await;
    let _mock = MockWorker::spawn(MockOptions::new("mock", cluster.endpoints()));
    let mut client = cluster.client().connected().await.unwrap();
    let mut submit = async |key: &str, flags: &str| {
        let mut request = tonic::Request::new(SubmitJobRequest {
            idempotency_key: key.to_owned(),
            spec: Some(exact_job(7)),
        });
        let header = format!("00-{CALLER}-00f067aa0ba902b7-{flags}");
        request
            .metadata_mut()
            .insert("traceparent", header.parse().unwrap());
        client
            .submit_job(request)
            .await
            .unwrap()
            .into_inner()
            .job_id
    };
    let unkept = submit("unkept", "00").await;
    let kept = submit("kept", "01").await;
    let trace = collector.until(CALLER, |t| !t.0.is_empty()).await;
    assert_eq!(
        trace.0.len(),
        1,
        "one span a call, whatever hops it took, of those that are kept"
    );
    let call = &trace.0[0];
    assert_eq!(call.parent(), "00f067aa0ba902b7");
    assert_eq!(call.text("rpc.response.status_code"), "OK");
    assert_eq!(hex(&call.span.links[0].trace_id), kept.replace('-', ""));
    let job = collector.job(&kept, whole(false)).await;
    assert_eq!(
        hex(&call.span.links[0].span_id),
        operation(&job, "invoke_workflow")[0].id()
    );
    collector.job(&unkept, whole(false)).await;
}

#[tokio::test]
async fn half_of_the_jobs_are_half_of_the_traces_and_none_is_none() {
    let collector = Collector::start().await;
    let cluster =
        Cluster::start_at(traced(1, 0, &collector.endpoint, ", sampling_ratio = 0.5")).await;
    let _mock = MockWorker::spawn(MockOptions::new("mock", cluster.endpoints()));
    let client = cluster.client();
    let mut ids = Vec::new();
    for seed in 0..24 {
        ids.push(
            client
                .submit(&format!("s{seed}"), &exact_job(seed))
                .await
                .unwrap(),
        );
    }
    for id in &ids {
        client.finished(id).await;
    }
    // A node that ends sends what it has.
    let mut cluster = cluster;
    let mut node = cluster.coordinators[0].take().unwrap();
    assert!(node.terminate(Duration::from_secs(20)).await);
    let traced = ids
        .iter()
        .filter(|id| whole(false)(&collector.trace(&id.replace('-', ""))));
    let begun = ids
        .iter()
        .filter(|id| !collector.trace(&id.replace('-', "")).0.is_empty());
    let (traced, begun) = (traced.count(), begun.count());
    assert_eq!(traced, begun, "all of a trace or nothing");
    assert!((2..23).contains(&traced), "{traced} of 24");
}

/// A metric's value on a program's page, its labels as given.
async fn metric(http: &str, line: &str) -> f64 {
    let page = scrape(http).await.unwrap();
    let found = page.lines().find_map(|l| l.strip_prefix(line));
    found
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(f64::NAN)
}

/// Longest until what became of spans is counted.
const COUNTED: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_collector_that_hangs_or_is_away_slows_no_job_and_loses_spans_only() {
    let collector = Collector::start().await;
    let timeout = Duration::from_secs(2);
    let settings = format!(", timeout_ms = {}, queue_spans = 64", timeout.as_millis());
    let cluster = Cluster::start_at(traced(1, 0, &collector.endpoint, &settings)).await;
    let mock = MockWorker::spawn(MockOptions::new("mock", cluster.endpoints()));
    mock.set_rate(5_000.0);
    let client = cluster.client();
    let http = cluster.coordinators[0].as_ref().unwrap().http.clone();
    let run = async |name: &str| {
        let mut took = Vec::new();
        for seed in 0..12 {
            let began = Instant::now();
            let id = client
                .submit(&format!("{name}{seed}"), &exact_job(seed))
                .await
                .unwrap();
            assert_eq!(client.finished(&id).await.state(), JobState::Done);
            took.push(began.elapsed());
        }
        took.sort_unstable();
        took
    };
    run("well").await;
    collector.hang(true);
    // A job that waited for the collector would wait until it counts as lost. One or another may be slow for
    // what else the machine does.
    let hung = run("hung").await;
    assert!(hung[hung.len() / 2] < timeout, "{hung:?}");
    let reasons = ["queue_full", "export_failed"];
    let lost = async |http: &str| {
        let mut lost = 0.0;
        for reason in reasons {
            let line = format!("conclave_traces_dropped_spans_total{{reason=\"{reason}\"}}");
            lost += metric(http, &line).await;
        }
        lost
    };
    // Pages of metrics have no event to wait for.
    let began = Instant::now();
    while lost(&http).await <= 0.0 {
        assert!(began.elapsed() < COUNTED, "what it did not take is counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    collector.hang(false);
    run("again").await;
    let began = Instant::now();
    while metric(&http, "conclave_traces_exported_spans_total").await <= 0.0 {
        assert!(began.elapsed() < COUNTED, "what it takes again is counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn off_means_no_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // What other programs take for a reason to connect.
    let env = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ];
    let mut place = Place::default();
    place.launch.env = env
        .map(|name| (name.to_owned(), format!("http://{address}")))
        .to_vec();
    let places = Places {
        coordinators: vec![place],
        ..Places::default()
    };
    let cluster = Cluster::start_at(places).await;
    let _mock = MockWorker::spawn(MockOptions::new("mock", cluster.endpoints()));
    let client = cluster.client();
    let id = client.submit("untraced", &exact_job(7)).await.unwrap();
    assert_eq!(client.finished(&id).await.state(), JobState::Done);
    let http = cluster.coordinators[0].as_ref().unwrap().http.clone();
    let page = scrape(&http).await.unwrap();
    assert!(!page.contains("conclave_traces_"), "no exporter is there");
    // Longer than a span would wait.
    let came = tokio::time::timeout(Duration::from_secs(1), listener.accept()).await;
    assert!(came.is_err(), "somebody connected");
}
