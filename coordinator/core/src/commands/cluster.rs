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

#[cfg(test)]
mod tests {
    use conclave_proto::v1::command::Command as Body;

    use super::*;
    use crate::testkit::World;

    #[test]
    fn a_cluster_is_created_once() {
        let mut world = World::new();
        let salt = world.state.salt("t");
        let create = |id: &str| CreateCluster {
            cluster_id: id.into(),
            salt_key: vec![9],
            ..CreateCluster::default()
        };
        let other = world.apply(Body::CreateCluster(create("d")));
        assert!(matches!(other.reply, Reply::Rejected { .. }));
        assert_eq!(
            world.apply(Body::CreateCluster(create("c"))).reply,
            Reply::Ok
        );
        assert_eq!(
            (world.state.cluster_id(), world.state.salt("t")),
            ("c", salt)
        );
        assert_ne!(
            world.state.salt("t"),
            world.state.salt("u"),
            "tenants do not share blocks"
        );
    }

    #[test]
    fn members_come_and_go_and_versions_only_rise() {
        let mut world = World::new();
        let member = |removed| SetMemberAddress {
            node_id: 5,
            address: "a:1".into(),
            removed,
        };
        world.apply(Body::SetMemberAddress(member(false)));
        assert_eq!(
            world.state.members().get(&5).map(String::as_str),
            Some("a:1")
        );
        world.apply(Body::SetMemberAddress(member(true)));
        assert!(world.state.members().is_empty());
        world.apply(Body::SetLogVersion(SetLogVersion { log_version: 0 }));
        assert_eq!(world.state.log_version(), 1);
    }
}
