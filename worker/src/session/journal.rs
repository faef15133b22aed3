//! Whom a worker tells what becomes of attempts: metrics, traces, and the log. What people or models wrote is in
//! none of them.

use std::collections::HashMap;
use std::time::SystemTime;

use conclave_proto::v1::{AttemptError, Draft, ErrorKind, Start, StopReason};
use conclave_traces::{
    Kind, Span, SpanId, TraceId, Traces, names, names::operation, span::unix_nanos,
};
use conclave_worker_core::SeqId;

use super::desk::Ended;
use crate::engine_thread::{SeqEvent, Step};
use crate::metrics::{SessionMetrics, role_label};
use crate::results::Attempt;

/// What is told, and what is needed for it.
pub(super) struct Journal {
    worker: String,
    traces: Option<Traces>,
    /// Attempts whose traces are kept.
    traced: HashMap<SeqId, Work>,
}

/// When parts of an attempt began, on this worker.
struct Work {
    trace: TraceId,
    began: SystemTime,
    planned: Option<SystemTime>,
    started: Option<SystemTime>,
    first: Option<SystemTime>,
    ended: Option<SystemTime>,
    model: String,
    max_tokens: u32,
}

impl Journal {
    /// For the worker of this name; without `traces` nothing is traced.
    pub(super) fn new(worker: &str, traces: Option<Traces>) -> Self {
        Self {
            worker: worker.to_owned(),
            traces,
            traced: HashMap::new(),
        }
    }

    /// An attempt was taken on; `model` serves it.
    pub(super) fn begins(&mut self, seq: SeqId, start: &Start, model: &str) {
        let Some(key) = &start.key else { return };
        tracing::debug!(
            job = key.job_id,
            agent = key.agent,
            attempt = key.attempt,
            worker = self.worker,
            tenant = start.tenant,
            "an attempt begins"
        );
        let traces = self.traces.as_ref();
        let Some(trace) = traces.and_then(|traces| traces.of_job(&key.job_id)) else {
            return;
        };
        let spec = start.spec.as_ref();
        let work = Work {
            trace,
            began: SystemTime::now(),
            planned: None,
            started: None,
            first: None,
            ended: None,
            model: model.to_owned(),
            max_tokens: spec.map_or(0, |spec| {
                spec.thought_tokens.saturating_add(spec.answer_tokens)
            }),
        };
        self.traced.insert(seq, work);
    }

    /// It is a request now, for the engine's queue.
    pub(super) fn planned(&mut self, seq: SeqId) {
        if let Some(work) = self.traced.get_mut(&seq) {
            work.planned = Some(SystemTime::now());
        }
    }

    /// The engine made a step.
    pub(super) fn stepped(&mut self, step: &Step) {
        if self.traced.is_empty() {
            return;
        }
        for event in &step.events {
            let (SeqEvent::Started { seq, .. }
            | SeqEvent::Delta { seq, .. }
            | SeqEvent::Ended { seq, .. }) = event;
            let Some(work) = self.traced.get_mut(seq) else {
                continue;
            };
            match event {
                SeqEvent::Started { .. } => work.started = Some(step.began),
                SeqEvent::Delta { .. } => {
                    work.first.get_or_insert(step.ended);
                }
                SeqEvent::Ended { .. } => work.ended = Some(step.ended),
            }
        }
    }

    /// An attempt is over.
    pub(super) fn ended(&mut self, metrics: &SessionMetrics, ended: &Ended) {
        let (outcome, usage) = match &ended.outcome {
            Ok(draft) => (outcome_of(draft), draft.usage.as_ref()),
            Err(error) => (kind_name(error.kind()), None),
        };
        metrics.ended(ended.role, outcome, usage);
        self.log(ended, outcome);
        if let (Some(work), Some(traces)) = (self.traced.remove(&ended.seq), &self.traces) {
            let of = SpansOf {
                worker: &self.worker,
                ended,
                outcome,
                work: &work,
            };
            of.all().into_iter().for_each(|span| traces.say(span));
        }
    }

    /// What runs is another cluster's, and is let go unheard.
    pub(super) fn begin_anew(&mut self) {
        self.traced.clear();
    }

