//! Weight blocks mean what the public `gguf` package says they mean.

use conclave_kernels::{Activation, Isa, PackedMatrix, WeightType, reference};

fn hex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

#[test]
fn blocks_of_every_type_dequantize_as_in_the_gguf_package() {
    let lines = include_str!("fixtures/ggml_blocks.txt").lines();
    let mut seen = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let mut fields = line.split(' ');
        let mut field = || fields.next().expect("three fields");
        let name = field();
        let ty = WeightType::ALL
            .into_iter()
            .find(|ty| ty.name() == name)
            .expect("a known type");
        let bytes = hex(field());
        let expected: Vec<f32> = hex(field())
            .chunks_exact(4)
            .map(|b| f32::from_be_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let k = expected.len();
        let mut actual = vec![0.0; k];
        reference::dequantize_row(ty, &bytes, &mut actual);
        assert_eq!(actual, expected, "{name}");
        let packed = PackedMatrix::pack(ty, &bytes, 1, k, Activation::Int8, Isa::Portable);
        packed.expect("shapes fit").dequantize_row(0, &mut actual);
        assert_eq!(actual, expected, "{name}");
        seen.push(ty);
    }
    // F32 needs no definition.
    assert_eq!(seen.len(), WeightType::ALL.len() - 1);
}
