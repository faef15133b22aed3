//! Where the time of a step goes, op by op. Off unless asked for: it is for profiles, not for metrics.

use std::time::{Duration, Instant};

/// A kind of work in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Rows of the embedding.
    Embed,
    /// RMS norms.
    Norm,
    /// Products with the layers' matrices, rounding of their inputs included.
    Products,
    /// The product that gives the logits.
    Head,
    /// Rotation of queries and keys.
    Rope,
    /// Writing keys and values to the cache.
    StoreKv,
    /// Attention.
    Attention,
    /// The activation of the feed-forward part.
    SiluMul,
    /// Sums of the residual stream.
    Add,
    /// From logits to tokens: log-probabilities, confidence and the draw, over the whole vocabulary.
    Sampling,
}

impl Part {
    /// All of them, in the order of a step.
    pub const ALL: [Part; 10] = [
        Part::Embed,
        Part::Norm,
        Part::Products,
        Part::Rope,
        Part::StoreKv,
        Part::Attention,
        Part::SiluMul,
        Part::Add,
        Part::Head,
        Part::Sampling,
    ];

    /// What it is called in a profile.
    pub fn name(self) -> &'static str {
        match self {
            Part::Embed => "embedding",
            Part::Norm => "norms",
            Part::Products => "products",
            Part::Head => "head",
            Part::Rope => "rope",
            Part::StoreKv => "storing k and v",
            Part::Attention => "attention",
            Part::SiluMul => "silu-mul",
            Part::Add => "residual sums",
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
