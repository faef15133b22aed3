//! A model on the CUDA emulator against a reference's answers: the whole path of a GPU worker, without a GPU. Slow:
//! seconds a token.
//!
//! ```text
//! cargo run --release -p conclave-worker --example emulated -- smollm2-135m REFERENCE.json [f32|int8]
//! ```

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::Activation;
use conclave_worker::model::check::{CheckOptions, run_check};
use conclave_worker::model::{Device, pull};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, reference) = match &args[..] {
        [model, reference, ..] => (pull::resolve(model)?, Path::new(reference)),
        _ => return Err("give a model and a file of a reference's answers".into()),
    };
    let mut options = CheckOptions {
        device: Some(Device::new(Emulator::new())),
        ..CheckOptions::default()
    };
    if let Some(kind) = args.get(2) {
        let named = |activation: &Activation| activation.name() == kind.as_str();
        options.activations.retain(named);
    }
    let began = Instant::now();
    let report = run_check(&model, reference, &options)?;
    println!("{report}took {:.0} s", began.elapsed().as_secs_f64());
    options.device = None;
    let here = run_check(&model, reference, &options)?.to_string();
    // All but the name of the class, whose column is as wide in both.
    let words = |text: &str| -> Vec<String> {
        let words = text.split_whitespace().map(str::to_owned);
        words.filter(|word| !word.starts_with('k')).collect()
    };
    let same = words(&here) == words(&report.to_string());
    println!(
        "the processor says {}",
        if same { "the same" } else { "otherwise" }
    );
    if !same {
        return Err(here.into());
    }
    match report.passed() {
        true => Ok(()),
        false => Err("beyond the tolerances".into()),
    }
}
