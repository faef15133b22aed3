//! Every op, on every instruction set of this processor, against the reference: the bits are equal.

mod support;

use conclave_kernels::{
    Activation, AttnPlan, Isa, KvDtype, PackedMatrix, PostNorm, RopeStyle, RopeTable, Routing,
    Scratch, SeqSpan, WeightType, reference,
};
use half::f16;
use proptest::prelude::*;
use support::{Random, assert_same_bits, backends, paged};

fn check_matmul(ty: WeightType, act: Activation, m: usize, n: usize, blocks: usize, seed: u64) {
    let k = if ty.is_float() {
        blocks * 32 + seed as usize % 7
    } else {
        blocks * ty.block_len()
    };
    let mut random = Random::new(seed);
    let (w, x) = (random.weights(ty, n, k), random.floats(m * k));
    let mut expected = vec![0.0; m * n];
    if act == Activation::Int8 && !ty.is_float() {
        reference::matmul_int8(ty, &w, n, k, &x, m, &mut expected);
    } else {
        reference::matmul_f32(ty, &w, n, k, &x, m, &mut expected);
    }
    for kernels in backends(2) {
        let packed = PackedMatrix::pack(ty, &w, n, k, act, kernels.isa()).expect("shapes fit");
        let mut out = vec![f32::NAN; m * n];
        kernels.qmatmul(&packed, &x, m, &mut out, &mut Scratch::new());
        let what = format!(
            "{} {} {} m={m} n={n} k={k}",
            ty.name(),
            act.name(),
            kernels.isa()
        );
        assert_same_bits(&out, &expected, &what);
    }
}

#[test]
fn matmul_of_every_type_equals_the_reference() {
    for ty in WeightType::ALL {
        for act in [Activation::Int8, Activation::F32] {
            for m in [1, 2, 3, 4, 7, 8, 13] {
                check_matmul(ty, act, m, 35, 3, m as u64);
            }
        }
    }
}

