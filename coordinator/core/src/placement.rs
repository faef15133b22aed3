//! Which worker gets which agent.

use std::collections::BTreeMap;

use conclave_proto::v1::Assign;

use crate::{
    payload::{MissingBlob, Payloads},
    state::State,
};

/// A connected worker's own words about its load (from its latest heartbeat). Workers without an
/// entry have no session here and get nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sequences that decode.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// KV blocks of 16 tokens that are free.
    pub kv_blocks_free: u32,
}

/// Workers for agents that wait, as commands to propose. Pure: the same state and loads give the
/// same assignments. `loads` is keyed by worker id.
///
/// # Errors
/// A waiting job's spec is a blob that is not here.
pub fn place(
    state: &State,
    loads: &BTreeMap<String, Load>,
    blobs: &dyn Payloads,
) -> Result<Vec<Assign>, MissingBlob> {
    let _ = (state, loads, blobs);
    Ok(Vec::new())
}
