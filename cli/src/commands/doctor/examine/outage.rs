//! Where nobody leads or answers: one finding for the cause, and with it all that follows from it.

use std::collections::BTreeMap;

use super::{Answer, Finding, Findings, Level, Node, Seen};

fn cause(about: &str, what: String, cure: String, with_it: Vec<String>) -> Finding {
    Finding {
        level: Level::Problem,
        about: about.to_owned(),
        what,
        cure,
        with_it,
    }
}

/// `address: what it did`, of a node that did not answer.
fn line(node: &Node) -> Option<String> {
    let gone = node.answer.as_ref().err()?;
    Some(format!("{} {}", node.address, gone.why))
}

/// No coordinator answers: those that need the same cure are one finding.
pub(super) fn nobody(seen: &Seen, found: &mut Findings) {
    let mut by_cure: BTreeMap<Option<&str>, Vec<&Node>> = BTreeMap::new();
    for node in &seen.nodes {
        let Err(gone) = &node.answer else { continue };
        by_cure.entry(gone.for_good).or_default().push(node);
    }
    for (cure, nodes) in by_cure {
        let answers = if cure.is_some() {
            "can be asked"
        } else {
            "answers"
        };
        let cure = cure.unwrap_or(
            "is a cluster running there? `conclave up` starts a local one; --endpoint names \
             another; else start the coordinators, or mend the network to their gRPC ports",
        );
        let lines: Vec<String> = nodes.iter().filter_map(|node| line(node)).collect();
        let (what, with_it) = match lines.as_slice() {
            [only] => (only.clone(), Vec::new()),
            _ => (format!("none of {} {answers}", lines.len()), lines),
        };
        let cure = cure.to_owned();
        found.0.push(cause("the endpoints", what, cure, with_it));
    }
}

/// Whoever answers is blank.
pub(super) fn none_created(seen: &Seen, found: &mut Findings) {
    let answers = seen.answers().into_iter();
    let mut addresses: Vec<&str> = answers.map(|(address, _)| address).collect();
    let what = format!("none was created yet: {} blank", are(&addresses));
    let first = addresses.remove(0);
    let join = match addresses.as_slice() {
        [] => String::new(),
        others => format!(" --join {}", others.join(",")),
    };
    let cure = format!("`conclave cluster init --endpoint {first}{join}`");
    let cure = format!("{cure}; did they have one, their data folders are lost");
    found.0.push(cause("the cluster", what, cure, Vec::new()));
}

/// Whether nobody leads, and, if so, why: the quorum is lost, or members that answer do not reach each other.
pub(super) fn leaderless(seen: &Seen, found: &mut Findings) -> bool {
    let is_member = |answer: &Answer| !matches!(answer.status.role.as_str(), "blank" | "removed");
    let answers = seen.answers().into_iter();
    let members: Vec<(&str, &Answer)> = answers.filter(|(_, a)| is_member(a)).collect();
    let unled = members.iter().all(|(_, a)| a.status.leader_id == 0);
    // A leader that lost the others some moments ago still calls itself one.
    let unheard = seen.workers.is_err() && down(seen).len() * 2 >= seen.voters().len();
    if members.is_empty() || !(unled || unheard || seen.members.is_err()) {
        return false;
    }
    let mut with_it: Vec<String> = seen
        .nodes
        .iter()
        .filter(|node| seen.member_at(&node.address).is_some())
        .filter(|node| {
            node.answer
                .as_ref()
                .is_err_and(|gone| gone.for_good.is_none())
        })
        .filter_map(line)
        .collect();
    let unready = members.iter().filter(|(_, a)| !a.status.unready.is_empty());
    with_it.extend(unready.map(|(at, a)| format!("{at} is not ready: {}", a.status.unready)));
    with_it.push("members and workers: only a leader tells who they are now".to_owned());
    let (about, what, cure) = why_unled(seen);
    found.0.push(cause(about, what, cure, with_it));
    true
}

/// Voters that are down, by address; one that refuses this caller is there.
fn down(seen: &Seen) -> Vec<String> {
    let is_down = |address: &str| {
        let mut nodes = seen.nodes.iter();
        let node = nodes.find(|node| node.addresses().iter().any(|a| a == address));
        node.is_none_or(|node| {
            let gone = node.answer.as_ref().err();
            gone.is_some_and(|gone| gone.for_good.is_none())
        })
    };
    let voters = seen.voters().into_iter();
    voters
        .filter(|voter| !seen.answered(voter.node_id) && is_down(&voter.address))
        .map(|voter| voter.address.clone())
        .collect()
}

/// What it is about, what it is, what to do.
fn why_unled(seen: &Seen) -> (&'static str, String, String) {
    let (voters, down) = (seen.voters(), down(seen));
    let majority = voters.len() / 2 + 1;
    let answering = voters.len() - down.len();
    if voters.is_empty() || answering >= majority {
        let why = seen.members.as_ref().err();
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        let led = seen.answers().iter().any(|(_, a)| a.status.leader_id != 0);
        let what = if led {
            "the leader does not answer for it"
        } else {
            "no leader is known"
        };
        return (
            "the cluster",
            format!("{what}: nothing is accepted or decided{why}"),
            "ask again in some seconds, an election may be under way; else look at the network between \
             the members: a majority must reach each other on the gRPC port; their logs say who refuses whom"
                .to_owned(),
        );
    }
    (
        "the quorum",
        format!(
            "is lost: {answering} of {} voters {}, {majority} are needed; nothing is accepted or decided",
            voters.len(),
            if answering == 1 { "answers" } else { "answer" },
        ),
        format!(
            "start {}, or mend the network to {}; are the folders of a majority lost for good: \
             docs/OPERATIONS.md, \"A lost quorum\"",
            down.join(" and "),
            if down.len() == 1 { "it" } else { "them" },
        ),
    )
}

/// Members of more than one cluster answer: a cluster that was begun anew names the one that it came out of.
pub(super) fn several(members: &[(&str, &Answer)], found: &mut Findings) {
    let mut clusters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (address, answer) in members {
        let of = clusters.entry(&answer.status.cluster_id).or_default();
        of.push(address);
    }
    let came = members.iter().flat_map(|(_, a)| &a.status.lineage);
    let mut came = came.filter(|from| clusters.contains_key(from.cluster_id.as_str()));
    let older = came.find_map(|from| {
        let left = clusters.get(from.from_cluster_id.as_str())?;
        Some((from, left))
    });
    let cure = match older {
        Some((from, left)) => format!(
            "{} came out of {}, and only the newer may go on: stop {}, empty their folders, and `conclave \
             cluster add` them",
            from.cluster_id,
            from.from_cluster_id,
            left.join(" and ")
        ),
        None => "ask the members of one only".to_owned(),
    };
    let lines = clusters
        .iter()
        .map(|(id, at)| format!("{id}: {}", at.join(", ")));
    let what = format!("{} clusters answer at these endpoints", clusters.len());
    found
        .0
        .push(cause("the cluster", what, cure, lines.collect()));
}

fn are(addresses: &[&str]) -> String {
    let verb = if addresses.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", addresses.join(", "))
}
