//! What a run met: faults by class, commands by kind, states of jobs, deeds of the cluster.

use std::{collections::BTreeMap, fmt};

/// Counters by group and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<(&'static str, String), u64>,
}

impl Coverage {
    /// Counts one.
    pub(super) fn hit(&mut self, group: &'static str, name: impl Into<String>) {
        self.add(group, name, 1);
    }

    /// Counts several.
    pub(super) fn add(&mut self, group: &'static str, name: impl Into<String>, count: u64) {
        *self.counts.entry((group, name.into())).or_insert(0) += count;
    }

    /// How often it was met.
    pub fn count(&self, group: &str, name: &str) -> u64 {
        self.counts
            .iter()
            .filter(|((g, n), _)| *g == group && n == name)
            .map(|(_, count)| count)
            .sum()
    }

    /// Adds another run's counters.
    pub fn merge(&mut self, other: &Coverage) {
        for (key, count) in &other.counts {
            *self.counts.entry(key.clone()).or_insert(0) += count;
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut group = "";
        for ((of, name), count) in &self.counts {
            if *of != group {
                group = of;
                writeln!(f, "{group}")?;
            }
            writeln!(f, "  {count:>10}  {name}")?;
        }
        Ok(())
    }
}
