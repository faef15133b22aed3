//! One agent's generation, token by token: thought, then answer, in one sequence.
//!
//! **Phases.** With a thought budget the sequence begins in its thought. The thought ends by itself (the
//! model's closing delimiter, or an end-of-generation token), or at its budget. Unless the model wrote its
//! own delimiter, the *bridge* is then injected: the closing delimiter for models that have one, else the
//! cue ("Final answer:"). An end-of-generation token never stays inside the sequence, where it would tell
//! the model that all is said: the bridge's first id takes its place, and the rest follows. Without a
//! thought budget the sequence is all answer.
//!
//! **Record.** [`Generation::ids`] holds every id after the prompt, sampled and injected, in order: a
//! replay with the same seed reproduces it. Injected ids count as log-probability 0.
//!
//! **Independence.** What is drawn depends on the prompt, the ids so far, their logits and the seed only.

mod delta;
mod spec;

use std::sync::Arc;

use conclave_worker_core::{Next, StopReason};

use crate::answer::Judgement;
use crate::confidence::Confidence;
use crate::grammar::GrammarError;
use crate::sampling::{Changes, SampleError, Scratch, Softmax, sample, uniform};
use crate::text::TextStream;
use crate::vocabulary::Vocabulary;

pub use delta::Delta;
pub use spec::{Bridge, GenerationSpec, Thought};

/// Tokens of a generation that are given room from the beginning.
const ROOM: usize = 1 << 14;

/// Text that a token is given room for; few languages and few texts need more.
const BYTES_A_TOKEN: usize = 8;

/// Why a sequence could not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// No token could be drawn.
    #[error("sampling failed: {0}")]
    Sample(#[from] SampleError),
    /// The grammar failed.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// A sampled token and what follows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The token that the sequence goes on with.
    pub token: u32,
    /// Its natural log-probability under the raw softmax; 0 if it is the bridge's.
    pub logprob: f32,
    /// What follows.
    pub next: Next,
}

/// Where a sequence stands.
#[derive(Clone, Debug)]
enum Phase {
    Thought(Arc<Thought>),
    /// From the id at `start` on.
    Answer {
        start: usize,
    },
}

/// A generation under way, or ended.
#[derive(Debug)]
pub struct Generation {
    spec: GenerationSpec,
    phase: Phase,
    max_tokens: usize,
    vocabulary: Arc<Vocabulary>,
    /// Every id of prompt and generation once, if there is a repetition penalty.
    seen: Vec<u32>,
    is_seen: Vec<bool>,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    /// Length of the phase's text after each id.
    marks: Vec<u32>,
    /// The changes of the draw at hand.
    bias: Vec<(u32, f32)>,
    thought: TextStream,
    answer: TextStream,
    confidence: Confidence,
    /// Ids already handed out by [`Generation::take_delta`].
    taken: usize,
    stop: Option<StopReason>,
    error: Option<GenerationError>,
}

impl Generation {
    /// At its beginning.
    pub fn new(mut spec: GenerationSpec, vocabulary: Arc<Vocabulary>) -> Self {
        // A closing delimiter that is spelled out in text tokens is no part of the thought's text.
        let close = spec.thought.iter().flat_map(|thought| &thought.close);
        let close: Vec<u8> = close.flat_map(|&id| vocabulary.text(id)).copied().collect();
        // Room for all that can come, so that a token allocates nothing.
        let room = spec.max_tokens().min(ROOM);
        let text = room * BYTES_A_TOKEN;
        let (close, stop) = (String::from_utf8_lossy(&close), spec.stop.iter());
        let mut generation = Self {
            seen: Vec::new(),
            is_seen: Vec::new(),
            ids: Vec::with_capacity(room),
            logprobs: Vec::with_capacity(room),
            marks: Vec::with_capacity(room),
            bias: Vec::new(),
            thought: TextStream::new([close.into_owned()], text),
            answer: TextStream::new(stop.cloned(), text),
            max_tokens: spec.max_tokens(),
            phase: match spec.thought.take() {
                Some(thought) => Phase::Thought(Arc::new(thought)),
                None => Phase::Answer { start: 0 },
            },
            confidence: Confidence::new(spec.confidence),
            taken: 0,
            stop: None,
            error: None,
            vocabulary,
            spec,
        };
        if generation.spec.sampling.repetition_penalty != 1.0 {
            generation.is_seen = vec![false; generation.vocabulary.len()];
            let prompt = std::mem::take(&mut generation.spec.prompt);
            generation.seen.reserve(prompt.len() + room);
            prompt.iter().for_each(|&id| generation.see(id));
            generation.spec.prompt = prompt;
        }
        generation
    }

