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
        let speak = self.members_speak().await;
        let newest = speak.iter().filter_map(|member| member.speaks).max();
        let wanted = match request.log_version {
            0 => newest.unwrap_or(before).max(before),
            wanted => wanted,
        };
        if wanted < before {
            return Err(Status::failed_precondition(format!(
                "the cluster uses log version {before}, and versions only rise"
            )));
        }
        let behind: Vec<String> = speak
            .iter()
            .filter_map(|member| member.below(wanted))
            .collect();
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

    /// What each member speaks, this one first.
    async fn members_speak(&self) -> Vec<Member> {
        let status = self.node.now();
        let here = Member {
            name: format!("{:016x} at {}, the leader,", status.node_id, self.address),
            speaks: Some(self.config.max_log_version),
            why: String::new(),
        };
        let others = status
            .members
            .iter()
            .filter(|(id, _)| **id != status.node_id);
        let asked = others.map(|(id, member)| async move {
            let address = self.network.address(*id);
            let address = address.unwrap_or_else(|| member.address.clone());
            let wait = self.config.election();
            let found = self.network.identify(&address, wait).await;
            let name = format!("{id:016x} at {address}");
            let silent = |why: String| Member {
                name: name.clone(),
                speaks: None,
                why,
            };
            match found {
                Ok(found) if found.node_id != *id => {
                    silent(format!("is not there: node {:016x} answers", found.node_id))
                }
                Ok(found) => Member {
                    speaks: Some(found.max_log_version),
                    ..silent(String::new())
                },
                Err(_) => silent("does not say what it speaks: start it, or remove it".to_owned()),
            }
        });
        let mut members = vec![here];
        members.extend(futures::future::join_all(asked).await);
        members
    }
}

/// A member, and the newest log version that it speaks.
struct Member {
    name: String,
    speaks: Option<u32>,
    /// Why it does not say.
    why: String,
}

impl Member {
    /// Why it cannot go on with `wanted`, and what to do.
    fn below(&self, wanted: u32) -> Option<String> {
        match self.speaks {
            None => Some(format!("{} {}", self.name, self.why)),
            Some(speaks) if speaks < wanted => Some(format!(
                "{} speaks up to {speaks}: restart it with the newer program, or without \
                 `max_log_version`",
                self.name
            )),
            Some(_) => None,
        }
    }
}
