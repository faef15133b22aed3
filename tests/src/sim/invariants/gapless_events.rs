//! A job's events are numbered from 1 without gaps or repeats, and never change.

use std::collections::BTreeMap;

use conclave_coordinator_core::job::Job;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct GaplessEvents(BTreeMap<String, usize>);

impl GaplessEvents {
    pub(super) fn check(&mut self, job: &Job) -> Check {
        let before = self.0.insert(job.id.clone(), job.events.len()).unwrap_or(0);
        if job.events.len() < before {
            return Err(format!("job {}: events were taken back", job.id));
        }
        for (at, event) in job.events.iter().enumerate().skip(before) {
            if event.index != at as u64 + 1 {
                return Err(format!("job {}: event {} at {at}", job.id, event.index));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::oracle, *};

    #[test]
    fn a_gap_and_a_loss_are_found() {
        let whole = oracle::job();
        assert_eq!(GaplessEvents::default().check(&whole), Ok(()));
        let mut gap = whole.clone();
        gap.events.remove(1);
        assert!(GaplessEvents::default().check(&gap).is_err());
        let mut law = GaplessEvents::default();
        assert_eq!(law.check(&whole), Ok(()));
        let mut less = whole;
        less.events.pop();
        assert!(law.check(&less).is_err(), "an event was taken back");
    }
}