    /// The most ids that can be generated, injected ones included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Draws the next token from its raw logits, one a token of the vocabulary or more. After an error or
    /// a stop the sequence is over.
    ///
    /// # Errors
    /// What went wrong in this sequence; it is kept, see [`Generation::error`].
    pub fn on_logits(
        &mut self,
        logits: &[f32],
        scratch: &mut Scratch,
    ) -> Result<Step, GenerationError> {
        let step = self.step(logits, scratch);
        match &step {
            Ok(Step {
                next: Next::Stop(reason),
                ..
            }) => self.stop = Some(*reason),
            Ok(_) => {}
            Err(error) => {
                self.stop = Some(StopReason::Failed);
                self.error = Some(error.clone());
            }
        }
        step
    }

    fn step(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<Step, GenerationError> {
        let softmax = Softmax::of(logits, scratch)?;
        let top = softmax.top_mean(logits, self.spec.confidence.top_k.max(1), scratch);
        self.confidence.push(top);
        let token = self.draw(logits, &softmax, scratch)?;
        let logprob = softmax.logprob(logits[token as usize]);
        if let Phase::Thought(thought) = &self.phase {
            let thought = Arc::clone(thought);
            return Ok(self.think(&thought, token, logprob));
        }
        let next = self.say(token, logprob)?;
        Ok(Step {
            token,
            logprob,
            next,
        })
    }

    /// `softmax` is the row's, and `scratch` as it was left then.
    fn draw(
        &mut self,
        logits: &[f32],
        softmax: &Softmax,
        scratch: &mut Scratch,
    ) -> Result<u32, GenerationError> {
        self.set_thought_bias();
        let mask = match (&mut self.spec.constraint, &self.phase) {
            (Some(constraint), Phase::Answer { .. }) => Some(constraint.mask()?),
            _ => None,
        };
        let changes = Changes {
            seen: &self.seen,
            bias: &self.bias,
            mask: mask.as_ref().map(|mask| mask.as_slice()),
        };
        let u = uniform(self.spec.seed, self.ids.len() as u64);
        let sampling = &self.spec.sampling;
        let token = match logits.get(..self.vocabulary.len()) {
            // Ids beyond the tokenizer's (padding of the weights) are nobody's token.
            Some(known) if known.len() < logits.len() => {
                sample(known, sampling, &changes, u, scratch)
            }
            _ => softmax.sample(logits, sampling, &changes, u, scratch),
        };
        Ok(token?)
    }

    /// The pull towards the end of a thought that has used up half its budget.
    fn set_thought_bias(&mut self) {
        self.bias.clear();
        let Phase::Thought(thought) = &self.phase else {
            return;
        };
        let past = self.ids.len().saturating_sub(thought.tokens / 2);
        if thought.penalty == 0.0 || past == 0 {
            return;
        }
        let bias = thought.penalty * past as f32;
        let ends = match thought.close.first() {
            Some(first) => std::slice::from_ref(first),
            None => self.vocabulary.ends(),
        };
        self.bias.extend(ends.iter().map(|&id| (id, bias)));
    }

    /// Takes a token of the thought.
    fn think(&mut self, thought: &Thought, token: u32, logprob: f32) -> Step {
        let is_end = self.vocabulary.is_end(token);
        let step = |token, logprob, next| Step {
            token,
            logprob,
            next,
        };
        if self.confidence.is_weak() {
            self.record(token, logprob, !is_end);
            self.thought.flush();
            self.mark();
            return step(token, logprob, Next::Stop(StopReason::Confidence));
        }
        if is_end {
            // The bridge takes the place of the token that says "all is said".
            self.record(thought.bridge.first, 0.0, false);
            let next = self.cross(&thought.bridge.rest);
            return step(thought.bridge.first, 0.0, next);
        }
        self.record(token, logprob, true);
        let closed = !thought.close.is_empty() && self.ids.ends_with(&thought.close);
        let next = if closed {
            self.cross(&[])
        } else if self.ids.len() >= thought.tokens {
            self.cross(&thought.bridge.ids())
        } else {
            Next::Continue
        };
        step(token, logprob, next)
    }

    /// The thought is over: injects `ids`, and what follows is the answer.
    fn cross(&mut self, ids: &[u32]) -> Next {
        self.thought.flush();
        self.mark();
        for &id in ids {
            self.record(id, 0.0, false);
        }
        let start = self.ids.len();
        self.phase = Phase::Answer { start };
        if ids.is_empty() {
            Next::Continue
        } else {
            Next::Inject(ids.to_vec())
        }
    }

    /// Takes a token of the answer.
    fn say(&mut self, token: u32, logprob: f32) -> Result<Next, GenerationError> {
        let is_end = self.vocabulary.is_end(token);
        self.record(token, logprob, !is_end);
        let mut complete = false;
        if let (Some(constraint), false) = (&mut self.spec.constraint, is_end) {
            complete = constraint.push(token)?;
        }
        let said = self.ids.len() - self.thought_len();
        let stop = if is_end {
            Some(StopReason::EndOfText)
        } else if self.answer.is_stopped() {
            Some(StopReason::StopString)
        } else if complete {
            Some(StopReason::Grammar)
        } else if self.confidence.is_weak() {
            Some(StopReason::Confidence)
        } else if said >= self.spec.answer_tokens {
            Some(StopReason::Length)
        } else {
            None
        };
        let Some(reason) = stop else {
            return Ok(Next::Continue);
        };
        self.answer.flush();
        self.mark();
        Ok(Next::Stop(reason))
    }

    /// Appends an id to the record, and its bytes to the phase's text unless they are not text.
    fn record(&mut self, id: u32, logprob: f32, is_text: bool) {
        let stream = match self.phase {
            Phase::Thought(_) => &mut self.thought,
            Phase::Answer { .. } => &mut self.answer,
        };
        if is_text {
            stream.push(self.vocabulary.text(id));
        }
        self.marks.push(stream.text().len() as u32);
        self.ids.push(id);
        self.logprobs.push(logprob);
        if !self.is_seen.is_empty() {
            self.see(id);
        }
    }

    /// The last id carries the text that was just flushed.
    fn mark(&mut self) {
        let in_answer = self.thought_len() < self.ids.len();
        let stream = if in_answer {
            &self.answer
        } else {
            &self.thought
        };
        if let Some(last) = self.marks.last_mut() {
            *last = stream.text().len() as u32;
        }
    }

    fn see(&mut self, id: u32) {
        if let Some(is_seen) = self.is_seen.get_mut(id as usize)
            && !*is_seen
        {
            *is_seen = true;
            self.seen.push(id);
        }
    }

    /// The tokens before the first generated one.
    pub fn prompt(&self) -> &[u32] {
        &self.spec.prompt
    }

    /// Every id after the prompt, sampled and injected.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The log-probability of each of [`Generation::ids`]; 0 for injected ones.
    pub fn logprobs(&self) -> &[f32] {
        &self.logprobs
    }

    /// How many of [`Generation::ids`] belong to the thought, bridge included.
    pub fn thought_len(&self) -> usize {
        match self.phase {
            Phase::Thought(_) => self.ids.len(),
            Phase::Answer { start } => start,
        }
    }

    /// The thought as far as it can be shown.
    pub fn thought_text(&self) -> &str {
        self.thought.text()
    }

    /// The answer as far as it can be shown.
    pub fn answer_text(&self) -> &str {
        self.answer.text()
    }

    /// Judges the answer as far as it goes; see [`AnswerKind::judge`].
    ///
    /// [`AnswerKind::judge`]: crate::answer::AnswerKind::judge
    pub fn judge(&self) -> Judgement {
        self.spec.answer.judge(self.answer.text(), self.spec.cued)
    }

    /// How sure the branch is.
    pub fn confidence(&self) -> &Confidence {
        &self.confidence
    }

    /// Why the generation ended by itself, if it did.
    pub fn stop(&self) -> Option<StopReason> {
        self.stop
    }

    /// What failed in this sequence, if something did.
    pub fn error(&self) -> Option<&GenerationError> {
        self.error.as_ref()
    }

    /// blake3 of the bits of all log-probabilities, little-endian.
    pub fn logprob_digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for logprob in &self.logprobs {
            hasher.update(&logprob.to_bits().to_le_bytes());
        }
        hasher.finalize().into()
    }

    /// Nothing follows, whether or not the generation ended by itself: held-back text is let go.
    pub fn close(&mut self) {
        self.thought.flush();
        self.answer.flush();
        self.mark();
    }
}

#[cfg(test)]
mod tests;
