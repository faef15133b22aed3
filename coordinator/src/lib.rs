//! Coordinator shell: sockets, disk, clock.
//!
//! The replicated part is `conclave-coordinator-core`, which is pure. Around it
//! stand here:
//!
//! - [`node`]: the loop that owns raft, state and worker sessions;
//! - [`disk`]: log, snapshots, payloads, identity;
//! - [`transport`]: lanes between coordinators;
//! - [`api`]: the gRPC services; [`feed`]: text on its way to watchers;
//! - [`quotas`]: what tenants may have;
//! - [`snapshot_file`] and [`offline`]: backups, and what is done to a stopped member's folder;
//! - [`door`] and [`auth`]: who gets a connection, and who may call;
//! - [`http`], [`metrics`] and [`traces`]: what operators watch.

pub mod api;
pub mod auth;
pub mod config;
pub mod disk;
pub mod dispatch;
pub mod door;
pub mod feed;
pub mod http;
pub mod metrics;
pub mod node;
pub mod offline;
pub mod quotas;
mod server;
pub mod snapshot_file;
pub mod traces;
pub mod transport;

pub use conclave_coordinator_core::audit;
pub use config::Config;
pub use server::{Coordinator, StartError};
