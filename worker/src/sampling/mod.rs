//! From a row of logits to a token: pure, and the same bits on every machine.
//!
//! The order of changes is: repetition penalty, biases, mask, then temperature, `min_p`, `top_k` and
//! `top_p` (over what the former left). Randomness is [`uniform`] of (seed, position), never a generator
//! with state. Log-probabilities are those of the raw row: temperature 1, before any change.

mod candidates;
mod math;

pub use math::uniform;

use candidates::{Candidate, largest};

/// How many candidates a `top_p` without `top_k` looks at first; most rows need no more.
const NUCLEUS_GUESS: usize = 256;
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
    kept: Vec<Candidate>,
    sums: Vec<f64>,
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
    pub fn of(logits: &[f32]) -> Result<Self, SampleError> {
        let max = maximum(logits);
        if !max.is_finite() {
            return Err(SampleError::NotFinite);
        }
        let sum = sum_of(logits, |logit| math::exp(logit - max));
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

    /// The mean log-probability of the `k` most likely tokens of the same row, in nats. `k` is at
    /// least 1.
    pub fn top_mean(&self, logits: &[f32], k: usize, scratch: &mut Scratch) -> f64 {
        largest(logits, f32::NEG_INFINITY, k, &mut scratch.kept);
        let sum: f64 = scratch.kept.iter().map(|c| f64::from(c.logit)).sum();
        sum / scratch.kept.len().max(1) as f64 - self.max - self.log_sum
    }
}

/// The sum of what `weight` makes of each logit: eight sums side by side, in one order on every machine.
/// The weights of 64 logits are computed before they are added: only then does the loop become SIMD code.
#[inline(always)]
fn sum_of(logits: &[f32], weight: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0f64; 8];
    let (rows, tail) = logits.as_chunks::<64>();
    for row in rows {
        let mut weights = [0.0f32; 64];
        for (place, &logit) in weights.iter_mut().zip(row) {
            *place = weight(logit);
        }
        for eight in weights.as_chunks::<8>().0 {
            for (sum, &weight) in sums.iter_mut().zip(eight) {
                *sum += f64::from(weight);
            }
        }
    }
    for (index, &logit) in tail.iter().enumerate() {
        sums[index % 8] += f64::from(weight(logit));
    }
    sums.iter().sum()
}

fn maximum(logits: &[f32]) -> f32 {
    logits.iter().fold(
        f32::NEG_INFINITY,
        |max, &logit| {
            if logit > max { logit } else { max }
        },
    )
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
    let Scratch { row, kept, sums } = scratch;
    row.clear();
    row.extend_from_slice(logits);
    change(row, sampling.repetition_penalty, changes);
    let max = maximum(row);
    if max == f32::NEG_INFINITY {
        return Err(SampleError::NoCandidate);
    }
    if !max.is_finite() {
        return Err(SampleError::NotFinite);
    }
    if sampling.temperature <= 0.0 {
        let id = row.iter().position(|&logit| logit == max);
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
        draw_from_all(row, heat, u, sums)
    } else {
        select(row, floor, sampling, heat, kept);
        draw(kept, heat, u)
    };
    token.ok_or(SampleError::NoCandidate)
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

/// Turns logits into weights; the largest weighs 1.
#[derive(Clone, Copy)]
struct Heat {
    max: f32,
    temperature: f32,
}

impl Heat {
    #[inline(always)]
    fn weigh(self, logit: f32) -> f32 {
        math::exp((logit - self.max) / self.temperature)
    }

    fn weight(self, logit: f32) -> f64 {
        f64::from(self.weigh(logit))
    }
}

/// Leaves in `kept` what `min_p` (as `floor`), `top_k` and `top_p` let through, most likely first.
fn select(row: &[f32], floor: f32, sampling: &Sampling, heat: Heat, kept: &mut Vec<Candidate>) {
    let limited = |k: usize| if k == 0 { row.len() } else { k };
    if sampling.top_p >= 1.0 || sampling.top_k != 0 {
        largest(row, floor, limited(sampling.top_k), kept);
        if sampling.top_p < 1.0 {
            let total = kept.iter().map(|c| heat.weight(c.logit)).sum();
            cut(kept, heat, sampling.top_p, total);
        }
        return;
    }
    let passing = |logit| {
        if logit >= floor {
            heat.weigh(logit)
        } else {
            0.0
        }
    };
    let total = sum_of(row, passing);
    let mut guess = NUCLEUS_GUESS;
    loop {
        largest(row, floor, guess, kept);
        if cut(kept, heat, sampling.top_p, total) || guess >= row.len() {
            return;
        }
        guess *= 8;
    }
}

/// Shortens `kept` to the fewest leading candidates with the share `top_p` of `total`. False if all of
/// them do not have it.
fn cut(kept: &mut Vec<Candidate>, heat: Heat, top_p: f32, total: f64) -> bool {
    let wanted = f64::from(top_p) * total;
    let mut sum = 0.0;
    for (index, candidate) in kept.iter().enumerate() {
        sum += heat.weight(candidate.logit);
        if sum >= wanted {
            kept.truncate(index + 1);
            return true;
        }
    }
    false
}

fn draw(kept: &[Candidate], heat: Heat, u: f64) -> Option<u32> {
    let total: f64 = kept.iter().map(|c| heat.weight(c.logit)).sum();
    let mut left = u * total;
    for candidate in kept {
        left -= heat.weight(candidate.logit);
        if left < 0.0 {
            return Some(candidate.id);
        }
    }
    // Rounding used up the last of `left`.
    kept.first().map(|candidate| candidate.id)
}

/// Draws by ascending id. Weights are summed by strides, so that the walk looks into one stride only.
fn draw_from_all(row: &[f32], heat: Heat, u: f64, sums: &mut Vec<f64>) -> Option<u32> {
    sums.clear();
    sums.extend(
        row.chunks(STRIDE)
            .map(|stride| sum_of(stride, |logit| heat.weigh(logit))),
    );
    let mut left = u * sums.iter().sum::<f64>();
    let mut last = None;
    for (index, (sum, stride)) in sums.iter().zip(row.chunks(STRIDE)).enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (offset, &logit) in stride.iter().enumerate() {
            let weight = heat.weight(logit);
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

#[cfg(test)]
mod tests;
