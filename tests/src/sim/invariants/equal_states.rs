//! Replicas' states are equal at equal applied index, byte for byte as a snapshot holds them.

use std::collections::BTreeMap;

use conclave_coordinator_core::{State, snapshot};

use super::Check;

/// States are compared at every so many indices, and wherever a snapshot is installed.
const EVERY: u64 = 24;

#[derive(Debug, Default)]
pub(super) struct EqualStates(BTreeMap<u64, (u64, Vec<u8>)>);

impl EqualStates {
    pub(super) fn applied(&mut self, node: u64, state: &State) -> Check {
        if state.applied_index().is_multiple_of(EVERY) {
            self.compare(node, state)
        } else {
            Ok(())
        }
    }

    /// A snapshot of the state gives it back, with all that is derived from it.
    pub(super) fn restores(node: u64, state: &State) -> Check {
        let (manifest, bytes) = snapshot::encode(state);
        match snapshot::decode_up_to(&manifest, &bytes, u32::MAX) {
            Ok(restored) if restored == *state => Ok(()),
            Ok(_) => Err(format!(
                "coordinator {node}: its snapshot gives another state"
            )),
            Err(error) => Err(format!("coordinator {node}: its snapshot: {error}")),
        }
    }

    pub(super) fn compare(&mut self, node: u64, state: &State) -> Check {
        let (manifest, _) = snapshot::encode(state);
        let index = manifest.index;
        let (first, digest) = self
            .0
            .entry(index)
            .or_insert((node, manifest.digest.clone()));
        if *digest == manifest.digest {
            Ok(())
        } else {
            Err(format!("coordinators {first} and {node} differ at {index}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::oracle, *};

    #[test]
    fn replicas_that_part_are_found() {
        let mut law = EqualStates::default();
        let mut one = State::new();
        one.skip(24, 1);
        assert_eq!(law.applied(1, &one), Ok(()));
        assert_eq!(law.applied(2, &one), Ok(()));
        let other = conclave_proto::v1::SetLogVersion { log_version: 9 };
        let command = conclave_coordinator_core::codec::command(
            conclave_proto::v1::command::Command::SetLogVersion(other),
        );
        let mut two = State::new();
        two.apply(24, 1, &command);
        assert!(law.applied(3, &two).is_err());
    }

    #[test]
    fn a_state_whose_snapshot_gives_another_is_found() {
        let (state, _) = oracle::running(2);
        assert_eq!(EqualStates::restores(1, &state), Ok(()));
        let underived = state.to_save();
        assert!(EqualStates::restores(1, &underived).is_err());
    }
}
