//! Membership and health, for operators.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use conclave_coordinator_core::view;
use conclave_credentials::watched::Refused;
use conclave_proto::v1::{
    AddRequest, InitRequest, ListWorkersRequest, ListWorkersResponse, LostWorker, Member,
    MembersRequest, MembersResponse, RefusedFile, RemoveRequest, SaveSnapshotRequest,
    StatusRequest, StatusResponse, TransferRequest, UpgradeRequest, UpgradeResponse,
    cluster_client::ClusterClient, cluster_server::Cluster,
};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use uuid::Uuid;

use super::{
    Api, NOT_LEADER, PROXIED, Route, convert, look_again, members::CATCH_UP, patience,
    save::Frames, timed,
};
use crate::{
    auth::Role,
    disk::free_bytes,
    node::{Input, MemberInfo, NodeError, lookout::roomy_successor, task::unix_ms},
};

/// Who may change the membership, and who may look at it.
const OPERATORS: [Role; 1] = [Role::Operator];
const OBSERVERS: [Role; 3] = [Role::Operator, Role::Peer, Role::Worker];

/// Period of asking a new leader for its members.
const LOOK: Duration = Duration::from_millis(50);

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

    pub(super) async fn members(&self) -> Result<MembersResponse, Status> {
        let wait = self.config.request_timeout();
        let progress = self
            .node
            .progress(wait)
            .await
            .map_err(convert::node_error)?;
        let status = self.node.now();
        let heard = |(id, info): (&u64, &MemberInfo)| {
            let known = progress.get(id).copied().unwrap_or_default();
            Member {
                match_index: known.match_index,
                active: known.active,
                ..member(*id, info, status.leader_id)
            }
        };
        Ok(MembersResponse {
            cluster_id: status.cluster_id.clone().unwrap_or_default(),
            term: status.term,
            members: status.members.iter().map(heard).collect(),
        })
    }

    async fn transfer(
        &self,
        metadata: &MetadataMap,
        request: TransferRequest,
    ) -> Result<MembersResponse, Status> {
        let wait = self.config.request_timeout();
        let TransferRequest { node_id, force } = request;
        let _turn = self.turn(format!("a transfer of leadership to {node_id:016x}"))?;
        let before = self.node.now();
        if node_id == before.node_id {
            return self.members().await;
        }
        // Without a wish: one that can accept what this one may not have room for.
        let node_id = match node_id {
            0 => roomy_successor(&self.node, &self.network)
                .await
                .unwrap_or(0),
            wish => wish,
        };
        self.node
            .ask(wait, |_, done| Input::Transfer {
                node_id,
                force,
                done,
            })
            .await
            .map_err(convert::node_error)?;
        let mut status = self.node.status();
        let other = |s: &crate::node::NodeStatus| s.leader_id != 0 && s.leader_id != before.node_id;
        let waited = tokio::time::timeout(wait, status.wait_for(other)).await;
        match waited.map(|found| found.map(|_| ())) {
            // The transfer is done: whatever is said from here on must not make the follower that
            // passed the call on look for a leader again, and transfer once more.
            Ok(Ok(())) => {
                let mut caller = metadata.clone();
                caller.remove(PROXIED);
                let found = self.members_by_new_leader(&caller, wait).await;
                found.map_err(|mut refusal| {
                    refusal.metadata_mut().remove(NOT_LEADER);
                    refusal
                })
            }
            Ok(Err(_)) => Err(convert::node_error(NodeError::Stopped)),
            Err(_) => Err(Status::unavailable("the member did not take over in time")),
        }
    }

    /// The members as the new leader knows them. It is given two elections to
    /// hear from them: until then it would call them silent.
    async fn members_by_new_leader(
        &self,
        metadata: &MetadataMap,
        wait: Duration,
    ) -> Result<MembersResponse, Status> {
        let until = Instant::now() + wait;
        let heard = Instant::now() + (self.config.election() * 2).min(wait / 2);
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let found = match self.route(metadata, until).await? {
                Route::Here => self.members().await?,
                Route::Leader { channel, .. } => {
                    let left = until.saturating_duration_since(Instant::now());
                    let request = self.pass_on(metadata, MembersRequest {}, left);
                    let asked = ClusterClient::new(channel).members(request).await;
                    match asked {
                        Ok(found) => found.into_inner(),
                        Err(refusal) if look_again(&refusal, true) && Instant::now() < until => {
                            continue;
                        }
                        Err(refusal) => return Err(refusal),
                    }
                }
            };
            if found.members.iter().all(|m| m.active) || Instant::now() > heard {
                return Ok(found);
            }
        }
    }

    fn describe(&self) -> StatusResponse {
        let status = self.node.now();
        StatusResponse {
            node_id: status.node_id,
            cluster_id: status.cluster_id.clone().unwrap_or_default(),
            address: self.address.clone(),
            term: status.term,
            leader_id: status.leader_id,
            leader_address: self.network.address(status.leader_id).unwrap_or_default(),
            commit_index: status.commit,
            applied_index: status.applied,
            log_version: self.config.max_log_version,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: status.role.name().to_owned(),
            public_key: status.public_key.clone(),
            cluster_log_version: status.log_version,
            unix_ms: unix_ms(),
            disk_free_bytes: free_bytes(self.reserve.folder()).unwrap_or(u64::MAX),
            disk_reserve_bytes: self.config.disk_reserve_bytes,
            unready: status.unready().unwrap_or_default(),
            live_jobs: status.live_jobs as u64,
            max_live_jobs: self.config.max_live_jobs as u64,
            quotas_refused: status.quotas_refused.is_some(),
            refused_files: self.refused_files(status.quotas_refused),
            certificate_expires_unix_s: self
                .certificate
                .as_ref()
                .and_then(|material| material.now().expires)
                .unwrap_or_default(),
            lineage: status.lineage.clone(),
            members: status
                .members
                .iter()
                .map(|(id, info)| member(*id, info, status.leader_id))
                .collect(),
        }
    }

    /// What this node was to read again, and could not use.
    fn refused_files(&self, quotas: Option<String>) -> Vec<RefusedFile> {
        let tls = self.certificate.as_ref().and_then(|tls| tls.refused());
        let credentials = self.auth.refused_files();
        let credentials = credentials.chain(tls.map(|refused| ("[tls]", refused)));
        let quotas = quotas.map(|why| {
            let files = self.config.quotas_file.iter().cloned().collect();
            ("quotas_file", Refused { files, why })
        });
        let found = credentials.chain(quotas);
        found
            .map(|(setting, refused)| RefusedFile {
                setting: setting.to_owned(),
                paths: refused.paths(),
                why: refused.why,
            })
            .collect()
    }

    fn operator(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.auth.require(metadata, &OPERATORS).map(|_| ())
    }

    fn observer(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.auth.require(metadata, &OBSERVERS).map(|_| ())
    }
}

