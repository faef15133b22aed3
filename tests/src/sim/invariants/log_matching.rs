//! Two logs that hold an entry of equal index and term agree in it and in all before it; what is
//! committed at an index is committed there for ever.

use std::collections::BTreeMap;

use conclave_coordinator_core::node::Committed;
use raft::eraftpb::Entry;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct LogMatching {
    /// By index and term: the entry's digest, and the term of the one before it where it was seen.
    entries: BTreeMap<(u64, u64), ([u8; 32], Option<u64>)>,
    committed: BTreeMap<u64, (u64, [u8; 32])>,
}

impl LogMatching {
    /// A node's log takes these in. Since each entry names one before it, equal entries have equal
    /// histories.
    pub(super) fn written(&mut self, node: u64, entries: &[Entry]) -> Check {
        let mut before = None;
        for entry in entries {
            let digest = *blake3::hash(entry.get_data()).as_bytes();
            let key = (entry.index, entry.term);
            let known = self.entries.entry(key).or_insert((digest, before));
            if known.0 != digest {
                let (index, term) = key;
                return Err(format!(
                    "coordinator {node} holds another entry {index} of term {term}"
                ));
            }
            match (known.1, before) {
                (Some(one), Some(other)) if one != other => {
                    let (index, term) = key;
                    return Err(format!(
                        "coordinator {node}: entry {index} of term {term} follows term {other} here and \
                         term {one} elsewhere"
                    ));
                }
                (None, Some(_)) => known.1 = before,
                _ => {}
            }
            before = Some(entry.term);
        }
        Ok(())
    }

    /// A node applies this.
    pub(super) fn committed(&mut self, node: u64, entry: &Committed) -> Check {
        let digest = *blake3::hash(format!("{:?}", entry.payload).as_bytes()).as_bytes();
        let found = (entry.term, digest);
        let known = self.committed.entry(entry.index).or_insert(found);
        if *known == found {
            Ok(())
        } else {
            let (index, term) = (entry.index, entry.term);
            Err(format!(
                "coordinator {node} applies entry {index} of term {term}, another did of term {}",
                known.0
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, data: &str) -> Entry {
        Entry {
            index,
            term,
            data: data.as_bytes().to_vec().into(),
            ..Entry::default()
        }
    }

    #[test]
    fn logs_that_part_are_found() {
        let mut law = LogMatching::default();
        assert_eq!(
            law.written(1, &[entry(1, 1, "a"), entry(2, 1, "b")]),
            Ok(())
        );
        assert_eq!(
            law.written(2, &[entry(1, 1, "a"), entry(2, 2, "c")]),
            Ok(())
        );
        assert!(law.written(3, &[entry(2, 1, "x")]).is_err());
        assert!(
            law.written(3, &[entry(1, 2, "z"), entry(2, 2, "c")])
                .is_err()
        );
    }
}
