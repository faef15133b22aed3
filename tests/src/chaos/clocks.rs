//! Wall clocks of the coordinators, stepped from outside with libfaketime; the
//! monotonic clock is left alone, as a step of a real clock leaves it.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::machine::faketime;
use crate::{Launch, Place, Places};

/// One file a coordinator, which libfaketime reads at every question.
pub struct Clocks {
    folder: TempDir,
    count: usize,
}

impl Clocks {
    /// Clocks that are right so far, and the places that live by them.
    ///
    /// # Panics
    /// Without libfaketime, or a temporary folder.
    pub fn new(coordinators: usize, workers: usize) -> (Clocks, Places) {
        let clocks = Clocks {
            folder: tempfile::tempdir().expect("a temporary folder"),
            count: coordinators,
        };
        clocks.step_all(0);
        let library = faketime().expect("looked for before").display().to_string();
        let place = |index| Place {
            launch: Launch {
                env: [
                    ("LD_PRELOAD", library.clone()),
                    (
                        "FAKETIME_TIMESTAMP_FILE",
                        clocks.file(index).display().to_string(),
                    ),
                    ("FAKETIME_NO_CACHE", "1".to_owned()),
                    ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ]
                .map(|(name, value)| (name.to_owned(), value))
                .to_vec(),
                ..Launch::default()
            },
            ..Place::default()
        };
        let places = Places {
            coordinators: (0..coordinators).map(place).collect(),
            workers: vec![Place::default(); workers],
            tokens: None,
        };
        (clocks, places)
    }

    fn file(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("clock-{index}"))
    }

    /// Puts one clock so many hours before or behind the true time.
    pub fn step(&self, index: usize, hours: i64) {
        let next = self.file(index).with_extension("next");
        fs::write(&next, format!("{:+}\n", hours * 3600)).expect("a clock file");
        // Renamed, so that a reader sees the old or the new time.
        fs::rename(&next, self.file(index)).expect("a clock file");
    }

    /// Puts all clocks so.
    pub fn step_all(&self, hours: i64) {
        (0..self.count).for_each(|index| self.step(index, hours));
    }
}
