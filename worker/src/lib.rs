//! The worker's shell: a model, an engine that runs agents on it, and a session with the coordinators.
//!
//! ```text
//!  coordinators <== session ==> desk ── plan (blocking threads) ──> engine thread ──> runner ──> kernels
//!                     |           |<────────── deltas, drafts ──────────┘
//!                    link      results (until acknowledged)
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`host`] | [`Worker`]: start, shutdown, wait |
//! | [`session`] | the conversation with whoever leads; the attempts and their results |
//! | [`engine_thread`] | the one thread that computes |
//! | [`backend`] | the seam between the shell and a model |
//! | [`model`] | weights, tokenizer, template, forward pass |
//! | [`replay`] | recorded agents run again, token for token |
//! | [`config`], [`http`], [`metrics`], [`results`], [`secrets`], [`error`] | what they say |
//!
//! Scheduling, blocks and batches are in `conclave-worker-core`; it knows nothing of what is here.

pub mod agent;
pub mod answer;
pub mod backend;
pub mod confidence;
pub mod config;
pub mod device;
pub mod engine_thread;
pub mod error;
pub mod generation;
pub mod grammar;
pub mod host;
pub mod http;
pub mod load;
pub mod metrics;
pub mod model;
pub mod model_backend;
pub mod replay;
pub mod results;
pub mod runner;
pub mod sampling;
pub mod secrets;
pub mod session;
pub mod text;
pub mod vocabulary;

pub use config::{Config, ConfigError, ModelConfig};
pub use error::StartError;
pub use host::Worker;
