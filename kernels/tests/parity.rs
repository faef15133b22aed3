//! Every op, on every instruction set of this processor, against the reference: the bits are equal.

mod support;

use conclave_kernels::{Activation, Isa, PackedMatrix, Scratch, WeightType, reference};
use proptest::prelude::*;
use support::{Random, assert_same_bits, backends};

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
