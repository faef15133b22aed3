//! Compiles the CUDA kernels as C++.

use std::path::PathBuf;
use std::{env, fs};

const SOURCES: [&str; 2] = ["shim/kernels.cpp", "shim/machine.cpp"];

fn main() {
    for path in ["shim", "../cuda"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .files(SOURCES)
        .define("CONCLAVE_EMULATOR", None)
        .include("shim")
        // A forward pass runs here: it must not crawl in the dev profile.
        .opt_level(2)
        .debug(false)
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-fno-exceptions")
        // Kernels are templates over types some of which lack what others use, and `#pragma unroll` is CUDA's.
        .flag_if_supported("-Wno-unknown-pragmas")
        .flag_if_supported("-Wno-sign-compare")
        .flag_if_supported("-Wno-type-limits")
        .flag_if_supported("-Wno-unused-parameter");
    if env::var("HOST") == env::var("TARGET") {
        fused(&mut build);
    }
    build.compile("conclave_cuda_emulator");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        stand_in(&build);
    }
}

/// A library by the name of NVIDIA's driver, for the tests of what talks to that.
fn stand_in(build: &cc::Build) {
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("driver");
    fs::create_dir_all(&folder).expect("a folder in OUT_DIR");
    let mut command = build.get_compiler().to_command();
    command
        .args([
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-DCONCLAVE_EMULATOR",
            "-o",
        ])
        .arg(folder.join("libcuda.so"))
        .args(SOURCES)
        .arg("shim/libcuda.cpp");
    let status = command.status().expect("the compiler has run before");
    assert!(status.success(), "{command:?}");
    println!(
        "cargo:rustc-env=CONCLAVE_STAND_IN_DRIVER={}",
        folder.display()
    );
}

/// `fmaf` and `rintf` as one instruction where this processor has it; the bits are the same without.
#[cfg(target_arch = "x86_64")]
fn fused(build: &mut cc::Build) {
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        build.flag("-mavx2").flag("-mfma");
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fused(_: &mut cc::Build) {}
