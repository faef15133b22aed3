//! Products with what comes before or after them in a model step, so that threads meet less often and rows are
//! still in a cache. The bits are those of one op after the other.

use super::inputs::{Inputs, rounding};
use super::{Job, Product, SendPtr, TILE, inputs, run_tiles};
use crate::attention::KvLayer;
use crate::cpu::Kernels;
use crate::cpu::elementwise::silu_mul_chunk;
use crate::cpu::store::{Placing, Tokens};
use crate::rope::RopeTable;
use crate::scratch::Scratch;
use crate::weights::PackedMatrix;

/// An RMS norm on the way to products, as [`Kernels::rms_norm`] computes it.
pub struct Norm<'a> {
    /// Rows as wide as `weight`.
    pub x: &'a [f32],
    /// A factor for each input.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
    /// Receives the normed rows.
    pub out: &'a mut [f32],
}

impl Norm<'_> {
    /// Panics unless the products take `m` rows of this width.
    fn check(&self, jobs: &[Job<'_>], m: usize) {
        let k = self.weight.len();
        assert!(
            jobs.iter().all(|job| job.w.k() == k),
            "inputs are {m} x {k}"
        );
        assert_eq!((self.x.len(), self.out.len()), (m * k, m * k));
    }
}

impl Kernels {
    /// As [`Kernels::qmatmul`], but the product is added to `out`: `out += x w^T`.
    ///
    /// Panics if the slices have other lengths.
    pub fn qmatmul_add<'x>(
        &self,
        w: &PackedMatrix,
        x: impl Into<Inputs<'x>>,
        m: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let inputs = x.into();
        let x = inputs.numbers();
        assert_eq!(x.len(), m * w.k(), "inputs are {m} x {}", w.k());
        let jobs = [Job::new(Product { weights: w, out }, m, true)];
        if inputs.are_rounded_in(scratch) {
            self.multiply(&jobs, x, m, &scratch.ahead);
        } else {
            self.round(&jobs, None, x, m, scratch);
            self.multiply(&jobs, x, m, &scratch.rows);
        }
    }

    /// [`Kernels::rms_norm`], then [`Kernels::qmatmuls`] of the `m` normed rows.
    ///
    /// Panics if the matrices' inputs are not as many as the norm's weights, or a slice has another length.
    pub fn qmatmuls_normed<const P: usize>(
        &self,
        products: [Product<'_>; P],
        norm: Norm<'_>,
        m: usize,
        scratch: &mut Scratch,
    ) {
        let jobs = products.map(|p| Job::new(p, m, false));
        let x = self.norm_and_round(&jobs, norm, m, scratch);
        self.multiply(&jobs, x, m, &scratch.rows);
    }

    /// [`Kernels::qmatmuls_normed`] with the matrices of queries, keys and values, then
    /// [`Kernels::rope_and_write`] of what they give.
    ///
    /// Panics as those do.
    pub fn project(
        &self,
        weights: [&PackedMatrix; 3],
        norm: Norm<'_>,
        tokens: Tokens<'_>,
        layer: &mut KvLayer,
        table: &RopeTable,
        scratch: &mut Scratch,
    ) {
        let (m, dim, threads) = (tokens.slots.len(), layer.dim(), self.pool.threads());
        let [q, k, v] = weights;
        let heads = weights.map(|w| w.n() / dim).iter().sum::<usize>();
        // A task computes whole heads: they must be whole tiles, and enough for all threads.
        if !dim.is_multiple_of(TILE) || heads < 2 * threads {
            let products = [
                (q, &mut *tokens.q),
                (k, &mut *tokens.k),
                (v, &mut *tokens.v),
            ];
            let products = products.map(|(weights, out)| Product { weights, out });
            self.qmatmuls_normed(products, norm, m, scratch);
            return self.rope_and_write(layer, tokens, table);
        }
        let placing = Placing::new(layer, tokens, table);
        let [to_q, to_k, to_v] = placing.numbers();
        let jobs = [(q, to_q), (k, to_k), (v, to_v)].map(|(w, out)| Job::at(w, out, m, false));
        let x = self.norm_and_round(&jobs, norm, m, scratch);
        let (rows, floats) = inputs(&scratch.rows, x, q.k());
        let parts = placing.parts();
        let tasks = match self.split_product(parts, heads * dim * q.k(), m) {
            1 => 1,
            _ => parts,
        };
        self.pool.run(tasks, &|task| {
            for part in parts * task / tasks..parts * (task + 1) / tasks {
                let (of, head) = placing.part(part);
                let tiles = head * dim / TILE..(head + 1) * dim / TILE;
                // SAFETY: each head belongs to one task, and so do its tiles; slices have the lengths that `Job::at`
                // and `Placing::new` asked for; `Kernels::new` has checked the instruction set.
                unsafe {
                    run_tiles(self.isa, &jobs[of], tiles, rows, floats, m);
                    placing.place(self.isa, part);
                }
            }
        });
    }

    /// The gated half of a feed-forward part: [`Kernels::rms_norm`], the products `gate` and `up` of the `m`
    /// normed rows, then [`Kernels::silu_mul`] of both to `out`. Gives `out` as inputs of the product `then`.
    ///
    /// Panics as [`Kernels::qmatmuls_normed`], and if `gate` and `up` differ in shape.
    pub fn gated<'o>(
        &self,
        [gate, up]: [Product<'_>; 2],
        norm: Norm<'_>,
        m: usize,
        out: &'o mut [f32],
        then: Option<&PackedMatrix>,
        scratch: &mut Scratch,
    ) -> Inputs<'o> {
        let (n, k, tiles) = (gate.weights.n(), gate.weights.k(), gate.weights.tiles());
        assert_eq!((up.weights.n(), out.len()), (n, m * n));
        let jobs = [gate, up].map(|p| Job::new(p, m, false));
        let x = self.norm_and_round(&jobs, norm, m, scratch);
        let rounding = rounding(then.filter(|w| w.k() == n), m, 2 * TILE, scratch);
        let (rows, floats) = inputs(&scratch.rows, x, k);
        // A block that is rounded is that of two tiles; an odd one is last.
        let pairs = tiles.div_ceil(2);
        let tasks = self.split_product(pairs, 2 * tiles * TILE * k, m);
        let to = SendPtr(out.as_mut_ptr());
        self.pool.run(tasks, &|task| {
            let mine = pairs * task / tasks..pairs * (task + 1) / tasks;
            let mine = 2 * mine.start..tiles.min(2 * mine.end);
            let outputs = mine.start * TILE..n.min(mine.end * TILE);
            // SAFETY: each tile of each job belongs to one task, and so do its outputs in all three slices and
            // their blocks, whose lengths were asserted; `Kernels::new` has checked the instruction set.
            unsafe {
                for job in &jobs {
                    run_tiles(self.isa, job, mine.clone(), rows, floats, m);
                }
                for row in 0..m {
                    let at = row * n + outputs.start;
                    let [gate, up] = [0, 1].map(|job: usize| {
                        let from = jobs[job].out.first.add(at);
                        std::slice::from_raw_parts(from.cast_const(), outputs.len())
                    });
                    silu_mul_chunk(self.isa, gate, up, to.get().add(at));
                    if let Some(rounding) = rounding {
                        let blocks = outputs.start / 32..outputs.end / 32;
                        rounding.round(self.isa, to.get().add(row * n), row, blocks);
                    }
                }
            }
        });
        Inputs::computed(out, rounding, scratch)
    }

    /// Norms rows and rounds them into the scratch; gives the normed rows.
    fn norm_and_round<'n>(
        &self,
        jobs: &[Job<'_>],
        norm: Norm<'n>,
        m: usize,
        scratch: &mut Scratch,
    ) -> &'n [f32] {
        norm.check(jobs, m);
        let out = SendPtr(norm.out.as_mut_ptr());
        self.round(jobs, Some((&norm, out)), &[], m, scratch);
        norm.out
    }
}
