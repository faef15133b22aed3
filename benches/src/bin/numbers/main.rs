//! Prints the figures of README.md: `make bench`.
//!
//! Everything runs for real: the model that `conclave model pull smollm2-135m`
//! fetched, the `conclave` binary beside this one, fsync on.

#![allow(clippy::print_stdout)]

mod ask;
mod candle;
mod commit;
mod engine;

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "{} threads, {:?}",
        conclave_kernels::Pool::default_threads(),
        conclave_kernels::detect()
    );
    println!("\n| what | figure |\n|---|---|");
    let alone = engine::print()?;
    candle::print(alone)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(commit::print())?;
    ask::print()?;
    Ok(())
}
