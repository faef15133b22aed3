//! The gRPC service config that clients are told to use, read from the very
//! file that the documentation names.

use std::time::Duration;

use serde_json::Value;
use tonic::Code;

/// `docs/service-config.json`, as built.
const SERVICE_CONFIG: &str = include_str!("../../../docs/service-config.json");

/// How one method's calls are retried.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The whole call, all attempts together; `None`: no bound.
    pub timeout: Option<Duration>,
    /// Attempts that reached a server.
    pub max_attempts: u32,
    /// Bound of the first pause.
    pub initial_backoff: Duration,
    /// Bound of every pause.
    pub max_backoff: Duration,
    /// How the bound grows.
    pub multiplier: f64,
    /// A call without any connection waits for one.
    pub wait_for_ready: bool,
}

impl RetryPolicy {
    /// The policy of a method of `conclave.v1.Contemplation`.
    ///
    /// # Panics
    /// If the file does not say, or asks for what this client does not do.
    pub fn of(method: &str) -> RetryPolicy {
        let config: Value = serde_json::from_str(SERVICE_CONFIG).expect("the service config");
        let methods = config["methodConfig"].as_array().expect("methodConfig");
        let named = |entry: &&Value| {
            let names = entry["name"].as_array().into_iter().flatten();
            names.into_iter().any(|name| {
                name["service"] == "conclave.v1.Contemplation" && name["method"] == method
            })
        };
        let entry = methods
            .iter()
            .find(named)
            .unwrap_or_else(|| panic!("no methodConfig names {method}"));
        let retry = &entry["retryPolicy"];
        assert_eq!(retry["retryableStatusCodes"][0], "UNAVAILABLE");
        RetryPolicy {
            timeout: entry.get("timeout").map(seconds),
            max_attempts: retry["maxAttempts"].as_u64().expect("maxAttempts") as u32,
            initial_backoff: seconds(&retry["initialBackoff"]),
            max_backoff: seconds(&retry["maxBackoff"]),
            multiplier: retry["backoffMultiplier"].as_f64().expect("a number"),
            wait_for_ready: entry["waitForReady"] == true,
        }
    }

    /// Whether the policy retries this code.
    pub fn retries(&self, code: Code) -> bool {
        code == Code::Unavailable
    }

    /// The pause before attempt `attempt` (from 2), with `jitter` of 0..=1:
    /// between 0.8 and 1.2 of the bound, as gRFC A6 says.
    pub fn pause(&self, attempt: u32, jitter: f64) -> Duration {
        let grown = self.multiplier.powi(attempt.saturating_sub(2) as i32);
        let bound = self.initial_backoff.mul_f64(grown).min(self.max_backoff);
        bound.mul_f64(0.8 + 0.4 * jitter)
    }
}

/// `"0.2s"`.
fn seconds(value: &Value) -> Duration {
    let text = value.as_str().expect("a duration as text");
    let number = text.strip_suffix('s').expect("seconds");
    Duration::from_secs_f64(number.parse().expect("a number of seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_config_says_what_is_safe_to_repeat() {
        let submit = RetryPolicy::of("SubmitJob");
        assert!(
            submit.wait_for_ready && submit.max_attempts == 5,
            "gRPC's most"
        );
        assert_eq!(submit.timeout, Some(Duration::from_secs(30)));
        for method in ["GetJob", "ListJobs", "CancelJob"] {
            assert_eq!(RetryPolicy::of(method), submit);
        }
        assert_eq!(
            RetryPolicy::of("WatchJob").timeout,
            None,
            "a stream has no deadline"
        );
        assert!(
            !SERVICE_CONFIG.contains("ReviewJob"),
            "a review is not sent twice"
        );
    }

    #[test]
    fn pauses_grow_to_their_bound_and_outlast_an_election() {
        let policy = RetryPolicy::of("SubmitJob");
        let pauses: Vec<_> = (2..=5).map(|attempt| policy.pause(attempt, 0.0)).collect();
        assert!(pauses.is_sorted() && pauses[3] <= policy.max_backoff);
        let least: Duration = pauses.iter().sum();
        assert!(least > Duration::from_secs(3), "{least:?}");
    }
}
