//! DeepConf (Fu et al., arXiv 2508.15260): how sure a branch is of what it says.
//!
//! The confidence of a position is minus the mean log-probability of its k most likely tokens: a flat
//! distribution gives the logarithm of k and a bit, a peaked one a large number. It is averaged over a
//! sliding window; the lowest window tells a branch that lost its way.
//!
//! Positions are counted in whole millionths of a nat, so that sums are exact and no window depends on
//! the ones before it.

use std::collections::VecDeque;

/// What is measured, and when a branch is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConfidencePolicy {
    /// Tokens averaged at a position; at least 1.
    pub top_k: usize,
    /// Positions per window; at least 1.
    pub window: usize,
    /// Nats: a branch is stopped once a full window's mean falls below.
    pub stop_below: Option<f32>,
}

impl Default for ConfidencePolicy {
    fn default() -> Self {
        Self {
            top_k: 5,
            window: 32,
            stop_below: None,
        }
    }
}

/// The confidence of one branch so far. All results are in millionths of a nat.
#[derive(Clone, Debug)]
pub struct Confidence {
    policy: ConfidencePolicy,
    recent: VecDeque<i64>,
    sum: i64,
    windows: i128,
    total: i128,
    lowest: Option<i64>,
}

impl Confidence {
    /// Of a branch without positions.
    pub fn new(policy: ConfidencePolicy) -> Self {
        Self {
            recent: VecDeque::with_capacity(policy.window.max(1)),
            policy,
            sum: 0,
            windows: 0,
            total: 0,
            lowest: None,
        }
    }

    /// What is measured.
    pub fn policy(&self) -> &ConfidencePolicy {
        &self.policy
    }

    /// Adds a position whose `top_k` tokens have this mean log-probability, in nats.
    pub fn push(&mut self, top_mean_logprob: f64) {
        let value = (-top_mean_logprob * 1e6).round() as i64;
        if self.recent.len() == self.policy.window.max(1) {
            self.sum -= self.recent.pop_front().unwrap_or(0);
        }
        self.recent.push_back(value);
        self.sum += value;
        if self.is_full() {
            let mean = self.latest();
            self.windows += 1;
            self.total += i128::from(mean);
            self.lowest = Some(self.lowest.map_or(mean, |lowest| lowest.min(mean)));
        }
    }

    /// The mean of the latest window; of all positions while there are fewer; 0 without any.
    pub fn latest(&self) -> i64 {
        self.sum.checked_div(self.recent.len() as i64).unwrap_or(0)
    }

    /// The mean over all windows.
    pub fn mean(&self) -> i64 {
        match self.total.checked_div(self.windows) {
            Some(mean) => mean as i64,
            None => self.latest(),
        }
    }

    /// The lowest window.
    pub fn lowest(&self) -> i64 {
        self.lowest.unwrap_or_else(|| self.latest())
    }

    /// Whether the branch is to be stopped: the latest window is full and below the threshold.
    pub fn is_weak(&self) -> bool {
        self.is_full()
            && self
                .policy
                .stop_below
                .is_some_and(|bar| (self.latest() as f64) < f64::from(bar) * 1e6)
    }

    fn is_full(&self) -> bool {
        self.recent.len() >= self.policy.window.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(window: usize, stop_below: Option<f32>, nats: &[f64]) -> Confidence {
        let mut confidence = Confidence::new(ConfidencePolicy {
            top_k: 5,
            window,
            stop_below,
        });
        for nat in nats {
            confidence.push(-nat);
        }
        confidence
    }

    #[test]
    fn windows_slide() {
        let confidence = of(2, None, &[1.0, 3.0, 5.0, 1.0]);
        assert_eq!(confidence.latest(), 3_000_000);
        assert_eq!(confidence.lowest(), 2_000_000);
        assert_eq!(confidence.mean(), 3_000_000);
    }

    #[test]
    fn a_short_branch_is_one_window() {
        let confidence = of(32, Some(100.0), &[1.0, 2.0]);
        assert_eq!(confidence.mean(), 1_500_000);
        assert_eq!(confidence.lowest(), 1_500_000);
        assert!(!confidence.is_weak());
        assert_eq!(of(4, None, &[]).mean(), 0);
    }

    #[test]
    fn a_full_window_below_the_bar_is_weak() {
        assert!(!of(2, Some(2.0), &[1.0]).is_weak());
        assert!(of(2, Some(2.0), &[1.0, 2.0]).is_weak());
        assert!(!of(2, Some(2.0), &[2.0, 2.0]).is_weak());
        assert!(!of(2, None, &[0.0, 0.0]).is_weak());
    }

    proptest! {
        /// The sliding sums equal those computed anew.
        #[test]
        fn sliding_equals_the_definition(
            nats in prop::collection::vec(0.0f64..20.0, 1..200),
            window in 1usize..40,
        ) {
            let micros: Vec<i64> = nats.iter().map(|nat| (nat * 1e6).round() as i64).collect();
            let means: Vec<i64> = if nats.len() < window {
                vec![micros.iter().sum::<i64>() / micros.len() as i64]
            } else {
                micros.windows(window).map(|w| w.iter().sum::<i64>() / window as i64).collect()
            };
            let confidence = of(window, None, &nats);
            prop_assert_eq!(Some(confidence.lowest()), means.iter().min().copied());
            prop_assert_eq!(Some(confidence.latest()), means.last().copied());
            let mean = means.iter().sum::<i64>() / means.len() as i64;
            prop_assert_eq!(confidence.mean(), mean);
        }
    }
}
