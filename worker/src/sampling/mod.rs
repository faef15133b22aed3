//! From a row of logits to a token: pure, and the same bits on every machine.
//!
//! The order of changes is: repetition penalty, biases, mask, then temperature, `min_p`, `top_k` and
//! `top_p` (over what the former left). Randomness is [`uniform`] of (seed, position), never a generator
//! with state. Log-probabilities are those of the raw row: temperature 1, before any change.

mod candidates;
mod math;

pub use math::uniform;

use conclave_kernels::logits::{self, Heat};

use candidates::{Candidate, Maxima, largest};

/// How many candidates a `top_p` without `top_k` looks at first, at least. It is twice what the row before
/// needed: rows of one sequence, and of agents on one prompt, are alike.
const NUCLEUS_GUESS: usize = 64;
/// Ids whose weights are summed together when the whole vocabulary may be drawn.
const STRIDE: usize = 512;

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// The k most likely tokens; 0 means all.
    pub top_k: usize,
    /// The smallest set of most likely tokens with this share of probability, `(0, 1]`; 1 means all.
    pub top_p: f32,
    /// Tokens with at least this share of the most likely one's probability, `[0, 1)`; 0 means all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before (Keskar et al., CTRL,
    /// arXiv 1909.05858); 1 means none.
    pub repetition_penalty: f32,
}

impl Sampling {
    /// Greedy, without penalty.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
    };
}

/// What changes a row before it is drawn from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes<'a> {
    /// Tokens under the repetition penalty: each id once.
    pub seen: &'a [u32],
    /// Added to these tokens' logits.
    pub bias: &'a [(u32, f32)],
    /// Bit i of word i / 32: token i may be drawn. Tokens beyond the mask may not.
    pub mask: Option<&'a [u32]>,
}

impl Changes<'_> {
    /// Whether they, or the penalty, change anything.
    fn any(&self, penalty: f32) -> bool {
        let penalised = penalty != 1.0 && !self.seen.is_empty();
        penalised || !self.bias.is_empty() || self.mask.is_some()
    }
}

/// Why nothing could be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The model computed NaN or infinity.
    #[error("the model's logits are not finite")]
    NotFinite,
    /// No token is allowed.
    #[error("no token is allowed here")]
    NoCandidate,
}

/// Memory for one row, reused from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    row: Vec<f32>,
    draw: Draw,
}

/// What a draw looks at.
#[derive(Debug, Default)]
struct Draw {
    maxima: Maxima,
    /// Most likely first.
    kept: Vec<Candidate>,
    /// Theirs.
    weights: Vec<f64>,
    /// Of strides.
    sums: Vec<f64>,
    /// Candidates that the last nucleus had. It changes no result.
    nucleus: usize,
}

/// The softmax of a raw row, as far as log-probabilities need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    max: f64,
    log_sum: f64,
}

impl Softmax {
    /// Measures a row of at least one logit.
    ///
    /// # Errors
    /// [`SampleError::NotFinite`] if a logit is NaN or plus infinity, or all are minus infinity.
    pub fn of(logits: &[f32], scratch: &mut Scratch) -> Result<Self, SampleError> {
        let max = scratch.draw.maxima.read(logits);
        if !max.is_finite() {
            return Err(SampleError::NotFinite);
        }
        let sum = logits::sum_exp(logits, max);
        if sum.is_nan() {
            return Err(SampleError::NotFinite);
        }
        Ok(Self {
            max: f64::from(max),
            log_sum: math::ln(sum),
        })
    }

    /// The natural log-probability of a token with this raw logit.
    pub fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.max - self.log_sum) as f32
    }

    /// The mean log-probability of the `k` most likely tokens of the same row, in nats. `k` is at least 1;
    /// `scratch` is as [`Softmax::of`] left it.
    pub fn top_mean(&self, logits: &[f32], k: usize, scratch: &mut Scratch) -> f64 {
        let Draw { maxima, kept, .. } = &mut scratch.draw;
        largest(logits, maxima, f32::NEG_INFINITY, k, kept);
        let sum: f64 = scratch.draw.kept.iter().map(|c| f64::from(c.logit)).sum();
        sum / scratch.draw.kept.len().max(1) as f64 - self.max - self.log_sum
    }

    /// [`sample`] from the same row, which is not read again where nothing changes it; `scratch` is as
    /// [`Softmax::of`] left it.
    ///
    /// # Errors
    /// As [`sample`].
    pub fn sample(
        &self,
        logits: &[f32],
        sampling: &Sampling,
        changes: &Changes<'_>,
        u: f64,
        scratch: &mut Scratch,
    ) -> Result<u32, SampleError> {
        if changes.any(sampling.repetition_penalty) {
            return sample(logits, sampling, changes, u, scratch);
        }
        scratch.draw.token(logits, self.max as f32, sampling, u)
    }
}

/// Draws a token from `logits` with the uniform number `u` in `[0, 1)`.
///
/// # Errors
/// [`SampleError::NoCandidate`] if the mask leaves nothing, [`SampleError::NotFinite`] if the largest
/// logit is not finite.
pub fn sample(
    logits: &[f32],
    sampling: &Sampling,
    changes: &Changes<'_>,
    u: f64,
    scratch: &mut Scratch,
) -> Result<u32, SampleError> {
    let Scratch { row, draw } = scratch;
    let row: &[f32] = if changes.any(sampling.repetition_penalty) {
        row.clear();
        row.extend_from_slice(logits);
        change(row, sampling.repetition_penalty, changes);
        row
    } else {
        logits
    };
    let max = draw.maxima.read(row);
    draw.token(row, max, sampling, u)
}

