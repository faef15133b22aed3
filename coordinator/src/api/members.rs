//! Members come and go: one step at a time, each of which may be repeated.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use conclave_coordinator_core::State;
use conclave_proto::v1::{
    AddRequest, MembersResponse, RemoveRequest, SetMemberAddress, StatusRequest,
    cluster_client::ClusterClient, command::Command as Body,
};
use tonic::Status;

use super::{
    Api, convert,
    stranger::{no_member, taken},
};
use crate::node::{Change, Input, MemberInfo, NodeError, NodeStatus};

/// How long a new member may take to catch up.
pub const CATCH_UP: Duration = Duration::from_secs(120);
/// Entries that a learner may lack when it is promoted.
const SLACK: u64 = 16;
/// Period of looking at a learner's progress.
const LOOK: Duration = Duration::from_millis(20);

impl Api {
    /// Adds a node as a learner; promotes it once it has caught up and holds
    /// every live payload, and says what is missing if that takes longer than
    /// `patience`: the member stays a learner, and adding it again goes on.
    pub(super) async fn add(
        &self,
        request: AddRequest,
        patience: Duration,
    ) -> Result<MembersResponse, Status> {
        let until = Instant::now() + patience;
        let wait = self.config.request_timeout();
        let address = request.address;
        let _turn = self.turn(format!("the addition of {address}"))?;
        let found = self.network.identify(&address, wait).await;
        let found = found.map_err(|e| no_member(&address, &e, self.certificate.is_some()))?;
        let mine = self.node.now().cluster_id.unwrap_or_default();
        if !found.cluster_id.is_empty() && found.cluster_id != mine {
            return Err(Status::failed_precondition(format!(
                "{address} belongs to cluster {}; a new member needs an empty data folder",
                found.cluster_id
            )));
        }
        taken(&address, found.node_id, &self.node.now())?;
        let needed = self
            .node
            .read(true, wait, State::log_version)
            .await
            .map_err(convert::node_error)?;
        if found.max_log_version < needed {
            return Err(Status::failed_precondition(format!(
                "{address} speaks log versions up to {}, the cluster uses {needed}: start it with \
                 the program of the other members",
                found.max_log_version
            )));
        }
        let node_id = found.node_id;
        // What it says of itself may be an address of its own network only.
        self.network.learn(node_id, &address);
        let known = self.node.now().members.get(&node_id).cloned();
        let set = SetMemberAddress {
            node_id,
            address: address.clone(),
            removed: false,
        };
        self.command(Body::SetMemberAddress(set)).await?;
        if known.is_none() {
            self.change(node_id, Change::AddLearner).await?;
        }
        if !request.learner && known.is_none_or(|m| m.learner) {
            self.promote(node_id, until).await?;
            self.votes_knowingly(&address).await;
        }
        self.members().await
    }

    /// Waits until the voter at `address` knows that it is one, so that whoever looks at it next is not told
    /// of a learner. It hears so with the next heartbeat; one that does not is a voter all the same.
    async fn votes_knowingly(&self, address: &str) {
        let Ok(channel) = self.network.calls(address) else {
            return;
        };
        let mut service = ClusterClient::new(channel);
        let within = self.config.election() * 2;
        let heard = async {
            let mut look = tokio::time::interval(LOOK);
            loop {
                look.tick().await;
                let mut request = self.network.request(StatusRequest {});
                request.set_timeout(within);
                match service.status(request).await {
                    Ok(status) if status.get_ref().role == "learner" => {}
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(within, heard).await;
    }

    /// Gives a learner its vote, once it could lead.
    async fn promote(&self, node_id: u64, until: Instant) -> Result<(), Status> {
        self.caught_up(node_id, until).await?;
        self.hand_over_blobs(node_id, until).await?;
        self.change(node_id, Change::Promote).await
    }

    async fn command(&self, body: Body) -> Result<(), Status> {
        let wait = self.config.request_timeout();
        let reply = self
            .node
            .propose(body, wait)
            .await
            .map_err(convert::node_error)?;
        convert::reply(reply, "")
    }

    /// One change of members; waits while another one is under way.
    async fn change(&self, node_id: u64, change: Change) -> Result<(), Status> {
        let until = Instant::now() + self.config.request_timeout();
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            if self.try_change(node_id, change, None, until).await? {
                return Ok(());
            }
        }
    }

    /// False if another change is under way, or came after `checked`.
    async fn try_change(
        &self,
        node_id: u64,
        change: Change,
        checked: Option<BTreeSet<u64>>,
        until: Instant,
    ) -> Result<bool, Status> {
        let wait = until.saturating_duration_since(Instant::now());
        let ask = |deadline, done| Input::Change {
            node_id,
            change,
            checked,
            deadline,
            done,
        };
        match self.node.ask(wait, ask).await {
            Err(NodeError::Busy) if Instant::now() < until => Ok(false),
            Err(NodeError::Busy) => Err(Status::failed_precondition(
                "another change of members is not committed yet: try again",
            )),
            result => result.map(|()| true).map_err(convert::node_error),
        }
    }

    async fn caught_up(&self, node_id: u64, until: Instant) -> Result<(), Status> {
        let wait = self.config.request_timeout();
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let progress = self
                .node
                .progress(wait)
                .await
                .map_err(convert::node_error)?;
            let commit = self.node.now().commit;
            let member = progress.get(&node_id).copied().unwrap_or_default();
            if member.active && member.match_index > 0 && member.match_index + SLACK >= commit {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Status::deadline_exceeded(format!(
                    "{node_id:016x} stays a learner: it holds {} of {commit} entries",
                    member.match_index
                )));
            }
        }
    }

