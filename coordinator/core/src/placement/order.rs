//! Workers by how full they are: derived from workers and holdings, so that placement finds the least loaded
//! without a look at the others.

use std::collections::{BTreeMap, BTreeSet};

/// The workers that hold a lease, the least loaded first; by id among equals.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Order {
    loads: BTreeMap<String, u64>,
    sorted: BTreeSet<(u64, String)>,
}

impl Order {
    /// The worker's load is this now, in millionths of its sequences; `None`: it holds no lease.
    pub(crate) fn set(&mut self, worker_id: &str, load: Option<u64>) {
        let before = self.loads.get(worker_id).copied();
        if before == load {
            return;
        }
        if let Some(before) = before {
            self.sorted.remove(&(before, worker_id.to_owned()));
        }
        match load {
            Some(load) => {
                self.sorted.insert((load, worker_id.to_owned()));
                self.loads.insert(worker_id.to_owned(), load);
            }
            None => drop(self.loads.remove(worker_id)),
        }
    }

    /// Loads and worker ids, the least loaded first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        self.sorted.iter().map(|(load, id)| (*load, id.as_str()))
    }
}
