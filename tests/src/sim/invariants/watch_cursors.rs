//! Watchers see every event once and in order, wherever they reconnect; a new attempt comes with a
//! reset; an attempt's tokens never repeat or skip; and all who watch see the same.

use std::collections::BTreeMap;

use conclave_proto::v1::{TokenDelta, watch_job_response::Update};

use super::Check;

/// What a watcher has seen of one agent: the attempt, and its text so far.
#[derive(Debug, Clone, Default)]
struct Seen {
    attempt: u32,
    offset: u32,
    text: String,
}

#[derive(Debug, Default)]
struct Watcher {
    event: u64,
    agents: BTreeMap<u32, Seen>,
    done: bool,
}

#[derive(Debug, Default)]
pub(super) struct WatchCursors {
    watchers: BTreeMap<u32, Watcher>,
    /// Events of a job as they were first shown: by job and index.
    events: BTreeMap<(String, u64), [u8; 32]>,
    /// The longest text of an attempt that anybody saw.
    texts: BTreeMap<(String, u32, u32), String>,
}

impl WatchCursors {
    /// A watcher is told this about its job, which had so many events when it ended, if it has.
    pub(super) fn told(
        &mut self,
        watcher: u32,
        job_id: &str,
        update: &Update,
        at_end: Option<u64>,
    ) -> Check {
        let seen = self.watchers.entry(watcher).or_default();
        let wrong = |what: String| Err(format!("watcher {watcher} of {job_id}: {what}"));
        if seen.done {
            return wrong("something comes after the end".into());
        }
        match update {
            Update::Event(event) => {
                if event.index != seen.event + 1 {
                    return wrong(format!("event {} after {}", event.index, seen.event));
                }
                seen.event = event.index;
                // An agent's draft may be erased or come later; what happened stays.
                let digest = *blake3::hash(format!("{:?}", shorn(event)).as_bytes()).as_bytes();
                let key = (job_id.to_owned(), event.index);
                if *self.events.entry(key).or_insert(digest) != digest {
                    return wrong(format!("event {} is another one elsewhere", event.index));
                }
            }
            Update::Reset(reset) => {
                let agent = seen.agents.entry(reset.agent).or_default();
                if reset.attempt < agent.attempt {
                    return wrong(format!("{reset:?} after attempt {}", agent.attempt));
                }
                *agent = Seen {
                    attempt: reset.attempt,
                    ..Seen::default()
                };
            }
            Update::Tokens(delta) => {
                let first = !seen.agents.contains_key(&delta.agent);
                let agent = seen.agents.entry(delta.agent).or_default();
                if first {
                    agent.attempt = delta.attempt;
                }
                if (delta.attempt, delta.offset) != (agent.attempt, agent.offset) {
                    return wrong(format!(
                        "agent {}: attempt {} from {} where attempt {} from {} comes next",
                        delta.agent, delta.attempt, delta.offset, agent.attempt, agent.offset
                    ));
                }
                agent.offset += delta.tokens;
                agent.text.push_str(&delta.text);
                let text = agent.text.clone();
                return self.same(job_id, delta, text);
            }
            Update::Done(_) => {
                seen.done = true;
                if at_end.is_none_or(|events| seen.event < events) {
                    return wrong(format!("its end after event {} of {at_end:?}", seen.event));
                }
            }
        }
        Ok(())
    }

    /// All who watch an attempt see one text, some more of it than others.
    fn same(&mut self, job_id: &str, delta: &TokenDelta, text: String) -> Check {
        let key = (job_id.to_owned(), delta.agent, delta.attempt);
        let longest = self.texts.entry(key).or_default();
        if text.starts_with(longest.as_str()) {
            *longest = text;
        } else if !longest.starts_with(&text) {
            let (agent, attempt) = (delta.agent, delta.attempt);
            return Err(format!(
                "job {job_id} agent {agent} attempt {attempt}: `{text}` and `{longest}`"
            ));
        }
        Ok(())
    }
}

/// The event without a draft.
fn shorn(event: &conclave_proto::v1::JobEvent) -> conclave_proto::v1::JobEvent {
    let mut event = event.clone();
    if let Some(conclave_proto::v1::job_event::Event::Agent(status)) = &mut event.event {
        status.draft = None;
    }
    event
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{AgentReset, JobEvent};

    use super::*;

    fn event(index: u64) -> Update {
        Update::Event(JobEvent {
            index,
            ..JobEvent::default()
        })
    }

    fn tokens(attempt: u32, offset: u32, text: &str) -> Update {
        Update::Tokens(TokenDelta {
            agent: 1,
            attempt,
            offset,
            tokens: 1,
            text: text.into(),
            ..TokenDelta::default()
        })
    }

    fn reset(attempt: u32) -> Update {
        Update::Reset(AgentReset { agent: 1, attempt })
    }

    #[test]
    fn gaps_and_repeats_of_events_are_found() {
        let mut law = WatchCursors::default();
        assert_eq!(law.told(1, "j", &event(1), None), Ok(()));
        assert!(law.told(1, "j", &event(1), None).is_err(), "a repeat");
        assert!(law.told(1, "j", &event(3), None).is_err(), "a gap");
        let mut other = event(1);
        if let Update::Event(event) = &mut other {
            event.unix_ms = 9;
        }
        assert!(law.told(2, "j", &other, None).is_err(), "another history");
    }

    #[test]
    fn tokens_that_skip_repeat_or_change_are_found() {
        let mut law = WatchCursors::default();
        assert_eq!(law.told(1, "j", &tokens(1, 0, "a"), None), Ok(()));
        assert!(
            law.told(1, "j", &tokens(1, 2, "c"), None).is_err(),
            "a skip"
        );
        assert!(
            law.told(1, "j", &tokens(1, 0, "a"), None).is_err(),
            "a repeat"
        );
        assert!(
            law.told(1, "j", &tokens(2, 0, "b"), None).is_err(),
            "no reset"
        );
        assert_eq!(law.told(1, "j", &reset(2), None), Ok(()));
        assert_eq!(law.told(1, "j", &tokens(2, 0, "b"), None), Ok(()));
        assert!(
            law.told(1, "j", &reset(1), None).is_err(),
            "back to an older one"
        );
        assert!(
            law.told(2, "j", &tokens(1, 0, "x"), None).is_err(),
            "another text"
        );
    }

    #[test]
    fn an_end_that_comes_before_all_else_was_told_is_found() {
        let mut law = WatchCursors::default();
        let done = Update::Done(Default::default());
        assert_eq!(law.told(1, "j", &event(1), None), Ok(()));
        assert!(
            law.told(1, "j", &done, Some(2)).is_err(),
            "an event is missing"
        );
        assert!(law.told(2, "j", &done, None).is_err(), "it goes on");
    }

    #[test]
    fn whatever_comes_after_the_end_is_found() {
        let mut law = WatchCursors::default();
        let done = Update::Done(Default::default());
        assert_eq!(law.told(1, "j", &event(1), None), Ok(()));
        assert_eq!(law.told(1, "j", &done, Some(1)), Ok(()));
        assert!(law.told(1, "j", &event(2), Some(1)).is_err());
    }
}
