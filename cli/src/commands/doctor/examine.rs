//! What is wrong with what was seen: no call is made here.

mod machine;
mod outage;
mod workers;

use std::{collections::BTreeSet, time::Duration};

use conclave_proto::v1::{LostWorker, Member, MembersResponse, StatusResponse, WorkerStatus};

use self::{
    machine::{certificate, clocks, disk, files},
    outage::{leaderless, nobody, none_created, several},
    workers::workers,
};
use crate::host::count;

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
}

/// A coordinator that was asked.
pub struct Node {
    /// Where.
    pub address: String,
    /// What it said, or what it did instead.
    pub answer: Result<Answer, Gone>,
}

/// What a coordinator did that did not answer.
#[derive(Debug)]
pub struct Gone {
    /// It is silent, or refuses; why.
    pub why: String,
    /// What to change, where it is there and never answers this caller: its token, or TLS.
    pub for_good: Option<&'static str>,
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
    /// What belongs to it, and is no problem of its own.
    pub with_it: Vec<String>,
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

    /// As the leader knows them; without one, as whoever has most of the log does.
    pub fn known_members(&self) -> &[Member] {
        if let Ok(found) = &self.members {
            return &found.members;
        }
        let answers = self
            .nodes
            .iter()
            .filter_map(|node| node.answer.as_ref().ok());
        let newest = answers.max_by_key(|answer| answer.status.commit_index);
        newest.map_or(&[], |answer| &answer.status.members)
    }

    fn voters(&self) -> Vec<&Member> {
        let members = self.known_members().iter();
        members.filter(|member| !member.learner).collect()
    }

    fn member_at(&self, address: &str) -> Option<&Member> {
        self.known_members().iter().find(|m| m.address == address)
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
                let run = if workers.len() == 1 { "runs" } else { "run" };
                let agents = count(agents as usize, "agent");
                format!("{} {run} {agents}", count(workers.len(), "worker"))
            }
            Err(_) => "the workers are not known".to_owned(),
        };
        let voters = match self.voters().len() {
            0 => String::new(),
            voters => format!(" (the cluster has {})", count(voters, "voter")),
        };
        format!(
            "{} of {} {}{voters}; {leader}; {workers}.",
            answers.len(),
            count(self.nodes.len(), "coordinator"),
            if self.nodes.len() == 1 {
                "answers"
            } else {
                "answer"
            },
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
            with_it: Vec::new(),
        });
    }

    fn problem(&mut self, about: &str, what: impl Into<String>, cure: impl Into<String>) {
        self.add(Level::Problem, about, what, cure);
    }

    fn note(&mut self, about: &str, what: impl Into<String>, cure: impl Into<String>) {
        self.add(Level::Note, about, what, cure);
    }
}

/// Everything that is wrong, and what to do about it; problems first. What follows from another problem
/// stands with it.
pub fn examine(seen: &Seen) -> Vec<Finding> {
    let mut found = Findings::default();
    let answers = seen.answers();
    if answers.is_empty() {
        nobody(seen, &mut found);
        return found.0;
    }
    let is_blank = |(_, answer): &(&str, &Answer)| answer.status.role == "blank";
    if answers.iter().all(is_blank) {
        none_created(seen, &mut found);
        silent(seen, false, &mut found);
    } else {
        let alone = leaderless(seen, &mut found);
        silent(seen, alone, &mut found);
        if !alone {
            leadership(seen, &mut found);
            quorum(seen, &mut found);
            workers(seen, &mut found);
        }
        for (address, answer) in &answers {
            node(seen, address, answer, alone, &mut found);
        }
        versions(seen, &mut found);
    }
    found.0.sort_by_key(|finding| finding.level == Level::Note);
    found.0
}

/// Those that gave no answer, but for members that a lost leader explains.
fn silent(seen: &Seen, leaderless: bool, found: &mut Findings) {
    for node in &seen.nodes {
        let Err(gone) = &node.answer else { continue };
        let member = seen.member_at(&node.address);
        if leaderless && gone.for_good.is_none() && member.is_some() {
            continue;
        }
        let cure = match (gone.for_good, member) {
            (Some(cure), _) => cure.to_owned(),
            (None, Some(member)) => format!(
                "start it, or mend the network to its gRPC port; is its disk lost: `conclave cluster \
                 remove {:016x}`, then add a new one on an empty folder",
                member.node_id
            ),
            (None, None) => {
                "start it, or mend the network to its gRPC port; or leave it out of --endpoint"
                    .to_owned()
            }
        };
        found.problem(&node.address, gone.why.clone(), cure);
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
        return several(&members, found);
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
    if leaders.len() > 1 {
        found.problem(
            "the cluster",
            format!("members do not agree on who leads: {}", named.join("; ")),
            "ask again in some seconds, an election may be under way; else look at the network \
             between them",
        );
    }
}

fn quorum(seen: &Seen, found: &mut Findings) {
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
            match voters.len() {
                1 => "1 voter survives no loss".to_owned(),
                count => format!("{count} voters survive no loss"),
            },
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
    replaced(seen, found);
    for member in seen.known_members().iter().filter(|m| m.learner) {
        found.note(
            &member.address,
            "is a learner: it has no vote",
            "`conclave cluster add` without --learner makes it a voter",
        );
    }
}

/// Members whose address another member has: their votes count, and nobody gives them.
fn replaced(seen: &Seen, found: &mut Findings) {
    let members = seen.known_members();
    for gone in members.iter().filter(|m| !seen.answered(m.node_id)) {
        let another = |m: &&Member| m.address == gone.address && m.node_id != gone.node_id;
        if let Some(now) = members.iter().find(another) {
            found.problem(
                &gone.address,
                format!(
                    "is the address of member {:016x}, and {:016x} answers there",
                    gone.node_id, now.node_id
                ),
                format!(
                    "`conclave cluster remove {:016x}`: its folder is gone",
                    gone.node_id
                ),
            );
        }
    }
}

/// A node of no cluster: new, or on the empty folder of a member.
fn blank(seen: &Seen, address: &str, listens: &str, found: &mut Findings) {
    let add = format!("`conclave cluster add {listens}`");
    match seen.member_at(listens) {
        None => found.problem(address, "belongs to no cluster", add),
        Some(lost) => found.problem(
            address,
            format!(
                "is blank: the folder of member {:016x} is lost",
                lost.node_id
            ),
            format!(
                "`conclave cluster remove {:016x}`, then {add}",
                lost.node_id
            ),
        ),
    }
}

/// One coordinator that answered; `alone`: no leader is known, which is why it is not ready.
fn node(seen: &Seen, address: &str, answer: &Answer, alone: bool, found: &mut Findings) {
    let status = &answer.status;
    match status.role.as_str() {
        "blank" => return blank(seen, address, &status.address, found),
        "removed" => {
            return found.problem(
                address,
                "was removed from its cluster",
                "stop it, or start it on an empty folder and add it anew",
            );
        }
        _ => {}
    }
    if !status.unready.is_empty() && !alone {
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
    files(address, &status.refused_files, found);
    if status.quotas_refused && status.refused_files.is_empty() {
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
