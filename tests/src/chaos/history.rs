//! What the clients of one scenario did and saw, with times of one clock.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use crate::linear::job::{Call, JobModel};
use crate::linear::{Entry, check};

/// Calls by idempotency key.
pub struct History {
    origin: Instant,
    calls: Mutex<BTreeMap<String, Vec<Entry<Call>>>>,
}

impl Default for History {
    fn default() -> History {
        History {
            origin: Instant::now(),
            calls: Mutex::default(),
        }
    }
}

impl History {
    /// Nanoseconds since the history began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes a call that was sent at `invoked` and returned now.
    pub fn returned(&self, key: &str, invoked: u64, call: Call) {
        self.note(key, invoked, Some(self.now()), call);
    }

    /// Notes a call that was sent at `invoked` and may take effect at any time.
    pub fn unknown(&self, key: &str, invoked: u64, call: Call) {
        self.note(key, invoked, None, call);
    }

    fn note(&self, key: &str, invoked: u64, returned: Option<u64>, call: Call) {
        let entry = Entry {
            invoked,
            returned,
            call,
        };
        let mut calls = self.calls.lock().expect("no holder panics");
        calls.entry(key.to_owned()).or_default().push(entry);
    }

    /// Checks every key's calls; returns how many calls there were, and what
    /// does not hold.
    pub fn check(&self) -> (usize, Vec<String>) {
        let calls = self.calls.lock().expect("no holder panics");
        let wrong = calls.iter().filter_map(|(key, history)| {
            let violation = check(&JobModel, history).err()?;
            Some(format!("job {key}: {violation}"))
        });
        (calls.values().map(Vec::len).sum(), wrong.collect())
    }
}
