//! Harness of the process-level tests: real `conclave` processes on loopback,
//! real Raft logs, a real model, real signals.
//!
//! The binary is the one that cargo built beside the test (`make test` builds it
//! first); the model is the one that `conclave model pull smollm2-135m` fetched.

#![allow(clippy::missing_panics_doc)]

pub mod bearer;
pub mod chaos;
mod client;
mod cluster;
pub mod collector;
pub mod etcd;
pub mod laws;
pub mod linear;
pub mod load;
mod measure;
mod mock_worker;
mod process;
pub mod sim;
mod tally;

pub use client::{Client, exact_job};
pub use cluster::{Cluster, MODEL, Place, Places};
pub use measure::{Times, resident_memory, scrape};
pub use mock_worker::{MockOptions, MockWorker, Seen, run_mock_worker};
pub use process::{
    Launch, Process, conclave_binary, free_port, model_path, peak_memory_of_children,
};
pub use tally::Tally;
