//! What is wrong with what was seen: no call is made here.

mod machine;
mod workers;

use std::{collections::BTreeSet, time::Duration};

use conclave_proto::v1::{LostWorker, Member, MembersResponse, StatusResponse, WorkerStatus};

use self::{
    machine::{certificate, clocks, disk},
    workers::workers,
};
use crate::refusal::tls_hint;

/// Entries that a member may be behind its leader.
const BEHIND: u64 = 1_024;

/// All that was seen of a cluster.
pub struct Seen {
    /// The endpoints, then the members that they name.
    pub nodes: Vec<Node>,
    /// As the leader knows them, or why not.
    pub members: Result<MembersResponse, String>,
    /// Those that hold a lease, or why not.
    pub workers: Result<Vec<WorkerStatus>, String>,
    /// Those whose lease ran out in the last hour.
    pub lost: Vec<LostWorker>,
    /// This machine's clock, Unix ms.
    pub here_unix_ms: i64,
    /// TLS was spoken.
    pub tls: bool,
}

/// A coordinator that was asked.
pub struct Node {
    /// Where.
    pub address: String,
    /// What it said, or why it did not.
    pub answer: Result<Answer, String>,
}

/// What a coordinator said.
pub struct Answer {
    /// Of itself.
    pub status: StatusResponse,
    /// This machine's clock when it was asked, Unix ms.
    pub here_unix_ms: i64,
    /// How long it took: the clocks are compared no finer.
    pub took: Duration,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something does not work, or will not after one more loss.
    Problem,
    /// Good to know.
    Note,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Whom or what it is about.
    pub about: String,
    /// What it is.
    pub what: String,
    /// What to do.
    pub cure: String,
}

impl Node {
    /// Where it was asked, and where it says that it listens.
    pub fn addresses(&self) -> Vec<String> {
        let own = self.answer.iter().map(|a| a.status.address.clone());
        own.chain([self.address.clone()]).collect()
    }
}

impl Answer {
    /// How far its clock is ahead of this machine's, ms; 0 if it does not say.
    fn ahead_ms(&self) -> i64 {
        match self.status.unix_ms {
            0 => 0,
            there => there - self.here_unix_ms,
        }
    }
}

impl Seen {
    /// Coordinators that answered, each once, and where.
    fn answers(&self) -> Vec<(&str, &Answer)> {
        let mut met = BTreeSet::new();
        let answers = self.nodes.iter().filter_map(|node| {
            let answer = node.answer.as_ref().ok()?;
            Some((node.address.as_str(), answer))
        });
        answers
            .filter(|(_, answer)| met.insert(answer.status.node_id))
            .collect()
    }

    fn leader(&self) -> Option<(&str, &Answer)> {
        let leads = |(_, answer): &(&str, &Answer)| answer.status.role == "leader";
        let mut leaders: Vec<_> = self.answers().into_iter().filter(leads).collect();
        leaders.sort_by_key(|(_, answer)| answer.status.term);
        leaders.pop()
    }

    fn voters(&self) -> Vec<&Member> {
        let members = self.members.iter().flat_map(|found| &found.members);
        members.filter(|member| !member.learner).collect()
    }

    /// The node of this id answered.
    fn answered(&self, node_id: u64) -> bool {
        let mut answers = self.answers().into_iter();
        answers.any(|(_, answer)| answer.status.node_id == node_id)
    }

    /// One line about all of it.
    pub fn summary(&self) -> String {
        let answers = self.answers();
        let leader = match self.leader() {
            Some((address, answer)) => format!("{address} leads in term {}", answer.status.term),
            None => "nobody is seen to lead".to_owned(),
        };
        let workers = match &self.workers {
            Ok(workers) => {
                let agents: u32 = workers.iter().map(|w| w.agents).sum();
                format!("{} workers run {agents} agents", workers.len())
            }
            Err(_) => "the workers are not known".to_owned(),
        };
        let voters = match self.voters().len() {
            0 => String::new(),
            count => format!(" (the cluster has {count} voters)"),
        };
        format!(
            "{} of {} coordinators answer{voters}; {leader}; {workers}.",
            answers.len(),
            self.nodes.len()
        )
    }
}

