//! The micro-kernel alone: what the products of a step would take if nothing lay between them.

use super::float::FloatRows;
use super::format::Out;
use super::quantize::{Rounding, Rows};
use super::{Job, run_tiles};
use crate::cpu::{Kernels, SendPtr};
use crate::scratch::AlignedBuf;
use crate::weights::PackedMatrix;
use std::collections::BTreeMap;

/// All tiles of some matrices times the same number of rows, for benches: inputs are rounded beforehand, each
/// thread has its share of every matrix, and nobody waits between two of them.
pub struct Sweep<'a> {
    kernels: &'a Kernels,
    weights: Vec<&'a PackedMatrix>,
    rows: usize,
    /// Inputs by their length.
    inputs: BTreeMap<usize, (Vec<f32>, AlignedBuf)>,
    /// A part a thread.
    out: Vec<f32>,
}

impl<'a> Sweep<'a> {
    /// Prepares `rows` rows of inputs for each matrix.
    pub fn new(kernels: &'a Kernels, weights: Vec<&'a PackedMatrix>, rows: usize) -> Sweep<'a> {
        let mut inputs = BTreeMap::new();
        for k in weights.iter().map(|w| w.k()) {
            inputs.entry(k).or_insert_with(|| rounded(kernels, k, rows));
        }
        let widest = weights.iter().map(|w| w.n()).max().unwrap_or(0);
        Sweep {
            kernels,
            weights,
            rows,
            inputs,
            out: vec![0.0; rows * widest * kernels.pool.threads()],
        }
    }

    /// Computes all products once; each overwrites the last one's results.
    pub fn run(&mut self) {
        let threads = self.kernels.pool.threads();
        let part = self.out.len() / threads;
        let outs = SendPtr(self.out.as_mut_ptr());
        let (weights, inputs) = (&self.weights, &self.inputs);
        self.kernels.pool.run(threads, &|thread| {
            for w in weights {
                let (k, tiles) = (w.k(), w.tiles());
                let (floats, ints) = &inputs[&k];
                // SAFETY: every thread has a part of its own, with room for the widest matrix.
                let first = unsafe { outs.get().add(thread * part) };
                let out = Out {
                    first,
                    n: w.n(),
                    lanes: 0,
                    add: false,
                };
                let rows = Rows {
                    first: ints.as_ptr(),
                    k,
                };
                let floats = FloatRows {
                    first: floats.as_ptr(),
                    k,
                };
                let mine = tiles * thread / threads..tiles * (thread + 1) / threads;
                // SAFETY: inputs and outputs have `rows` rows of this matrix's lengths.
                unsafe {
                    run_tiles(
                        self.kernels.isa,
                        &Job { w, out },
                        mine,
                        rows,
                        floats,
                        self.rows,
                    )
                };
            }
        });
    }
}

/// Rows of `k` inputs, as they are and in 8 bit.
fn rounded(kernels: &Kernels, k: usize, rows: usize) -> (Vec<f32>, AlignedBuf) {
    let floats: Vec<f32> = (0..rows * k).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut buffer = AlignedBuf::default();
    if k.is_multiple_of(32) {
        let rounding = Rounding::new(&mut buffer, rows, k);
        for row in 0..rows {
            // SAFETY: both have the row.
            unsafe { rounding.round(kernels.isa, floats[row * k..].as_ptr(), row, 0..k / 32) };
        }
    }
    (floats, buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Isa, Pool, Scratch, WeightType};

    #[test]
    fn a_sweep_computes_what_a_product_computes() {
        let kernels = Kernels::new(Isa::Portable, Pool::new(1));
        for ty in [WeightType::Q4_1, WeightType::F16] {
            let (n, k, rows) = (20, 64, 3);
            let bytes = vec![0x22; n * ty.row_bytes(k)];
            let w = PackedMatrix::pack(ty, &bytes, n, k, Activation::Int8, Isa::Portable);
            let w = w.expect("shapes fit");
            let mut sweep = Sweep::new(&kernels, vec![&w], rows);
            sweep.run();
            let (inputs, mut expected) = (&sweep.inputs[&k].0, vec![0.0; rows * n]);
            kernels.qmatmul(&w, inputs, rows, &mut expected, &mut Scratch::new());
            assert_eq!(sweep.out, expected);
            assert!(expected.iter().any(|v| *v != 0.0));
        }
    }
}
