//! No lease is renewed for an engine that has work and made no step since its last sign of life.

use std::collections::BTreeMap;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct StuckLeases(BTreeMap<u64, u64>);

impl StuckLeases {
    pub(super) fn renewed(&mut self, session: u64, steps: u64, has_work: bool) -> Check {
        match self.0.insert(session, steps) {
            Some(before) if before == steps && has_work => {
                Err(format!("session {session}: renewed at step {steps}, twice"))
            }
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
        assert_eq!(law.renewed(1, 5, true), Ok(()));
        assert_eq!(law.renewed(1, 6, true), Ok(()));
        assert_eq!(law.renewed(1, 6, false), Ok(()));
        assert!(law.renewed(1, 6, true).is_err());
    }
}