/// What was found.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, about: &str, what: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding {
            level,
            about: about.to_owned(),
            what: what.into(),
            cure: cure.into(),
        });
    }

    fn problem(&mut self, about: &str, what: impl Into<String>, cure: impl Into<String>) {
        self.add(Level::Problem, about, what, cure);
    }

    fn note(&mut self, about: &str, what: impl Into<String>, cure: impl Into<String>) {
        self.add(Level::Note, about, what, cure);
    }
}

/// Everything that is wrong, and what to do about it; problems first.
pub fn examine(seen: &Seen) -> Vec<Finding> {
    let mut found = Findings::default();
    silent(seen, &mut found);
    leadership(seen, &mut found);
    quorum(seen, &mut found);
    for (address, answer) in seen.answers() {
        node(seen, address, answer, &mut found);
    }
    versions(seen, &mut found);
    workers(seen, &mut found);
    found.0.sort_by_key(|finding| finding.level == Level::Note);
    found.0
}

fn silent(seen: &Seen, found: &mut Findings) {
    for node in &seen.nodes {
        let Err(why) = &node.answer else { continue };
        let member = seen.members.iter().flat_map(|m| &m.members);
        let member = member.clone().find(|m| m.address == node.address);
        let tls = tls_hint(why, seen.tls);
        let cure = match member {
            _ if tls.is_some() => tls.unwrap_or_default().to_owned(),
            _ if why.contains("token") => "use a token of role operator (--token-file)".to_owned(),
            Some(member) => format!(
                "start it, or mend the network to its gRPC port; is its disk lost: `conclave cluster \
                 remove {:016x}`, then add a new one on an empty folder",
                member.node_id
            ),
            None => "start it, or mend the network to its gRPC port; or leave it out of --endpoint"
                .to_owned(),
        };
        found.problem(&node.address, format!("does not answer: {why}"), cure);
    }
}

fn leadership(seen: &Seen, found: &mut Findings) {
    let members = seen
        .answers()
        .into_iter()
        .filter(|(_, answer)| !matches!(answer.status.role.as_str(), "blank" | "removed"));
    let members: Vec<_> = members.collect();
    let clusters: BTreeSet<&str> = members
        .iter()
        .map(|(_, answer)| answer.status.cluster_id.as_str())
        .collect();
    if clusters.len() > 1 {
        found.problem(
            "the cluster",
            format!("{} clusters answer at these endpoints", clusters.len()),
            "ask the members of one only; two that came out of one another must not both serve",
        );
        return;
    }
    let leaders: BTreeSet<u64> = members.iter().map(|(_, a)| a.status.leader_id).collect();
    let named: Vec<String> = members
        .iter()
        .map(|(address, a)| {
            format!(
                "{address} says {:016x} in term {}",
                a.status.leader_id, a.status.term
            )
        })
        .collect();
    if !members.is_empty() && (leaders.is_empty() || leaders == BTreeSet::from([0])) {
        found.problem(
            "the cluster",
            "no leader is known: nothing is accepted or decided",
            "start the members that are down; a majority must reach each other on the gRPC port. A \
             majority lost for good: docs/OPERATIONS.md, \"A lost quorum\"",
        );
    } else if leaders.len() > 1 {
        found.problem(
            "the cluster",
            format!("members do not agree on who leads: {}", named.join("; ")),
            "ask again in some seconds, an election may be under way; else look at the network \
             between them",
        );
    }
}

