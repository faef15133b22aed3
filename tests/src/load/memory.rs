//! Where a coordinator's memory is: what its process holds, and what its own metrics account for.

use std::time::Duration;

use tokio::time::timeout;

use crate::{Process, resident_memory, scrape};

/// Longest that `/metrics` may take.
const SCRAPE: Duration = Duration::from_secs(10);
/// What an idempotency key may take, bytes. Keys are kept for a day: growth that was asked for.
const KEY: u64 = 320;
/// Samples whose median stands for a time.
const SAMPLES: usize = 5;

/// The memory of one coordinator.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// Resident memory of the process, bytes.
    pub resident: u64,
    /// Allocated and not freed, bytes.
    pub allocated: u64,
    /// Jobs in the replicated state.
    pub jobs: u64,
    /// Idempotency keys in it.
    pub keys: u64,
    /// Bytes of the raft log's entries in memory.
    pub log: u64,
}

impl Memory {
    /// Of a running coordinator.
    ///
    /// # Panics
    /// It serves no metrics, or not these.
    pub async fn of(process: &Process) -> Memory {
        let text = timeout(SCRAPE, scrape(&process.http)).await;
        let text = text.expect("metrics in time").expect("metrics");
        let of = |family: &str| value(&text, family).unwrap_or_else(|| panic!("{family}: {text}"));
        Memory {
            resident: resident_memory(process.id()),
            // The allocator is asked every few seconds: a young process has not said it yet.
            allocated: value(&text, "conclave_memory_allocated_bytes").unwrap_or(0),
            jobs: of("conclave_jobs_kept"),
            keys: of("conclave_idempotency_keys"),
            log: of("conclave_raft_log_bytes"),
        }
    }

    /// `bytes`, apart from what has bounds of its own: keys beyond `keys`, and the log, which grows with the
    /// state that a snapshot would write.
    fn apart_from_keys_since(&self, keys: u64, bytes: u64) -> u64 {
        bytes.saturating_sub(self.keys.saturating_sub(keys) * KEY + self.log)
    }

    /// `61 MiB (48 allocated, 120 jobs, 6000 keys, 4 log)`.
    pub fn summary(&self) -> String {
        format!(
            "{} MiB ({} allocated, {} of it log; {} jobs, {} keys)",
            self.resident >> 20,
            self.allocated >> 20,
            self.log >> 20,
            self.jobs,
            self.keys
        )
    }
}

/// Memory at the end of a series as a share of that at its beginning, apart from keys and log. The median of
/// some samples stands for each: what the allocator has given back when one is taken is chance. `of` is
/// what is judged: what is resident, or what is allocated, which shows less than the former hides.
pub fn growth(series: &[Memory], of: fn(&Memory) -> u64) -> f64 {
    let some = SAMPLES.min(series.len().div_ceil(2));
    let keys = series[0].keys;
    let middle = |part: &[Memory]| {
        let mut bytes: Vec<u64> = part
            .iter()
            .map(|m| m.apart_from_keys_since(keys, of(m)))
            .collect();
        bytes.sort_unstable();
        (bytes[(bytes.len() - 1) / 2] + bytes[bytes.len() / 2]) as f64
    };
    middle(&series[series.len() - some..]) / middle(&series[..some])
}

/// The first sample of a family, whatever its labels.
fn value(text: &str, family: &str) -> Option<u64> {
    let samples = text.lines().filter_map(|line| line.strip_prefix(family));
    let mut samples = samples.filter(|rest| rest.starts_with(['{', ' ']));
    let number: f64 = samples.next()?.rsplit(' ').next()?.parse().ok()?;
    // Counts and bytes: whole, and far below 2^53.
    Some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_chance_and_from_keys() {
        let resident = |m: &Memory| m.resident;
        let sample = |mib: u64, keys: u64| Memory {
            resident: (mib << 20) + keys * KEY,
            keys,
            ..Memory::default()
        };
        let noisy = [64, 77, 64, 67, 82, 75, 74, 65, 67, 91, 77, 68];
        let flat: Vec<Memory> = (0..)
            .zip(noisy)
            .map(|(i, m)| sample(m, i * 2_000))
            .collect();
        assert!(growth(&flat, resident) < 1.1, "{}", growth(&flat, resident));
        let leak: Vec<Memory> = (0..)
            .zip(noisy)
            .map(|(i, m)| sample(m + 2 * i, 9))
            .collect();
        assert!(growth(&leak, resident) > 1.2, "{}", growth(&leak, resident));
        assert!((growth(&flat[..1], resident) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_sample_is_read_whatever_its_labels() {
        let text = "# HELP keys are\nkeys_kept 1\nkeys{node=\"a b\"} 7\nlog 3e6\n";
        assert_eq!(value(text, "keys"), Some(7));
        assert_eq!(value(text, "log"), Some(3_000_000));
        assert_eq!(value(text, "absent"), None);
    }

    #[test]
    fn keys_are_no_growth_and_all_else_is() {
        let before = Memory {
            resident: 100 * KEY,
            keys: 5,
            ..Memory::default()
        };
        let after = Memory {
            resident: 120 * KEY,
            keys: 15,
            ..before
        };
        assert!((growth(&[before, after], |m| m.resident) - 1.1).abs() < 1e-9);
    }
}