    fn log(&self, ended: &Ended, outcome: &str) {
        let Ended {
            attempt:
                Attempt {
                    job,
                    agent,
                    attempt,
                },
            tenant,
            ..
        } = ended;
        let worker = &self.worker;
        match &ended.outcome {
            // The job's own words may be in what is permanently wrong with it.
            Err(error) if error.kind() == ErrorKind::Transient => tracing::warn!(
                job,
                agent,
                attempt,
                worker,
                tenant,
                outcome,
                why = error.message,
                "an attempt failed here: the coordinator makes it again, three times at most"
            ),
            Ok(_) | Err(_) => {
                tracing::debug!(
                    job,
                    agent,
                    attempt,
                    worker,
                    tenant,
                    outcome,
                    "an attempt ended"
                );
            }
        }
    }
}

fn outcome_of(draft: &Draft) -> &'static str {
    match draft.stop() {
        StopReason::Cancelled | StopReason::LowConfidence => "cut",
        _ => "done",
    }
}

fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Permanent => "permanent",
        ErrorKind::Drained => "drained",
        ErrorKind::Transient | ErrorKind::Unspecified => "transient",
    }
}

/// From one attempt to its spans: what the model did, and its parts one after another.
struct SpansOf<'a> {
    worker: &'a str,
    ended: &'a Ended,
    outcome: &'static str,
    work: &'a Work,
}

impl SpansOf<'_> {
    fn all(&self) -> Vec<Span> {
        let work = self.work;
        let ended = work.ended.unwrap_or_else(SystemTime::now);
        let mut spans = vec![self.chat(ended)];
        // Each part ends where the next begins; the last one that began, with the attempt.
        let parts = [
            ("plan", Some(work.began)),
            ("queue", work.planned),
            ("prefill", work.started),
            ("decode", work.first),
        ];
        let mut begun = parts
            .into_iter()
            .filter_map(|(name, at)| at.map(|at| (name, at)))
            .peekable();
        while let Some((name, began)) = begun.next() {
            let end = begun.peek().map_or(ended, |(_, next)| *next);
            spans.push(self.part(name, began, end));
        }
        spans
    }

    fn id(&self, part: &str) -> SpanId {
        let Attempt { agent, attempt, .. } = self.ended.attempt;
        SpanId::work(self.work.trace, agent, attempt, part)
    }

    fn chat(&self, ended: SystemTime) -> Span {
        let Self { work, .. } = self;
        let Attempt {
            job,
            agent,
            attempt,
        } = &self.ended.attempt;
        let span = Span::new(
            work.trace,
            self.id(operation::CHAT),
            Kind::Internal,
            format!("{} {}", operation::CHAT, work.model),
            unix_nanos(work.began),
            unix_nanos(ended),
        );
        let span = span
            .below_remote(SpanId::attempt(work.trace, *agent, *attempt))
            .with(names::OPERATION, operation::CHAT)
            .with(names::PROVIDER, names::PROVIDER_NAME)
            .with(names::REQUEST_MODEL, work.model.as_str())
            .with(names::RESPONSE_MODEL, work.model.as_str())
            .with(names::MAX_TOKENS, work.max_tokens)
            .with(names::AGENT_ID, format!("{job}/{agent}"))
            .with(names::AGENT_NAME, role_label(self.ended.role))
            .with(names::JOB, job.as_str())
            .with(names::TENANT, self.ended.tenant.as_str())
            .with(names::AGENT, *agent)
            .with(names::ATTEMPT, *attempt)
            .with(names::WORKER, self.worker)
            .with(names::OUTCOME, self.outcome);
        match &self.ended.outcome {
            Ok(draft) => span.with_draft(draft),
            Err(AttemptError { .. }) => span.failed(self.outcome),
        }
    }

    fn part(&self, name: &'static str, began: SystemTime, ended: SystemTime) -> Span {
        let span = Span::new(
            self.work.trace,
            self.id(name),
            Kind::Internal,
            name,
            unix_nanos(began),
            unix_nanos(ended),
        )
        .below(self.id(operation::CHAT));
        let draft = self.ended.outcome.as_ref().ok();
        let usage = draft.and_then(|draft| draft.usage).unwrap_or_default();
        match name {
            "prefill" => span
                .with(names::PROMPT, usage.prompt_tokens)
                .with(names::PROMPT_CACHED, usage.cached_tokens),
            "decode" => span.with(names::GENERATED, usage.thought_tokens + usage.answer_tokens),
            _ => span,
        }
    }
}