fn quorum(seen: &Seen, found: &mut Findings) {
    if let Err(why) = &seen.members {
        found.problem(
            "the cluster",
            format!("the leader does not say who is a member: {why}"),
            "see the problems above",
        );
        return;
    }
    let voters = seen.voters();
    let answering = voters.iter().filter(|v| seen.answered(v.node_id)).count();
    let majority = voters.len() / 2 + 1;
    if answering < majority {
        found.problem(
            "the quorum",
            format!(
                "{answering} of {} voters answer, {majority} are needed",
                voters.len()
            ),
            "start those that are down before anything else",
        );
    } else if answering == majority && voters.len() > 2 {
        found.problem(
            "the quorum",
            format!(
                "{answering} of {} voters answer: after one more loss it stands still",
                voters.len()
            ),
            "start or replace those that are down before you stop another",
        );
    } else if voters.len() < 3 {
        found.note(
            "the quorum",
            format!("{} voters survive no loss", voters.len()),
            "add coordinators up to three: `conclave cluster add ADDRESS`",
        );
    } else if voters.len().is_multiple_of(2) {
        found.note(
            "the quorum",
            format!(
                "{} voters survive no more losses than one fewer would",
                voters.len()
            ),
            "add one, or remove one",
        );
    }
    let members = seen.members.iter().flat_map(|m| &m.members);
    for member in members.filter(|m| m.learner) {
        found.note(
            &member.address,
            "is a learner: it has no vote",
            "`conclave cluster add` without --learner makes it a voter",
        );
    }
}

/// One coordinator that answered.
fn node(seen: &Seen, address: &str, answer: &Answer, found: &mut Findings) {
    let status = &answer.status;
    match status.role.as_str() {
        "blank" => {
            let cure = format!("`conclave cluster add {}`", status.address);
            return found.problem(address, "belongs to no cluster", cure);
        }
        "removed" => {
            return found.problem(
                address,
                "was removed from its cluster",
                "stop it, or start it on an empty folder and add it anew",
            );
        }
        _ => {}
    }
    if !status.unready.is_empty() {
        let what = format!("is not ready: {}", status.unready);
        found.problem(address, what, "look at its log if this stays so");
    }
    if let Some((leader, leading)) = seen.leader() {
        let behind = leading
            .status
            .commit_index
            .saturating_sub(status.applied_index);
        if behind > BEHIND {
            found.problem(
                address,
                format!("is {behind} entries behind {leader}"),
                "wait if it has just started; else look at its disk (fsync) and at the network",
            );
        }
        clocks(address, answer, leader, leading, found);
    }
    disk(address, status, found);
    certificate(address, status, seen.here_unix_ms, found);
    if status.quotas_refused {
        found.problem(
            address,
            "cannot use its quotas file as it is, and goes on with the quotas before",
            "mend the file: its log names what is wrong",
        );
    }
    if status.max_live_jobs > 0
        && status.live_jobs * 10 >= status.max_live_jobs * 9
        && status.role == "leader"
    {
        found.problem(
            address,
            format!(
                "{} jobs have not ended, {} may (max_live_jobs)",
                status.live_jobs, status.max_live_jobs
            ),
            "add workers, set quotas by tenant, or raise max_live_jobs",
        );
    }
}

fn versions(seen: &Seen, found: &mut Findings) {
    let answers = seen.answers();
    let programs: BTreeSet<&str> = answers
        .iter()
        .map(|(_, a)| a.status.version.as_str())
        .collect();
    if programs.len() > 1 {
        let programs: Vec<&str> = programs.into_iter().collect();
        found.note(
            "versions",
            format!(
                "coordinators run different programs: {}",
                programs.join(", ")
            ),
            "finish the upgrade: one coordinator at a time, each after /readyz of the last one",
        );
    }
    let speak = answers.iter().map(|(_, a)| a.status.log_version).min();
    let used = answers
        .iter()
        .map(|(_, a)| a.status.cluster_log_version)
        .max();
    if let (Some(speak), Some(used)) = (speak, used)
        && used > 0
        && speak > used
    {
        found.note(
            "versions",
            format!("the log is at version {used}, every coordinator that answers speaks {speak}"),
            "`conclave cluster upgrade`, once nobody wants to go back",
        );
    }
}

#[cfg(test)]
mod tests;
