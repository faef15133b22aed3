//! The replicated log version, raised by an operator.
//!
//! Behind it no member can go back to an older program, so nobody does it but
//! whoever knows that the new one will stay.

use conclave_coordinator_core::State;
use conclave_proto::v1::{
    SetLogVersion, UpgradeRequest, UpgradeResponse, command::Command as Body,
};
use tonic::Status;

use super::{Api, convert};

impl Api {
    /// Raises the log version once every member, learners too, speaks it.
    ///
    /// # Errors
    /// FAILED_PRECONDITION names the members that do not speak it, or do not
    /// say; and what [`Api::turn`] says.
    pub(super) async fn upgrade(&self, request: UpgradeRequest) -> Result<UpgradeResponse, Status> {
        let _turn = self.turn("a change of the log version".to_owned())?;
        let wait = self.config.request_timeout();
        let before = self.read(wait, State::log_version).await?;
        let wanted = match request.log_version {
            0 => self.config.max_log_version.max(before),
            wanted => wanted,
        };
        if wanted < before {
            return Err(Status::failed_precondition(format!(
                "the cluster uses log version {before}, and versions only rise"
            )));
        }
        let behind = self.members_below(wanted).await;
        if !behind.is_empty() {
            return Err(Status::failed_precondition(format!(
                "the log version stays {before}: {}; a member that does not speak {wanted} could \
                 not go on",
                behind.join("; ")
            )));
        }
        if wanted > before {
            let set = SetLogVersion {
                log_version: wanted,
            };
            let reply = self.node.propose(Body::SetLogVersion(set), wait).await;
            convert::reply(reply.map_err(convert::node_error)?, "")?;
        }
        Ok(UpgradeResponse {
            before,
            after: wanted,
        })
    }

    /// The members that do not speak `wanted`, or do not say, with what to do.
    async fn members_below(&self, wanted: u32) -> Vec<String> {
        let status = self.node.now();
        let mut behind = Vec::new();
        if self.config.max_log_version < wanted {
            let speaks = self.config.max_log_version;
            behind.push(format!(
                "this node, {:x} at {}, speaks up to {speaks}",
                status.node_id, self.address
            ));
        }
        let others = status
            .members
            .iter()
            .filter(|(id, _)| **id != status.node_id);
        let asked = others.map(|(id, member)| async move {
            let address = self.network.address(*id);
            let address = address.unwrap_or_else(|| member.address.clone());
            let found = self
                .network
                .identify(&address, self.config.election())
                .await;
            match found {
                Ok(found) if found.node_id != *id => Some(format!(
                    "{id:x} is not at {address}, where node {:x} answers",
                    found.node_id
                )),
                Ok(found) if found.max_log_version < wanted => Some(format!(
                    "{id:x} at {address} speaks up to {}: restart it with the newer program",
                    found.max_log_version
                )),
                Ok(_) => None,
                Err(_) => Some(format!(
                    "{id:x} at {address} does not say what it speaks: start it, or remove it"
                )),
            }
        });
        behind.extend(futures::future::join_all(asked).await.into_iter().flatten());
        behind
    }
}
