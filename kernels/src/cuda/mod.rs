//! The CUDA backend: the ops of a model step on a device behind a [`Driver`].
//!
//! The kernels (`kernels/cuda/*.cu`) give the bits of [`crate::reference`](mod@crate::reference). Everything here is
//! plain Rust and compiled always; what talks to NVIDIA's driver stands behind the feature `cuda`
//! (`CudarcDriver`), and the crate `conclave-cuda-emulator` runs the same kernels on the CPU for tests.
//!
//! An op puts its kernels into the device's one stream and returns: its errors may be those of an earlier op.
//! [`Buf::download`] and [`Driver::synchronize`] wait. Ops allocate nothing. Like the CPU's they panic on buffers that
//! are shorter than their shapes; what numbers in buffers lead to (tokens, slots, tables) is the caller's to check.

mod attention;
mod buffer;
#[cfg(feature = "cuda")]
mod cudarc;
mod driver;
mod kernel;
mod kv;
mod launch;
mod matmul;
mod matrix;
mod ops;

pub use attention::{Attn, AttnScratch};
pub use buffer::{Buf, Plain};
#[cfg(feature = "cuda")]
pub use cudarc::CudarcDriver;
pub use driver::{DeviceError, Driver, Memory};
pub use kernel::{Kernel, RowsAtOnce};
pub use kv::{KvCache, KvLayer};
pub use matmul::{Inputs, Rounded};
pub use matrix::Matrix;
pub use ops::Rope;

use std::sync::Arc;

/// The ops of a model step on one device.
pub struct CudaKernels {
    driver: Arc<dyn Driver>,
}

impl CudaKernels {
    /// Ops on the device behind `driver`.
    pub fn new(driver: Arc<dyn Driver>) -> CudaKernels {
        CudaKernels { driver }
    }

    /// The driver in use.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }
}
