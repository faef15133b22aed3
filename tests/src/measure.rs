//! What programs that measure share: percentiles, the memory of a process, its metrics.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Durations, to be summed up.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Adds all of another's.
    pub fn extend(&mut self, other: Times) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest that `percent` of them do not exceed (nearest rank); zero without any.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    /// `p50 12 ms, p99 40 ms, most 41 ms`.
    pub fn summary(&self) -> String {
        let [p50, p99, most] = [50, 99, 100].map(|p| self.percentile(p).as_millis());
        format!("p50 {p50} ms, p99 {p99} ms, most {most} ms")
    }
}

/// Resident memory of a process, bytes; 0 when it is gone.
pub fn resident_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// What a program shows of its metrics.
///
/// # Errors
/// It is gone, or serves none.
pub async fn scrape(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut times = Times::default();
        assert_eq!(times.percentile(50), Duration::ZERO);
        for ms in (1..=20).rev() {
            times.add(Duration::from_millis(ms));
        }
        let of = |percent| times.percentile(percent).as_millis();
        assert_eq!((of(50), of(95), of(99), of(100)), (10, 19, 20, 20));
    }

    #[test]
    fn a_process_has_memory_until_it_is_gone() {
        assert!(resident_memory(std::process::id()) > 100_000);
        assert_eq!(resident_memory(u32::MAX), 0);
    }
}