#[test]
fn products_large_enough_for_many_tasks_equal_the_reference() {
    for ty in [WeightType::Q4_1, WeightType::Q8_0, WeightType::Bf16] {
        for m in [1, 9] {
            check_matmul(ty, Activation::Int8, m, 1000, 18, 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn matmul_of_any_shape_equals_the_reference(
        ty in prop::sample::select(&WeightType::ALL[..]),
        int8 in any::<bool>(),
        m in 1usize..20,
        n in 1usize..70,
        blocks in 1usize..6,
        seed in any::<u64>(),
    ) {
        let act = if int8 { Activation::Int8 } else { Activation::F32 };
        check_matmul(ty, act, m, n, blocks, seed);
    }
}

#[test]
fn packed_rows_dequantize_exactly() {
    for ty in WeightType::ALL {
        let (n, k) = (19, 512);
        let w = Random::new(7).weights(ty, n, k);
        let packed =
            PackedMatrix::pack(ty, &w, n, k, Activation::Int8, Isa::Portable).expect("shapes fit");
        for row in 0..n {
            let (mut actual, mut expected) = (vec![0.0; k], vec![0.0; k]);
            packed.dequantize_row(row, &mut actual);
            reference::dequantize_row(ty, &w[row * ty.row_bytes(k)..], &mut expected);
            assert_same_bits(&actual, &expected, ty.name());
        }
    }
}

#[test]
fn largest_weights_and_inputs_do_not_overflow_narrow_sums() {
    for ty in WeightType::ALL.into_iter().filter(|ty| !ty.is_float()) {
        for byte in [0x00, 0xFF, 0x80, 0x7F] {
            let (n, k) = (16, 256);
            let mut w = vec![byte; n * ty.row_bytes(k)];
            for block in w.chunks_exact_mut(ty.block_bytes()) {
                let one = f16::ONE.to_le_bytes();
                let at = if ty == WeightType::Q6K { 208 } else { 0 };
                block[at..at + 2].copy_from_slice(&one);
                if matches!(ty.block_bytes(), 20 | 24 | 144 | 176) {
                    block[2..4].copy_from_slice(&one);
                }
            }
            for x in [1.0, -1.0] {
                let x = vec![x; k];
                let mut expected = vec![0.0; n];
                reference::matmul_int8(ty, &w, n, k, &x, 1, &mut expected);
                for kernels in backends(1) {
                    let packed = PackedMatrix::pack(ty, &w, n, k, Activation::Int8, kernels.isa());
                    let mut out = vec![0.0; n];
                    let packed = packed.expect("shapes fit");
                    kernels.qmatmul(&packed, &x, 1, &mut out, &mut Scratch::new());
                    assert_same_bits(&out, &expected, &format!("{} {byte:#x}", ty.name()));
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
struct AttnCase {
    dtype: KvDtype,
    kv_heads: usize,
    group: usize,
    dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    /// Per sequence: stored slots, queries among them.
    seqs: Vec<(usize, usize)>,
    seed: u64,
}

fn attn_case() -> impl Strategy<Value = AttnCase> {
    let seq = (1usize..700).prop_flat_map(|kv| (Just(kv), 1..=kv.min(20)));
    (
        prop::sample::select(vec![KvDtype::F32, KvDtype::F16]),
        1usize..4,
        1usize..7,
        prop::sample::select(vec![1usize, 8, 24, 33, 64, 80, 128]),
        prop::option::of(1usize..400),
        prop::option::of(1f32..50.0),
        prop::collection::vec(seq, 1..4),
        any::<u64>(),
    )
        .prop_map(
            |(dtype, kv_heads, group, dim, window, softcap, seqs, seed)| AttnCase {
                dtype,
                kv_heads,
                group,
                dim,
                window,
                softcap,
                seqs,
                seed,
            },
        )
}

fn check_attention(case: &AttnCase) {
    let (heads, dim) = (case.kv_heads * case.group, case.dim);
    let lengths: Vec<usize> = case.seqs.iter().map(|s| s.0).collect();
    let rows: usize = case.seqs.iter().map(|s| s.1).sum();
    for kernels in backends(2) {
        let mut random = Random::new(case.seed);
        let cache = paged(
            &kernels,
            &lengths,
            case.kv_heads,
            dim,
            case.dtype,
            &mut random,
        );
        let q = random.floats(rows * heads * dim);
        let mut q_start = 0;
        let seqs: Vec<SeqSpan> = case
            .seqs
            .iter()
            .zip(&cache.tables)
            .map(|(&(kv_len, q_len), block_table)| {
                q_start += q_len;
                SeqSpan {
                    q_start: q_start - q_len,
                    q_len,
                    kv_len,
                    block_table,
                    shared_blocks: 0,
                }
            })
            .collect();
        let plan = AttnPlan {
            heads,
            kv_heads: case.kv_heads,
            dim,
            scale: (dim as f32).sqrt().recip(),
            window: case.window,
            softcap: case.softcap,
            seqs: &seqs,
        };
        let (mut out, mut expected) = (vec![f32::NAN; q.len()], vec![0.0; q.len()]);
        kernels.paged_attention(&q, &cache.layer, &plan, &mut out, &mut Scratch::new());
        reference::paged_attention(&q, &cache.layer, &plan, &mut expected);
        assert!(
            expected.iter().all(|v| v.is_finite()),
            "unused slots were read"
        );
        assert_same_bits(&out, &expected, &format!("{} {case:?}", kernels.isa()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attention_of_any_shape_equals_the_reference(case in attn_case()) {
        check_attention(&case);
    }

    #[test]
    fn elementwise_ops_of_any_length_equal_the_reference(
        rows in 1usize..40,
        width in 1usize..700,
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let (x, y) = (random.floats(rows * width), random.floats(rows * width));
        let gate: Vec<f32> = x.iter().map(|v| v * 30.0).collect();
        let weight = random.floats(width);
        for kernels in backends(2) {
            let (mut out, mut expected) = (vec![f32::NAN; x.len()], vec![0.0; x.len()]);
            kernels.rms_norm(&x, &weight, 1e-5, rows, &mut out);
            reference::rms_norm(&x, &weight, 1e-5, &mut expected);
            assert_same_bits(&out, &expected, "rms_norm");
            kernels.silu_mul(&gate, &y, &mut out);
            reference::silu_mul(&gate, &y, &mut expected);
            assert_same_bits(&out, &expected, "silu_mul");
            kernels.add(&mut out, &x);
            expected.iter_mut().zip(&x).for_each(|(e, x)| *e += x);
            assert_same_bits(&out, &expected, "add");
        }
    }

    #[test]
    fn ops_before_the_stream_of_any_length_equal_the_reference(
        rows in 1usize..40,
        width in 1usize..700,
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let (x, y) = (random.floats(rows * width), random.floats(rows * width));
        let gate: Vec<f32> = y.iter().map(|v| v * 30.0).collect();
        let [before, weight, keep] = [0; 3].map(|_| random.floats(width));
        let norm = PostNorm { before: &before, eps: 1e-8, weight: &weight, keep: &keep };
        for kernels in backends(2) {
            let (mut out, mut expected) = (x.clone(), x.clone());
            kernels.sigmoid_mul(&mut out, &gate);
            reference::sigmoid_mul(&mut expected, &gate);
            assert_same_bits(&out, &expected, "sigmoid_mul");
            kernels.add_normed(&mut out, &y, &norm, rows);
            reference::add_normed(&mut expected, &y, &norm);
            assert_same_bits(&out, &expected, "add_normed");
            kernels.cap_logits(&mut out, 0.7, 20.0);
            reference::cap_logits(&mut expected, 0.7, 20.0);
            assert_same_bits(&out, &expected, "cap_logits");
        }
    }

    #[test]
    fn experts_of_any_number_equal_the_reference(
        rows in 1usize..20,
        experts in 1usize..70,
        part in 0f64..1.0,
        width in 1usize..100,
        ties in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let chosen = 1 + (part * (experts - 1) as f64) as usize;
        let mut random = Random::new(seed);
        let mut logits: Vec<f32> = random.floats(rows * experts);
        if ties {
            logits.iter_mut().for_each(|v| *v = v.round());
        }
        let bias = if ties { vec![0.0; experts] } else { random.floats(experts) };
        let routing = Routing { bias: &bias, chosen, multiplier: 3.0, scale: 1.5 };
        let numbers = rows * chosen;
        let (mut which, mut shares) = (vec![0; numbers], vec![0.0; numbers]);
        reference::route(&logits, &routing, &mut which, &mut shares);
        prop_assert!(which.chunks(chosen).all(|row| row.is_sorted_by(|a, b| a < b)));
        let (x, y) = (random.floats(rows * width), random.floats(numbers * width));
        let [before, weight, keep] = [0; 3].map(|_| random.floats(width));
        let norm = PostNorm { before: &before, eps: 1e-8, weight: &weight, keep: &keep };
        let places: Vec<u32> = (0..numbers as u32).rev().collect();
        let mut expected = x.clone();
        reference::add_experts(&mut expected, &y, &norm, &places, &shares, chosen);
        for kernels in backends(2) {
            let (mut ours, mut our_shares) = (vec![u32::MAX; numbers], vec![f32::NAN; numbers]);
            kernels.route(&mut logits.clone(), &routing, &mut ours, &mut our_shares);
            prop_assert_eq!(&ours, &which);
            assert_same_bits(&our_shares, &shares, "shares");
            let mut out = x.clone();
            kernels.add_experts(&mut out, &y, &norm, &places, &shares, chosen);
            assert_same_bits(&out, &expected, "add_experts");
        }
    }

    #[test]
    fn rope_of_any_shape_equals_the_reference(
        rows in 1usize..60,
        heads in 1usize..12,
        half in 1usize..40,
        rest in 0usize..5,
        neox in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let style = if neox { RopeStyle::Neox } else { RopeStyle::Interleaved };
        let table = RopeTable::new(2 * half, 10_000.0, 512, style);
        let (mut random, dim) = (Random::new(seed), 2 * half + rest);
        let x = random.floats(rows * heads * dim);
        let positions: Vec<u32> = (0..rows).map(|_| random.below(512) as u32).collect();
        let mut expected = x.clone();
        reference::rope(&mut expected, &positions, heads, dim, &table);
        for kernels in backends(2) {
            let mut out = x.clone();
            kernels.rope(&mut out, &positions, heads, dim, &table);
            assert_same_bits(&out, &expected, "rope");
        }
    }
}

#[test]
fn the_highest_of_score_and_bias_are_chosen_and_only_scores_weigh() {
    let logits = [0.0, 2.0, 1.0, 2.0];
    let route = |bias: &[f32], chosen| {
        let (mut experts, mut shares) = (vec![0; chosen], vec![0.0; chosen]);
        let routing = Routing {
            bias,
            chosen,
            multiplier: 1.0,
            scale: 1.0,
        };
        reference::route(&logits, &routing, &mut experts, &mut shares);
        (experts, shares)
    };
    assert_eq!(
        route(&[0.0; 4], 1),
        (vec![1], vec![1.0]),
        "the lowest of equals"
    );
    assert_eq!(route(&[0.0; 4], 3).0, [1, 2, 3]);
    let (experts, shares) = route(&[1.0, 0.0, 0.0, 0.0], 2);
    assert_eq!(experts, [0, 1]);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let expected = 0.5 / (0.5 + sigmoid(2.0));
    assert!((f64::from(shares[0]) - expected).abs() < 1e-6, "{shares:?}");
}

#[test]
fn f16_cache_rounds_to_nearest_even_and_reads_back() {
    for kernels in backends(1) {
        let mut random = Random::new(3);
        let (kv_heads, dim) = (2, 20);
        let mut cache = paged(&kernels, &[40], kv_heads, dim, KvDtype::F16, &mut random);
        let (k, v) = (random.floats(kv_heads * dim), random.floats(kv_heads * dim));
        let slot = cache.tables[0][1] * 16 + 5;
        kernels.write_kv(&mut cache.layer, &k, &v, &[slot]);
        let round =
            |x: &[f32]| -> Vec<f32> { x.iter().map(|v| f16::from_f32(*v).to_f32()).collect() };
        for head in 0..kv_heads {
            let (mut k_read, mut v_read) = (vec![0.0; dim], vec![0.0; dim]);
            cache.layer.read_slot(slot, head, &mut k_read, &mut v_read);
            assert_eq!(k_read, round(&k[head * dim..][..dim]));
            assert_eq!(v_read, round(&v[head * dim..][..dim]));
        }
    }
}
