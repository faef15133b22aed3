//! Where the time of a step goes, op by op. Off unless asked for: it is for profiles, not for metrics.

use std::time::{Duration, Instant};

/// A kind of work in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Rows of the embedding.
    Embed,
    /// Products with the layers' matrices but those of [`Part::Gated`]; norms and rounding of their inputs and the
    /// sums of the residual stream included.
    Products,
    /// Gate and up of the feed-forward part: norm, rounding, products, activation.
    Gated,
    /// The product that gives the logits, the norm before it included.
    Head,
    /// Rotation of queries and keys, and writing keys and values to the cache.
    Place,
    /// Attention.
    Attention,
    /// From logits to tokens: log-probabilities, confidence and the draw, over the whole vocabulary.
    Sampling,
}

impl Part {
    /// All of them, in the order of a step.
    pub const ALL: [Part; 7] = [
        Part::Embed,
        Part::Products,
        Part::Place,
        Part::Attention,
        Part::Gated,
        Part::Head,
        Part::Sampling,
    ];

    /// What it is called in a profile.
    pub fn name(self) -> &'static str {
        match self {
            Part::Embed => "embedding",
            Part::Products => "products, norms before, sums after",
            Part::Gated => "gate, up, their norm, silu-mul",
            Part::Head => "head and its norm",
            Part::Place => "rope, storing k and v",
            Part::Attention => "attention",
            Part::Sampling => "sampling",
        }
    }
}

/// Time and calls of each [`Part`].
#[derive(Clone, Debug, Default)]
pub struct Meter {
    parts: [(Duration, u64); Part::ALL.len()],
}

impl Meter {
    /// Time spent in `part`, and how many times it was called.
    pub fn of(&self, part: Part) -> (Duration, u64) {
        self.parts[part as usize]
    }

    pub(crate) fn add(&mut self, part: Part, since: Instant) {
        let (time, calls) = &mut self.parts[part as usize];
        *time += since.elapsed();
        *calls += 1;
    }
}
