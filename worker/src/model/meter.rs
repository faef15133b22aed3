//! Where the time of a step goes, op by op. Off unless asked for: it is for profiles, not for metrics.

use std::time::{Duration, Instant};

/// A kind of work in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Rows of the embedding.
    Embed,
    /// Queries, keys and values: norm, rounding, products, rotation, and writing keys and values to the cache.
    Project,
    /// Products that are added to the residual stream: after attention and at the end of the feed-forward part.
    Sums,
    /// Gate and up of the feed-forward part: norm, rounding, products, activation, rounding of what it gives.
    Gated,
    /// The product that gives the logits, the norm before it included.
    Head,
    /// Attention, and rounding of what it gives.
    Attention,
    /// From logits to tokens: log-probabilities, confidence and the draw, over the whole vocabulary.
    Sampling,
}

impl Part {
    /// All of them, in the order of a step.
    pub const ALL: [Part; 7] = [
        Part::Embed,
        Part::Project,
        Part::Attention,
        Part::Sums,
        Part::Gated,
        Part::Head,
        Part::Sampling,
    ];

    /// What it is called in a profile.
    pub fn name(self) -> &'static str {
        match self {
            Part::Embed => "embedding",
            Part::Project => "q, k, v, their norm, rope, storing",
            Part::Sums => "products added to the stream",
            Part::Gated => "gate, up, their norm, silu-mul",
            Part::Head => "head and its norm",
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
