//! What the backend needs of a device.

use super::Kernel;
use std::ffi::c_void;

/// Why a device did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The machine has no NVIDIA driver.
    #[error(
        "no CUDA driver was found: install NVIDIA's driver, or set device = \"cpu\" ({message})"
    )]
    NoDriver {
        /// What was looked for.
        message: String,
    },
    /// There is a driver, but no such device.
    #[error("there is no CUDA device {ordinal}: the driver sees {count}")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// Devices that there are.
        count: usize,
    },
    /// The device's memory does not suffice.
    #[error("the device has {free} bytes free, {asked} were asked for")]
    OutOfMemory {
        /// Bytes asked for.
        asked: usize,
        /// Bytes free then.
        free: usize,
    },
    /// Anything else. The device's context may be lost: a process that sees it does well to end.
    #[error("{op} failed on the device: {message}")]
    Failed {
        /// What was tried: a kernel's name, or a call's.
        op: String,
        /// What the driver said.
        message: String,
    },
}

/// A device's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What can be allocated now.
    pub free: u64,
    /// What the device has.
    pub total: u64,
}

/// One device with one stream, in which everything happens in the order asked for.
///
/// Addresses are the device's: only kernels and the calls below follow them. Implementations check what they can;
/// addresses and lengths that do not lie within an allocation are the caller's mistake.
pub trait Driver: Send + Sync {
    /// The device's name, for logs: `NVIDIA H100 80GB HBM3`.
    fn name(&self) -> String;

    /// How much memory there is.
    fn memory(&self) -> Result<Memory, DeviceError>;

    /// Allocates `bytes` (more than 0) on a 256-byte boundary. What lies there is undefined.
    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError>;

    /// Frees what [`Driver::alloc`] gave, once everything asked for before is done with it.
    fn free(&self, address: u64);

    /// Copies to the device. `bytes` may be reused at once.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies from the device, after everything asked for before; waits.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies between two places of the device that do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Runs a kernel over a grid of blocks with `shared` bytes of shared memory each.
    ///
    /// # Safety
    /// `args` points to the kernel's arguments, one after another as its signature in `kernels/cuda/` has them,
    /// and the addresses among them are of allocations as large as the kernel reads and writes.
    unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &mut [*mut c_void],
    ) -> Result<(), DeviceError>;

    /// Waits until everything asked for is done; gives the errors of what failed meanwhile.
    fn synchronize(&self) -> Result<(), DeviceError>;
}
