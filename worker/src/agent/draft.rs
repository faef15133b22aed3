//! What an ended generation hands in.

use conclave_proto::v1;
use conclave_worker_core::{Finished, StopReason};

use crate::generation::Generation;

use super::AgentFactory;

impl AgentFactory {
    /// The draft of a generation that ended as `finished` says. A cut one holds what there was; its
    /// answer is not counted, however complete it looks.
    ///
    /// # Errors
    /// If the sequence failed: permanently if by its own doing (another attempt would draw the same
    /// tokens), else transiently.
    pub fn draft(
        &self,
        mut ended: Generation,
        finished: &Finished,
    ) -> Result<v1::Draft, v1::AttemptError> {
        let stop = match finished.reason {
            StopReason::EndOfText => v1::StopReason::End,
            StopReason::StopString => v1::StopReason::StopString,
            StopReason::Grammar => v1::StopReason::Grammar,
            StopReason::Confidence => v1::StopReason::LowConfidence,
            StopReason::Length => v1::StopReason::Length,
            StopReason::Cancelled => v1::StopReason::Cancelled,
            StopReason::Failed => return Err(failure(&ended)),
        };
        ended.close();
        let cut = matches!(
            stop,
            v1::StopReason::LowConfidence | v1::StopReason::Cancelled
        );
        let judgement = (!cut).then(|| ended.judge());
        let (canonical, valid) =
            judgement.map_or((String::new(), false), |j| (j.canonical, j.valid));
        let thought_tokens = ended.thought_len() as u64;
        Ok(v1::Draft {
            thought: ended.thought_text().trim().to_owned(),
            answer: ended.answer_text().trim().to_owned(),
            canonical,
            valid,
            confidence_micro: ended.confidence().mean(),
            lowest_window_micro: ended.confidence().lowest(),
            usage: Some(v1::Usage {
                prompt_tokens: ended.prompt().len() as u64,
                cached_tokens: finished.cached_prompt_tokens as u64,
                thought_tokens,
                answer_tokens: ended.ids().len() as u64 - thought_tokens,
            }),
            stop: stop.into(),
            token_ids: ended.ids().to_vec(),
            prompt_digest: ids_digest(ended.prompt()).to_vec(),
            logprob_digest: ended.logprob_digest().to_vec(),
            model_digest: self.model().info().digest.to_vec(),
            numeric_class: self.numeric_class().to_owned(),
        })
    }
}

fn failure(ended: &Generation) -> v1::AttemptError {
    match ended.error() {
        Some(error) => v1::AttemptError {
            kind: v1::ErrorKind::Permanent.into(),
            message: error.to_string(),
        },
        None => v1::AttemptError {
            kind: v1::ErrorKind::Transient.into(),
            message: "the engine failed on a batch that held the sequence".to_owned(),
        },
    }
}

/// blake3 of ids, each as four bytes, little-endian.
fn ids_digest(ids: &[u32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for id in ids {
        hasher.update(&id.to_le_bytes());
    }
    hasher.finalize().into()
}
