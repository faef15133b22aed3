//! Jobs as JSON. Field names are the wire's; enums are their short upper-case
//! names; digests are hex; confidences are nats.
use conclave_proto::v1::{
    AgentStatus, Answer, AuditHead, Draft, Job, JobSpec, LineageKind, LineageRecord, Member,
    MembersResponse, RefusedFile, StatusResponse, Usage, Vote, WorkerStatus, job_event::Event,
    watch_job_response::Update,
};
use serde_json::{Map, Value, json};

use super::names;

/// A whole job: what `ask`, `submit --wait` and `jobs ID` print with `--json`.
pub fn job(job: &Job) -> Value {
    let spec = job.spec.as_ref();
    json!({
        "job_id": job.job_id,
        "tenant": job.tenant,
        "state": names::job_state(job.state()),
        "message": job.message,
        "mode": spec.map(|spec| names::mode(spec.mode())),
        "model": spec.map(|spec| spec.model.as_str()),
        "seed": spec.and_then(|spec| spec.seed),
        "round": job.round,
        "answer": job.answer.as_ref().map(|answer| answer.text.as_str()),
        "canonical": job.answer.as_ref().map(|answer| answer.canonical.as_str()),
        "aggregator": job.answer.as_ref().map(|answer| names::aggregator(answer.aggregator())),
        "answer_agent": job.answer.as_ref().and_then(|answer| answer.agent),
        "expanded": job.expanded,
        "edited": job.answer.as_ref().is_some_and(|answer| answer.edited),
        "votes": job.answer.as_ref().map(|answer| votes(&answer.votes)).unwrap_or_default(),
        "drafts": job.agents.iter().map(agent).collect::<Vec<_>>(),
        "usage": usage(job.usage.as_ref()),
        "usage_by_role": job.tokens_by_role,
        "replay": names::replay(job.replay()),
        "audit": job.audit.as_ref().map(audit_head),
        "submitted_unix_ms": job.submitted_unix_ms,
        "ended_unix_ms": job.ended_unix_ms,
        "labels": spec.map(|spec| spec.labels.clone()).unwrap_or_default(),
    })
}

/// One row of a listing.
pub fn job_row(job: &Job) -> Value {
    json!({
        "job_id": job.job_id,
        "state": names::job_state(job.state()),
        "mode": job.spec.as_ref().map(|spec| names::mode(spec.mode())),
        "model": job.spec.as_ref().map(|spec| spec.model.as_str()),
        "question": job.spec.as_ref().map(question),
        "answer": job.answer.as_ref().map(|answer| answer.text.as_str()),
        "message": job.message,
        "usage": usage(job.usage.as_ref()),
        "submitted_unix_ms": job.submitted_unix_ms,
        "ended_unix_ms": job.ended_unix_ms,
    })
}

/// The last user turn of a job.
pub fn question(spec: &JobSpec) -> &str {
    spec.messages
        .last()
        .map_or("", |message| message.content.as_str())
}

/// One agent with its draft.
pub fn agent(status: &AgentStatus) -> Value {
    let mut value = json!({
        "agent": status.agent,
        "role": names::role(status.role()),
        "round": status.round,
        "state": names::agent_state(status.state()),
        "attempt": status.attempt,
        "worker": status.worker,
        "error": status.error,
    });
    if let (Some(draft), Value::Object(fields)) = (&status.draft, &mut value) {
        fields.append(&mut draft_fields(draft));
    }
    value
}

/// What a draft says, field by field.
pub fn draft_fields(draft: &Draft) -> Map<String, Value> {
    let value = json!({
        "thought": draft.thought,
        "answer": draft.answer,
        "canonical": draft.canonical,
        "valid": draft.valid,
        "confidence": names::nats(draft.confidence_micro),
        "lowest_window": names::nats(draft.lowest_window_micro),
        "stop": names::stop(draft.stop()),
        "usage": usage(draft.usage.as_ref()),
        "prompt_digest": hex::encode(&draft.prompt_digest),
        "logprob_digest": hex::encode(&draft.logprob_digest),
        "model_digest": hex::encode(&draft.model_digest),
        "numeric_class": draft.numeric_class,
    });
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Votes, heaviest first as the cluster ordered them; weights in votes.
pub fn votes(votes: &[Vote]) -> Vec<Value> {
    votes
        .iter()
        .map(|vote| {
            json!({
                "canonical": vote.canonical,
                "agents": vote.agents,
                "votes": vote.agents.len(),
                "weight": names::nats(vote.weight_micro),
            })
        })
        .collect()
}

/// Token counts; zeros where nothing was counted.
pub fn usage(usage: Option<&Usage>) -> Value {
    let usage = usage.copied().unwrap_or_default();
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "thought_tokens": usage.thought_tokens,
        "answer_tokens": usage.answer_tokens,
    })
}

