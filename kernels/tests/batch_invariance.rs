//! The law that replay and failover rest on: a row's bits depend on that row only, whatever shares the call.

mod support;

use conclave_kernels::{
    Activation, AttnPlan, BLOCK, KvDtype, PackedMatrix, Product, Scratch, SeqSpan, WeightType,
    reference,
};
use proptest::prelude::*;
use support::{Random, assert_same_bits, backends, paged, planted};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn matmul_rows_are_the_same_alone_and_in_any_company(
        ty in prop::sample::select(&WeightType::ALL[..]),
        int8 in any::<bool>(),
        m in 2usize..150,
        start in 0usize..150,
        count in 1usize..40,
        seed in any::<u64>(),
    ) {
        let (n, k) = (150, 512);
        let mut random = Random::new(seed);
        let (w, x) = (random.weights(ty, n, k), random.floats(m * k));
        let act = if int8 { Activation::Int8 } else { Activation::F32 };
        let (start, scratch) = (start % m, &mut Scratch::new());
        let count = count.min(m - start);
        for kernels in backends(2) {
            let packed = PackedMatrix::pack(ty, &w, n, k, act, kernels.isa()).expect("shapes fit");
            let mut all = vec![0.0; m * n];
            kernels.qmatmul(&packed, &x, m, &mut all, scratch);
            let mut some = vec![0.0; count * n];
            kernels.qmatmul(&packed, &x[start * k..][..count * k], count, &mut some, scratch);
            assert_same_bits(&some, &all[start * n..][..count * n], "rows in other company");
        }
    }

    #[test]
    fn products_handed_out_together_equal_those_alone(m in 1usize..20, seed in any::<u64>()) {
        let (sizes, k) = ([96, 40, 7], 576);
        let types = [WeightType::Q4_1, WeightType::Q8_0, WeightType::Bf16];
        let mut random = Random::new(seed);
        let x = random.floats(m * k);
        for kernels in backends(2) {
            let w: [PackedMatrix; 3] = std::array::from_fn(|i| {
                let bytes = random.weights(types[i], sizes[i], k);
                let isa = kernels.isa();
                PackedMatrix::pack(types[i], &bytes, sizes[i], k, Activation::Int8, isa)
                    .expect("shapes fit")
            });
            let mut together = sizes.map(|n| vec![0.0; m * n]);
            let [a, b, c] = &mut together;
            let products = [
                Product { weights: &w[0], out: a },
                Product { weights: &w[1], out: b },
                Product { weights: &w[2], out: c },
            ];
            kernels.qmatmuls(products, &x, m, &mut Scratch::new());
            for (w, together) in w.iter().zip(&together) {
                let mut alone = vec![0.0; m * w.n()];
                kernels.qmatmul(w, &x, m, &mut alone, &mut Scratch::new());
                assert_same_bits(together, &alone, "together");
            }
        }
    }

    #[test]
    fn queries_are_the_same_alone_in_chunks_and_beside_other_sequences(
        dtype in prop::sample::select(vec![KvDtype::F32, KvDtype::F16]),
        length in 1usize..900,
        queries in 1usize..60,
        chunk in 1usize..20,
        other in 1usize..600,
        window in prop::option::of(1usize..600),
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let (heads, kv_heads, dim) = (9, 3, 64);
        let (queries, width) = (queries.min(length), heads * dim);
        for kernels in backends(threads) {
            let mut random = Random::new(seed);
            let cache = paged(&kernels, &[length, other], kv_heads, dim, dtype, &mut random);
            let q = random.floats((queries + 1) * width);
            let run = |seqs: &[SeqSpan<'_>], q: &[f32]| {
                let plan =
                    AttnPlan { heads, kv_heads, dim, scale: 0.125, window, softcap: None, seqs };
                let mut out = vec![0.0; q.len()];
                kernels.paged_attention(q, &cache.layer, &plan, &mut out, &mut Scratch::new());
                out
            };
            let block_table = &cache.tables[0][..];
            let neighbour =
                SeqSpan { q_start: 0, q_len: 1, kv_len: other, block_table: &cache.tables[1], shared_blocks: 0 };
            let all = SeqSpan { q_start: 1, q_len: queries, kv_len: length, block_table, shared_blocks: 0 };
            let beside = run(&[neighbour, all], &q);
            for start in (0..queries).step_by(chunk) {
                let q_len = chunk.min(queries - start);
                let kv_len = length - queries + start + q_len;
                let seq = SeqSpan { q_start: 0, q_len, kv_len, block_table, shared_blocks: 0 };
                let rows = (1 + start) * width..(1 + start + q_len) * width;
                let chunked = run(&[seq], &q[rows.clone()]);
                assert_same_bits(&chunked, &beside[rows], "chunk");
            }
        }
    }
}

