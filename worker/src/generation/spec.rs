//! What is to be generated.

use crate::answer::AnswerKind;
use crate::confidence::ConfidencePolicy;
use crate::grammar::Constraint;
use crate::sampling::Sampling;

/// Ids injected between a thought that the model did not close and the answer; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub(super) first: u32,
    pub(super) rest: Vec<u32>,
}

impl Bridge {
    /// None without ids.
    pub fn new(ids: &[u32]) -> Option<Self> {
        let (&first, rest) = ids.split_first()?;
        let rest = rest.to_vec();
        Some(Self { first, rest })
    }

    /// How many ids.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        1 + self.rest.len()
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        [&[self.first], self.rest.as_slice()].concat()
    }
}

/// How an agent thinks before it answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Thought {
    /// The most tokens that are sampled; at least 1.
    pub tokens: usize,
    /// Added to the logits of what ends the thought, for each token past half the budget.
    pub penalty: f32,
    /// The ids with which the model itself ends a thought; empty if it has none.
    pub close: Vec<u32>,
    /// Leads over to the answer.
    pub bridge: Bridge,
}

/// What is to be generated.
#[derive(Debug)]
pub struct GenerationSpec {
    /// The tokens before the first generated one; the repetition penalty counts them.
    pub prompt: Vec<u32>,
    /// Decides all draws, together with the position.
    pub seed: u64,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Absent: the answer comes at once.
    pub thought: Option<Thought>,
    /// The most tokens of the answer; at least 1.
    pub answer_tokens: usize,
    /// The answer ends before the first of these. They have no say in the thought.
    pub stop: Vec<String>,
    /// What is measured, and when the branch is given up.
    pub confidence: ConfidencePolicy,
    /// The form of the answer.
    pub answer: AnswerKind,
    /// The same as masks; absent for free text.
    pub constraint: Option<Constraint>,
    /// Whether the bridge ends with words like "Final answer:".
    pub cued: bool,
}

impl GenerationSpec {
    /// The most ids that can be generated, injected ones included.
    pub fn max_tokens(&self) -> usize {
        let thought = self.thought.as_ref();
        thought.map_or(0, |thought| thought.tokens + thought.bridge.len()) + self.answer_tokens
    }
}
