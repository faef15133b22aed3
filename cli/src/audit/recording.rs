//! What an audit record says of each agent: enough to run it again.
use std::collections::BTreeMap;

use conclave_coordinator::audit::open;
use conclave_proto::v1::{AgentSpec, AuditRecord, Draft, Message, audit_event::Event};
use conclave_worker::replay::ReplayCase;

/// The agents of a record whose drafts are in it, in the order of the chain.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// Name of the model, as jobs ask for it.
    pub model: String,
    /// What was recorded, accepted and cut drafts alike.
    pub agents: Vec<Recorded>,
    /// Cut drafts that are not in the record any more.
    pub lost: usize,
}

/// One recorded draft.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// It was cut and never counted.
    pub cut: bool,
    /// How to run it again, and what it then gave.
    pub case: ReplayCase,
}

/// Why a record cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// Something that replay reads is not in the file any more.
    #[error("record {seq} was erased: a record can be replayed only whole")]
    Erased {
        /// Its place, from 0.
        seq: u64,
    },
    /// A draft of an agent that no round created.
    #[error("record {seq} has a draft of agent {agent}, which no round created")]
    Unknown {
        /// Its place, from 0.
        seq: u64,
        /// The agent.
        agent: u32,
    },
    /// The job ended before any agent wrote anything.
    #[error("the record holds no draft: there is nothing to replay")]
    Nothing,
}

/// The record as far as it was read.
#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    /// Each agent with its round's context.
    specs: BTreeMap<u32, (AgentSpec, String)>,
    recording: Recording,
}

impl Recording {
    /// Reads a chain that was verified before.
    pub fn read(records: &[AuditRecord]) -> Result<Self, RecordingError> {
        let mut reader = Reader::default();
        for record in records {
            reader.record(record)?;
        }
        let recording = reader.recording;
        if recording.agents.is_empty() {
            Err(RecordingError::Nothing)
        } else {
            Ok(recording)
        }
    }
}

impl Reader {
    fn record(&mut self, record: &AuditRecord) -> Result<(), RecordingError> {
        let seq = record.seq;
        let event = open(record)
            .and_then(|event| event.event)
            .ok_or(RecordingError::Erased { seq })?;
        // Its large part was erased, or never kept.
        let hollow = record.body.is_empty() && super::names_a_body(record);
        match event {
            Event::AttemptEnded(_) if hollow => self.recording.lost += 1,
            _ if hollow => return Err(RecordingError::Erased { seq }),
            Event::Submitted(event) => {
                self.messages = event.spec.map(|spec| spec.messages).unwrap_or_default()
            }
            Event::Prepared(event) => self.recording.model = event.model,
            Event::Round(event) => {
                let context = event.context;
                self.specs.extend(
                    event
                        .agents
                        .into_iter()
                        .map(|spec| (spec.agent, (spec, context.clone()))),
                );
            }
            Event::Draft(event) => self.draft(seq, event.agent, event.draft, false)?,
            Event::AttemptEnded(event) => self.draft(seq, event.agent, event.cut, true)?,
            Event::Assigned(_)
            | Event::Decided(_)
            | Event::Reviewed(_)
            | Event::Ended(_)
            | Event::Sealed(_) => {}
        }
        Ok(())
    }