/// A member, without what only its leader knows.
fn member(node_id: u64, info: &MemberInfo, leader_id: u64) -> Member {
    Member {
        node_id,
        address: info.address.clone(),
        learner: info.learner,
        leader: node_id == leader_id,
        ..Member::default()
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
        let here = |metadata, message| async move { self.0.transfer(&metadata, message).await };
        timed("Transfer", self.0.on_leader(request, false, here, there)).await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.0.observer(request.metadata())?;
        Ok(Response::new(self.0.describe()))
    }

    async fn upgrade(
        &self,
        request: Request<UpgradeRequest>,
    ) -> Result<Response<UpgradeResponse>, Status> {
        self.0.operator(request.metadata())?;
        let there =
            |channel, request| async move { ClusterClient::new(channel).upgrade(request).await };
        let here = |_, message| self.0.upgrade(message);
        timed("Upgrade", self.0.on_leader(request, true, here, there)).await
    }

    type SaveSnapshotStream = Frames;

    async fn save_snapshot(
        &self,
        request: Request<SaveSnapshotRequest>,
    ) -> Result<Response<Frames>, Status> {
        self.0.operator(request.metadata())?;
        let wait = self.0.patience(request.metadata());
        timed("SaveSnapshot", self.0.save(wait))
            .await
            .map(Response::new)
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        self.0.observer(request.metadata())?;
        let wait = self.0.patience(request.metadata());
        let mut workers = timed("ListWorkers", self.0.read(wait, view::workers)).await?;
        self.0.told.show(&mut workers);
        let back = |lost: &LostWorker| workers.iter().any(|w| w.worker_id == lost.worker_id);
        let lost = self.0.node.now().lost_workers;
        let lost = lost.iter().filter(|lost| !back(lost)).cloned().collect();
        Ok(Response::new(ListWorkersResponse { workers, lost }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::{mpsc, watch};

    use crate::{
        api::tests::{api, status},
        node::NodeStatus,
    };

    #[tokio::test]
    async fn a_quotas_file_that_cannot_be_used_is_told_with_its_path() {
        let node = watch::Sender::new(status());
        let (inputs, _queue) = mpsc::channel(1);
        let (mut api, _folder) = api(inputs, &node);
        api.config.quotas_file = Some(PathBuf::from("/etc/quotas.toml"));
        assert_eq!(api.describe().refused_files, []);
        node.send_replace(NodeStatus {
            quotas_refused: Some("unknown key `live_job`".to_owned()),
            ..status()
        });
        let told = api.describe().refused_files;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].setting, "quotas_file");
        assert_eq!(told[0].paths, ["/etc/quotas.toml"]);
        assert!(told[0].why.contains("live_job"), "{told:?}");
    }
}
