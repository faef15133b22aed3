//! What stands between a part of a layer and the residual stream: gates, norms, and the cap of logits.

use super::dispatch::per_isa;
use super::elementwise::CHUNK;
use super::lanes::{Lanes, WIDTH, exp, softcap};
use super::{Kernels, SendPtr};

/// The norm of what a part of a layer gives, on its way to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct PostNorm<'a> {
    /// A factor for each number before the norm.
    pub before: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
    /// A factor for each number after the norm.
    pub weight: &'a [f32],
    /// A factor for each number of the stream.
    pub keep: &'a [f32],
}

impl PostNorm<'_> {
    /// The width of a row. Panics unless all factors are as many.
    pub(super) fn width(&self) -> usize {
        let k = self.weight.len();
        assert_eq!((self.before.len(), self.keep.len()), (k, k));
        k
    }
}

impl Kernels {
    /// `x = x / (1 + e^-gate)`, elementwise. Panics if the lengths differ.
    pub fn sigmoid_mul(&self, x: &mut [f32], gate: &[f32]) {
        let len = x.len();
        assert_eq!(gate.len(), len);
        let (isa, to) = (self.isa, SendPtr(x.as_mut_ptr()));
        self.share(len.div_ceil(CHUNK), CHUNK, &|chunk| {
            let range = chunk * CHUNK..len.min((chunk + 1) * CHUNK);
            // SAFETY: `x` has the range, and only this task touches it.
            unsafe { sigmoid_mul_chunk(isa, to.get().add(range.start), &gate[range]) };
        });
    }

    /// `x = cap * tanh(x * factor / cap)`, elementwise: logits that stay within `cap`.
    pub fn cap_logits(&self, x: &mut [f32], factor: f32, cap: f32) {
        let (len, isa, to) = (x.len(), self.isa, SendPtr(x.as_mut_ptr()));
        self.share(len.div_ceil(CHUNK), CHUNK, &|chunk| {
            let range = chunk * CHUNK..len.min((chunk + 1) * CHUNK);
            // SAFETY: `x` has the range, and only this task touches it.
            unsafe { cap_chunk(isa, to.get().add(range.start), range.len(), factor, cap) };
        });
    }

    /// Adds `rows` rows to the stream `x`, normed: `x = x * keep + norm(y * before) * weight`.
    ///
    /// Panics if `x` or `y` has another length, or the norm's factors are not as many as each other.
    pub fn add_normed(&self, x: &mut [f32], y: &[f32], norm: &PostNorm<'_>, rows: usize) {
        let k = norm.width();
        assert_eq!((x.len(), y.len()), (rows * k, rows * k));
        let (isa, to) = (self.isa, SendPtr(x.as_mut_ptr()));
        self.share(rows, k, &|row| {
            // SAFETY: `x` has the row, only this task touches it, and the factors are as wide.
            unsafe { add_normed_row(isa, to.get().add(row * k), &y[row * k..][..k], norm, 1.0) };
        });
    }
}

per_isa! {
    /// [`crate::reference::sigmoid_mul`].
    unsafe fn sigmoid_mul_chunk = sigmoid_mul_chunk_of(x: *mut f32, gate: &[f32]);
}

/// # Safety
/// See [`Lanes`]; `x` has as many elements as `gate`.
#[inline(always)]
unsafe fn sigmoid_mul_chunk_of<L: Lanes>(x: *mut f32, gate: &[f32]) {
    let whole = gate.len() / WIDTH * WIDTH;
    // SAFETY: all indices are below the common length.
    unsafe {
        for i in (0..whole).step_by(WIDTH) {
            let gate = L::load(gate.as_ptr().add(i));
            L::load(x.add(i)).div(from_sigmoid(gate)).store(x.add(i));
        }
        let mut lanes = [0f32; WIDTH];
        lanes[..gate.len() - whole].copy_from_slice(&gate[whole..]);
        from_sigmoid(L::load(lanes.as_ptr())).store(lanes.as_mut_ptr());
        for (i, divisor) in (whole..gate.len()).zip(lanes) {
            *x.add(i) /= divisor;
        }
    }
}

/// `1 + e^-x`: one by it is the sigmoid.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
pub(super) unsafe fn from_sigmoid<L: Lanes>(x: L) -> L {
    // SAFETY: see [`Lanes`]. A product with -1 is exact, as a change of sign is.
    unsafe { L::splat(1.0).add(exp(x.mul(L::splat(-1.0)))) }
}

per_isa! {
    /// [`crate::reference::cap_logits`].
    unsafe fn cap_chunk = cap_chunk_of(x: *mut f32, len: usize, factor: f32, cap: f32);
}

/// # Safety
/// See [`Lanes`]; `x` has `len` elements.
#[inline(always)]
unsafe fn cap_chunk_of<L: Lanes>(x: *mut f32, len: usize, factor: f32, cap: f32) {
    let whole = len / WIDTH * WIDTH;
    // SAFETY: all indices are below `len`.
    unsafe {
        let by = L::splat(factor);
        for i in (0..whole).step_by(WIDTH) {
            softcap(L::load(x.add(i)).mul(by), cap).store(x.add(i));
        }
        let mut lanes = [0f32; WIDTH];
        let rest = len - whole;
        lanes
            .as_mut_ptr()
            .copy_from_nonoverlapping(x.add(whole), rest);
        softcap(L::load(lanes.as_ptr()).mul(by), cap).store(lanes.as_mut_ptr());
        x.add(whole).copy_from_nonoverlapping(lanes.as_ptr(), rest);
    }
}

per_isa! {
    /// [`crate::reference::add_normed_row`].
    pub(super) unsafe fn add_normed_row = add_normed_row_of(
        x: *mut f32, y: &[f32], norm: &PostNorm<'_>, share: f32,
    );
}

/// # Safety
/// See [`Lanes`]; `x` and the norm's factors have as many elements as `y`.
#[inline(always)]
unsafe fn add_normed_row_of<L: Lanes>(x: *mut f32, y: &[f32], norm: &PostNorm<'_>, share: f32) {
    let k = y.len();
    let whole = k / WIDTH * WIDTH;
    // SAFETY: all indices are below `k`.
    unsafe {
        let scaled = |i: usize| {
            let before = L::load(norm.before.as_ptr().add(i));
            L::load(y.as_ptr().add(i)).mul(before)
        };
        let mut squares = L::splat(0.0);
        for i in (0..whole).step_by(WIDTH) {
            let z = scaled(i);
            squares = z.fma(z, squares);
        }
        if whole < k {
            let mut lanes = [0f32; WIDTH];
            squares.store(lanes.as_mut_ptr());
            for (lane, i) in lanes.iter_mut().zip(whole..k) {
                let z = y[i] * norm.before[i];
                *lane = z.mul_add(z, *lane);
            }
            squares = L::load(lanes.as_ptr());
        }
        let inverse = share / (squares.sum() / k as f32 + norm.eps).sqrt();
        let factor = L::splat(inverse);
        for i in (0..whole).step_by(WIDTH) {
            let kept = L::load(x.add(i)).mul(L::load(norm.keep.as_ptr().add(i)));
            let weight = L::load(norm.weight.as_ptr().add(i));
            scaled(i).mul(factor).fma(weight, kept).store(x.add(i));
        }
        for (i, y) in (whole..k).zip(&y[whole..]) {
            let z = y * norm.before[i];
            *x.add(i) = (z * inverse).mul_add(norm.weight[i], *x.add(i) * norm.keep[i]);
        }
    }
}
