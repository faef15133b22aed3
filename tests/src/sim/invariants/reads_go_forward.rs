//! A linearizable read is served where all is applied that anybody had applied when it came; it shows at
//! least what a read that had ended before it began showed.

use std::collections::BTreeMap;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct ReadsGoForward(BTreeMap<String, usize>);

impl ReadsGoForward {
    /// Events that a read that begins now must show.
    pub(super) fn floor(&self, job_id: &str) -> usize {
        self.0.get(job_id).copied().unwrap_or(0)
    }

    /// A read that began after its caller was told that the job is cancelled or reviewed shows its end.
    pub(super) fn shows_end(job_id: &str, told: bool, ended: bool) -> Check {
        if ended || !told {
            return Ok(());
        }
        Err(format!("job {job_id}: its end was told, and is not shown"))
    }

    /// A read that came when some member had applied up to `least` was served at `index`. What was applied
    /// anywhere was committed, so that whoever leads then knows of it.
    pub(super) fn served(node: u64, index: u64, least: u64) -> Check {
        if index >= least {
            return Ok(());
        }
        Err(format!(
            "coordinator {node} serves a read at {index}, and {least} had been applied when it came"
        ))
    }

    /// A read that began at this floor showed so many events.
    pub(super) fn done(&mut self, job_id: &str, floor: usize, events: usize) -> Check {
        let most = self.0.entry(job_id.to_owned()).or_insert(0);
        *most = events.max(*most);
        if events >= floor {
            Ok(())
        } else {
            Err(format!(
                "job {job_id}: {events} events after {floor} were shown"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_the_past_is_found() {
        let mut law = ReadsGoForward::default();
        let early = law.floor("j");
        assert_eq!(law.done("j", early, 5), Ok(()));
        assert_eq!(
            law.done("j", early, 3),
            Ok(()),
            "it began before the other ended"
        );
        assert!(law.done("j", law.floor("j"), 4).is_err());
    }

    #[test]
    fn a_read_point_that_is_too_early_is_found() {
        assert_eq!(ReadsGoForward::served(1, 7, 7), Ok(()));
        assert!(ReadsGoForward::served(1, 6, 7).is_err());
    }

    #[test]
    fn an_end_that_was_told_and_is_not_shown_is_found() {
        assert_eq!(ReadsGoForward::shows_end("j", false, false), Ok(()));
        assert_eq!(ReadsGoForward::shows_end("j", true, true), Ok(()));
        assert!(ReadsGoForward::shows_end("j", true, false).is_err());
    }
}
