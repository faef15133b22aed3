//! Keys and values on their way to the cache.

use super::dispatch::per_isa;
use super::elementwise::{ELEMENT_WORK, rope_row};
use super::lanes::{Lanes, WIDTH};
use super::{Kernels, SendPtr};
use crate::attention::{BLOCK, KvDtype, KvLayer};
use crate::rope::RopeTable;
use half::f16;

/// A layer's memory, as tasks write to it.
#[derive(Clone, Copy)]
struct Cache {
    keys: SendPtr<u8>,
    values: SendPtr<u8>,
    dtype: KvDtype,
    kv_heads: usize,
    dim: usize,
}

/// Where one head of a key or a value is written to.
#[derive(Clone, Copy)]
struct Place {
    /// The first number of the layer.
    first: *mut u8,
    dtype: KvDtype,
    /// The index of the head's first number at a slot, and how far it is from one number to the next.
    at: usize,
    step: usize,
}

impl Cache {
    fn new(layer: &mut KvLayer) -> Cache {
        Cache {
            keys: SendPtr(layer.keys.as_mut_ptr()),
            values: SendPtr(layer.values.as_mut_ptr()),
            dtype: layer.dtype(),
            kv_heads: layer.kv_heads(),
            dim: layer.dim(),
        }
    }

    /// Where a head of the key and of the value at a slot lie, as [`crate::attention`] says.
    fn places(self, slot: u32, head: usize) -> (Place, Place) {
        let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
        let start = (block * self.kv_heads + head) * BLOCK * self.dim;
        let keys = Place {
            first: self.keys.get(),
            dtype: self.dtype,
            at: start + offset,
            step: BLOCK,
        };
        let values = Place {
            first: self.values.get(),
            at: start + offset * self.dim,
            step: 1,
            ..keys
        };
        (keys, values)
    }
}

/// Queries, keys and values of some tokens, `tokens x heads x dim`, and where they belong.
pub struct Tokens<'a> {
    /// Turned in place.
    pub q: &'a mut [f32],
    /// Turned in place, then stored.
    pub k: &'a mut [f32],
    /// Stored.
    pub v: &'a [f32],
    /// Position of each token.
    pub positions: &'a [u32],
    /// Slot id of each token.
    pub slots: &'a [u32],
}

impl Kernels {
    /// Stores the key and value rows (`kv_heads * dim` each) of `slots.len()` tokens at their slot ids
    /// (`block * BLOCK + offset`), rounded to the layer's dtype.
    ///
    /// Panics on a slot outside the layer or on rows of another length.
    pub fn write_kv(&self, layer: &mut KvLayer, k: &[f32], v: &[f32], slots: &[u32]) {
        let width = check(layer, k, v, slots);
        let (dim, cache) = (layer.dim(), Cache::new(layer));
        for (row, slot) in slots.iter().enumerate() {
            for head in 0..cache.kv_heads {
                let head_of = |x: &'_ [f32]| x[row * width + head * dim..].as_ptr();
                let (keys, values) = cache.places(*slot, head);
                // SAFETY: the slot is within the layer, and a head has `dim` numbers.
                unsafe {
                    write_head(self.isa, head_of(k), dim, keys);
                    write_head(self.isa, head_of(v), dim, values);
                }
            }
        }
    }

    /// [`Kernels::rope`] of queries and keys, then [`Kernels::write_kv`], head by head.
    ///
    /// Panics as those do, and if `q` is not a multiple of `k`.
    pub fn rope_and_write(&self, layer: &mut KvLayer, tokens: Tokens<'_>, table: &RopeTable) {
        let Tokens {
            q,
            k,
            v,
            positions,
            slots,
        } = tokens;
        let (width, dim, kv_heads) = (check(layer, k, v, slots), layer.dim(), layer.kv_heads());
        let (rows, pairs) = (slots.len(), table.pairs());
        assert_eq!(positions.len(), rows);
        assert!(2 * pairs <= dim, "{pairs} pairs in a head of {dim}");
        assert!(
            k.is_empty() || q.len().is_multiple_of(k.len()),
            "{} by {}",
            q.len(),
            k.len()
        );
        let group = q.len().checked_div(k.len()).unwrap_or(0);
        let (q, k) = (SendPtr(q.as_mut_ptr()), SendPtr(k.as_mut_ptr()));
        let cache = Cache::new(layer);
        // A task has all tokens of a head, so that no two write the same slot whatever the ids are.
        let parts = 2 * kv_heads;
        let tasks = self.split(parts, rows * (group + 2) * width * ELEMENT_WORK);
        self.pool.run(tasks, &|task| {
            for part in parts * task / tasks..parts * (task + 1) / tasks {
                let head = part / 2;
                for (row, slot) in slots.iter().enumerate() {
                    let (cos, sin) = table.at(positions[row]);
                    let at = row * width + head * dim;
                    let (keys, values) = cache.places(*slot, head);
                    // SAFETY: the head and its group of query heads are within the rows, the slot is within the
                    // layer, and only this task touches them.
                    unsafe {
                        if part % 2 == 0 {
                            let k = std::slice::from_raw_parts_mut(k.get().add(at), dim);
                            rope_row(self.isa, k, dim, cos, sin, table.style());
                            write_head(self.isa, k.as_ptr(), dim, keys);
                        } else {
                            let q = q.get().add(group * at);
                            let q = std::slice::from_raw_parts_mut(q, group * dim);
                            rope_row(self.isa, q, dim, cos, sin, table.style());
                            write_head(self.isa, v[at..].as_ptr(), dim, values);
                        }
                    }
                }
            }
        });
    }
}

/// The width of a row of keys. Panics on a slot outside the layer or on rows of another length.
fn check(layer: &KvLayer, k: &[f32], v: &[f32], slots: &[u32]) -> usize {
    let width = layer.kv_heads() * layer.dim();
    assert_eq!(
        (k.len(), v.len()),
        (slots.len() * width, slots.len() * width)
    );
    for slot in slots {
        let inside = (*slot as usize) < layer.blocks() * BLOCK;
        assert!(inside, "slot {slot} is outside the cache");
    }
    width
}

per_isa! {
    /// Stores `dim` numbers.
    unsafe fn write_head = write_head_of(x: *const f32, dim: usize, to: Place);
}

/// # Safety
/// See [`Lanes`]; `x` has `dim` numbers, and the place has room for them that nobody else uses.
#[inline(always)]
unsafe fn write_head_of<L: Lanes>(x: *const f32, dim: usize, to: Place) {
    // SAFETY: by the caller's word.
    unsafe {
        if to.dtype == KvDtype::F32 {
            let first = to.first.cast::<f32>().add(to.at);
            (0..dim).for_each(|d| *first.add(d * to.step) = *x.add(d));
            return;
        }
        let first = to.first.cast::<u16>().add(to.at);
        let whole = dim / WIDTH * WIDTH;
        for d in (0..whole).step_by(WIDTH) {
            let numbers = L::load(x.add(d));
            if to.step == 1 {
                numbers.store_f16(first.add(d));
                continue;
            }
            let mut bits = [0u16; WIDTH];
            numbers.store_f16(bits.as_mut_ptr());
            for (i, bits) in bits.iter().enumerate() {
                *first.add((d + i) * to.step) = *bits;
            }
        }
        for d in whole..dim {
            *first.add(d * to.step) = f16::from_f32(*x.add(d)).to_bits();
        }
    }
}
