//! What a folder of an earlier start needs before it is a whole cluster again.
use std::path::Path;

use conclave_proto::v1::StatusResponse;

use super::count;
use crate::error::CliError;

/// Highest place of a coordinator in a folder, from 0.
const MOST_COORDINATORS: u16 = 9;

/// Refuses to start fewer coordinators than the folder holds: the missing ones would count
/// against the majority still.
pub fn refuse_too_few(folder: &Path, asked: u16) -> Result<(), CliError> {
    let held = (asked..=MOST_COORDINATORS)
        .filter(|index| folder.join(format!("coordinator-{index}")).exists())
        .max();
    match held {
        None => Ok(()),
        Some(last) => Err(CliError::usage(format!(
            "{} holds {}, and {asked} asked for: give --coordinators {}, or another --data-dir",
            folder.display(),
            count(usize::from(last) + 1, "coordinator"),
            last + 1,
        ))),
    }
}

/// What the nodes of a folder need before they are one cluster.
#[derive(Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nobody belongs to one yet.
    Create,
    /// There is one; some may not belong to it yet.
    Add {
        /// The place of a node that belongs to it.
        through: usize,
        /// The places of those that do not.
        nodes: Vec<usize>,
    },
}

/// What `nodes`, by their places, need.
///
/// # Errors
/// Nodes that cannot become one cluster.
pub fn repair(nodes: &[StatusResponse]) -> Result<Repair, CliError> {
    let serves = |node: &StatusResponse| !matches!(node.role.as_str(), "blank" | "removed");
    // A learner may lack the entry that made it one: a voter knows better.
    let members = || (0..nodes.len()).filter(|at| serves(&nodes[*at]));
    let voter = members().find(|at| nodes[*at].role != "learner");
    let Some(through) = voter.or_else(|| members().next()) else {
        return match nodes.iter().find(|node| node.role == "removed") {
            None => Ok(Repair::Create),
            Some(node) => Err(gone(node)),
        };
    };
    let cluster = &nodes[through].cluster_id;
    let mut missing = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        match node.role.as_str() {
            "removed" => return Err(gone(node)),
            "blank" | "learner" => missing.push(at),
            _ if node.cluster_id != *cluster => {
                return Err(CliError::usage(format!(
                    "the folder holds nodes of two clusters, {cluster} and {}: give another --data-dir",
                    node.cluster_id
                )));
            }
            _ => {}
        }
    }
    Ok(Repair::Add {
        through,
        nodes: missing,
    })
}

/// The refusal of a node that was removed from its cluster.
fn gone(node: &StatusResponse) -> CliError {
    CliError::usage(format!(
        "the node on {} was removed from its cluster: delete its coordinator folder, or give another --data-dir",
        node.address
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(role: &str, cluster: &str) -> StatusResponse {
        StatusResponse {
            role: role.into(),
            cluster_id: cluster.into(),
            ..Default::default()
        }
    }

    #[test]
    fn blank_nodes_become_a_cluster_or_join_the_one_there_is() {
        let blank = || node("blank", "");
        assert_eq!(repair(&[blank(), blank()]).unwrap(), Repair::Create);
        let nodes = [
            blank(),
            node("learner", "c"),
            node("follower", "c"),
            node("leader", "c"),
        ];
        let add = Repair::Add {
            through: 2,
            nodes: vec![0, 1],
        };
        assert_eq!(repair(&nodes).unwrap(), add);
        let whole = Repair::Add {
            through: 0,
            nodes: Vec::new(),
        };
        assert_eq!(
            repair(&[node("leader", "c"), node("follower", "c")]).unwrap(),
            whole
        );
    }

    #[test]
    fn nodes_that_cannot_be_one_cluster_are_refused_with_words() {
        let two = [node("leader", "a"), node("leader", "b")];
        let removed = [node("leader", "a"), node("removed", "a")];
        for nodes in [two, removed] {
            let error = repair(&nodes).unwrap_err();
            assert!(matches!(error, CliError::Usage(_)), "{error}");
            assert!(error.to_string().contains("--data-dir"), "{error}");
        }
    }

    #[test]
    fn a_folder_of_more_coordinators_is_refused_by_their_number() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..3 {
            std::fs::create_dir(folder.path().join(format!("coordinator-{index}"))).unwrap();
        }
        assert!(refuse_too_few(folder.path(), 3).is_ok());
        assert!(refuse_too_few(folder.path(), 5).is_ok());
        let error = refuse_too_few(folder.path(), 1).unwrap_err();
        assert!(error.to_string().contains("--coordinators 3"), "{error}");
    }
}
