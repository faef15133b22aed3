//! Membership and health, for operators.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use conclave_coordinator_core::{State, view};
use conclave_proto::{
    LOG_VERSION,
    v1::{
        AddRequest, InitRequest, ListWorkersRequest, ListWorkersResponse, Member, MembersRequest,
        MembersResponse, PutBlobRequest, RemoveRequest, SetMemberAddress, StatusRequest,
        StatusResponse, TransferRequest, cluster_client::ClusterClient, cluster_server::Cluster,
        command::Command as Body,
    },
};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use uuid::Uuid;

use super::{Api, convert, patience, timed};
use crate::{
    auth::Role,
    node::{Change, Input, NodeError},
};

/// Who may change the membership, and who may look at it.
const OPERATORS: [Role; 1] = [Role::Operator];
const OBSERVERS: [Role; 3] = [Role::Operator, Role::Peer, Role::Worker];
/// How long a new member may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(120);
/// Entries that a learner may lack when it is promoted.
const SLACK: u64 = 16;
/// Period of looking at a learner's progress.
const LOOK: Duration = Duration::from_millis(20);

/// Serves `conclave.v1.Cluster`.
#[derive(Clone)]
pub struct ClusterService(pub Arc<Api>);

impl Api {
    /// Creates a cluster on this blank node, then adds others.
    async fn init(&self, request: InitRequest) -> Result<MembersResponse, Status> {
        let wait = self.config.request_timeout();
        let cluster_id = Uuid::now_v7().to_string();
        self.node
            .ask(wait, |_, done| Input::Init { cluster_id, done })
            .await
            .map_err(convert::node_error)?;
        let mut status = self.node.status();
        let born = status.wait_for(|s| s.serving && !s.public_key.is_empty());
        match tokio::time::timeout(wait, born)
            .await
            .map(|found| found.map(|_| ()))
        {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(convert::node_error(NodeError::Stopped)),
            Err(_) => return Err(convert::node_error(NodeError::Unknown)),
        }
        for address in request.join {
            let add = AddRequest {
                address,
                learner: false,
            };
            self.add(add, CATCH_UP).await?;
        }
        self.members().await
    }

    async fn members(&self) -> Result<MembersResponse, Status> {
        let wait = self.config.request_timeout();
        let progress = self
            .node
            .progress(wait)
            .await
            .map_err(convert::node_error)?;
        let status = self.node.now();
        let member = |(id, info): (&u64, &crate::node::MemberInfo)| {
            let known = progress.get(id).copied().unwrap_or_default();
            Member {
                node_id: *id,
                address: info.address.clone(),
                learner: info.learner,
                leader: *id == status.leader_id,
                match_index: known.match_index,
                active: known.active,
            }
        };
        Ok(MembersResponse {
            cluster_id: status.cluster_id.clone().unwrap_or_default(),
            term: status.term,
            members: status.members.iter().map(member).collect(),
        })
    }

