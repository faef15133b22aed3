//! Norm, rotation, activation and the writing of keys and values: ops that touch each number once.

use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH, exp, sum};
use super::{Kernels, SendPtr};
use crate::attention::{BLOCK, KvDtype, KvLayer};
use crate::rope::{RopeStyle, RopeTable};

/// What an element costs in units of a multiply-add of [`Kernels::split`].
const ELEMENT_WORK: usize = 16;

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
        const CHUNK: usize = 1024;
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

    /// Stores the key and value rows (`kv_heads * dim` each) of `slots.len()` tokens at their slot ids
    /// (`block * BLOCK + offset`), rounded to the layer's dtype.
    ///
    /// Panics on a slot outside the layer or on rows of another length.
    pub fn write_kv(&self, layer: &mut KvLayer, k: &[f32], v: &[f32], slots: &[u32]) {
        let width = layer.kv_heads() * layer.dim();
        assert_eq!(
            (k.len(), v.len()),
            (slots.len() * width, slots.len() * width)
        );
        for (i, &slot) in slots.iter().enumerate() {
            assert!(
                (slot as usize) < layer.blocks() * BLOCK,
                "slot {slot} is outside the cache"
            );
            let (k, v) = (&k[i * width..][..width], &v[i * width..][..width]);
            // SAFETY: the slot is within the layer and the rows are as wide as it.
            unsafe { write_slot(self.isa, layer, slot, k, v) };
        }
    }

    /// Runs `f(0..rows)` where each row has `width` elements, on as many threads as that is worth.
    fn share(&self, rows: usize, width: usize, f: &(dyn Fn(usize) + Sync)) {
        let tasks = self.split(rows, rows * width * ELEMENT_WORK);
        self.pool.run(tasks, &|task| {
            (rows * task / tasks..rows * (task + 1) / tasks).for_each(f)
        });
    }
}

per_isa! {
    /// One row of [`crate::reference::rope`].
    unsafe fn rope_row = rope_row_of(
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
    unsafe fn rms_norm_row = rms_norm_row_of(x: &[f32], weight: &[f32], eps: f32, out: *mut f32);
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
        let inverse = 1.0 / (sum(squares) / k as f32 + eps).sqrt();
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
    unsafe fn silu_mul_chunk = silu_mul_chunk_of(gate: &[f32], up: &[f32], out: *mut f32);
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

per_isa! {
    /// Stores one token's key and value.
    unsafe fn write_slot = write_slot_of(layer: &mut KvLayer, slot: u32, k: &[f32], v: &[f32]);
}

/// # Safety
/// See [`Lanes`]; the slot is within the layer, `k` and `v` have `kv_heads * dim` elements.
#[inline(always)]
unsafe fn write_slot_of<L: Lanes>(layer: &mut KvLayer, slot: u32, k: &[f32], v: &[f32]) {
    let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
    let dim = layer.dim();
    for head in 0..layer.kv_heads() {
        let start = layer.head_start(block, head);
        let (k, v) = (&k[head * dim..][..dim], &v[head * dim..][..dim]);
        let (key_at, value_at) = (start + offset, start + offset * dim);
        // SAFETY: a head of a block has `dim * BLOCK` elements in both buffers.
        unsafe {
            match layer.dtype() {
                KvDtype::F32 => {
                    let keys = layer.keys.as_mut_ptr().cast::<f32>().add(key_at);
                    k.iter()
                        .enumerate()
                        .for_each(|(d, k)| *keys.add(d * BLOCK) = *k);
                    let values = layer.values.as_mut_ptr().cast::<f32>().add(value_at);
                    values.copy_from_nonoverlapping(v.as_ptr(), dim);
                }
                KvDtype::F16 => {
                    let keys = layer.keys.as_mut_ptr().cast::<u16>().add(key_at);
                    let values = layer.values.as_mut_ptr().cast::<u16>().add(value_at);
                    for first in (0..dim).step_by(WIDTH) {
                        let count = WIDTH.min(dim - first);
                        let rounded = half_lanes::<L>(&k[first..][..count]);
                        for (d, bits) in rounded[..count].iter().enumerate() {
                            *keys.add((first + d) * BLOCK) = *bits;
                        }
                        let rounded = half_lanes::<L>(&v[first..][..count]);
                        values
                            .add(first)
                            .copy_from_nonoverlapping(rounded.as_ptr(), count);
                    }
                }
            }
        }
    }
}

/// Up to 16 numbers rounded to f16 bits.
#[inline(always)]
unsafe fn half_lanes<L: Lanes>(x: &[f32]) -> [u16; WIDTH] {
    let (mut lanes, mut bits) = ([0f32; WIDTH], [0u16; WIDTH]);
    lanes[..x.len()].copy_from_slice(x);
    // SAFETY: see [`Lanes`]; both arrays have 16 elements.
    unsafe { L::load(lanes.as_ptr()).store_f16(bits.as_mut_ptr()) };
    bits
}
