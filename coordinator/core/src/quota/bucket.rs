//! A token bucket that may be overdrawn: what a job uses is known once it is used.

/// Parts of a token that flow in with each millisecond, at one token a minute.
const PARTS: i128 = 60_000;

/// Holds a minute's worth of tokens, fills as time passes. In whole numbers: nothing is lost to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    /// 60,000ths of a token; below 0: the tenant owes them.
    level: i128,
    at_ms: i64,
}

impl Bucket {
    /// A full one, at this time of any monotonic clock.
    pub(super) fn full(limit: u64, at_ms: i64) -> Bucket {
        let level = i128::from(limit) * PARTS;
        Bucket { level, at_ms }
    }

    /// Time passes; going back, it stands still.
    pub(super) fn fill(&mut self, limit: u64, now_ms: i64) {
        let passed = i128::from(now_ms) - i128::from(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let full = i128::from(limit) * PARTS;
        let earned = passed.max(0).saturating_mul(i128::from(limit));
        self.level = self.level.saturating_add(earned).min(full);
    }

    /// Takes so many tokens out, whether they are there or not.
    pub(super) fn take(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * PARTS;
    }

    /// Takes out what is used now.
    pub(super) fn spend(&mut self, tokens: u64, limit: u64, now_ms: u64) {
        self.fill(limit, signed(now_ms));
        self.take(tokens);
    }

    /// Tokens owed now, rounded up.
    pub(super) fn debt(&mut self, limit: u64, now_ms: u64) -> u64 {
        self.fill(limit, signed(now_ms));
        whole((-self.level).max(0), PARTS)
    }

    /// How long until nothing is owed, ms from when it was last looked at.
    pub(super) fn paid_off_ms(&self, limit: u64) -> u64 {
        whole((-self.level).max(0), i128::from(limit.max(1)))
    }

    /// It holds all that it can.
    pub(super) fn is_full(&mut self, limit: u64, now_ms: u64) -> bool {
        self.fill(limit, signed(now_ms));
        self.level >= i128::from(limit) * PARTS
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// Rounded up; `parts` is not negative.
fn whole(parts: i128, of: i128) -> u64 {
    u64::try_from((parts + of - 1) / of).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_is_there_at_once_and_a_debt_is_paid_off_in_its_time() {
        let mut bucket = Bucket::full(600, 0);
        bucket.spend(600, 600, 0);
        assert_eq!((bucket.debt(600, 0), bucket.paid_off_ms(600)), (0, 0));
        bucket.spend(25, 600, 0);
        assert_eq!(bucket.debt(600, 0), 25);
        assert_eq!(bucket.paid_off_ms(600), 2_500, "ten tokens a second");
        assert_eq!(bucket.debt(600, 2_499), 1, "rounded up");
        assert_eq!(bucket.debt(600, 2_500), 0);
        assert!(!bucket.is_full(600, 62_499) && bucket.is_full(600, 62_500));
    }

    #[test]
    fn it_never_holds_more_than_a_minutes_worth() {
        let mut bucket = Bucket::full(60, 0);
        bucket.fill(60, 1_000_000);
        bucket.spend(61, 60, 1_000_000);
        assert_eq!(bucket.debt(60, 1_000_000), 1);
        bucket.fill(30, 0);
        assert_eq!(bucket.debt(30, 1_000_000), 1, "time does not go back");
    }

    #[test]
    fn no_number_overflows() {
        let mut bucket = Bucket::full(u64::MAX, i64::MIN);
        bucket.fill(u64::MAX, i64::MAX);
        bucket.take(u64::MAX);
        bucket.take(u64::MAX);
        assert_eq!(bucket.debt(u64::MAX, 0), u64::MAX);
        bucket.fill(1, i64::MAX);
        assert_eq!(bucket.paid_off_ms(0), u64::MAX);
    }
}
