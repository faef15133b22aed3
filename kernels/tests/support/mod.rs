//! Random inputs for the kernel tests, the same in every run.

#![allow(dead_code, reason = "each test binary uses a part")]

use conclave_kernels::{BLOCK, Isa, Kernels, KvDtype, KvLayer, Pool, WeightType};
use half::f16;

/// xorshift64*: the tests need variety, not quality.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    /// Within -1..1, with an outlier now and then.
    pub fn float(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        if self.below(64) == 0 {
            unit * 20.0
        } else {
            unit
        }
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// Weights as they could lie in a file: random bits, scales and minima of a sane size.
    pub fn weights(&mut self, ty: WeightType, n: usize, k: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..n * ty.row_bytes(k))
            .map(|_| self.next() as u8)
            .collect();
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            let mut put = |at: usize| {
                let value = f16::from_f32(self.float() * 0.05);
                block[at..at + 2].copy_from_slice(&value.to_le_bytes());
            };
            match ty {
                WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 | WeightType::F16 => put(0),
                WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
                    put(0);
                    put(2);
                }
                WeightType::Q6K => put(208),
                WeightType::Bf16 => {
                    let bits = self.float().to_bits().to_le_bytes();
                    block.copy_from_slice(&bits[2..]);
                }
                WeightType::F32 => {
                    let value = self.float().to_le_bytes();
                    block.copy_from_slice(&value);
                }
            }
        }
        bytes
    }
}

/// Kernels of every instruction set this processor has.
pub fn backends(threads: usize) -> Vec<Kernels> {
    let pool = Pool::new(threads);
    let available = Isa::ALL.into_iter().filter(|isa| isa.available());
    available
        .map(|isa| Kernels::new(isa, pool.clone()))
        .collect()
}

/// Panics at the first difference in bits; a NaN equals a NaN.
pub fn assert_same_bits(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            a.to_bits() == e.to_bits() || a.is_nan() && e.is_nan(),
            "{what}: [{i}] {a} != {e}"
        );
    }
}

/// A layer with random keys and values of a few sequences, their blocks scattered over it.
pub struct Paged {
    pub layer: KvLayer,
    pub tables: Vec<Vec<u32>>,
}

/// Fills a layer with sequences of the given lengths; unused slots hold NaN.
pub fn paged(
    kernels: &Kernels,
    lengths: &[usize],
    kv_heads: usize,
    dim: usize,
    dtype: KvDtype,
    random: &mut Random,
) -> Paged {
    let alone = vec![0; lengths.len()];
    planted(kernels, lengths, &alone, kv_heads, dim, dtype, random)
}

/// As [`paged`], but sequence `i` has its first `shared[i]` blocks in common with the one before it.
pub fn planted(
    kernels: &Kernels,
    lengths: &[usize],
    shared: &[usize],
    kv_heads: usize,
    dim: usize,
    dtype: KvDtype,
    random: &mut Random,
) -> Paged {
    let needed: usize = lengths.iter().map(|l| l.div_ceil(BLOCK)).sum();
    let mut free: Vec<u32> = (0..needed as u32 + 3).collect();
    let mut layer = KvLayer::new(free.len(), kv_heads, dim, dtype);
    let width = kv_heads * dim;
    let all: Vec<u32> = (0..(free.len() * BLOCK) as u32).collect();
    let garbage = vec![f32::NAN; all.len() * width];
    kernels.write_kv(&mut layer, &garbage, &garbage, &all);
    let mut tables: Vec<Vec<u32>> = Vec::new();
    for (&length, &shared) in lengths.iter().zip(shared) {
        let mut table = tables.last().map_or(Vec::new(), |t| t[..shared].to_vec());
        let take = |_| free.swap_remove(random.below(free.len()));
        table.extend((shared..length.div_ceil(BLOCK)).map(take));
        let slot = |i: usize| table[i / BLOCK] * BLOCK as u32 + (i % BLOCK) as u32;
        let slots: Vec<u32> = (shared * BLOCK..length).map(slot).collect();
        let mut floats = || random.floats(slots.len() * width);
        let (k, v) = (floats(), floats());
        kernels.write_kv(&mut layer, &k, &v, &slots);
        tables.push(table);
    }
    Paged { layer, tables }
}