fn change(row: &mut [f32], penalty: f32, changes: &Changes<'_>) {
    if penalty != 1.0 {
        for &id in changes.seen {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
    }
    for &(id, bias) in changes.bias {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit += bias;
        }
    }
    if let Some(mask) = changes.mask {
        for (index, logits) in row.chunks_mut(32).enumerate() {
            let word = mask.get(index).copied().unwrap_or(0);
            if word == 0 {
                logits.fill(f32::NEG_INFINITY);
            } else if word != u32::MAX {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

fn weight(heat: Heat, logit: f32) -> f64 {
    f64::from(heat.weigh(logit))
}

impl Draw {
    /// Draws from a row, as it is, whose maxima have been read and of which `max` is the largest.
    fn token(
        &mut self,
        row: &[f32],
        max: f32,
        sampling: &Sampling,
        u: f64,
    ) -> Result<u32, SampleError> {
        if max == f32::NEG_INFINITY {
            return Err(SampleError::NoCandidate);
        }
        if !max.is_finite() {
            return Err(SampleError::NotFinite);
        }
        if sampling.temperature <= 0.0 {
            let id = self.maxima.place_of(max, row);
            return id.map(|id| id as u32).ok_or(SampleError::NoCandidate);
        }
        let heat = Heat {
            max,
            temperature: sampling.temperature,
        };
        let floor = if sampling.min_p > 0.0 {
            // `weight >= min_p`, said of the logit; the largest always passes.
            let log = math::ln(f64::from(sampling.min_p)) * f64::from(sampling.temperature);
            (f64::from(max) + log).min(f64::from(max)) as f32
        } else {
            f32::NEG_INFINITY
        };
        let all = sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0;
        let token = if all {
            self.among_all(row, heat, u)
        } else {
            self.select(row, floor, sampling, heat);
            self.among_kept(u)
        };
        token.ok_or(SampleError::NoCandidate)
    }

    /// Keeps what `min_p` (as `floor`), `top_k` and `top_p` let through, most likely first.
    fn select(&mut self, row: &[f32], floor: f32, sampling: &Sampling, heat: Heat) {
        let limited = |k: usize| if k == 0 { row.len() } else { k };
        if sampling.top_p >= 1.0 || sampling.top_k != 0 {
            self.keep(row, floor, limited(sampling.top_k), heat);
            if sampling.top_p < 1.0 {
                let total = self.weights.iter().sum();
                self.cut(sampling.top_p, total);
            }
            return;
        }
        let total = logits::sum_weights_above(row, heat, floor);
        let mut guess = NUCLEUS_GUESS.max(2 * self.nucleus);
        loop {
            self.keep(row, floor, guess, heat);
            if self.cut(sampling.top_p, total) || guess >= row.len() {
                self.nucleus = self.kept.len();
                return;
            }
            guess *= 4;
        }
    }

    /// Keeps the `k` first candidates of the row.
    fn keep(&mut self, row: &[f32], floor: f32, k: usize, heat: Heat) {
        largest(row, &mut self.maxima, floor, k, &mut self.kept);
        self.weights.clear();
        let weights = self.kept.iter().map(|c| weight(heat, c.logit));
        self.weights.extend(weights);
    }

    /// Keeps the fewest leading candidates with the share `top_p` of `total`. False if all of them do not
    /// have it.
    fn cut(&mut self, top_p: f32, total: f64) -> bool {
        let wanted = f64::from(top_p) * total;
        let mut sum = 0.0;
        for (index, weight) in self.weights.iter().enumerate() {
            sum += weight;
            if sum >= wanted {
                self.kept.truncate(index + 1);
                self.weights.truncate(index + 1);
                return true;
            }
        }
        false
    }

    fn among_kept(&self, u: f64) -> Option<u32> {
        let total: f64 = self.weights.iter().sum();
        let mut left = u * total;
        for (candidate, weight) in self.kept.iter().zip(&self.weights) {
            left -= weight;
            if left < 0.0 {
                return Some(candidate.id);
            }
        }
        // Rounding used up the last of `left`.
        self.kept.first().map(|candidate| candidate.id)
    }

    /// Draws by ascending id. Weights are summed by strides, so that the walk looks into one stride only.
    fn among_all(&mut self, row: &[f32], heat: Heat, u: f64) -> Option<u32> {
        self.sums.clear();
        let sums = row.chunks(STRIDE);
        let sums = sums.map(|stride| logits::sum_weights(stride, heat));
        self.sums.extend(sums);
        let mut left = u * self.sums.iter().sum::<f64>();
        let mut last = None;
        for (index, (sum, stride)) in self.sums.iter().zip(row.chunks(STRIDE)).enumerate() {
            if left >= *sum {
                left -= sum;
                continue;
            }
            for (offset, &logit) in stride.iter().enumerate() {
                let weight = weight(heat, logit);
                left -= weight;
                if weight > 0.0 {
                    last = Some((index * STRIDE + offset) as u32);
                    if left < 0.0 {
                        return last;
                    }
                }
            }
        }
        last.or_else(|| row.iter().position(|&l| l == heat.max).map(|id| id as u32))
    }
}

#[cfg(test)]
mod tests;
