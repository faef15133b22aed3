//! Keys and values on their way to the cache.

use super::dispatch::per_isa;
use super::elementwise::{ELEMENT_WORK, rope_row};
use super::lanes::{Lanes, WIDTH};
use super::{Kernels, SendPtr};
use crate::attention::{BLOCK, KvDtype, KvLayer};
use crate::isa::Isa;
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
    pub v: &'a mut [f32],
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
        let work = (tokens.q.len() + tokens.k.len() + tokens.v.len()) * ELEMENT_WORK;
        let placing = Placing::new(layer, tokens, table);
        let parts = placing.parts();
        let tasks = self.split(parts, work);
        self.pool.run(tasks, &|task| {
            for part in parts * task / tasks..parts * (task + 1) / tasks {
                // SAFETY: `Kernels::new` has checked the instruction set, and each part belongs to one task.
                unsafe { placing.place(self.isa, part) };
            }
        });
    }
}

/// Tokens on their way to the cache. A part is a head of all tokens, so that no two write the same slot whatever
/// the ids are: first those of queries, then those of keys, then those of values.
pub(super) struct Placing<'a> {
    cache: Cache,
    q: SendPtr<f32>,
    k: SendPtr<f32>,
    v: SendPtr<f32>,
    heads: usize,
    positions: &'a [u32],
    slots: &'a [u32],
    table: &'a RopeTable,
}

impl<'a> Placing<'a> {
    /// Panics on tokens that do not fit the layer or the table.
    pub(super) fn new(
        layer: &mut KvLayer,
        tokens: Tokens<'a>,
        table: &'a RopeTable,
    ) -> Placing<'a> {
        let Tokens {
            q,
            k,
            v,
            positions,
            slots,
        } = tokens;
        let (width, dim, pairs) = (check(layer, k, v, slots), layer.dim(), table.pairs());
        assert_eq!(positions.len(), slots.len());
        assert!(2 * pairs <= dim, "{pairs} pairs in a head of {dim}");
        assert!(
            q.len().is_multiple_of((slots.len() * width).max(1)),
            "{} by {}",
            q.len(),
            k.len()
        );
        Placing {
            cache: Cache::new(layer),
            heads: q.len() / (slots.len() * dim).max(1),
            q: SendPtr(q.as_mut_ptr()),
            k: SendPtr(k.as_mut_ptr()),
            v: SendPtr(v.as_mut_ptr()),
            positions,
            slots,
            table,
        }
    }

    /// Where queries, keys and values lie, and how many numbers they are.
    pub(super) fn numbers(&self) -> [(*mut f32, usize); 3] {
        let head = self.slots.len() * self.cache.dim;
        let (q, kv) = (head * self.heads, head * self.cache.kv_heads);
        [(self.q, q), (self.k, kv), (self.v, kv)].map(|(first, len)| (first.get(), len))
    }

    /// How many parts there are.
    pub(super) fn parts(&self) -> usize {
        self.heads + 2 * self.cache.kv_heads
    }

    /// Which of queries, keys and values a part is of, and which head of them.
    pub(super) fn part(&self, part: usize) -> (usize, usize) {
        match part.checked_sub(self.heads) {
            None => (0, part),
            Some(stored) => (
                1 + stored / self.cache.kv_heads,
                stored % self.cache.kv_heads,
            ),
        }
    }

    /// Turns a head of all tokens if it is one of queries or keys, and stores it if it is one of keys or values.
    ///
    /// # Safety
    /// The processor has `isa`; nobody else has the part.
    pub(super) unsafe fn place(&self, isa: Isa, part: usize) {
        let ((of, head), Cache { dim, kv_heads, .. }) = (self.part(part), self.cache);
        for (row, (slot, position)) in self.slots.iter().zip(self.positions).enumerate() {
            let (cos, sin) = self.table.at(*position);
            // SAFETY: the head is within the rows, the slot within the layer, and only this caller touches them.
            unsafe {
                let (first, heads) = match of {
                    0 => (self.q, self.heads),
                    1 => (self.k, kv_heads),
                    _ => (self.v, kv_heads),
                };
                let x = first.get().add((row * heads + head) * dim);
                if of < 2 {
                    let x = std::slice::from_raw_parts_mut(x, dim);
                    rope_row(isa, x, dim, cos, sin, self.table.style());
                }
                let (keys, values) = self.cache.places(*slot, head % kv_heads);
                match of {
                    0 => (),
                    1 => write_head(isa, x, dim, keys),
                    _ => write_head(isa, x, dim, values),
                }
            }
        }
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