/// A signed head.
pub fn audit_head(head: &AuditHead) -> Value {
    json!({
        "length": head.length,
        "head": hex::encode(&head.head),
        "signature": hex::encode(&head.signature),
        "public_key": hex::encode(&head.public_key),
        "sealed": head.sealed,
    })
}

/// An answer with its votes.
pub fn answer(answer: &Answer) -> Value {
    json!({
        "text": answer.text,
        "canonical": answer.canonical,
        "aggregator": names::aggregator(answer.aggregator()),
        "agent": answer.agent,
        "edited": answer.edited,
        "votes": votes(&answer.votes),
    })
}

/// One update of a watch, with the cursor that resumes after it.
pub fn update(update: &Update, cursor: &str) -> Value {
    let mut value = match update {
        Update::Event(event) => {
            let mut value = json!({ "event": event.index, "unix_ms": event.unix_ms });
            match &event.event {
                Some(Event::State(state)) => {
                    let state = conclave_proto::v1::JobState::try_from(*state).unwrap_or_default();
                    value["state"] = names::job_state(state).into();
                }
                Some(Event::Agent(status)) => value["agent"] = agent(status),
                Some(Event::Answer(text)) => value["answer"] = answer(text),
                Some(Event::Message(message)) => value["message"] = message.as_str().into(),
                None => {}
            }
            value
        }
        Update::Tokens(delta) => json!({ "tokens": {
            "agent": delta.agent,
            "attempt": delta.attempt,
            "offset": delta.offset,
            "tokens": delta.tokens,
            "text": delta.text,
            "thought": delta.thought,
            "confidence": names::nats(delta.confidence_micro),
            "prompt_tokens": delta.prompt_tokens,
            "cached_tokens": delta.cached_tokens,
        }}),
        Update::Reset(reset) => {
            json!({ "reset": { "agent": reset.agent, "attempt": reset.attempt }})
        }
        Update::Done(done) => json!({ "done": job(done) }),
    };
    value["cursor"] = cursor.into();
    value
}

