//! Replicated time is never far ahead of an honest clock, as long as most clocks are honest: what it
//! erases does not come back.

use conclave_coordinator_core::lead::LEAP_MS;

use super::Check;

/// How far an honest clock may be off here, ms.
pub(in super::super) const HONEST_MS: i64 = 20_000;

pub(super) fn check(node: u64, unix_ms: i64, honest_ms: i64) -> Check {
    let ahead_ms = unix_ms - honest_ms;
    // A clock that is believed may be off by a leap from another that is.
    if ahead_ms <= LEAP_MS + 2 * HONEST_MS {
        return Ok(());
    }
    Err(format!(
        "node {node}: replicated time is {ahead_ms} ms ahead of an honest clock"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_days_is_found_and_an_honest_error_is_not() {
        assert_eq!(check(1, HONEST_MS, 0), Ok(()));
        assert_eq!(check(1, 0, LEAP_MS * 100), Ok(()));
        assert!(check(1, 24 * LEAP_MS, 0).is_err());
    }
}
