//! What holds of the feature `cuda` on a machine without a GPU, too.

#![cfg(feature = "cuda")]

use conclave_kernels::cuda::{CudarcDriver, DeviceError, Driver, Kernel};
use std::process::Command;

#[test]
fn a_machine_without_a_driver_is_told_so() {
    match CudarcDriver::open(0) {
        Err(error @ (DeviceError::NoDriver { .. } | DeviceError::NoDevice { .. })) => {
            let text = error.to_string();
            assert!(text.contains("driver"), "{text}");
        }
        Err(error) => panic!("{error}"),
        Ok(driver) => assert!(!driver.name().is_empty()),
    }
    // A device that no machine has is refused either way.
    assert!(CudarcDriver::open(4096).is_err());
}

/// The PTX that nvcc makes of the sources, with the options of the build.
fn ptx() -> String {
    let options = [
        "-ptx",
        "-o",
        "-",
        "-std=c++17",
        "-fmad=false",
        "-arch=compute_80",
    ];
    let nvcc = Command::new(env!("CONCLAVE_NVCC"))
        .args(options)
        .args(["-Werror", "all-warnings"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/kernels.cu"))
        .output()
        .expect("nvcc built the library");
    assert!(
        nvcc.status.success(),
        "{}",
        String::from_utf8_lossy(&nvcc.stderr)
    );
    String::from_utf8(nvcc.stdout).expect("PTX is text")
}

#[test]
fn every_kernel_is_in_the_module_and_every_operation_is_rounded_by_itself() {
    let ptx = ptx();
    for kernel in Kernel::all() {
        let entry = format!(".entry {}(", kernel.name());
        assert!(ptx.contains(&entry), "{entry}");
    }
    // Without a rounding mode an assembler may fuse a product and a sum; `.ftz` and `.approx` would change bits.
    let mut fused = 0;
    for line in ptx.lines().map(str::trim) {
        let Some(word) = line.split_whitespace().find(|word| word.ends_with(".f32")) else {
            continue;
        };
        let (op, how) = word.split_once('.').expect("an f32 instruction has a type");
        fused += usize::from(op == "fma");
        if [
            "add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "ex2",
        ]
        .contains(&op)
        {
            assert_eq!(how, "rn.f32", "{line}");
        }
    }
    assert!(fused > 0, "the sources call fmaf");
}
