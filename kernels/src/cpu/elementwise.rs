//! Norm, rotation and activation: ops that touch each number once.

use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH, exp};
use super::{Kernels, SendPtr};
use crate::rope::{RopeStyle, RopeTable};

/// What an element costs in units of a multiply-add of [`Kernels::split`].
pub(super) const ELEMENT_WORK: usize = 16;

/// Elements of a task where rows do not matter.
pub(super) const CHUNK: usize = 1024;

impl Kernels {
    /// `out = x / sqrt(mean(x^2) + eps) * weight` for each of `rows` rows of `weight.len()`.
    ///
    /// Panics if `x` or `out` has another length.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, rows: usize, out: &mut [f32]) {
        let k = weight.len();
        assert_eq!((x.len(), out.len()), (rows * k, rows * k));
        let (isa, to) = (self.isa, SendPtr(out.as_mut_ptr()));
        self.share(rows, k, &|row| {
            let x = &x[row * k..][..k];
            // SAFETY: `out` has the row, and only this task writes it.
            unsafe { rms_norm_row(isa, x, weight, eps, to.get().add(row * k)) };
        });
    }

    /// Turns each of `heads` heads of `dim` elements by its row's position, in place.
    ///
    /// `x` is `positions.len() x heads x dim`; elements beyond the table's pairs stay as they are.
    /// Panics on a position outside the table, or if the table turns more than `dim` elements.
    pub fn rope(
        &self,
        x: &mut [f32],
        positions: &[u32],
        heads: usize,
        dim: usize,
        table: &RopeTable,
    ) {
        let width = heads * dim;
        assert_eq!(x.len(), positions.len() * width);
        assert!(
            2 * table.pairs() <= dim,
            "{} pairs in a head of {dim}",
            table.pairs()
        );
        let (isa, to) = (self.isa, SendPtr(x.as_mut_ptr()));
        self.share(positions.len(), width, &|row| {
            let (cos, sin) = table.at(positions[row]);
            // SAFETY: `x` has the row, and only this task touches it.
            unsafe {
                let x = std::slice::from_raw_parts_mut(to.get().add(row * width), width);
                rope_row(isa, x, dim, cos, sin, table.style());
            }
        });
    }

    /// `out = gate / (1 + e^-gate) * up`, elementwise. Panics if the lengths differ.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        let len = out.len();
        assert_eq!((gate.len(), up.len()), (len, len));
        let (isa, to) = (self.isa, SendPtr(out.as_mut_ptr()));
        self.share(len.div_ceil(CHUNK), CHUNK, &|chunk| {
            let range = chunk * CHUNK..len.min((chunk + 1) * CHUNK);
            // SAFETY: `out` has the range, and only this task writes it.
            unsafe {
                let to = to.get().add(range.start);
                silu_mul_chunk(isa, &gate[range.clone()], &up[range], to);
            }
        });
    }

    /// `x += y`, elementwise. Panics if the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: `Kernels::new` has checked the instruction set.
        unsafe { add_row(self.isa, x, y) };
    }

    /// Runs `f(0..rows)` where each row has `width` elements, on as many threads as that is worth.
    pub(super) fn share(&self, rows: usize, width: usize, f: &(dyn Fn(usize) + Sync)) {
        let tasks = self.split(rows, rows * width * ELEMENT_WORK);
        self.pool.run(tasks, &|task| {
            (rows * task / tasks..rows * (task + 1) / tasks).for_each(f)
        });
    }
}

per_isa! {
    /// One row of [`crate::reference::rope`].
    pub(super) unsafe fn rope_row = rope_row_of(
        x: &mut [f32], dim: usize, cos: &[f32], sin: &[f32], style: RopeStyle,
    );
}

