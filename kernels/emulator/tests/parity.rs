//! Every op of the CUDA backend, on the emulator, against the reference: the bits are equal, whatever the order in
//! which blocks and threads run.

#[path = "../../tests/support/mod.rs"]
mod support;

mod devices;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::cuda::{Buf, CudaKernels, Inputs, Kernel, KvLayer, Matrix, Rope, Rounded};
use conclave_kernels::{
    Activation, Isa, KvDtype, PackedMatrix, RopeStyle, RopeTable, WeightType, reference,
};
use devices::devices;
use half::f16;
use proptest::prelude::*;
use support::{Random, assert_same_bits};

fn on(kernels: &CudaKernels, numbers: &[f32]) -> Buf<f32> {
    Buf::of(kernels.driver(), numbers).expect("room")
}

fn whole(kernels: &CudaKernels, numbers: &[u32]) -> Buf<u32> {
    Buf::of(kernels.driver(), numbers).expect("room")
}

fn room(kernels: &CudaKernels, len: usize) -> Buf<f32> {
    Buf::new(kernels.driver(), len).expect("room")
}

fn read(buffer: &Buf<f32>) -> Vec<f32> {
    let mut numbers = vec![0.0; buffer.len()];
    buffer.download(&mut numbers).expect("a device that works");
    numbers
}

/// A product as the forward pass does it: inputs are rounded where the matrix takes rounded ones.
fn product(kernels: &CudaKernels, w: &Matrix, x: &[f32], m: usize, out: &mut Buf<f32>, add: bool) {
    let x = on(kernels, x);
    let mut rounded = Rounded::new(kernels.driver(), 0).expect("room");
    let inputs = if w.takes_int8() {
        rounded.ensure(m * w.k()).expect("room");
        kernels.round(&x, m, w.k(), &mut rounded).expect("launch");
        Inputs::Int8(&rounded)
    } else {
        Inputs::F32(&x)
    };
    kernels.qmatmul(w, inputs, m, out, add).expect("launch");
}

fn check_matmul(ty: WeightType, act: Activation, m: usize, n: usize, blocks: usize, seed: u64) {
    let k = match ty.is_float() {
        true => blocks * 32 + seed as usize % 7,
        false => blocks * ty.block_len(),
    };
    let mut random = Random::new(seed);
    let (w, x) = (random.weights(ty, n, k), random.floats(m * k));
    let mut expected = vec![0.0; m * n];
    match act == Activation::Int8 && !ty.is_float() {
        true => reference::matmul_int8(ty, &w, n, k, &x, m, &mut expected),
        false => reference::matmul_f32(ty, &w, n, k, &x, m, &mut expected),
    }
    let packed = PackedMatrix::pack(ty, &w, n, k, act, Isa::Portable).expect("shapes fit");
    let before = random.floats(m * n);
    let sum: Vec<f32> = before.iter().zip(&expected).map(|(b, e)| b + e).collect();
    for kernels in devices(7) {
        let matrix = Matrix::upload(&kernels, &packed).expect("room");
        let what = format!("{} {} m={m} n={n} k={k}", ty.name(), act.name());
        let mut out = room(&kernels, m * n);
        product(&kernels, &matrix, &x, m, &mut out, false);
        assert_same_bits(&read(&out), &expected, &what);
        let mut out = on(&kernels, &before);
        product(&kernels, &matrix, &x, m, &mut out, true);
        assert_same_bits(&read(&out), &sum, &format!("{what}, added"));
    }
}

#[test]
fn every_kernel_is_known_by_its_name() {
    let names: Vec<String> = Kernel::all().into_iter().map(Kernel::name).collect();
    for name in &names {
        assert!(Emulator::knows(name), "{name}");
    }
    assert!(!Emulator::knows("matmul_int8_f16"));
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
}

#[test]
fn matmul_of_every_type_equals_the_reference() {
    for ty in WeightType::ALL {
        for act in [Activation::Int8, Activation::F32] {
            for m in [1, 2, 9, 37, 65] {
                check_matmul(ty, act, m, 35, 3, m as u64);
            }
        }
    }
}

