//! The mixture of experts of `muse_spark`: rows go to a narrower width, there to the experts that a router chooses,
//! and back.

use conclave_kernels::{Norm, PackedMatrix, PostNorm, Routing};

use crate::model::ops::Ops;
use crate::model::pass::{product, sized};

/// Weights of a mixture.
pub struct Experts {
    /// `experts x hidden`.
    pub router: PackedMatrix,
    /// Added to an expert's score where it competes.
    pub bias: Vec<f32>,
    /// To the experts' width: `width x hidden`.
    pub narrow: PackedMatrix,
    /// Norm before the experts, `width`.
    pub norm: Vec<f32>,
    /// All of them.
    pub experts: Vec<Expert>,
    /// A factor before the norm of what an expert gives, `width`.
    pub before: Vec<f32>,
    /// No factor, `width`.
    pub ones: Vec<f32>,
    /// Back to the stream's width: `hidden x width`.
    pub widen: PackedMatrix,
    /// How many experts a row goes to.
    pub chosen: usize,
    /// A factor of the router's logits.
    pub multiplier: f32,
    /// A factor of shares.
    pub scale: f32,
    /// Added to the mean square in the norm before the experts.
    pub eps: f32,
    /// Added to the mean square in the norm after them.
    pub post_eps: f32,
}

/// Weights of one expert.
pub struct Expert {
    /// `inner x width`.
    pub gate: PackedMatrix,
    /// `inner x width`.
    pub up: PackedMatrix,
    /// `width x inner`.
    pub down: PackedMatrix,
}

/// What the mixture computes of a step, and which rows go where. It grows to the largest step and is then reused.
#[derive(Default)]
pub(crate) struct Mixture {
    logits: Vec<f32>,
    /// Experts of each row, ascending, and their shares.
    chosen: Vec<u32>,
    shares: Vec<f32>,
    /// Where what each of them is given and gives lies: rows of one expert side by side.
    places: Vec<u32>,
    /// Where the rows of each expert begin; one entry more than there are experts.
    starts: Vec<usize>,
    narrow: Vec<f32>,
    normed: Vec<f32>,
    given: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
    taken: Vec<f32>,
    sum: Vec<f32>,
}

impl Mixture {
    /// Finds places for the rows of `experts` experts: those of the first come first, each expert's rows ascending.
    fn place(&mut self, experts: usize) {
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        for expert in &self.chosen {
            self.starts[*expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        self.places.clear();
        for expert in &self.chosen {
            let next = &mut self.starts[*expert as usize];
            self.places.push(*next as u32);
            *next += 1;
        }
        // Each now says where its rows end, which is where those of the next begin.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }
}

impl Experts {
    /// All its matrices.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let experts = self.experts.iter();
        let experts = experts.flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
        experts.chain([&self.router, &self.narrow, &self.widen])
    }

    /// What the mixture gives for `rows` rows, normed before, to `out` (`rows x hidden`).
    pub(super) fn run(
        &self,
        ops: &mut Ops,
        mixture: &mut Mixture,
        norm: Norm<'_>,
        out: &mut [f32],
    ) {
        let (count, width) = (self.experts.len(), self.norm.len());
        let rows = out.len() / self.widen.n();
        let (eps, numbers) = (self.eps, rows * self.chosen);
        let logits = sized(&mut mixture.logits, rows * count);
        let narrow = sized(&mut mixture.narrow, rows * width);
        let products = [product(&self.router, logits), product(&self.narrow, narrow)];
        ops.normed_products(products, norm, rows);
        let normed = sized(&mut mixture.normed, rows * width);
        ops.norm(narrow, &self.norm, eps, rows, normed);
        mixture.chosen.resize(numbers, 0);
        let shares = sized(&mut mixture.shares, numbers);
        let routing = Routing {
            bias: &self.bias,
            chosen: self.chosen,
            multiplier: self.multiplier,
            scale: self.scale,
        };
        ops.route(logits, &routing, &mut mixture.chosen, shares);
        mixture.place(count);
        let given = sized(&mut mixture.given, numbers * width);
        let each = mixture.normed.chunks_exact(width);
        let each = each.flat_map(|row| std::iter::repeat_n(row, self.chosen));
        for (row, place) in each.zip(&mixture.places) {
            given[*place as usize * width..][..width].copy_from_slice(row);
        }
        self.apply(ops, mixture);
        let norm = PostNorm {
            before: &self.before,
            eps: self.post_eps,
            weight: &self.ones,
            keep: &self.ones,
        };
        let sum = sized(&mut mixture.sum, rows * width);
        sum.fill(0.0);
        let taken = &mixture.taken[..numbers * width];
        let shares = &mixture.shares[..numbers];
        ops.add_experts(sum, taken, &norm, &mixture.places, shares, self.chosen);
        ops.linear(&self.widen, sum, rows, out);
    }

    /// What each expert makes of its rows.
    fn apply(&self, ops: &mut Ops, mixture: &mut Mixture) {
        let (width, most) = (self.norm.len(), mixture.places.len());
        sized(&mut mixture.taken, most * width);
        for (expert, range) in self.experts.iter().zip(mixture.starts.windows(2)) {
            let (rows, numbers) = (range[1] - range[0], range[0] * width..range[1] * width);
            if rows == 0 {
                continue;
            }
            let inner = expert.gate.n();
            let products = [&mut mixture.gate, &mut mixture.up];
            let products = products.map(|buffer| sized(buffer, rows * inner));
            let (gated, given) = (
                sized(&mut mixture.inner, rows * inner),
                &mixture.given[numbers.clone()],
            );
            ops.gated_plain([&expert.gate, &expert.up], given, rows, products, gated);
            ops.linear(&expert.down, gated, rows, &mut mixture.taken[numbers]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_expert_lie_side_by_side() {
        let mut mixture = Mixture {
            chosen: vec![0, 3, 1, 3, 0, 1],
            ..Mixture::default()
        };
        for _ in 0..2 {
            mixture.place(5);
            assert_eq!(mixture.places, [0, 4, 2, 5, 1, 3]);
            assert_eq!(mixture.starts, [0, 2, 4, 4, 6, 6]);
        }
    }
}
