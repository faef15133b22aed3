//! Room on the disk that is kept for consensus and for running jobs.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::free_bytes;

/// Refuses new work below a number of free bytes, and until a little more than
/// that is free again: a disk at the limit does not say yes and no in turn.
#[derive(Clone, Debug)]
pub struct Reserve {
    folder: PathBuf,
    bytes: u64,
    short: Arc<AtomicBool>,
}

/// There is too little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that must be, before new work is taken again.
    pub wanted: u64,
    /// Bytes that are kept: below so many, new work was refused first.
    pub kept: u64,
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { free, wanted, kept } = self;
        write!(f, "{free} bytes are free, {wanted} must be: ")?;
        if wanted == kept {
            return write!(f, "disk_reserve_bytes");
        }
        write!(
            f,
            "disk_reserve_bytes ({kept}) and, after it fell below that, an eighth more"
        )
    }
}

impl Reserve {
    /// Keeps `bytes` free on the disk under `folder`; 0 keeps nothing.
    pub fn new(folder: PathBuf, bytes: u64) -> Self {
        Self {
            folder,
            bytes,
            short: Arc::default(),
        }
    }

    /// The folder whose disk it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Looks at the disk.
    ///
    /// # Errors
    /// [`Short`]; never where the system does not tell how much is free.
    pub fn check(&self) -> Result<(), Short> {
        free_bytes(&self.folder).map_or(Ok(()), |free| self.judge(free))
    }

    /// Decides about a number of free bytes.
    fn judge(&self, free: u64) -> Result<(), Short> {
        let short = self.short.load(Ordering::Relaxed);
        let wanted = match short {
            false => self.bytes,
            true => self.bytes.saturating_add(self.bytes / 8),
        };
        self.short.store(free < wanted, Ordering::Relaxed);
        match free < wanted {
            true => Err(Short {
                free,
                wanted,
                kept: self.bytes,
            }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_refuses_and_lets_go_a_little_above_where_it_began() {
        let reserve = Reserve::new(PathBuf::from("/"), 800);
        let judged: Vec<_> = [801, 800, 799, 801, 899, 900, 801, 0, 899]
            .map(|free| reserve.judge(free).is_ok())
            .into();
        assert_eq!(
            judged,
            [true, true, false, false, false, true, true, false, false]
        );
        assert_eq!(
            reserve.judge(7),
            Err(Short {
                free: 7,
                wanted: 900,
                kept: 800
            })
        );
    }

    #[test]
    fn a_refusal_says_where_its_number_comes_from() {
        let reserve = Reserve::new(PathBuf::from("/"), 800);
        let first = reserve.judge(799).unwrap_err().to_string();
        assert_eq!(first, "799 bytes are free, 800 must be: disk_reserve_bytes");
        let then = reserve.judge(850).unwrap_err().to_string();
        let eighth =
            "900 must be: disk_reserve_bytes (800) and, after it fell below that, an eighth more";
        assert!(then.contains(eighth), "{then}");
    }

    #[test]
    fn a_reserve_of_nothing_refuses_nothing() {
        assert_eq!(Reserve::new(PathBuf::from("/"), 0).judge(0), Ok(()));
    }
}
