//! A worker's blocks, tables and queues agree with each other.

use conclave_worker_core::Fault;

use super::Check;

pub(super) fn check(worker: &str, fault: Option<Fault>) -> Check {
    match fault {
        None => Ok(()),
        Some(fault) => Err(format!("{worker}: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaked_block_is_found() {
        let leak = Fault::Partition {
            held: 1,
            cached: 0,
            free: 2,
            total: 4,
        };
        assert_eq!(check("w1", None), Ok(()));
        assert!(check("w1", Some(leak)).is_err());
    }
}