#[test]
fn rows_longer_than_shared_memory_holds_equal_the_reference() {
    for ty in [
        WeightType::Q4_1,
        WeightType::Q8_0,
        WeightType::Q6K,
        WeightType::F16,
    ] {
        let blocks = if ty == WeightType::Q6K { 17 } else { 131 };
        for m in [1, 3, 66] {
            check_matmul(ty, Activation::Int8, m, 17, blocks, 2);
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_whatever_rows_are_beside_it() {
    let (ty, n, k, m) = (WeightType::Q4_1, 40, 320, 140);
    let mut random = Random::new(21);
    let (w, x) = (random.weights(ty, n, k), random.floats(m * k));
    let packed = PackedMatrix::pack(ty, &w, n, k, Activation::Int8, Isa::Portable);
    let packed = packed.expect("shapes fit");
    for kernels in devices(3) {
        let matrix = Matrix::upload(&kernels, &packed).expect("room");
        let rows = |first: usize, count: usize| {
            let mut out = room(&kernels, count * n);
            let x = &x[first * k..][..count * k];
            product(&kernels, &matrix, x, count, &mut out, false);
            read(&out)
        };
        let together = rows(0, m);
        for count in [1, 8, 31, 65, 130] {
            for first in (0..=m - count).step_by(37) {
                let expected = &together[first * n..][..count * n];
                assert_same_bits(&rows(first, count), expected, &format!("{count} rows"));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn matmul_of_any_shape_equals_the_reference(
        ty in prop::sample::select(&WeightType::ALL[..]),
        int8 in any::<bool>(),
        m in 1usize..30,
        n in 1usize..70,
        blocks in 1usize..40,
        seed in any::<u64>(),
    ) {
        let act = if int8 { Activation::Int8 } else { Activation::F32 };
        let blocks = if ty.block_len() == 256 { blocks.div_ceil(8) } else { blocks };
        check_matmul(ty, act, m, n, blocks, seed);
    }

    #[test]
    fn elementwise_ops_of_any_length_equal_the_reference(
        rows in 1usize..40,
        width in prop_oneof![1usize..700, 2040usize..2060],
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let (x, y) = (random.floats(rows * width), random.floats(rows * width));
        let gate: Vec<f32> = x.iter().map(|v| v * 30.0).collect();
        let weight = random.floats(width);
        let picked: Vec<u32> = (0..rows + 3).map(|_| random.below(rows) as u32).collect();
        for kernels in devices(7) {
            let (mut out, mut expected) = (room(&kernels, x.len()), vec![0.0; x.len()]);
            let on_device = on(&kernels, &x);
            kernels.rms_norm(&on_device, &on(&kernels, &weight), 1e-5, rows, &mut out).expect("launch");
            reference::rms_norm(&x, &weight, 1e-5, &mut expected);
            assert_same_bits(&read(&out), &expected, "rms_norm");
            kernels.silu_mul(&on(&kernels, &gate), &on(&kernels, &y), x.len(), &mut out).expect("launch");
            reference::silu_mul(&gate, &y, &mut expected);
            assert_same_bits(&read(&out), &expected, "silu_mul");
            let mut out = room(&kernels, picked.len() * width);
            kernels.gather(&on_device, &whole(&kernels, &picked), picked.len(), width, &mut out).expect("launch");
            let expected: Vec<f32> =
                picked.iter().flat_map(|&row| &x[row as usize * width..][..width]).copied().collect();
            assert_same_bits(&read(&out), &expected, "gather");
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
        for kernels in devices(7) {
            let (mut out, places) = (on(&kernels, &x), whole(&kernels, &positions));
            let table = Rope::upload(kernels.driver(), &table).expect("room");
            kernels.rope(&mut out, &places, rows, heads, dim, &table).expect("launch");
            assert_same_bits(&read(&out), &expected, "rope");
        }
    }
}

#[test]
fn inputs_of_every_size_round_as_the_reference_rounds_them() {
    // Blocks of ordinary numbers, of ties, of zeros, of the smallest, the largest, infinities and NaN.
    let mut random = Random::new(11);
    let mut x: Vec<f32> = random.floats(32 * 16);
    let ties = (0..32).map(|i| if i == 5 { 127.0 } else { i as f32 - 15.5 });
    x.extend(ties);
    x.extend([0.0; 32]);
    x.extend((0..32).map(|i| f32::from_bits(i + 1)));
    x.extend((0..32).map(|i| if i % 2 == 0 { f32::MAX } else { -1.0 }));
    for special in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for at in [0, 13, 31] {
            let mut block = random.floats(32);
            block[at] = special;
            x.extend(block);
        }
    }
    let k = x.len();
    let expected: Vec<_> = x.chunks(32).map(reference::quantize_block).collect();
    for kernels in devices(7) {
        let mut rounded = Rounded::new(kernels.driver(), k).expect("room");
        kernels
            .round(&on(&kernels, &x), 1, k, &mut rounded)
            .expect("launch");
        let blocks = rounded.download().expect("a device that works");
        assert_eq!(blocks.len(), expected.len());
        for (i, (block, expected)) in blocks.iter().zip(&expected).enumerate() {
            assert_eq!(
                (block.q, block.sum),
                (expected.q, expected.sum),
                "block {i}"
            );
            assert_same_bits(&[block.scale], &[expected.scale], &format!("scale {i}"));
        }
    }
}

#[test]
fn embeddings_of_every_type_equal_the_reference() {
    for ty in WeightType::ALL {
        let (n, k) = (37, 512);
        let w = Random::new(7).weights(ty, n, k);
        let packed = PackedMatrix::pack(ty, &w, n, k, Activation::Int8, Isa::Portable);
        let tokens: Vec<u32> = (0..n as u32).rev().chain([3, 3]).collect();
        let mut expected = vec![0.0; tokens.len() * k];
        for (token, out) in tokens.iter().zip(expected.chunks_exact_mut(k)) {
            reference::dequantize_row(ty, &w[*token as usize * ty.row_bytes(k)..], out);
        }
        for kernels in devices(7) {
            let matrix = Matrix::upload(&kernels, packed.as_ref().expect("shapes fit"));
            let (matrix, ids) = (matrix.expect("room"), whole(&kernels, &tokens));
            let mut out = room(&kernels, expected.len());
            kernels
                .embed(&matrix, &ids, tokens.len(), &mut out)
                .expect("launch");
            assert_same_bits(&read(&out), &expected, ty.name());
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
            let packed = PackedMatrix::pack(ty, &w, n, k, Activation::Int8, Isa::Portable);
            for x in [1.0, -1.0] {
                let x = vec![x; k];
                let mut expected = vec![0.0; n];
                reference::matmul_int8(ty, &w, n, k, &x, 1, &mut expected);
                let kernels = CudaKernels::new(Emulator::new());
                let matrix = Matrix::upload(&kernels, packed.as_ref().expect("shapes fit"));
                let mut out = room(&kernels, n);
                product(&kernels, &matrix.expect("room"), &x, 1, &mut out, false);
                assert_same_bits(&read(&out), &expected, &format!("{} {byte:#x}", ty.name()));
            }
        }
    }
}

#[test]
fn the_cache_rounds_to_nearest_even_and_copies_blocks() {
    let (kv_heads, dim, rows) = (2, 20, 5);
    let mut random = Random::new(3);
    let mut k = random.floats(rows * kv_heads * dim);
    let v = random.floats(rows * kv_heads * dim);
    // A tie, the smallest, what rounds to the smallest normal, to infinity, and what is beyond.
    let special = [
        1.000_488_3,
        5.960_464_5e-8,
        2.980_232_2e-8,
        6.103_3e-5,
        65_519.9,
        65_520.0,
        1e9,
        -1e-9,
    ];
    k[..special.len()].copy_from_slice(&special);
    let slots = [16, 3, 47, 32, 21];
    for dtype in [KvDtype::F16, KvDtype::F32] {
        let round = |x: &[f32]| -> Vec<f32> {
            let half = |v: &f32| f16::from_f32(*v).to_f32();
            match dtype {
                KvDtype::F16 => x.iter().map(half).collect(),
                KvDtype::F32 => x.to_vec(),
            }
        };
        for kernels in devices(7) {
            let layer = KvLayer::new(kernels.driver(), 6, kv_heads, dim, dtype);
            let mut layer = layer.expect("room");
            let (k_on, v_on, ids) = (on(&kernels, &k), on(&kernels, &v), whole(&kernels, &slots));
            kernels
                .write_kv(&mut layer, &k_on, &v_on, &ids, rows)
                .expect("launch");
            layer.copy_block(1, 4).expect("a device that works");
            let copied = [(0, 16), (0, 64), (1, 3), (2, 47), (3, 32), (4, 21), (4, 69)];
            for (row, slot) in copied {
                for head in 0..kv_heads {
                    let (mut k_read, mut v_read) = (vec![0.0; dim], vec![0.0; dim]);
                    layer
                        .read_slot(slot, head, &mut k_read, &mut v_read)
                        .expect("works");
                    let at = (row * kv_heads + head) * dim;
                    assert_same_bits(&k_read, &round(&k[at..][..dim]), "key");
                    assert_same_bits(&v_read, &round(&v[at..][..dim]), "value");
                }
            }
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn all_of_this_holds_through_the_interface_of_nvidia_s_driver() {
    devices::run_on_the_stand_in(&["--skip", "through_the_interface"]);
}