/// A cluster's members.
pub fn members(response: &MembersResponse) -> Value {
    json!({
        "cluster_id": response.cluster_id,
        "term": response.term,
        "members": response.members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn member(member: &Member) -> Value {
    json!({
        "node_id": member.node_id.to_string(),
        "address": member.address,
        "role": if member.leader { "leader" } else if member.learner { "learner" } else { "voter" },
        "match_index": member.match_index,
        "active": member.active,
    })
}

/// One node about itself. Node ids are strings: they exceed what JSON numbers
/// hold exactly in most readers.
pub fn status(status: &StatusResponse) -> Value {
    json!({
        "node_id": status.node_id.to_string(),
        "cluster_id": status.cluster_id,
        "address": status.address,
        "role": status.role,
        "term": status.term,
        "leader_id": status.leader_id.to_string(),
        "leader_address": status.leader_address,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "log_version": status.log_version,
        "cluster_log_version": status.cluster_log_version,
        "version": status.version,
        "public_key": hex::encode(&status.public_key),
        "lineage": status.lineage.iter().map(lineage).collect::<Vec<_>>(),
        "unix_ms": status.unix_ms,
        "disk_free_bytes": status.disk_free_bytes,
        "disk_reserve_bytes": status.disk_reserve_bytes,
        "unready": status.unready,
        "live_jobs": status.live_jobs,
        "max_live_jobs": status.max_live_jobs,
        "quotas_refused": status.quotas_refused,
        "certificate_expires_unix_s": status.certificate_expires_unix_s,
        "refused_files": status.refused_files.iter().map(refused_file).collect::<Vec<_>>(),
    })
}

/// A file that changed and cannot be used.
fn refused_file(file: &RefusedFile) -> Value {
    json!({ "setting": file.setting, "paths": file.paths, "why": file.why })
}

/// How a cluster came out of another one.
fn lineage(from: &LineageRecord) -> Value {
    json!({
        "kind": match from.kind() {
            LineageKind::Restored => "restored",
            LineageKind::Recovered => "recovered",
            LineageKind::Unspecified => "unknown",
        },
        "from_cluster_id": from.from_cluster_id,
        "cluster_id": from.cluster_id,
        "index": from.index,
        "term": from.term,
        "unix_ms": from.unix_ms,
        "node_id": from.node_id.to_string(),
        "unconfirmed": from.unconfirmed,
    })
}

/// One registered worker.
pub fn worker(worker: &WorkerStatus) -> Value {
    json!({
        "worker_id": worker.worker_id,
        "incarnation": worker.incarnation,
        "models": worker.models,
        "max_sequences": worker.max_sequences,
        "agents": worker.agents,
        "draining": worker.draining,
        "lease_remaining_ms": worker.lease_remaining_ms,
        "numeric_class": worker.numeric_class,
        "refused_files": worker.refused_files.iter().map(refused_file).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{
        AgentState, Aggregator, JobState, Mode, Role, StopReason, TokenDelta,
    };

    use super::*;

    fn finished() -> Job {
        let mut status = AgentStatus {
            agent: 1,
            attempt: 1,
            worker: "w1".into(),
            ..Default::default()
        };
        status.set_role(Role::Proposer);
        status.set_state(AgentState::Done);
        let mut draft = Draft {
            answer: "391".into(),
            canonical: "391".into(),
            valid: true,
            ..Default::default()
        };
        draft.confidence_micro = 12_345_678;
        draft.model_digest = vec![0xb1, 0x79];
        draft.set_stop(StopReason::End);
        status.draft = Some(draft);
        let vote = Vote {
            canonical: "391".into(),
            agents: vec![1, 2],
            weight_micro: 2_000_000,
        };
        let mut answer = Answer {
            text: "391".into(),
            canonical: "391".into(),
            votes: vec![vote],
            ..Default::default()
        };
        answer.set_aggregator(Aggregator::Majority);
        let mut spec = JobSpec {
            model: "smollm2-135m".into(),
            seed: Some(7),
            ..Default::default()
        };
        spec.set_mode(Mode::Contemplating);
        let mut job = Job {
            job_id: "j1".into(),
            spec: Some(spec),
            agents: vec![status],
            answer: Some(answer),
            usage: Some(Usage {
                prompt_tokens: 80,
                cached_tokens: 64,
                thought_tokens: 9,
                answer_tokens: 3,
            }),
            tokens_by_role: [("proposer".to_owned(), 12)].into(),
            ..Default::default()
        };
        job.set_state(JobState::Done);
        job
    }

    #[test]
    fn the_document_holds_what_scripts_ask_for() {
        let value = job(&finished());
        assert_eq!(value["answer"], "391");
        assert_eq!(value["state"], "DONE");
        assert_eq!(value["mode"], "CONTEMPLATING");
        assert_eq!(value["seed"], 7);
        assert_eq!(value["drafts"][0]["role"], "PROPOSER");
        assert_eq!(value["drafts"][0]["confidence"], 12.345678);
        assert_eq!(value["drafts"][0]["model_digest"], "b179");
        assert_eq!(value["votes"][0]["votes"], 2);
        assert_eq!(value["usage"]["cached_tokens"], 64);
        assert_eq!(value["usage_by_role"]["proposer"], 12);
    }

    #[test]
    fn an_unanswered_job_has_a_null_answer() {
        let mut failed = finished();
        failed.answer = None;
        let value = job(&failed);
        assert!(value["answer"].is_null());
        assert_eq!(value["votes"], json!([]));
    }

    #[test]
    fn every_update_carries_its_cursor() {
        let delta = TokenDelta {
            agent: 2,
            offset: 5,
            text: "hé".into(),
            ..Default::default()
        };
        let value = update(&Update::Tokens(delta), "abc");
        assert_eq!(value["cursor"], "abc");
        assert_eq!(value["tokens"]["text"], "hé");
        assert_eq!(
            update(&Update::Done(finished()), "x")["done"]["job_id"],
            "j1"
        );
    }
}
