//! The devices that tests run on.

use std::sync::Arc;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::cuda::{CudaKernels, Driver};

/// Kernels on an emulator in order, on one out of order, and, with the feature `cuda`, on the machine's first device.
pub fn devices(seed: u64) -> Vec<CudaKernels> {
    let mut drivers: Vec<Arc<dyn Driver>> = vec![Emulator::new(), Emulator::shuffled(seed)];
    drivers.extend(real());
    drivers.into_iter().map(CudaKernels::new).collect()
}

#[cfg(feature = "cuda")]
fn real() -> Option<Arc<dyn Driver>> {
    use conclave_kernels::cuda::{CudarcDriver, DeviceError};
    use std::sync::OnceLock;

    static DEVICE: OnceLock<Option<Arc<dyn Driver>>> = OnceLock::new();
    let open = || match CudarcDriver::open(0) {
        Ok(driver) => Some(Arc::new(driver) as Arc<dyn Driver>),
        Err(DeviceError::NoDriver { .. } | DeviceError::NoDevice { .. }) => None,
        Err(error) => panic!("{error}"),
    };
    DEVICE.get_or_init(open).clone()
}

#[cfg(not(feature = "cuda"))]
fn real() -> Option<Arc<dyn Driver>> {
    None
}
