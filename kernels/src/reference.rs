//! Every op written the obvious way: the specification that fixes rounding and order.
//!
//! A backend matches these functions bit for bit. `fma` is [`f32::mul_add`]; every other operation is
//! rounded by itself; sums run in the order written.

mod experts;
mod residual;

pub use experts::{ROUTE_EPS, add_experts, route};
pub use residual::{add_normed, add_normed_row, cap_logits, sigmoid_mul};

use crate::attention::{AttnPlan, BLOCK, KvLayer, SPAN, SeqSpan, visible};
use crate::rope::{RopeStyle, RopeTable};
use crate::weights::{WeightType, block32, float_weight, zero_point};

/// Lanes over which sums of squares and of probabilities are spread.
pub const LANES: usize = 16;

/// Adds lanes in halves: `i` and `i + 8`, then `i` and `i + 4`, `i + 2`, `i + 1`.
pub fn sum_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut v = *lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            v[i] += v[i + half];
        }
    }
    v[0]
}

/// `e^x` to about 1 unit in the last place; 0 below -87, and never more than `e^88`.
///
/// Cephes `expf`: argument reduced by `n ln 2` in two parts, then a polynomial of degree 5.
pub fn exp(x: f32) -> f32 {
    let clamped = if 88.0 < x { 88.0 } else { x };
    let clamped = if -87.0 > clamped { -87.0 } else { clamped };
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = EXP_POLY[0];
    for &c in &EXP_POLY[1..] {
        p = p.mul_add(r, c);
    }
    let p = p.mul_add(r * r, r + 1.0);
    let power = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { p * power }
}

/// Coefficients of [`exp`], highest power first.
pub const EXP_POLY: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// `c * tanh(x / c)`, with tanh as `1 - 2 / (e^2y + 1)`.
pub fn softcap(x: f32, c: f32) -> f32 {
    let y = x / c;
    c * (1.0 - 2.0 / (exp(y + y) + 1.0))
}

/// Dequantizes a row of the file: integer minus zero point, times scale, plus minimum.
pub fn dequantize_row(ty: WeightType, row: &[u8], out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = if ty.is_float() {
            float_weight(ty, row, i)
        } else {
            let block = block32(ty, row, i / 32);
            let q = i32::from(block.q[i % 32]) - i32::from(zero_point(ty));
            q as f32 * block.scale[i % 32 / 16] + block.min
        };
    }
}

/// One block of 32 inputs rounded to 8 bit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantBlock {
    /// The integers, within -127..=127.
    pub q: [i8; 32],
    /// The input is about `q * scale`; `amax / 127`.
    pub scale: f32,
    /// Sum of `q`.
    pub sum: i32,
}

/// Rounds 32 inputs to 8 bit: to nearest, ties to even, of `x * (127 / amax)`.
pub fn quantize_block(x: &[f32]) -> QuantBlock {
    let amax = x
        .iter()
        .fold(0f32, |m, v| if m > v.abs() { m } else { v.abs() });
    let inverse = if amax > 0.0 { 127.0 / amax } else { 0.0 };
    let q: [i8; 32] = std::array::from_fn(|i| (x[i] * inverse).round_ties_even() as i8);
    QuantBlock {
        q,
        scale: amax / 127.0,
        sum: q.iter().map(|&q| i32::from(q)).sum(),
    }
}

/// `out[i][j] = sum over k of x[i][k] * w[j][k]` with f32 inputs: one `fma` an input, in ascending order.
///
/// `w` is `n` rows of the file; `x` is `m x k`, `out` is `m x n`.
pub fn matmul_f32(
    ty: WeightType,
    w: &[u8],
    n: usize,
    k: usize,
    x: &[f32],
    m: usize,
    out: &mut [f32],
) {
    let mut weights = vec![0.0; k];
    for j in 0..n {
        dequantize_row(ty, &w[j * ty.row_bytes(k)..], &mut weights);
        for i in 0..m {
            let mut acc = 0f32;
            for (x, w) in x[i * k..][..k].iter().zip(&weights) {
                acc = x.mul_add(*w, acc);
            }
            out[i * n + j] = acc;
        }
    }
}

