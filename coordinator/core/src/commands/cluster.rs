//! The cluster's birth, its members' addresses and its log version.

use conclave_proto::v1::{CreateCluster, SetLogVersion, SetMemberAddress};

use crate::{
    effect::{Applied, Reply},
    state::State,
};

/// Gives the cluster its identity, once.
pub(crate) fn create(state: &mut State, command: &CreateCluster) -> Applied {
    if state.cluster_id == command.cluster_id && !state.cluster_id.is_empty() {
        return Applied::only(Reply::Ok);
    }
    if !state.cluster_id.is_empty() {
        return Applied::only(Reply::Rejected {
            why: format!("this is cluster {} already", state.cluster_id),
        });
    }
    state.cluster_id.clone_from(&command.cluster_id);
    state.signing_seed.clone_from(&command.signing_seed);
    state.salt_key.clone_from(&command.salt_key);
    state.advance_unix(command.unix_ms);
    Applied::only(Reply::Ok)
}

/// Where a member listens, or that it left.
pub(crate) fn set_member(state: &mut State, command: &SetMemberAddress) -> Applied {
    if command.removed {
        state.members.remove(&command.node_id);
    } else {
        state
            .members
            .insert(command.node_id, command.address.clone());
    }
    Applied::only(Reply::Ok)
}

/// Raises what may be proposed; every member must know the version by then.
pub(crate) fn set_log_version(state: &mut State, command: &SetLogVersion) -> Applied {
    state.log_version = state.log_version.max(command.log_version);
    Applied::only(Reply::Ok)
}
