//! Audit records as JSON, one line each.
use conclave_coordinator::audit::open;
use conclave_proto::v1::{
    AgentSpec, AuditRecord, Draft, JobSpec, JobState, Role, Verdict, audit_event::Event,
};
use serde_json::{Value, json};

use super::{json, names};

/// One record with its event opened; `event` is null if its payload was erased.
pub fn record(record: &AuditRecord) -> Value {
    let event = (!record.payload.is_empty())
        .then(|| open(record))
        .flatten()
        .and_then(|event| event.event);
    json!({
        "seq": record.seq,
        "log_index": record.log_index,
        "kind": event.as_ref().map_or("ERASED", kind),
        "hash": hex::encode(&record.hash),
        "prev_hash": hex::encode(&record.prev_hash),
        "payload_digest": hex::encode(&record.payload_digest),
        "event": event.as_ref().map(fields),
    })
}

/// The event's name.
pub fn kind(event: &Event) -> &'static str {
    match event {
        Event::Submitted(_) => "SUBMITTED",
        Event::Prepared(_) => "PREPARED",
        Event::Round(_) => "ROUND",
        Event::Assigned(_) => "ASSIGNED",
        Event::Draft(_) => "DRAFT",
        Event::AttemptEnded(_) => "ATTEMPT_ENDED",
        Event::Decided(_) => "DECIDED",
        Event::Reviewed(_) => "REVIEWED",
        Event::Ended(_) => "ENDED",
        Event::Sealed(_) => "SEALED",
    }
}

fn fields(event: &Event) -> Value {
    match event {
        Event::Submitted(event) => json!({
            "tenant": event.tenant,
            "unix_ms": event.unix_ms,
            "request_digest": hex::encode(&event.request_digest),
            "spec": event.spec.as_ref().map(spec),
        }),
        Event::Prepared(event) => json!({
            "model": event.model,
            "model_digest": hex::encode(&event.model_digest),
            "numeric_class": event.numeric_class,
            "prompt_tokens": event.prompt_tokens,
            "error": event.error,
        }),
        Event::Round(event) => json!({
            "round": event.round,
            "state": names::job_state(event.state()),
            "context": event.context,
            "agents": event.agents.iter().map(agent).collect::<Vec<_>>(),
        }),
        Event::Assigned(event) => json!({
            "agent": event.agent,
            "attempt": event.attempt,
            "worker": event.worker,
            "incarnation": event.incarnation,
            "numeric_class": event.numeric_class,
        }),
        Event::Draft(event) => json!({
            "agent": event.agent,
            "attempt": event.attempt,
            "draft": event.draft.as_ref().map(draft),
        }),
        Event::AttemptEnded(event) => json!({
            "agent": event.agent,
            "attempt": event.attempt,
            "reason": event.reason,
            "cut": event.cut.as_ref().map(draft),
        }),
        Event::Decided(event) => json!({
            "cancelled": event.cancelled,
            "votes": json::votes(&event.votes),
            "reason": event.reason,
        }),
        Event::Reviewed(event) => json!({
            "reviewer": event.reviewer,
            "verdict": verdict(event.verdict()),
            "text": event.text,
            "note": event.note,
        }),
        Event::Ended(event) => json!({
            "state": names::job_state(JobState::try_from(event.state).unwrap_or_default()),
            "answer": event.answer.as_ref().map(json::answer),
            "message": event.message,
        }),
        Event::Sealed(_) => json!({}),
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    verdict.as_str_name().trim_start_matches("VERDICT_")
}

fn spec(spec: &JobSpec) -> Value {
    let messages: Vec<Value> = spec
        .messages
        .iter()
        .map(|turn| json!({ "role": turn.role, "content": turn.content }))
        .collect();
    json!({
        "model": spec.model,
        "mode": names::mode(spec.mode()),
        "seed": spec.seed,
        "messages": messages,
        "labels": spec.labels,
    })
}

fn agent(spec: &AgentSpec) -> Value {
    json!({
        "agent": spec.agent,
        "role": names::role(Role::try_from(spec.role).unwrap_or_default()),
        "round": spec.round,
        "index": spec.index,
        "seed": spec.seed,
        "tail": spec.tail,
        "thought_tokens": spec.thought_tokens,
        "answer_tokens": spec.answer_tokens,
        "sources": spec.sources,
        "cue": spec.cue,
    })
}

fn draft(draft: &Draft) -> Value {
    let mut fields = json::draft_fields(draft);
    fields.insert("token_ids".to_owned(), draft.token_ids.clone().into());
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_open_their_bodies_and_survive_erasure() {
        let mut records = crate::audit::verify::tests::signed().records;
        let value = record(&records[0]);
        assert_eq!(value["kind"], "SUBMITTED");
        assert_eq!(value["event"]["spec"]["model"], "m");
        assert_eq!(record(&records[1])["event"]["context"], "context");
        records[0].payload.clear();
        assert_eq!(record(&records[0])["kind"], "ERASED");
        assert!(record(&records[0])["event"].is_null());
    }
}
