//! The devices that tests run on.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::cuda::{CudaKernels, Driver};

/// Kernels on an emulator in order, on one out of order, and, with the feature `cuda`, on the machine's first device.
pub fn devices(seed: u64) -> Vec<CudaKernels> {
    let mut drivers: Vec<Arc<dyn Driver>> = vec![Emulator::new(), Emulator::shuffled(seed)];
    drivers.extend(real());
    drivers.into_iter().map(CudaKernels::new).collect()
}

/// Set where a device must be found.
#[cfg(feature = "cuda")]
const EXPECTED: &str = "CONCLAVE_CUDA_EXPECTED";

/// Runs tests of this program in a process that finds `shim/libcuda.cpp` by the name of NVIDIA's driver.
#[cfg(feature = "cuda")]
pub fn run_on_the_stand_in(which: &[&str]) {
    let program = std::env::current_exe().expect("a test knows its program");
    let tests = std::process::Command::new(program)
        .args(which)
        .env("LD_LIBRARY_PATH", env!("CONCLAVE_STAND_IN_DRIVER"))
        .env(EXPECTED, "1")
        .output()
        .expect("a program that runs already");
    let text = String::from_utf8_lossy(&tests.stdout);
    assert!(
        tests.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&tests.stderr)
    );
    assert!(!text.contains("running 0 tests"), "{text}");
}

#[cfg(feature = "cuda")]
fn real() -> Option<Arc<dyn Driver>> {
    use conclave_kernels::cuda::{CudarcDriver, DeviceError};
    use std::sync::OnceLock;

    static DEVICE: OnceLock<Option<Arc<dyn Driver>>> = OnceLock::new();
    let expected = std::env::var_os(EXPECTED).is_some();
    let open = || match CudarcDriver::open(0) {
        Ok(driver) => Some(Arc::new(driver) as Arc<dyn Driver>),
        Err(DeviceError::NoDriver { .. } | DeviceError::NoDevice { .. }) if !expected => None,
        Err(error) => panic!("{error}"),
    };
    DEVICE.get_or_init(open).clone()
}

#[cfg(not(feature = "cuda"))]
fn real() -> Option<Arc<dyn Driver>> {
    None
}
