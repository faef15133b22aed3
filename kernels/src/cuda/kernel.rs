//! The kernels by name.

use crate::attention::KvDtype;
use crate::weights::WeightType;

/// For how many rows a thread block reads weights: the bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowsAtOnce {
    /// For one.
    One,
    /// For up to 8.
    Eight,
    /// For up to 32.
    ThirtyTwo,
    /// For up to 128, by tensor cores.
    Tensor,
}

impl RowsAtOnce {
    const ALL: [RowsAtOnce; 4] = [
        RowsAtOnce::One,
        RowsAtOnce::Eight,
        RowsAtOnce::ThirtyTwo,
        RowsAtOnce::Tensor,
    ];

    /// What suits `rows`. A warp on tensor cores walks a whole row of weights by itself: with few rows there are too
    /// few of them to keep a device's memory busy, and the others divide the row among more threads.
    pub(super) fn of(rows: usize) -> RowsAtOnce {
        match rows {
            0 | 1 => RowsAtOnce::One,
            2..=8 => RowsAtOnce::Eight,
            9..=64 => RowsAtOnce::ThirtyTwo,
            _ => RowsAtOnce::Tensor,
        }
    }

    /// How many they are.
    pub(super) fn count(self) -> usize {
        match self {
            RowsAtOnce::One => 1,
            RowsAtOnce::Eight => 8,
            RowsAtOnce::ThirtyTwo => 32,
            RowsAtOnce::Tensor => 128,
        }
    }
}

/// A kernel of `kernels/cuda/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Rows of an embedding as f32.
    Embed(WeightType),
    /// RMS norm of rows.
    RmsNorm,
    /// Inputs to 8 bit.
    Round,
    /// Product with 8-bit inputs.
    MatmulInt8(WeightType, RowsAtOnce),
    /// Product with f32 inputs.
    MatmulF32(WeightType),
    /// Rotary position embedding.
    Rope,
    /// Keys and values to the cache.
    WriteKv(KvDtype),
    /// The gated unit of the feed-forward part.
    SiluMul,
    /// Attention of each span.
    Attend(KvDtype),
    /// Spans of attention put together.
    MergeSpans,
    /// Rows picked.
    Gather,
}

impl Kernel {
    /// Every kernel.
    pub fn all() -> Vec<Kernel> {
        let mut all = vec![
            Kernel::RmsNorm,
            Kernel::Round,
            Kernel::Rope,
            Kernel::SiluMul,
            Kernel::MergeSpans,
            Kernel::Gather,
        ];
        for dtype in [KvDtype::F32, KvDtype::F16] {
            all.extend([Kernel::WriteKv(dtype), Kernel::Attend(dtype)]);
        }
        for ty in WeightType::ALL {
            all.extend([Kernel::Embed(ty), Kernel::MatmulF32(ty)]);
            if !ty.is_float() {
                all.extend(RowsAtOnce::ALL.map(|rows| Kernel::MatmulInt8(ty, rows)));
            }
        }
        all
    }

    /// What the function is called in the sources and in the module.
    pub fn name(self) -> String {
        let of = |op: &str, ty: WeightType| format!("{op}_{}", ty.name().to_lowercase());
        match self {
            Kernel::Embed(ty) => of("embed", ty),
            Kernel::RmsNorm => "rms_norm".to_owned(),
            Kernel::Round => "round_blocks".to_owned(),
            Kernel::MatmulInt8(ty, RowsAtOnce::One) => of("matmul_int8_row", ty),
            Kernel::MatmulInt8(ty, RowsAtOnce::Eight) => of("matmul_int8_few", ty),
            Kernel::MatmulInt8(ty, RowsAtOnce::ThirtyTwo) => of("matmul_int8_many", ty),
            Kernel::MatmulInt8(ty, RowsAtOnce::Tensor) => of("matmul_int8_tensor", ty),
            Kernel::MatmulF32(ty) => of("matmul_f32", ty),
            Kernel::Rope => "rope".to_owned(),
            Kernel::WriteKv(dtype) => format!("write_kv_{}", dtype.name()),
            Kernel::SiluMul => "silu_mul".to_owned(),
            Kernel::Attend(dtype) => format!("attend_{}", dtype.name()),
            Kernel::MergeSpans => "merge_spans".to_owned(),
            Kernel::Gather => "gather".to_owned(),
        }
    }
}
