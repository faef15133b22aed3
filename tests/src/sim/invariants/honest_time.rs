//! Replicated time is never far ahead of an honest clock, as long as most clocks are honest: what it
//! erases does not come back.

use super::Check;

/// How far an honest clock may be off here, ms.
pub(in super::super) const HONEST_MS: i64 = 20_000;

/// Time passes in whole steps of a node's loop, ms.
pub(super) const SLACK_MS: i64 = 1_000;

pub(super) fn check(node: u64, unix_ms: i64, honest_ms: i64) -> Check {
    let ahead_ms = unix_ms - honest_ms;
    // By the honest clock that is furthest ahead, and what a tick rounds.
    if ahead_ms <= HONEST_MS + SLACK_MS {
        return Ok(());
    }
    Err(format!(
        "coordinator {node}: replicated time is {ahead_ms} ms ahead of an honest clock"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_days_is_found_and_an_honest_error_is_not() {
        assert_eq!(check(1, HONEST_MS, 0), Ok(()));
        assert_eq!(check(1, 0, 10 * HONEST_MS), Ok(()));
        assert!(check(1, 2 * HONEST_MS, 0).is_err());
    }
}
