//! Compiles the protos with protox: no protoc on the machine.
use std::{env, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 7] = [
    "conclave/v1/contemplation.proto",
    "conclave/v1/worker.proto",
    "conclave/v1/cluster.proto",
    "conclave/v1/audit.proto",
    "conclave/v1/raft.proto",
    "conclave/v1/log.proto",
    "conclave/v1/snapshot.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Maps with a fixed order: the same message has one encoding, which the log needs.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
