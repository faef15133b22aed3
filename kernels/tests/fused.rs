//! Ops that do several things in one give the bits of those things one after another, on every instruction set.

mod support;

use conclave_kernels::{
    Activation, AttnPlan, BLOCK, Inputs, Kernels, KvDtype, KvLayer, Norm, PackedMatrix, Product,
    RopeStyle, RopeTable, Scratch, SeqSpan, Tokens, WeightType,
};
use proptest::prelude::*;
use support::{Random, assert_same_bits, backends, paged};

fn pack(ty: WeightType, n: usize, k: usize, random: &mut Random, to: &Kernels) -> PackedMatrix {
    let bytes = random.weights(ty, n, k);
    PackedMatrix::pack(ty, &bytes, n, k, Activation::Int8, to.isa()).expect("shapes fit")
}

/// The gated half for the product `down`.
fn gated<'o>(
    kernels: &Kernels,
    [gate, up, down]: [&PackedMatrix; 3],
    x: &[f32],
    inner: &'o mut [f32],
    scratch: &mut Scratch,
) -> Inputs<'o> {
    let (m, weight) = (x.len() / gate.k(), vec![0.5; gate.k()]);
    let (mut a, mut b, mut out) = (inner.to_vec(), inner.to_vec(), x.to_vec());
    let products = [
        Product {
            weights: gate,
            out: &mut a,
        },
        Product {
            weights: up,
            out: &mut b,
        },
    ];
    let norm = Norm {
        x,
        weight: &weight,
        eps: 1e-5,
        out: &mut out,
    };
    kernels.gated(products, norm, m, inner, Some(down), scratch)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_with_norm_activation_and_sum_equal_the_ops_one_by_one(
        ty in prop::sample::select(&WeightType::ALL[..]),
        m in 1usize..40,
        n in 1usize..300,
        seed in any::<u64>(),
    ) {
        let (k, scratch) = (512, &mut Scratch::new());
        for kernels in backends(2) {
            let mut random = Random::new(seed);
            let [gate, up] = [0, 1].map(|_| pack(ty, n, k, &mut random, &kernels));
            let (x, weight) = (random.floats(m * k), random.floats(k));
            let mut stream = random.floats(m * n);
            let mut expected_stream = stream.clone();
            let zeros = || vec![0.0; m * n];
            let (mut normed, mut a, mut b, mut inner) =
                (vec![0.0; m * k], zeros(), zeros(), zeros());
            kernels.rms_norm(&x, &weight, 1e-5, m, &mut normed);
            kernels.qmatmul(&gate, &normed, m, &mut a, scratch);
            kernels.qmatmul(&up, &normed, m, &mut b, scratch);
            kernels.silu_mul(&a, &b, &mut inner);
            kernels.add(&mut expected_stream, &a);

            let (mut out, mut c, mut d, mut fused) =
                (vec![f32::NAN; m * k], zeros(), zeros(), zeros());
            let products = [
                Product { weights: &gate, out: &mut c },
                Product { weights: &up, out: &mut d },
            ];
            let norm = Norm { x: &x, weight: &weight, eps: 1e-5, out: &mut out };
            kernels.gated(products, norm, m, &mut fused, None, scratch);
            assert_same_bits(&fused, &inner, "gated");
            assert_same_bits(&out, &normed, "norm");
            let norm = Norm { x: &x, weight: &weight, eps: 1e-5, out: &mut out };
            let product = Product { weights: &up, out: &mut c };
            kernels.qmatmuls_normed([product], norm, m, scratch);
            assert_same_bits(&c, &b, "product of normed rows");
            kernels.qmatmul_add(&gate, &normed[..], m, &mut stream, scratch);
            assert_same_bits(&stream, &expected_stream, "sum");
        }
    }

    /// Also of inputs whose rounded form another op has overwritten since.
    #[test]
    fn a_product_of_rounded_results_equals_that_of_plain_ones(
        ty in prop::sample::select(&WeightType::ALL[..]),
        m in 1usize..20,
        seed in any::<u64>(),
    ) {
        let (k, n, scratch) = (256, 512, &mut Scratch::new());
        for kernels in backends(2) {
            let mut random = Random::new(seed);
            let [gate, up] = [0, 1].map(|_| pack(ty, n, k, &mut random, &kernels));
            let down = pack(ty, 40, n, &mut random, &kernels);
            let matrices = [&gate, &up, &down];
            let [mut a, mut b] = [0, 1].map(|_| vec![0.0; m * n]);
            let first = gated(&kernels, matrices, &random.floats(m * k), &mut a, scratch);
            let second = gated(&kernels, matrices, &random.floats(m * k), &mut b, scratch);
            for inner in [second, first] {
                let (mut plain, mut rounded) = (vec![0.5; m * 40], vec![0.5; m * 40]);
                kernels.qmatmul_add(&down, inner, m, &mut rounded, scratch);
                kernels.qmatmul_add(&down, inner.numbers(), m, &mut plain, &mut Scratch::new());
                assert_same_bits(&rounded, &plain, "product");
            }
        }
    }

    #[test]
    fn a_product_of_attention_equals_that_of_its_plain_results(
        kv_heads in 1usize..4,
        group in 1usize..4,
        rows in 1usize..9,
        seed in any::<u64>(),
    ) {
        let (dim, heads, scratch) = (32, kv_heads * group, &mut Scratch::new());
        for kernels in backends(2) {
            let mut random = Random::new(seed);
            let lengths: Vec<usize> = (0..rows).map(|_| 1 + random.below(300)).collect();
            let cache = paged(&kernels, &lengths, kv_heads, dim, KvDtype::F16, &mut random);
            let seqs: Vec<SeqSpan<'_>> = lengths.iter().zip(&cache.tables).enumerate().map(
                |(row, (kv_len, block_table))| SeqSpan {
                    q_start: row,
                    q_len: 1,
                    kv_len: *kv_len,
                    block_table,
                    shared_blocks: 0,
                },
            ).collect();
            let plan = AttnPlan {
                heads, kv_heads, dim, scale: 0.2, window: None, softcap: None, seqs: &seqs,
            };
            let (width, q) = (heads * dim, random.floats(rows * heads * dim));
            let o = pack(WeightType::Q4_1, 48, width, &mut random, &kernels);
            let (mut a, mut b) = (vec![0.0; rows * width], vec![0.0; rows * width]);
            let inputs = kernels.paged_attention_for(&q, &cache.layer, &plan, &mut a, Some(&o), scratch);
            let (mut plain, mut rounded) = (vec![0.5; rows * 48], vec![0.5; rows * 48]);
            kernels.qmatmul_add(&o, inputs, rows, &mut rounded, scratch);
            kernels.paged_attention(&q, &cache.layer, &plan, &mut b, &mut Scratch::new());
            kernels.qmatmul_add(&o, &b[..], rows, &mut plain, &mut Scratch::new());
            assert_same_bits(&a, &b, "attention");
            assert_same_bits(&rounded, &plain, "product");
        }
    }

    #[test]
    fn queries_keys_and_values_are_those_of_the_ops_one_by_one(
        rows in 1usize..40,
        kv_heads in 1usize..4,
        group in 1usize..4,
        dim in prop::sample::select(&[16usize, 24, 64][..]),
        threads in 1usize..6,
        seed in any::<u64>(),
    ) {
        let (k, scratch, width) = (64, &mut Scratch::new(), kv_heads * dim);
        let table = RopeTable::new(dim, 10_000.0, 100, RopeStyle::Interleaved);
        for kernels in backends(threads) {
            let mut random = Random::new(seed);
            let weights = [width * group, width, width]
                .map(|n| pack(WeightType::Q4_1, n, k, &mut random, &kernels));
            let (x, weight) = (random.floats(rows * k), random.floats(k));
            let positions: Vec<u32> = (0..rows).map(|_| random.below(100) as u32).collect();
            let slots: Vec<u32> = (0..rows).map(|row| (row * 37 % (8 * BLOCK)) as u32).collect();
            let run = |at_once: bool, layer: &mut KvLayer, scratch: &mut Scratch| {
                let mut out = [width * group, width, width].map(|n| vec![0.0; rows * n]);
                let mut normed = vec![0.0; rows * k];
                let norm = Norm { x: &x, weight: &weight, eps: 1e-5, out: &mut normed };
                let [q, k, v] = &mut out;
                if !at_once {
                    let products = [(&weights[0], &mut *q), (&weights[1], &mut *k), (&weights[2], &mut *v)]
                        .map(|(weights, out)| Product { weights, out });
                    kernels.qmatmuls_normed(products, norm, rows, scratch);
                    let tokens = Tokens { q, k, v, positions: &positions, slots: &slots };
                    kernels.rope_and_write(layer, tokens, &table);
                } else {
                    let tokens = Tokens { q, k, v, positions: &positions, slots: &slots };
                    kernels.project(weights.each_ref(), norm, tokens, layer, &table, scratch);
                }
                out
            };
            let mut layers = [0, 1].map(|_| KvLayer::new(8, kv_heads, dim, KvDtype::F16));
            let [first, second] = &mut layers;
            let (expected, actual) = (run(false, first, scratch), run(true, second, scratch));
            assert_same_bits(&actual.concat(), &expected.concat(), "q, k, v");
            for slot in slots {
                for head in 0..kv_heads {
                    let [one, other] = layers.each_ref().map(|layer| {
                        let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
                        layer.read_slot(slot, head, &mut key, &mut value);
                        [key, value].concat()
                    });
                    assert_same_bits(&one, &other, "cache");
                }
            }
        }
    }

    #[test]
    fn tokens_are_turned_and_stored_as_by_two_ops(
        rows in 1usize..50,
        kv_heads in 1usize..5,
        group in 1usize..4,
        half in 1usize..40,
        f16 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (dim, blocks) = (2 * half + seed as usize % 2, 8);
        let dtype = if f16 { KvDtype::F16 } else { KvDtype::F32 };
        let style = if seed % 3 == 0 { RopeStyle::Neox } else { RopeStyle::Interleaved };
        let table = RopeTable::new(2 * half, 10_000.0, 100, style);
        for kernels in backends(3) {
            let mut random = Random::new(seed);
            let width = kv_heads * dim;
            let (mut q, mut k) = (random.floats(rows * width * group), random.floats(rows * width));
            let mut v = random.floats(rows * width);
            let positions: Vec<u32> = (0..rows).map(|_| random.below(100) as u32).collect();
            let slots: Vec<u32> = (0..rows).map(|row| (row * 37 % (blocks * BLOCK)) as u32).collect();
            let mut layers = [0, 1].map(|_| KvLayer::new(blocks, kv_heads, dim, dtype));
            let (mut fused_q, mut fused_k) = (q.clone(), k.clone());
            kernels.rope(&mut q, &positions, kv_heads * group, dim, &table);
            kernels.rope(&mut k, &positions, kv_heads, dim, &table);
            kernels.write_kv(&mut layers[0], &k, &v, &slots);
            let tokens = Tokens {
                q: &mut fused_q,
                k: &mut fused_k,
                v: &mut v,
                positions: &positions,
                slots: &slots,
            };
            kernels.rope_and_write(&mut layers[1], tokens, &table);
            assert_same_bits(&fused_q, &q, "queries");
            assert_same_bits(&fused_k, &k, "keys");
            for slot in 0..(blocks * BLOCK) as u32 {
                for head in 0..kv_heads {
                    let [one, other] = [0, 1].map(|layer: usize| {
                        let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
                        layers[layer].read_slot(slot, head, &mut key, &mut value);
                        [key, value].concat()
                    });
                    assert_same_bits(&one, &other, "cache");
                }
            }
        }
    }
}
