//! What happened, line by line: hashed for `--twice`, printed with `--trace`.

/// The lines of a run.
#[derive(Debug)]
pub(super) struct Story {
    kept: bool,
    shown: bool,
    hasher: blake3::Hasher,
    lines: u64,
}

impl Story {
    pub(super) fn new(kept: bool, shown: bool) -> Story {
        Story {
            kept: kept || shown,
            shown,
            hasher: blake3::Hasher::new(),
            lines: 0,
        }
    }

    pub(super) fn tell(&mut self, now: u64, line: impl FnOnce() -> String) {
        if !self.kept {
            return;
        }
        let line = format!("{:>9.3} s  {}\n", now as f64 / 1_000.0, line());
        self.hasher.update(line.as_bytes());
        self.lines += 1;
        if self.shown {
            use std::io::Write as _;
            // A closed pipe ends the telling, not the run.
            let _ = std::io::stdout().write_all(line.as_bytes());
        }
    }

    /// Lines, and the hash over their bytes.
    pub(super) fn digest(&self) -> (u64, String) {
        (self.lines, self.hasher.finalize().to_hex().to_string())
    }
}
