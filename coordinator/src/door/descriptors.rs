//! Descriptors of this process. Connections get a share of them: one that took the last would keep the log from its
//! files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below so many, the operator is told.
const FEW: u64 = 4_096;

/// Raises the limit of open descriptors to what the system allows, and returns it.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let now = now.unwrap_or(u64::MAX);
    if now < FEW {
        tracing::warn!(
            descriptors = now,
            "few descriptors: raise the limit (`ulimit -n`, LimitNOFILE), or connections will be refused early"
        );
    }
    now
}

/// Connections that may be held where there are so many descriptors, `most` at most: a third stays for files, and for
/// what this node opens itself.
pub fn seats(descriptors: u64, most: usize) -> usize {
    let share = descriptors - descriptors / 3;
    usize::try_from(share).unwrap_or(most).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_files() {
        assert_eq!(seats(256, 1_000), 171);
        assert_eq!(seats(1 << 20, 1_000), 1_000);
        assert_eq!(seats(u64::MAX, 1_000), 1_000);
    }
}
