//! With the feature `cuda`: compiles `cuda/*.cu` with nvcc into one fatbin, which the library carries.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

/// What the fatbin has code for. A cubin runs on devices of its major version, so that sm_80 serves Ampere and Ada,
/// sm_90 Hopper and sm_100 the larger Blackwells; the driver compiles the PTX for all others, later ones included.
const TARGETS: [&str; 3] = [
    "arch=compute_80,code=[sm_80,compute_80]",
    "arch=compute_90,code=sm_90",
    "arch=compute_100,code=sm_100",
];

fn main() {
    for variable in ["CUDA_HOME", "NVCC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=cuda");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = nvcc();
    let out =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    command.arg("-fatbin").arg("-o").arg(&out);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    // No contraction: what the reference rounds by itself is rounded by itself.
    command.args(["-std=c++17", "-fmad=false", "cuda/kernels.cu"]);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!(
            "{} ended with {status}: see above",
            nvcc.display()
        )),
        Err(error) => fail(&format!("{} does not run: {error}", nvcc.display())),
    }
    // For the test that reads what it makes of the sources.
    println!("cargo:rustc-env=CONCLAVE_NVCC={}", nvcc.display());
}

/// nvcc by the settings.
fn nvcc() -> PathBuf {
    let of_home = |home| PathBuf::from(home).join("bin/nvcc");
    let named = env::var_os("NVCC").map(PathBuf::from);
    let found = named.or_else(|| env::var_os("CUDA_HOME").map(of_home));
    match found {
        Some(nvcc) if nvcc.exists() => nvcc,
        Some(nvcc) => fail(&format!("there is no {}", nvcc.display())),
        None => fail("neither CUDA_HOME nor NVCC is set"),
    }
}

fn fail(problem: &str) -> ! {
    eprintln!(
        "the feature `cuda` needs nvcc of CUDA 13, and {problem}.\n\
         Fetch it, without a GPU or a driver: export CUDA_HOME=\"$(deploy/cuda/fetch-nvcc)\"\n\
         or set CUDA_HOME to a toolkit's folder, or NVCC to the program."
    );
    exit(1);
}