    fn draft(
        &mut self,
        seq: u64,
        agent: u32,
        draft: Option<Draft>,
        cut: bool,
    ) -> Result<(), RecordingError> {
        let Some(draft) = draft else { return Ok(()) };
        let (spec, context) = self
            .specs
            .get(&agent)
            .cloned()
            .ok_or(RecordingError::Unknown { seq, agent })?;
        let case = ReplayCase {
            spec,
            messages: self.messages.clone(),
            context,
            salt: Vec::new(),
            draft,
        };
        self.recording.agents.push(Recorded { cut, case });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use conclave_coordinator::audit::kind;
    use conclave_proto::v1::{
        AuditAttemptEnded, AuditDraft, AuditEvent, AuditPrepared, AuditRound, AuditSubmitted,
        JobSpec,
    };
    use prost::Message as _;

    use super::*;

    fn record(seq: u64, event: Event, body: Vec<u8>) -> AuditRecord {
        let kind = kind(&event);
        let payload = AuditEvent { event: Some(event) }.encode_to_vec();
        AuditRecord {
            seq,
            kind,
            payload,
            body,
            ..Default::default()
        }
    }

    fn digest(body: &[u8]) -> Vec<u8> {
        blake3::hash(body).as_bytes().to_vec()
    }

    /// The job's spec, an accepted draft and a cut one, encoded.
    fn bodies() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let message = Message {
            role: "user".into(),
            content: "why?".into(),
        };
        let spec = JobSpec {
            messages: vec![message],
            ..Default::default()
        };
        let accepted = Draft {
            answer: "yes".into(),
            token_ids: vec![1, 2],
            ..Default::default()
        };
        let cut = Draft {
            token_ids: vec![3],
            ..Default::default()
        };
        (
            spec.encode_to_vec(),
            accepted.encode_to_vec(),
            cut.encode_to_vec(),
        )
    }

    fn records() -> Vec<AuditRecord> {
        let (spec, accepted, cut) = bodies();
        let agent = |agent| AgentSpec {
            agent,
            seed: u64::from(agent),
            ..Default::default()
        };
        let submitted = AuditSubmitted {
            spec_digest: digest(&spec),
            ..Default::default()
        };
        let prepared = AuditPrepared {
            model: "smol".into(),
            ..Default::default()
        };
        let first = AuditRound {
            agents: vec![agent(1), agent(2)],
            ..Default::default()
        };
        let draft = AuditDraft {
            agent: 1,
            attempt: 1,
            draft: None,
            draft_digest: digest(&accepted),
        };
        let ended = AuditAttemptEnded {
            agent: 2,
            attempt: 1,
            cut_digest: digest(&cut),
            ..Default::default()
        };
        let second = AuditRound {
            round: 1,
            agents: vec![agent(3)],
            context_digest: digest(b"drafts"),
            ..Default::default()
        };
        let chair = AuditDraft {
            agent: 3,
            attempt: 1,
            draft: None,
            draft_digest: digest(&accepted),
        };
        vec![
            record(0, Event::Submitted(submitted), spec),
            record(1, Event::Prepared(prepared), vec![]),
            record(2, Event::Round(first), vec![]),
            record(3, Event::Draft(draft), accepted.clone()),
            record(4, Event::AttemptEnded(ended), cut),
            record(5, Event::Round(second), b"drafts".to_vec()),
            record(6, Event::Draft(chair), accepted),
        ]
    }

    #[test]
    fn each_agent_gets_its_spec_conversation_and_rounds_context() {
        let recording = Recording::read(&records()).unwrap();
        assert_eq!(
            (
                recording.model.as_str(),
                recording.agents.len(),
                recording.lost
            ),
            ("smol", 3, 0)
        );
        let [first, second, chair] = recording.agents.as_slice() else {
            panic!("three drafts")
        };
        assert_eq!(
            (first.case.spec.seed, first.cut, first.case.context.as_str()),
            (1, false, "")
        );
        assert_eq!(first.case.messages[0].content, "why?");
        assert_eq!(
            (second.case.draft.token_ids.as_slice(), second.cut),
            ([3].as_slice(), true)
        );
        assert_eq!(
            (chair.case.spec.agent, chair.case.context.as_str()),
            (3, "drafts")
        );
    }

    #[test]
    fn an_erased_question_cannot_be_replayed_but_a_lost_cut_draft_is_only_counted() {
        let mut erased = records();
        erased[0].body.clear();
        assert_eq!(
            Recording::read(&erased).unwrap_err(),
            RecordingError::Erased { seq: 0 }
        );
        let mut lost = records();
        lost[4].body.clear();
        let recording = Recording::read(&lost).unwrap();
        assert_eq!((recording.agents.len(), recording.lost), (2, 1));
        assert_eq!(
            Recording::read(&records()[..3]).unwrap_err(),
            RecordingError::Nothing
        );
    }
}
