//! No lease is renewed for an engine that has work and made no step since its last sign of life, on whatever
//! session that came. A leader knows of those that came to it.

use std::collections::BTreeMap;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct StuckLeases(BTreeMap<(u64, String), u64>);

impl StuckLeases {
    /// The leader of a term renews the lease of a process.
    pub(super) fn renewed(
        &mut self,
        term: u64,
        incarnation: &str,
        steps: u64,
        has_work: bool,
    ) -> Check {
        match self.0.insert((term, incarnation.to_owned()), steps) {
            Some(before) if before == steps && has_work => Err(format!(
                "{incarnation}: renewed at step {steps}, twice in term {term}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_without_steps_is_found() {
        let mut law = StuckLeases::default();
        assert_eq!(law.renewed(1, "i", 5, true), Ok(()));
        assert_eq!(law.renewed(1, "i", 6, true), Ok(()));
        assert_eq!(law.renewed(1, "i", 6, false), Ok(()));
        assert!(law.renewed(1, "i", 6, true).is_err());
        assert_eq!(
            law.renewed(2, "i", 6, true),
            Ok(()),
            "a leader that knew nothing"
        );
    }
}