/// The product of [`matmul_f32`] with inputs rounded by [`quantize_block`]; quantized types only.
///
/// A block adds `dot * (scale_w * scale_x)` with `dot` an exact integer (for Q6_K two of 16 inputs,
/// in order), then, for types with minima, `min * (scale_x * sum)`; each addition is one `fma`.
pub fn matmul_int8(
    ty: WeightType,
    w: &[u8],
    n: usize,
    k: usize,
    x: &[f32],
    m: usize,
    out: &mut [f32],
) {
    let zero = i32::from(zero_point(ty));
    let parts = if ty == WeightType::Q6K { 2 } else { 1 };
    let has_min = matches!(
        ty,
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K
    );
    for i in 0..m {
        let rounded: Vec<_> = x[i * k..][..k].chunks(32).map(quantize_block).collect();
        for j in 0..n {
            let row = &w[j * ty.row_bytes(k)..];
            let mut acc = 0f32;
            for (index, x) in rounded.iter().enumerate() {
                let block = block32(ty, row, index);
                for part in 0..parts {
                    let inputs = part * 32 / parts..(part + 1) * 32 / parts;
                    let dot: i32 = inputs
                        .map(|i| (i32::from(block.q[i]) - zero) * i32::from(x.q[i]))
                        .sum();
                    acc = (dot as f32).mul_add(block.scale[part] * x.scale, acc);
                }
                if has_min {
                    acc = block.min.mul_add(x.scale * x.sum as f32, acc);
                }
            }
            out[i * n + j] = acc;
        }
    }
}

/// `out = x / sqrt(mean(x^2) + eps) * weight` for each row as long as `weight`.
///
/// Squares are summed with `fma` over lanes (element `i` in lane `i % 16`).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let k = weight.len();
    for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(k)) {
        let mut lanes = [0f32; LANES];
        for (i, v) in x.iter().enumerate() {
            lanes[i % LANES] = v.mul_add(*v, lanes[i % LANES]);
        }
        let inverse = 1.0 / (sum_lanes(&lanes) / k as f32 + eps).sqrt();
        for i in 0..k {
            out[i] = x[i] * inverse * weight[i];
        }
    }
}

/// Turns each head of each row by its position; elements beyond the table's pairs stay.
pub fn rope(x: &mut [f32], positions: &[u32], heads: usize, dim: usize, table: &RopeTable) {
    for (row, &position) in x.chunks_exact_mut(heads * dim).zip(positions) {
        let (cos, sin) = table.at(position);
        for head in row.chunks_exact_mut(dim) {
            for pair in 0..table.pairs() {
                let (i, j) = match table.style() {
                    RopeStyle::Neox => (pair, pair + table.pairs()),
                    RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                };
                let (a, b) = (head[i], head[j]);
                head[i] = a * cos[pair] - b * sin[pair];
                head[j] = a * sin[pair] + b * cos[pair];
            }
        }
    }
}

/// `out = gate / (1 + e^-gate) * up`.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((g, u), out) in gate.iter().zip(up).zip(out) {
        *out = g / (1.0 + exp(-g)) * u;
    }
}

/// What one query head has of the slots of a span, or of all spans so far.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanState {
    /// Highest score.
    pub max: f32,
    /// Sum of `e^(score - max)`, slot `s` in lane `s % 16`.
    pub sum: [f32; LANES],
    /// Sum of `e^(score - max) * value`, `dim` long.
    pub acc: Vec<f32>,
}

impl SpanState {
    /// Of no slot.
    pub fn empty(dim: usize) -> SpanState {
        SpanState {
            max: f32::NEG_INFINITY,
            sum: [0.0; LANES],
            acc: vec![0.0; dim],
        }
    }

    /// Of the visible slots of a span, in order: from `first` on, each with its score and its value.
    fn of(first: usize, slots: &[(f32, Vec<f32>)], dim: usize) -> SpanState {
        let mut state = SpanState::empty(dim);
        let scores = slots.iter().map(|(score, _)| *score);
        state.max = scores.fold(state.max, |m, s| if s > m { s } else { m });
        for (slot, (score, value)) in (first..).zip(slots) {
            let p = exp(score - state.max);
            state.sum[slot % LANES] += p;
            for (a, v) in state.acc.iter_mut().zip(value) {
                *a = p.mul_add(*v, *a);
            }
        }
        state
    }

    /// Appends the state of the next span.
    pub fn merge(&mut self, next: &SpanState) {
        let max = if next.max > self.max {
            next.max
        } else {
            self.max
        };
        let (a, b) = (exp(self.max - max), exp(next.max - max));
        self.max = max;
        let pairs = self
            .sum
            .iter_mut()
            .zip(&next.sum)
            .chain(self.acc.iter_mut().zip(&next.acc));
        for (mine, theirs) in pairs {
            *mine = theirs.mul_add(b, *mine * a);
        }
    }
}

