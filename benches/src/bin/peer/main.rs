//! Our side of `make bench-peers`: one turn of the engine on the workload of `benches/peers/`, a line of JSON
//! for each figure.
//!
//! ```text
//! peer MODEL.gguf --workload benches/peers --threads 2 --isa avx2
//! ```

#![allow(clippy::print_stdout)]

mod floor;
mod turn;
mod workload;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use conclave_kernels::{Activation, Isa, Kernels, Pool, detect};
use conclave_worker::model::{LoadOptions, Model};
use serde_json::json;

use turn::Bench;
use workload::Workload;

/// Runs our engine on the workload that the other engines run.
#[derive(Parser)]
struct Arguments {
    /// A GGUF file.
    model: PathBuf,
    /// The folder with `workload.json` and `text.txt`.
    #[arg(long, default_value = "benches/peers")]
    workload: PathBuf,
    /// Compute threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The instruction set: portable, avx2 or avx512; by default the best that the processor has.
    #[arg(long, value_parser = isa)]
    isa: Option<Isa>,
    /// Inputs are not rounded to 8 bit.
    #[arg(long)]
    float: bool,
    /// Only these figures, e.g. `prefill-512` or `decode`: names that begin so.
    #[arg(long)]
    only: Vec<String>,
}

fn isa(name: &str) -> Result<Isa, String> {
    match Isa::from_name(name) {
        Some(isa) if isa.available() => Ok(isa),
        Some(_) => Err(format!("this processor has no {name}: leave --isa out")),
        None => Err("one of portable, avx2, avx512".to_owned()),
    }
}

/// Prints a figure.
fn figure(name: &str, value: f64) {
    println!("{}", json!({ "figure": name, "value": value }));
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let isa = arguments.isa.unwrap_or_else(detect);
    let options = LoadOptions {
        isa,
        activation: match arguments.float {
            true => Activation::F32,
            false => Activation::Int8,
        },
        ..LoadOptions::default()
    };
    let started = Instant::now();
    let model = Model::load(&arguments.model, &options)?;
    let kernels = Arc::new(Kernels::new(isa, Pool::new(arguments.threads)));
    let work = Workload::read(&arguments.workload, model.tokenizer())?;
    let bench = Bench::new(model, kernels, work);
    drop(bench.engine()?);
    figure("load", started.elapsed().as_secs_f64());
    println!("{}", json!({ "built": bench.class()? }));
    println!(
        "{}",
        json!({ "ids": bench.work.ids.len(), "digest": bench.work.digest() })
    );
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|o| name.starts_with(o))
    };
    bench.turn(wanted)?;
    if wanted("floor") {
        floor::print(&bench)?;
    }
    Ok(())
}
