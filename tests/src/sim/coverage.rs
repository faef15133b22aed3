//! What runs met: faults by class, commands by kind, states of jobs, agents and attempts, deeds of the
//! cluster. Of each, so many must be met in 1,000 seeds: see [`super::floors`].

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

use super::floors::{FLOORS, SEEDS};

type Name = Cow<'static, str>;

/// The group of faults, of which it is also told how many were survived.
const FAULTS: &str = "faults";

/// Counters by group and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<(&'static str, Name), u64>,
    /// Faults in runs in which every law held.
    survived: BTreeMap<Name, u64>,
}

/// Seeds that must meet every floor.
pub const ENOUGH: u64 = 1_000;
/// A floor that fewer seeds must meet, too.
const SURE: u64 = 3;

impl Coverage {
    /// Counts one.
    pub(super) fn hit(&mut self, group: &'static str, name: impl Into<Name>) {
        self.add(group, name, 1);
    }

    /// Counts several.
    pub(super) fn add(&mut self, group: &'static str, name: impl Into<Name>, count: u64) {
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

    /// Adds another run's counters; in it, every law held or not.
    pub fn merge(&mut self, other: &Coverage, held: bool) {
        for (key, count) in &other.counts {
            *self.counts.entry(key.clone()).or_insert(0) += count;
            if held && key.0 == FAULTS {
                *self.survived.entry(key.1.clone()).or_insert(0) += count;
            }
        }
    }

    /// What was met less often than its floor for so many seeds, or has no floor at all. What is rare comes in
    /// bursts, many times in one world and in no other: few seeds may well miss it.
    pub fn missed(&self, seeds: u64) -> Vec<String> {
        let below = FLOORS.iter().filter_map(|(group, name, floor)| {
            let (met, floor) = (self.count(group, name), scaled(*floor, seeds));
            let asked = floor >= SURE || seeds >= ENOUGH;
            (asked && met < floor)
                .then(|| format!("{group}, {name}: met {met} times, {floor} are wanted"))
        });
        let known =
            |(group, name): &&(&str, Name)| FLOORS.iter().any(|f| f.0 == *group && f.1 == name);
        let unknown = self.counts.keys().filter(|key| !known(key));
        below
            .chain(unknown.map(|(group, name)| format!("{group}, {name}: has no floor")))
            .collect()
    }

    /// A table of everything that was met, with what is wanted of so many seeds; nothing is wanted of 0.
    pub fn table(&self, seeds: u64) -> String {
        let mut table = String::new();
        let mut group = "";
        for ((of, name), met) in &self.counts {
            if *of != group {
                group = of;
                let survived = if group == FAULTS { "survived" } else { "" };
                let wanted = if seeds > 0 { "floor" } else { "" };
                let _ = writeln!(table, "{group:<48}{:>10}{survived:>10}{wanted:>10}", "met");
            }
            let found = FLOORS.iter().find(|f| f.0 == group && f.1 == name);
            let floor = found.map_or(0, |f| scaled(f.2, seeds));
            let survived = if group == FAULTS {
                self.survived.get(name).copied().unwrap_or(0).to_string()
            } else {
                String::new()
            };
            let low = if *met < floor { "  LOW" } else { "" };
            let wanted = if seeds > 0 {
                floor.to_string()
            } else {
                String::new()
            };
            let _ = writeln!(
                table,
                "  {name:<46}{met:>10}{survived:>10}{wanted:>10}{low}"
            );
        }
        table
    }
}

/// A floor for so many seeds; half of it for few, where chance weighs more.
fn scaled(floor: u64, seeds: u64) -> u64 {
    let slack = if seeds < SEEDS { 2 } else { 1 };
    floor * seeds / SEEDS / slack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_met_too_seldom_or_is_not_listed_is_named() {
        let mut coverage = Coverage::default();
        for (group, name, floor) in FLOORS {
            coverage.add(group, *name, *floor);
        }
        assert_eq!(coverage.missed(SEEDS), Vec::<String>::new());
        assert_ne!(coverage.missed(SEEDS * 2), Vec::<String>::new());
        coverage.hit("deeds", "something new");
        assert_eq!(
            coverage.missed(SEEDS),
            ["deeds, something new: has no floor"]
        );
    }

    #[test]
    fn faults_of_runs_that_failed_were_not_survived() {
        let mut one = Coverage::default();
        one.hit(FAULTS, "worker crashed");
        let mut all = Coverage::default();
        all.merge(&one, true);
        all.merge(&one, false);
        let table = all.table(0);
        assert!(
            table.contains("worker crashed                                         2         1"),
            "{table}"
        );
    }
}
