//! A term has one leader at most.

use std::collections::BTreeMap;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct OneLeader(BTreeMap<u64, u64>);

impl OneLeader {
    pub(super) fn leads(&mut self, node: u64, term: u64) -> Check {
        match *self.0.entry(term).or_insert(node) {
            first if first == node => Ok(()),
            first => Err(format!("term {term} is led by {first} and by {node}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_leader_is_found() {
        let mut law = OneLeader::default();
        assert_eq!(law.leads(1, 5), Ok(()));
        assert_eq!(law.leads(1, 5), Ok(()));
        assert_eq!(law.leads(2, 6), Ok(()));
        assert!(law.leads(3, 6).is_err());
    }
}