/// Attention over stored keys and values, span by span of [`SPAN`] slots.
///
/// A score is the `fma` sum over even dimensions plus that over odd ones, times the scale. `q` and
/// `out` are `rows x heads x dim`.
pub fn paged_attention(q: &[f32], kv: &KvLayer, plan: &AttnPlan<'_>, out: &mut [f32]) {
    for seq in plan.seqs {
        for row in 0..seq.q_len {
            for head in 0..plan.heads {
                let at = ((seq.q_start + row) * plan.heads + head) * plan.dim;
                let slot = seq.kv_len - seq.q_len + row;
                let state = attend(&q[at..at + plan.dim], kv, plan, seq, slot, head);
                let sum = sum_lanes(&state.sum);
                for (out, a) in out[at..at + plan.dim].iter_mut().zip(&state.acc) {
                    *out = a / sum;
                }
            }
        }
    }
}

fn attend(
    q: &[f32],
    kv: &KvLayer,
    plan: &AttnPlan<'_>,
    seq: &SeqSpan<'_>,
    slot: usize,
    head: usize,
) -> SpanState {
    let seen = visible(slot, plan.window);
    let mut total = SpanState::empty(plan.dim);
    for span in seen.start / SPAN..seen.end.div_ceil(SPAN) {
        let (first, end) = (seen.start.max(span * SPAN), seen.end.min((span + 1) * SPAN));
        let of_slot = |slot: usize| {
            let (mut k, mut v) = (vec![0.0; plan.dim], vec![0.0; plan.dim]);
            let id = seq.block_table[slot / BLOCK] * BLOCK as u32 + (slot % BLOCK) as u32;
            kv.read_slot(id, head / (plan.heads / plan.kv_heads), &mut k, &mut v);
            (score(q, &k, plan), v)
        };
        let slots: Vec<_> = (first..end).map(of_slot).collect();
        total.merge(&SpanState::of(first, &slots, plan.dim));
    }
    total
}

fn score(q: &[f32], k: &[f32], plan: &AttnPlan<'_>) -> f32 {
    let mut sums = [0f32; 2];
    for (d, (q, k)) in q.iter().zip(k).enumerate() {
        sums[d % 2] = q.mul_add(*k, sums[d % 2]);
    }
    let score = (sums[0] + sums[1]) * plan.scale;
    plan.softcap.map_or(score, |c| softcap(score, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let (actual, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (actual / expected - 1.0).abs() < 2.4e-7,
                "exp({x}) = {actual}, not {expected}"
            );
        }
    }

    #[test]
    fn exp_is_exact_where_attention_relies_on_it() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-87.1), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn softcap_is_the_scaled_hyperbolic_tangent() {
        for i in -1000..=1000 {
            let x = i as f32 / 5.0;
            let expected = 50.0 * (f64::from(x) / 50.0).tanh();
            assert!((f64::from(softcap(x, 50.0)) - expected).abs() < 2e-5, "{x}");
        }
    }

    #[test]
    fn rounded_blocks_keep_the_largest_input_and_zero() {
        let mut x = [0f32; 32];
        assert_eq!(
            quantize_block(&x),
            QuantBlock {
                q: [0; 32],
                scale: 0.0,
                sum: 0
            }
        );
        (x[3], x[9]) = (-2.54, 1.0);
        let block = quantize_block(&x);
        assert_eq!((block.q[3], block.q[9], block.sum), (-127, 50, -77));
        assert!((block.scale - 0.02).abs() < 1e-6);
    }

    #[test]
    fn lanes_are_added_in_halves() {
        let mut lanes = [0f32; LANES];
        // In ascending order the ones would be lost beside 2^25.
        (lanes[0], lanes[8], lanes[1], lanes[2]) = (33_554_432.0, -33_554_432.0, 1.0, 1.0);
        assert_eq!(sum_lanes(&lanes), 2.0);
    }

    #[test]
    fn empty_spans_change_nothing() {
        let mut state = SpanState {
            max: 1.5,
            sum: [0.25; LANES],
            acc: vec![0.5, -3.0],
        };
        let before = state.clone();
        state.merge(&SpanState::empty(2));
        assert_eq!(state, before);
    }
}
