//! What a cluster logs of a job: objects of the same fields everywhere, and nothing of what was written.

use std::collections::BTreeSet;
use std::path::Path;

use conclave_proto::v1::{Job, JobState};
use conclave_tests::{Cluster, Launch, Place, Places, exact_job};
use serde_json::Value;

/// Every line of a log, an object each.
fn lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    text.lines().map(parse).collect()
}

/// The fields of lines that say this of the job.
fn of<'a>(lines: &'a [Value], job: &str, message: &str) -> Vec<&'a Value> {
    let fields = lines.iter().map(|line| &line["fields"]);
    let wanted = fields.filter(|fields| fields["message"] == message && fields["job"] == job);
    wanted.collect()
}

/// One coordinator and one worker that log all there is, as JSON.
async fn telling() -> Cluster {
    let env = [("CONCLAVE_LOG", "trace"), ("CONCLAVE_LOG_FORMAT", "json")];
    let place = Place {
        launch: Launch {
            env: env
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            ..Launch::default()
        },
        ..Place::default()
    };
    let places = Places {
        coordinators: vec![place.clone()],
        workers: vec![place],
        tokens: None,
    };
    Cluster::start_at(places).await
}

/// No line of the log has what people or the model wrote. Words of some letters only stand for nothing.
fn assert_is_private(log: &Path, job: &Job) {
    let mut written = vec![job.spec.as_ref().unwrap().messages[0].content.as_str()];
    for draft in job.agents.iter().filter_map(|agent| agent.draft.as_ref()) {
        written.extend([draft.thought.as_str(), draft.answer.as_str()]);
    }
    written.extend(job.answer.as_ref().map(|answer| answer.text.as_str()));
    let text = std::fs::read_to_string(log).unwrap();
    for line in written.iter().flat_map(|text| text.lines()).map(str::trim) {
        let told = line.len() >= 12 && text.contains(line);
        assert!(!told, "{} tells `{line}`", log.display());
    }
}

#[tokio::test]
async fn a_job_is_told_by_the_same_fields_everywhere_and_nothing_that_was_written_is() {
    let cluster = telling().await;
    let client = cluster.client();
    let id = client.submit("logged", &exact_job(7)).await.unwrap();
    let job = client.finished(&id).await;
    assert_eq!(job.state(), JobState::Done, "{}", job.message);

    let log = |name: &str| cluster.folder().join(name).with_extension("log");
    let (coordinator, worker) = (log("coordinator-0"), log("worker-0"));
    let told = [lines(&coordinator), lines(&worker)];
    let attempts: BTreeSet<u64> = (1..=5).collect();
    for (lines, message) in [
        (&told[0], "an attempt begins"),
        (&told[0], "an attempt handed in its draft"),
        (&told[1], "an attempt begins"),
        (&told[1], "an attempt ended"),
    ] {
        let found = of(lines, &id, message);
        let agents = found.iter().map(|fields| fields["agent"].as_u64().unwrap());
        assert_eq!(agents.collect::<BTreeSet<_>>(), attempts, "{message}");
        for fields in found {
            assert_eq!(fields["attempt"], 1, "{message}");
            assert_eq!(fields["worker"], "worker-0", "{message}");
            assert_eq!(fields["tenant"], "local", "{message}");
        }
    }
    assert_eq!(of(&told[0], &id, "a job is accepted").len(), 1);
    let [end] = of(&told[0], &id, "a job ended")[..] else {
        panic!("one line a job")
    };
    let usage = job.usage.unwrap();
    let generated = usage.thought_tokens + usage.answer_tokens;
    assert_eq!(end["generated_tokens"], generated);
    assert_eq!(
        (&end["outcome"], &end["tenant"]),
        (&"done".into(), &"local".into())
    );
    // One spelling, whatever is told; at `info` and above a job is one line.
    let mut loud = 0;
    let ours = |line: &&Value| {
        line["target"]
            .as_str()
            .is_some_and(|t| t.starts_with("conclave"))
    };
    for line in told.iter().flatten().filter(ours) {
        let fields = line["fields"].as_object().unwrap();
        for other in ["job_id", "worker_id", "agent_id", "tenant_id", "key"] {
            assert!(!fields.contains_key(other), "{line}");
        }
        let level = line["level"].as_str().unwrap();
        loud += usize::from(fields.contains_key("job") && level != "DEBUG" && level != "TRACE");
    }
    assert_eq!(loud, 1, "the job's end");
    assert_is_private(&coordinator, &job);
    assert_is_private(&worker, &job);
}
