//! A worker's blocks, tables and queues agree with each other.

use conclave_worker_core::Fault;

use super::Check;

pub(super) fn check(worker: &str, fault: Option<Fault>) -> Check {
    match fault {
        None => Ok(()),
        Some(fault) => Err(format!("{worker}: {fault}")),
    }
}