    pub(super) async fn remove(&self, request: RemoveRequest) -> Result<MembersResponse, Status> {
        let node_id = request.node_id;
        let _turn = self.turn(format!("the removal of {node_id:016x}"))?;
        let until = Instant::now() + self.config.request_timeout();
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            // Anew each time: what was waited for may have changed who votes.
            let status = self.node.now();
            let Some(member) = status.members.get(&node_id) else {
                break;
            };
            if node_id == status.node_id {
                return Err(Status::failed_precondition(leader_stays(&status)));
            }
            if !member.learner && !request.force {
                self.quorum_without(node_id, &status).await?;
                self.payloads_without(node_id).await?;
            }
            let voters = status.members.iter().filter(|(_, m)| !m.learner);
            let checked = (!request.force).then(|| voters.map(|(id, _)| *id).collect());
            if self
                .try_change(node_id, Change::Remove, checked, until)
                .await?
            {
                break;
            }
        }
        self.forget(node_id).await
    }

    /// Checks that those who would stay can decide without the one that goes. A
    /// leader that has just begun is given time to hear from them.
    async fn quorum_without(&self, node_id: u64, status: &NodeStatus) -> Result<(), Status> {
        let until = Instant::now() + self.config.election() * 2;
        let stays = |(id, member): &(&u64, &MemberInfo)| **id != node_id && !member.learner;
        let voters: Vec<u64> = status
            .members
            .iter()
            .filter(stays)
            .map(|(id, _)| *id)
            .collect();
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let progress = self
                .node
                .progress(self.config.request_timeout())
                .await
                .map_err(convert::node_error)?;
            // Raft calls a member active for an election's time after it died.
            let asked = voters.iter().map(|id| async {
                let heard = progress.get(id).is_some_and(|p| p.active);
                (*id, heard && self.answers(*id, status.node_id).await)
            });
            let silent: Vec<String> = futures::future::join_all(asked)
                .await
                .into_iter()
                .filter(|(_, answers)| !answers)
                .map(|(id, _)| format!("{id:016x} at {}", status.members[&id].address))
                .collect();
            if voters.len() - silent.len() > voters.len() / 2 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Status::failed_precondition(format!(
                    "the quorum would be lost: of the {} voters that would stay, {} do not answer \
                     ({}); start them, or remove one of them first. With --force it goes all the \
                     same, and the cluster stands still until they answer",
                    voters.len(),
                    silent.len(),
                    silent.join(", ")
                )));
            }
        }
    }

    async fn answers(&self, node_id: u64, me: u64) -> bool {
        let Some(address) = self.network.address(node_id).filter(|_| node_id != me) else {
            return node_id == me;
        };
        let found = self
            .network
            .identify(&address, self.config.election())
            .await;
        found.is_ok_and(|found| found.node_id == node_id)
    }

    /// Checks that no payload goes with the member: what this leader lacks is
    /// fetched first.
    async fn payloads_without(&self, node_id: u64) -> Result<(), Status> {
        let wait = self.config.request_timeout();
        let live = self
            .node
            .read(false, wait, State::live_blobs)
            .await
            .map_err(convert::node_error)?;
        let until = Instant::now() + wait / 2;
        let mut lost = 0;
        for hash in live.into_keys().filter(|hash| !self.blobs.local.has(hash)) {
            let left = until.saturating_duration_since(Instant::now());
            lost += u32::from(self.blobs.fetch(hash, left).await.is_err());
        }
        if lost > 0 {
            return Err(Status::failed_precondition(format!(
                "{lost} payloads of jobs (prompts, drafts) are on no member that answered, and may \
                 lie on {node_id:016x} only: start it and let the others fetch them. With --force it \
                 goes all the same, and those payloads may be lost"
            )));
        }
        Ok(())
    }

    /// The second step of removing a member, also where an earlier removal did
    /// not come that far.
    async fn forget(&self, node_id: u64) -> Result<MembersResponse, Status> {
        let wait = self.config.request_timeout();
        let known = self
            .node
            .read(true, wait, move |s| s.members().contains_key(&node_id))
            .await
            .map_err(convert::node_error)?;
        if !known {
            return Err(Status::not_found(format!("{node_id:016x} is no member")));
        }
        let set = SetMemberAddress {
            node_id,
            address: String::new(),
            removed: true,
        };
        self.command(Body::SetMemberAddress(set)).await?;
        self.members().await
    }
}

