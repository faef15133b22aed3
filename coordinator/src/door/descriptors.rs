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

/// Connections that one of `doors` may hold where there are so many descriptors, `most` at most: a third stays for
/// files, and for what the process opens itself.
pub fn seats(descriptors: u64, doors: u64, most: usize) -> usize {
    let share = (descriptors - descriptors / 3) / doors.max(1);
    usize::try_from(share).unwrap_or(most).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_files() {
        assert_eq!(seats(256, 1, 1_000), 171);
        assert_eq!(seats(1 << 20, 1, 1_000), 1_000);
        assert_eq!(seats(u64::MAX, 1, 1_000), 1_000);
    }

    #[test]
    fn doors_of_one_process_share_its_descriptors() {
        for doors in 1..=9 {
            let all = seats(1_024, doors, 1_000) as u64 * doors;
            assert!((600..=683).contains(&all), "{doors}: {all}");
        }
    }
}
