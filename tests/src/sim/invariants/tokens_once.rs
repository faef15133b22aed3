//! Tokens are counted once: a job's usage is the sum over the results that were accepted, one an agent.

use std::collections::BTreeMap;

use conclave_coordinator_core::{Applied, Payloads, Reply, job::Job, payload, view};
use conclave_proto::v1::{Command, Draft, Usage, attempt_finished, command::Command as Body};
use prost::Message as _;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct TokensOnce(BTreeMap<String, BTreeMap<u32, Usage>>);

impl TokensOnce {
    pub(super) fn applied(
        &mut self,
        command: &Command,
        applied: &Applied,
        blobs: &dyn Payloads,
    ) -> Check {
        let Some(Body::AttemptFinished(finished)) = &command.command else {
            return Ok(());
        };
        let (Some(key), Some(attempt_finished::Result::Draft(draft)), Reply::Ok) =
            (&finished.key, &finished.result, &applied.reply)
        else {
            return Ok(());
        };
        let bytes = payload::read(draft, blobs).map_err(|e| e.to_string())?;
        let draft = Draft::decode(bytes.as_ref()).map_err(|e| e.to_string())?;
        let usage = draft.usage.unwrap_or_default();
        let accepted = self.0.entry(key.job_id.clone()).or_default();
        match accepted.insert(key.agent, usage) {
            None => Ok(()),
            Some(_) => Err(format!(
                "job {} agent {}: a second result was accepted",
                key.job_id, key.agent
            )),
        }
    }

    pub(super) fn sealed(&self, job: &Job, blobs: &dyn Payloads) -> Check {
        let shown = view::job(job, blobs, None).map_err(|e| e.to_string())?;
        let mut sum = Usage::default();
        for usage in self.0.get(&job.id).into_iter().flat_map(BTreeMap::values) {
            sum.prompt_tokens += usage.prompt_tokens;
            sum.cached_tokens += usage.cached_tokens;
            sum.thought_tokens += usage.thought_tokens;
            sum.answer_tokens += usage.answer_tokens;
        }
        if shown.usage == Some(sum) {
            Ok(())
        } else {
            Err(format!("job {}: {:?} is not {sum:?}", job.id, shown.usage))
        }
    }
}

#[cfg(test)]
mod tests {
    use conclave_coordinator_core::payload::InlineOnly;
    use conclave_proto::v1::{AttemptFinished, AttemptKey};

    use super::{super::super::oracle, *};

    #[test]
    fn a_second_result_and_a_wrong_sum_are_found() {
        let job = oracle::job();
        let mut law = TokensOnce::default();
        let taken = Applied {
            reply: Reply::Ok,
            effects: Vec::new(),
        };
        assert!(
            law.sealed(&job, &InlineOnly).is_err(),
            "nothing was accepted"
        );
        let result = |agent: u32| {
            let draft = job.agents[agent as usize - 1].draft.clone();
            let key = AttemptKey {
                job_id: job.id.clone(),
                agent,
                attempt: 1,
            };
            conclave_coordinator_core::codec::command(Body::AttemptFinished(AttemptFinished {
                key: Some(key),
                result: draft.map(attempt_finished::Result::Draft),
                ..AttemptFinished::default()
            }))
        };
        for agent in &job.agents {
            let result = result(agent.spec.agent);
            assert_eq!(law.applied(&result, &taken, &InlineOnly), Ok(()));
        }
        assert_eq!(law.sealed(&job, &InlineOnly), Ok(()));
        assert!(law.applied(&result(1), &taken, &InlineOnly).is_err());
    }
}
