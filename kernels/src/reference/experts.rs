//! A mixture of experts: which ones a row goes to, and the sum of what they give.

use super::{add_normed_row, exp};
use crate::{PostNorm, Routing};

/// Added to the sum of the chosen experts' scores before they are divided by it.
pub const ROUTE_EPS: f32 = 1e-15;

/// Chooses the experts of each row of `logits`, ascending, and the share of each.
///
/// An expert's score is `1 / (1 + e^-(logit * multiplier))`. Chosen are the highest of score plus bias, in the order
/// of [`f32::total_cmp`]; of equals, the lowest. A share is `score / (sum + 1e-15) * scale`, where the sum is of the
/// chosen experts' scores, in ascending order of expert. `experts` and `shares` are `rows x routing.chosen`.
pub fn route(logits: &[f32], routing: &Routing<'_>, experts: &mut [u32], shares: &mut [f32]) {
    let rows = logits.chunks_exact(routing.bias.len());
    let chosen = experts.chunks_exact_mut(routing.chosen);
    for ((logits, experts), shares) in rows
        .zip(chosen)
        .zip(shares.chunks_exact_mut(routing.chosen))
    {
        let score = |logit: &f32| 1.0 / (1.0 + exp(-(logit * routing.multiplier)));
        let scores: Vec<f32> = logits.iter().map(score).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        let rank = |e: &usize| scores[*e] + routing.bias[*e];
        order.sort_by(|a, b| rank(b).total_cmp(&rank(a)).then(a.cmp(b)));
        order.truncate(routing.chosen);
        order.sort_unstable();
        let sum = order.iter().fold(0f32, |sum, e| sum + scores[*e]);
        for ((expert, share), e) in experts.iter_mut().zip(shares).zip(order) {
            *expert = e as u32;
            *share = scores[e] / (sum + ROUTE_EPS) * routing.scale;
        }
    }
}

/// Adds to each row of `x` what its experts gave, in ascending order of expert, each normed and times its share.
///
/// The `i`th of the `chosen` experts of row `r` gave row `places[r * chosen + i]` of `y`.
pub fn add_experts(
    x: &mut [f32],
    y: &[f32],
    norm: &PostNorm<'_>,
    places: &[u32],
    shares: &[f32],
    chosen: usize,
) {
    let k = norm.weight.len();
    for (place, (from, share)) in places.iter().zip(shares).enumerate() {
        let row = &mut x[place / chosen * k..][..k];
        add_normed_row(row, &y[*from as usize * k..][..k], norm, *share);
    }
}
