//! Attention of the CUDA backend, on the emulator, against the reference; and that what a row gives depends neither on
//! the rows beside it nor on how a call is divided.

#[path = "../../tests/support/mod.rs"]
mod support;

mod devices;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::cuda::{Attn, AttnScratch, Buf, CudaKernels, KvLayer};
use conclave_kernels::{AttnPlan, BLOCK, Isa, Kernels, KvDtype, Pool, SeqSpan, reference};
use devices::devices;
use proptest::prelude::*;
use support::{Paged, Random, assert_same_bits, planted};

#[derive(Clone, Debug)]
struct Case {
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

fn cases() -> impl Strategy<Value = Case> {
    let seq = (1usize..700).prop_flat_map(|kv| (Just(kv), 1..=kv.min(9)));
    (
        prop::sample::select(vec![KvDtype::F32, KvDtype::F16]),
        1usize..4,
        prop_oneof![1usize..7, Just(11)],
        prop::sample::select(vec![1usize, 8, 24, 33, 64, 80, 128]),
        prop::option::of(1usize..400),
        prop::option::of(1f32..50.0),
        prop::collection::vec(seq, 1..4),
        any::<u64>(),
    )
        .prop_map(
            |(dtype, kv_heads, group, dim, window, softcap, seqs, seed)| Case {
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

/// One query: its slots, its sequence, its row in the reference's call.
#[derive(Clone, Copy)]
struct Row {
    length: usize,
    seq: usize,
    at: usize,
}

struct Filled {
    case: Case,
    cache: Paged,
    q: Vec<f32>,
    expected: Vec<f32>,
    rows: Vec<Row>,
}

/// Fills a cache of the CPU's and asks the reference.
fn fill(case: &Case, shared: &[usize]) -> Filled {
    let cpu = Kernels::new(Isa::Portable, Pool::new(1));
    let mut random = Random::new(case.seed);
    let lengths: Vec<usize> = case.seqs.iter().map(|s| s.0).collect();
    let (kv_heads, dim) = (case.kv_heads, case.dim);
    let cache = planted(
        &cpu,
        &lengths,
        shared,
        kv_heads,
        dim,
        case.dtype,
        &mut random,
    );
    let mut rows = Vec::new();
    let mut seqs = Vec::new();
    for (seq, (&(kv_len, q_len), block_table)) in case.seqs.iter().zip(&cache.tables).enumerate() {
        let q_start = rows.len();
        rows.extend((0..q_len).map(|i| Row {
            length: kv_len - q_len + i + 1,
            seq,
            at: q_start + i,
        }));
        seqs.push(SeqSpan {
            q_start,
            q_len,
            kv_len,
            block_table,
            shared_blocks: 0,
        });
    }
    let heads = kv_heads * case.group;
    let q = random.floats(rows.len() * heads * dim);
    let plan = AttnPlan {
        heads,
        kv_heads,
        dim,
        scale: (dim as f32).sqrt().recip(),
        window: case.window,
        softcap: case.softcap,
        seqs: &seqs,
    };
    let mut expected = vec![0.0; q.len()];
    reference::paged_attention(&q, &cache.layer, &plan, &mut expected);
    Filled {
        case: case.clone(),
        cache,
        q,
        expected,
        rows,
    }
}

/// The stored slots of all sequences, written to a layer of the device; other slots stay poisoned.
fn copy_cache(kernels: &CudaKernels, filled: &Filled) -> KvLayer {
    let (layer, case) = (&filled.cache.layer, &filled.case);
    let (kv_heads, dim) = (case.kv_heads, case.dim);
    let device = KvLayer::new(kernels.driver(), layer.blocks(), kv_heads, dim, case.dtype);
    let mut device = device.expect("room");
    let mut slots = std::collections::BTreeSet::new();
    for (&(length, _), table) in case.seqs.iter().zip(&filled.cache.tables) {
        slots.extend((0..length).map(|i| table[i / BLOCK] * BLOCK as u32 + (i % BLOCK) as u32));
    }
    let slots: Vec<u32> = slots.into_iter().collect();
    let width = kv_heads * dim;
    let (mut k, mut v) = (
        vec![0.0; slots.len() * width],
        vec![0.0; slots.len() * width],
    );
    for (i, &slot) in slots.iter().enumerate() {
        for head in 0..kv_heads {
            let at = i * width + head * dim..i * width + (head + 1) * dim;
            layer.read_slot(slot, head, &mut k[at.clone()], &mut v[at]);
        }
    }
    let on = |numbers: &[f32]| Buf::of(kernels.driver(), numbers).expect("room");
    let ids = Buf::of(kernels.driver(), &slots).expect("room");
    kernels
        .write_kv(&mut device, &on(&k), &on(&v), &ids, slots.len())
        .expect("launch");
    device
}

/// Attends some of the rows in one call; `room` is for how many rows scratch is made.
fn attend(
    kernels: &CudaKernels,
    layer: &KvLayer,
    filled: &Filled,
    rows: &[Row],
    room: usize,
) -> Vec<f32> {
    let case = &filled.case;
    let heads = case.kv_heads * case.group;
    let width = heads * case.dim;
    let driver = kernels.driver();
    let mut starts = Vec::new();
    let mut tables = Vec::new();
    for table in &filled.cache.tables {
        starts.push(tables.len() as u32);
        tables.extend_from_slice(table);
    }
    let lengths: Vec<u32> = rows.iter().map(|r| r.length as u32).collect();
    let offsets: Vec<u32> = rows.iter().map(|r| starts[r.seq]).collect();
    let q: Vec<f32> = rows
        .iter()
        .flat_map(|r| &filled.q[r.at * width..][..width])
        .copied()
        .collect();
    let longest = rows.iter().map(|r| r.length).max().unwrap_or(0);
    let plan = Attn {
        heads,
        kv_heads: case.kv_heads,
        dim: case.dim,
        scale: (case.dim as f32).sqrt().recip(),
        window: case.window,
        softcap: case.softcap,
        lengths: &Buf::of(driver, &lengths).expect("room"),
        offsets: &Buf::of(driver, &offsets).expect("room"),
        tables: &Buf::of(driver, &tables).expect("room"),
        longest,
    };
    let mut scratch = AttnScratch::new(driver).expect("room");
    scratch
        .ensure(room, longest, heads, case.dim)
        .expect("room");
    let (q, mut out) = (
        Buf::of(driver, &q).expect("room"),
        Buf::new(driver, q.len()).expect("room"),
    );
    kernels
        .paged_attention(&q, layer, &plan, &mut scratch, rows.len(), &mut out)
        .expect("launch");
    let mut numbers = vec![0.0; out.len()];
    out.download(&mut numbers).expect("a device that works");
    numbers
}

fn check(case: &Case, shared: &[usize]) {
    let filled = fill(case, shared);
    for kernels in devices(case.seed) {
        let layer = copy_cache(&kernels, &filled);
        // In one launch, and in launches of two rows.
        for room in [filled.rows.len(), 2] {
            let out = attend(&kernels, &layer, &filled, &filled.rows, room);
            assert_same_bits(&out, &filled.expected, &format!("{case:?}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn attention_of_any_shape_equals_the_reference(case in cases()) {
        check(&case, &vec![0; case.seqs.len()]);
    }
}

#[test]
fn sequences_that_share_their_beginning_equal_the_reference() {
    let case = Case {
        dtype: KvDtype::F16,
        kv_heads: 3,
        group: 3,
        dim: 64,
        window: None,
        softcap: None,
        seqs: vec![(300, 2), (310, 1), (290, 3), (65, 1)],
        seed: 5,
    };
    check(&case, &[0, 17, 17, 4]);
}

#[test]
fn a_row_gives_the_same_bits_whatever_rows_are_beside_it() {
    let case = Case {
        dtype: KvDtype::F16,
        kv_heads: 2,
        group: 3,
        dim: 64,
        window: None,
        softcap: None,
        seqs: vec![(600, 4), (40, 3), (257, 2)],
        seed: 9,
    };
    let filled = fill(&case, &[0; 3]);
    let kernels = CudaKernels::new(Emulator::new());
    let layer = copy_cache(&kernels, &filled);
    let together = attend(&kernels, &layer, &filled, &filled.rows, 9);
    let width = together.len() / filled.rows.len();
    for (i, row) in filled.rows.iter().enumerate() {
        let alone = attend(&kernels, &layer, &filled, &[*row], 1);
        assert_same_bits(&alone, &together[i * width..][..width], "alone");
    }
    let backwards: Vec<Row> = filled.rows.iter().rev().copied().collect();
    let out = attend(&kernels, &layer, &filled, &backwards, 4);
    for (out, row) in out.chunks_exact(width).zip(backwards) {
        assert_same_bits(out, &together[row.at * width..][..width], "backwards");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn all_of_this_holds_through_the_interface_of_nvidia_s_driver() {
    devices::run_on_the_stand_in(&["--skip", "through_the_interface"]);
}
