//! What stands between a part of a layer and the residual stream: gates, norms, and the cap of logits.

use super::{LANES, exp, softcap, sum_lanes};
use crate::PostNorm;

/// `x = x / (1 + e^-gate)`.
pub fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
    for (x, g) in x.iter_mut().zip(gate) {
        *x /= 1.0 + exp(-g);
    }
}

/// `x = softcap(x * factor, cap)`.
pub fn cap_logits(x: &mut [f32], factor: f32, cap: f32) {
    for x in x {
        *x = softcap(*x * factor, cap);
    }
}

/// `x = fma(z * inverse, weight, x * keep)` for each row, where `z = y * before` and
/// `inverse = 1 / sqrt(mean(z^2) + eps)`.
///
/// Squares are summed as those of [`rms_norm`](super::rms_norm).
pub fn add_normed(x: &mut [f32], y: &[f32], norm: &PostNorm<'_>) {
    let k = norm.weight.len();
    for (x, y) in x.chunks_exact_mut(k).zip(y.chunks_exact(k)) {
        add_normed_row(x, y, norm, 1.0);
    }
}

/// One row of [`add_normed`], with `inverse = share / sqrt(mean(z^2) + eps)`.
pub fn add_normed_row(x: &mut [f32], y: &[f32], norm: &PostNorm<'_>, share: f32) {
    let z: Vec<f32> = y.iter().zip(norm.before).map(|(y, b)| y * b).collect();
    let mut lanes = [0f32; LANES];
    for (i, z) in z.iter().enumerate() {
        lanes[i % LANES] = z.mul_add(*z, lanes[i % LANES]);
    }
    let inverse = share / (sum_lanes(&lanes) / z.len() as f32 + norm.eps).sqrt();
    for i in 0..z.len() {
        x[i] = (z[i] * inverse).mul_add(norm.weight[i], x[i] * norm.keep[i]);
    }
}