/// Why the leader is not removed.
fn leader_stays(status: &NodeStatus) -> String {
    let voters = status.members.values().filter(|m| !m.learner).count();
    if voters > 1 {
        return format!(
            "{:016x} leads: `conclave cluster transfer` first, then remove it",
            status.node_id
        );
    }
    format!(
        "{:016x} is the only voter: without it the cluster and its {} live jobs are gone. Add another \
         member and transfer leadership to it first; to end the cluster, stop this node and delete \
         its folder",
        status.node_id, status.live_jobs
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::{mpsc, watch};
    use tonic::Code;

    use super::*;
    use crate::{
        api::tests::{api, status},
        node::{Follower, NodeRole},
    };

    fn of_voters(ids: &[u64]) -> NodeStatus {
        let voter = |id: &u64| (*id, MemberInfo::default());
        NodeStatus {
            role: NodeRole::Leader,
            serving: true,
            leader_id: 1,
            members: ids.iter().map(voter).collect(),
            ..status()
        }
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_told_by_name() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        drop(socket);
        let node = watch::Sender::new(of_voters(&[1, 2]));
        let (inputs, _queue) = mpsc::channel(1);
        let (api, _folder) = api(inputs, &node);
        let add = AddRequest {
            address: address.clone(),
            learner: false,
        };
        let refused = api.add(add, CATCH_UP).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let text = refused.message();
        assert!(
            text.starts_with(&address) && text.contains("start"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn an_address_without_a_port_is_told_as_one() {
        let node = watch::Sender::new(of_voters(&[1]));
        let (inputs, _queue) = mpsc::channel(1);
        let (api, _folder) = api(inputs, &node);
        let add = AddRequest {
            address: "foo".to_owned(),
            learner: false,
        };
        let refused = api.add(add, CATCH_UP).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("HOST:PORT"), "{refused}");
    }

    /// Member 3, which is down, was made a voter by a change that no caller
    /// waited for: with it, 2 is needed.
    #[tokio::test]
    async fn a_removal_that_waited_for_another_change_is_checked_anew() {
        let node = watch::Sender::new(of_voters(&[1, 2]));
        let (inputs, mut queue) = mpsc::channel(8);
        let (mut api, _folder) = api(inputs, &node);
        api.config.election_ms = 100;
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let played = tokio::spawn(async move {
            let state = State::new();
            while let Some(input) = queue.recv().await {
                match input {
                    Input::Read(read) => (read.run)(Ok(&state)),
                    Input::Progress(reply) => {
                        let alive = Follower {
                            match_index: 9,
                            active: true,
                        };
                        let _ = reply.send([(1, alive)].into());
                    }
                    Input::Change { checked, done, .. } => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(checked, Some([1, 2].into()));
                        node.send_replace(of_voters(&[1, 2, 3]));
                        let _ = done.send(Err(NodeError::Busy));
                    }
                    _ => panic!("not asked for by a removal"),
                }
            }
        });
        let remove = RemoveRequest {
            node_id: 2,
            force: false,
        };
        let refused = api.remove(remove).await.unwrap_err();
        assert!(refused.message().contains("quorum"), "{refused}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        drop(api);
        played.await.unwrap();
    }

    /// Member 3 lacks most of the log at first: with its vote, 1 alone would decide nothing for as
    /// long as that takes.
    #[tokio::test]
    async fn a_learner_votes_once_it_has_caught_up() {
        let mut leading = of_voters(&[1]);
        let learner = MemberInfo {
            learner: true,
            ..MemberInfo::default()
        };
        leading.members.insert(3, learner);
        leading.commit = 100;
        let node = watch::Sender::new(leading);
        let (inputs, mut queue) = mpsc::channel(8);
        let (api, _folder) = api(inputs, &node);
        let played = tokio::spawn(async move {
            let state = State::new();
            let mut holds = 10..;
            let mut last = 0;
            while let Some(input) = queue.recv().await {
                match input {
                    Input::Read(read) => (read.run)(Ok(&state)),
                    Input::Progress(reply) => {
                        last = holds.next().unwrap_or_default() * 7;
                        let member = Follower {
                            match_index: last,
                            active: true,
                        };
                        let _ = reply.send([(3, member)].into());
                    }
                    Input::Change { change, done, .. } => {
                        assert_eq!(change, Change::Promote);
                        let _ = done.send(Ok(()));
                        return last;
                    }
                    _ => panic!("not asked for by a promotion"),
                }
            }
            last
        });
        let until = Instant::now() + Duration::from_secs(20);
        api.promote(3, until).await.unwrap();
        let held = played.await.unwrap();
        assert!(
            held + SLACK >= 100,
            "it was given its vote at {held} of 100"
        );
    }
}