#[test]
fn long_contexts_split_by_span_give_the_same_bits_on_any_number_of_threads() {
    let (heads, kv_heads, dim, length) = (8, 2, 64, 5000);
    let results: Vec<Vec<f32>> = [1, 2, 5]
        .into_iter()
        .flat_map(backends)
        .map(|kernels| {
            let mut random = Random::new(11);
            let cache = paged(
                &kernels,
                &[length],
                kv_heads,
                dim,
                KvDtype::F16,
                &mut random,
            );
            let q = random.floats(heads * dim);
            let seqs = [SeqSpan {
                q_start: 0,
                q_len: 1,
                kv_len: length,
                block_table: &cache.tables[0],
                shared_blocks: 0,
            }];
            let plan = AttnPlan {
                heads,
                kv_heads,
                dim,
                scale: 0.125,
                window: None,
                softcap: None,
                seqs: &seqs,
            };
            let mut out = vec![0.0; q.len()];
            kernels.paged_attention(&q, &cache.layer, &plan, &mut out, &mut Scratch::new());
            out
        })
        .collect();
    for other in &results[1..] {
        assert_same_bits(other, &results[0], "threads and instruction sets");
    }
}

/// A sequence of a forest: stored slots, its queries among them, and the share of its blocks that it has in
/// common with the sequence before it.
#[derive(Clone, Copy, Debug)]
struct Member {
    length: usize,
    queries: usize,
    shared: f64,
}

fn member() -> impl Strategy<Value = Member> {
    let shared = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    let length = prop_oneof![1usize..100, 1usize..900];
    (length, 1usize..6, shared).prop_map(|(length, queries, shared)| Member {
        length,
        queries: queries.min(length),
        shared,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn groups_that_meet_shared_blocks_together_give_what_each_gives_alone(
        dtype in prop::sample::select(vec![KvDtype::F32, KvDtype::F16]),
        members in prop::collection::vec(member(), 1..14),
        (kv_heads, group) in prop::sample::select(vec![(3, 3), (1, 1), (2, 4), (1, 7)]),
        dim in prop::sample::select(vec![64usize, 33]),
        window in prop::option::of(1usize..600),
        softcap in prop::option::of(1f32..50.0),
        threads in prop::sample::select(vec![1usize, 2, 5]),
        seed in any::<u64>(),
    ) {
        let (heads, lengths): (_, Vec<usize>) =
            (kv_heads * group, members.iter().map(|m| m.length).collect());
        let mut shared = vec![0; members.len()];
        for i in 1..members.len() {
            // Only full blocks are ever shared.
            let most = (lengths[i] / BLOCK).min(lengths[i - 1] / BLOCK);
            shared[i] = (most as f64 * members[i].shared).round() as usize;
        }
        for kernels in backends(threads) {
            let mut random = Random::new(seed);
            let cache = planted(&kernels, &lengths, &shared, kv_heads, dim, dtype, &mut random);
            let rows: usize = members.iter().map(|m| m.queries).sum();
            let q = random.floats(rows * heads * dim);
            let run = |grouped: bool, reference: bool| {
                let mut end = 0;
                let seqs: Vec<SeqSpan> = (0..members.len()).map(|i| {
                    end += members[i].queries;
                    SeqSpan {
                        q_start: end - members[i].queries,
                        q_len: members[i].queries,
                        kv_len: lengths[i],
                        block_table: &cache.tables[i],
                        shared_blocks: if grouped { shared[i] } else { 0 },
                    }
                }).collect();
                let plan =
                    AttnPlan { heads, kv_heads, dim, scale: 0.125, window, softcap, seqs: &seqs };
                let mut out = vec![f32::NAN; q.len()];
                if reference {
                    reference::paged_attention(&q, &cache.layer, &plan, &mut out);
                } else {
                    kernels.paged_attention(&q, &cache.layer, &plan, &mut out, &mut Scratch::new());
                }
                out
            };
            let expected = run(false, true);
            let isa = kernels.isa();
            assert_same_bits(&run(false, false), &expected, &format!("{isa}, each alone"));
            assert_same_bits(&run(true, false), &expected, &format!("{isa}, grouped"));
        }
    }
}