    /// Adds a node as a learner; promotes it once it has caught up and holds
    /// every live payload, and says what is missing if that takes longer than
    /// `patience`: the member stays a learner, and adding it again goes on.
    async fn add(
        &self,
        request: AddRequest,
        patience: Duration,
    ) -> Result<MembersResponse, Status> {
        let until = Instant::now() + patience;
        let wait = self.config.request_timeout();
        let address = request.address;
        let found = self.network.identify(&address, wait).await.map_err(|e| {
            Status::unavailable(format!(
                "{address} does not say what it is: {}",
                e.message()
            ))
        })?;
        let mine = self.node.now().cluster_id.unwrap_or_default();
        if !found.cluster_id.is_empty() && found.cluster_id != mine {
            return Err(Status::failed_precondition(format!(
                "{address} belongs to cluster {}; a new member needs an empty data folder",
                found.cluster_id
            )));
        }
        let needed = self
            .node
            .read(true, wait, State::log_version)
            .await
            .map_err(convert::node_error)?;
        if found.max_log_version < needed {
            return Err(Status::failed_precondition(format!(
                "{address} knows log versions up to {}, the cluster uses {needed} \
                 (this node: {LOG_VERSION})",
                found.max_log_version
            )));
        }
        let node_id = found.node_id;
        // What it says of itself may be an address of its own network only.
        self.network.learn(node_id, &address);
        let known = self.node.now().members.get(&node_id).cloned();
        let set = SetMemberAddress {
            node_id,
            address,
            removed: false,
        };
        self.command(Body::SetMemberAddress(set)).await?;
        if known.is_none() {
            self.change(node_id, Change::AddLearner).await?;
        }
        if !request.learner && known.is_none_or(|m| m.learner) {
            self.caught_up(node_id, until).await?;
            self.hand_over_blobs(node_id, until).await?;
            self.change(node_id, Change::Promote).await?;
        }
        self.members().await
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
            let wait = until.saturating_duration_since(Instant::now());
            let ask = |deadline, done| Input::Change {
                node_id,
                change,
                deadline,
                done,
            };
            match self.node.ask(wait, ask).await {
                Err(NodeError::Busy) if Instant::now() < until => {}
                result => return result.map_err(convert::node_error),
            }
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
                    "{node_id:x} stays a learner: it holds {} of {commit} entries",
                    member.match_index
                )));
            }
        }
    }

    /// A voter counts for the majority that must hold a payload: it gets all
    /// of them first (law 9).
    async fn hand_over_blobs(&self, node_id: u64, until: Instant) -> Result<(), Status> {
        let wait = self.config.request_timeout();
        let live = self
            .node
            .read(false, wait, State::live_blobs)
            .await
            .map_err(convert::node_error)?;
        let address = self.network.address(node_id).unwrap_or_default();
        let cluster_id = self.node.now().cluster_id.unwrap_or_default();
        let count = live.len();
        for (given, hash) in live.into_keys().enumerate() {
            if Instant::now() > until {
                return Err(Status::deadline_exceeded(format!(
                    "{node_id:x} stays a learner: it was given {given} of {count} payloads"
                )));
            }
            let local = self.blobs.local.clone();
            let data = tokio::task::spawn_blocking(move || local.get(&hash))
                .await
                .map_err(|e| Status::internal(e.to_string()))?
                .map_err(|e| crate::transport::blobs::status_of(&e))?;
            let mut peer = self
                .network
                .peer(&address)
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            let put = PutBlobRequest {
                cluster_id: cluster_id.clone(),
                data,
            };
            let mut request = self.network.request(put);
            request.set_timeout(wait);
            peer.put_blob(request).await?;
        }
        Ok(())
    }

    async fn remove(&self, request: RemoveRequest) -> Result<MembersResponse, Status> {
        let status = self.node.now();
        let node_id = request.node_id;
        let Some(member) = status.members.get(&node_id) else {
            return self.forget(node_id).await;
        };
        if node_id == status.node_id {
            return Err(Status::failed_precondition(
                "this is the leader: transfer leadership first, then remove it",
            ));
        }
        let wait = self.config.request_timeout();
        if !member.learner && !request.force {
            let progress = self
                .node
                .progress(wait)
                .await
                .map_err(convert::node_error)?;
            let stays = |id: &u64| *id != node_id && !status.members[id].learner;
            let voters: Vec<_> = status.members.keys().filter(|id| stays(id)).collect();
            let active = voters
                .iter()
                .filter(|id| progress.get(id).is_some_and(|p| p.active));
            let active = active.count();
            if active < voters.len() / 2 + 1 {
                return Err(Status::failed_precondition(format!(
                    "{active} of the {} voters that would stay answer: the quorum would be lost; \
                     `force` removes it all the same",
                    voters.len()
                )));
            }
        }
        self.change(node_id, Change::Remove).await?;
        self.forget(node_id).await
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
            return Err(Status::not_found(format!("{node_id:x} is no member")));
        }
        let set = SetMemberAddress {
            node_id,
            address: String::new(),
            removed: true,
        };
        self.command(Body::SetMemberAddress(set)).await?;
        self.members().await
    }

    async fn transfer(&self, request: TransferRequest) -> Result<MembersResponse, Status> {
        let wait = self.config.request_timeout();
        let node_id = request.node_id;
        let before = self.node.now();
        if node_id == before.node_id {
            return self.members().await;
        }
        self.node
            .ask(wait, |_, done| Input::Transfer { node_id, done })
            .await
            .map_err(convert::node_error)?;
        let mut status = self.node.status();
        let other = |s: &crate::node::NodeStatus| s.leader_id != 0 && s.leader_id != before.node_id;
        let waited = tokio::time::timeout(wait, status.wait_for(other)).await;
        match waited.map(|found| found.map(|_| ())) {
            Ok(Ok(())) => self.members().await,
            Ok(Err(_)) => Err(convert::node_error(NodeError::Stopped)),
            Err(_) => Err(Status::unavailable("the member did not take over in time")),
        }
    }

    fn describe(&self) -> StatusResponse {
        let status = self.node.now();
        StatusResponse {
            node_id: status.node_id,
            cluster_id: status.cluster_id.unwrap_or_default(),
            address: self.address.clone(),
            term: status.term,
            leader_id: status.leader_id,
            leader_address: self.network.address(status.leader_id).unwrap_or_default(),
            commit_index: status.commit,
            applied_index: status.applied,
            log_version: LOG_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: status.role.name().to_owned(),
            public_key: status.public_key,
        }
    }

    fn operator(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.tokens.require(metadata, &OPERATORS).map(|_| ())
    }

    fn observer(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.tokens.require(metadata, &OBSERVERS).map(|_| ())
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn init(
        &self,
        request: Request<InitRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        self.0.operator(request.metadata())?;
        timed("Init", self.0.init(request.into_inner()))
            .await
            .map(Response::new)
    }

    async fn members(
        &self,
        request: Request<MembersRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        self.0.observer(request.metadata())?;
        let there =
            |channel, request| async move { ClusterClient::new(channel).members(request).await };
        let here = |_, _| self.0.members();
        timed("Members", self.0.on_leader(request, true, here, there)).await
    }

    async fn add(&self, request: Request<AddRequest>) -> Result<Response<MembersResponse>, Status> {
        self.0.operator(request.metadata())?;
        let there =
            |channel, request| async move { ClusterClient::new(channel).add(request).await };
        let here = |metadata: MetadataMap, message| {
            let patience = patience(&metadata, CATCH_UP);
            self.0.add(message, patience)
        };
        let call = self
            .0
            .on_leader_within(CATCH_UP, request, true, here, there);
        timed("Add", call).await
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        self.0.operator(request.metadata())?;
        let there =
            |channel, request| async move { ClusterClient::new(channel).remove(request).await };
        let here = |_, message| self.0.remove(message);
        timed("Remove", self.0.on_leader(request, false, here, there)).await
    }

    async fn transfer(
        &self,
        request: Request<TransferRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        self.0.operator(request.metadata())?;
        let there =
            |channel, request| async move { ClusterClient::new(channel).transfer(request).await };
        let here = |_, message| self.0.transfer(message);
        timed("Transfer", self.0.on_leader(request, false, here, there)).await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.0.observer(request.metadata())?;
        Ok(Response::new(self.0.describe()))
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        self.0.observer(request.metadata())?;
        let wait = self.0.patience(request.metadata());
        let read = self.0.node.read(true, wait, view::workers);
        let workers = timed("ListWorkers", async {
            read.await.map_err(convert::node_error)
        })
        .await?;
        Ok(Response::new(ListWorkersResponse { workers }))
    }
}
