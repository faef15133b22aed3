//! The replicated core of Conclave: state machine, contemplation, placement and raft node.
//!
//! Everything here is a pure function of its inputs: no clock, no sockets, no disk, no random
//! numbers, no runtime. Time, ids and randomness arrive as data; what is to be done leaves as
//! [`effect::Effect`]s and [`node::Output`]s, which the coordinator's shell carries out.
//!
//! The way of a command: the leader builds one ([`codec`]), proposes it ([`node`]), every replica
//! applies it ([`state::State::apply`]), and the leader's shell carries out the effects. Whether a
//! job goes on, and how, is asked of [`contemplate::next`]; which worker gets which agent, of
//! [`placement::place`]. Both only *suggest* commands: apply checks and records.

pub mod agent;
pub mod audit;
pub mod codec;
mod commands;
pub mod contemplate;
pub mod effect;
mod index;
pub mod job;
mod jobs;
pub mod keys;
pub mod lead;
pub mod node;
pub mod payload;
pub mod placement;
pub mod quota;
pub mod reads;
pub mod refound;
pub mod snapshot;
pub mod spec;
pub mod state;
pub mod tenants;
#[cfg(test)]
mod testkit;
pub mod timeline;
pub mod view;
pub mod waiters;
pub mod waiting;
pub mod watch;
pub mod worker;

pub use conclave_proto::v1 as proto;
pub use effect::{Applied, Effect, Reply, Stale};
pub use payload::{MissingBlob, Payloads};
pub use state::State;