/// Plain loops: the compiler makes of them what the instruction set of `L` has.
///
/// # Safety
/// None of its own.
#[inline(always)]
unsafe fn rope_row_of<L: Lanes>(
    x: &mut [f32],
    dim: usize,
    cos: &[f32],
    sin: &[f32],
    style: RopeStyle,
) {
    let turns = || cos.iter().zip(sin);
    for head in x.chunks_exact_mut(dim) {
        match style {
            RopeStyle::Neox => {
                let (first, second) = head.split_at_mut(cos.len());
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns()) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            RopeStyle::Interleaved => {
                let (pairs, _) = head.as_chunks_mut::<2>();
                for (pair, (cos, sin)) in pairs.iter_mut().zip(turns()) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
        }
    }
}

per_isa! {
    /// `x += y`.
    unsafe fn add_row = add_row_of(x: &mut [f32], y: &[f32]);
}

/// # Safety
/// None of its own.
#[inline(always)]
unsafe fn add_row_of<L: Lanes>(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

per_isa! {
    /// One row of [`crate::reference::rms_norm`].
    pub(super) unsafe fn rms_norm_row = rms_norm_row_of(x: &[f32], weight: &[f32], eps: f32, out: *mut f32);
}

/// # Safety
/// See [`Lanes`]; `out` has as many elements as `x` and `weight`.
#[inline(always)]
unsafe fn rms_norm_row_of<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: *mut f32) {
    let k = x.len();
    let whole = k / WIDTH * WIDTH;
    // SAFETY: all indices are below `k`.
    unsafe {
        let mut squares = L::splat(0.0);
        for i in (0..whole).step_by(WIDTH) {
            let v = L::load(x.as_ptr().add(i));
            squares = v.fma(v, squares);
        }
        if whole < k {
            let mut lanes = [0f32; WIDTH];
            squares.store(lanes.as_mut_ptr());
            for (lane, v) in lanes.iter_mut().zip(&x[whole..]) {
                *lane = v.mul_add(*v, *lane);
            }
            squares = L::load(lanes.as_ptr());
        }
        let inverse = 1.0 / (squares.sum() / k as f32 + eps).sqrt();
        let factor = L::splat(inverse);
        for i in (0..whole).step_by(WIDTH) {
            let v = L::load(x.as_ptr().add(i)).mul(factor);
            v.mul(L::load(weight.as_ptr().add(i))).store(out.add(i));
        }
        for i in whole..k {
            *out.add(i) = x[i] * inverse * weight[i];
        }
    }
}

per_isa! {
    /// [`crate::reference::silu_mul`].
    pub(super) unsafe fn silu_mul_chunk = silu_mul_chunk_of(gate: &[f32], up: &[f32], out: *mut f32);
}

/// # Safety
/// See [`Lanes`]; `out` has as many elements as `gate` and `up`.
#[inline(always)]
unsafe fn silu_mul_chunk_of<L: Lanes>(gate: &[f32], up: &[f32], out: *mut f32) {
    let whole = gate.len() / WIDTH * WIDTH;
    // SAFETY: all indices are below the common length.
    unsafe {
        for i in (0..whole).step_by(WIDTH) {
            let up = L::load(up.as_ptr().add(i));
            silu::<L>(L::load(gate.as_ptr().add(i)))
                .mul(up)
                .store(out.add(i));
        }
        if whole < gate.len() {
            let mut lanes = [[0f32; WIDTH]; 2];
            let rest = gate.len() - whole;
            lanes[0][..rest].copy_from_slice(&gate[whole..]);
            lanes[1][..rest].copy_from_slice(&up[whole..]);
            let v = silu::<L>(L::load(lanes[0].as_ptr())).mul(L::load(lanes[1].as_ptr()));
            v.store(lanes[0].as_mut_ptr());
            out.add(whole)
                .copy_from_nonoverlapping(lanes[0].as_ptr(), rest);
        }
    }
}

#[inline(always)]
unsafe fn silu<L: Lanes>(gate: L) -> L {
    // SAFETY: see [`Lanes`]. `-gate` is a product with -1: exact, as a change of sign is.
    unsafe { gate.div(L::splat(1.0).add(exp(gate.mul(L::splat(-1.0))))) }
}
