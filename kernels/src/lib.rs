//! Attention, matrix and elementwise kernels: slices in, slices out.
//!
//! Every op exists first in [`reference`](mod@reference), which fixes its rounding and order; the SIMD paths
//! under `cpu/` are chosen at run time and give the same bits, so that a result depends neither on
//! the processor's vector width, nor on how many rows share a call, nor on the number of threads.
//! No framework and no async runtime is known here.

mod attention;
mod cpu;
pub mod cuda;
mod isa;
pub mod logits;
mod pool;
pub mod reference;
mod rope;
mod scratch;
mod weights;

pub use attention::{AttnPlan, BLOCK, KvCache, KvDtype, KvLayer, SPAN, SeqSpan};
pub use cpu::{Inputs, Kernels, Norm, PostNorm, Product, Routing, Sweep, Tokens};
pub use isa::{Isa, detect};
pub use pool::{Lent, Pool};
pub use rope::{RopeStyle, RopeTable};
pub use scratch::Scratch;
pub use weights::{Activation, PackError, PackedMatrix, WeightType};

/// Version of the numeric results. Bump it whenever the bits of any op change: prefix caches, audits
/// and replays compare it.
pub const KERNEL_VERSION: u32 = 2;
