//! Why a node that nobody knows yet cannot be spoken to, or added.

use std::error::Error as _;

use conclave_credentials::Misfit;
use tonic::{Code, Status};

use crate::node::NodeStatus;

/// Why `address` cannot be added; `tls`: this cluster speaks it. FAILED_PRECONDITION: this leader is sound,
/// and another endpoint would hear the same.
pub(super) fn no_member(address: &str, why: &Status, tls: bool) -> Status {
    if why.code() == Code::InvalidArgument {
        return why.clone();
    }
    if let Some(misfit) = why.source().and_then(Misfit::of) {
        return Status::failed_precondition(format!("{address} {}", told(misfit, tls)));
    }
    Status::failed_precondition(match why.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled => format!(
            "{address} does not answer: start a coordinator there first, on an empty folder"
        ),
        _ => format!(
            "{address} answers, and does not say what it is ({}): it is no coordinator, or takes \
             another peers' token",
            why.message()
        ),
    })
}

/// What stands between this member and one that is to be added.
fn told(misfit: Misfit, tls: bool) -> &'static str {
    match misfit {
        Misfit::NotPlain if !tls => {
            "speaks TLS, and this cluster does not: all members have [tls], or none has; or it is no gRPC port"
        }
        Misfit::NotPlain => "speaks no gRPC: is it the port of its metrics?",
        Misfit::NoTls => {
            "speaks no TLS, and this cluster does: all members have [tls], or none has; or it is no gRPC port"
        }
        Misfit::Issuer => {
            "shows a certificate that no authority in this cluster's ca_file signed: give it one that did"
        }
        Misfit::Name => {
            "shows a certificate that does not bear this host's name: give it one that does, or set \
             server_name in [tls]"
        }
        Misfit::Dates => "shows a certificate that has ended, or has not begun: renew it",
        Misfit::Certificate => "shows a certificate that cannot be used: give it another",
        Misfit::NoneShown | Misfit::Shown => {
            "does not take this cluster's certificate: is its ca_file that of the other members?"
        }
    }
}

/// Refuses a second member where the cluster has a first: the vote of one that is gone for good would count on.
pub(super) fn taken(address: &str, node_id: u64, status: &NodeStatus) -> Result<(), Status> {
    let mut members = status.members.iter();
    let Some((id, _)) = members.find(|(id, m)| **id != node_id && m.address == address) else {
        return Ok(());
    };
    Err(Status::failed_precondition(format!(
        "{address} is the address of member {id:016x}, and another folder answers there. Is the member's \
         own lost: `conclave cluster remove {id:016x}` first, for its vote counts on; did it move: add it \
         where it is now"
    )))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::node::MemberInfo;

    #[test]
    fn a_node_that_speaks_tls_or_none_is_told_as_one() {
        let told = |why: &str, tls: bool| {
            let broke = std::io::Error::other(why.to_owned());
            let refused = no_member("db2:7400", &Status::from_error(Box::new(broke)), tls);
            assert_eq!(refused.code(), Code::FailedPrecondition);
            refused.message().to_owned()
        };
        let text = told("frame with invalid size", false);
        assert!(
            text.contains("db2:7400 speaks TLS") && text.contains("[tls]"),
            "{text}"
        );
        let text = told("no TLS is spoken there (x)", true);
        assert!(text.contains("speaks no TLS"), "{text}");
        let text = told("invalid peer certificate: UnknownIssuer", true);
        assert!(text.contains("ca_file"), "{text}");
    }

    #[test]
    fn an_address_has_one_member() {
        let member = |address: &str| MemberInfo {
            address: address.to_owned(),
            ..MemberInfo::default()
        };
        let status = NodeStatus {
            members: BTreeMap::from([(1, member("a:7400")), (2, member("b:7400"))]),
            ..NodeStatus::default()
        };
        assert!(taken("b:7400", 2, &status).is_ok(), "itself, once more");
        assert!(taken("c:7400", 3, &status).is_ok());
        let refused = taken("b:7400", 3, &status).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let text = refused.message();
        assert!(text.contains("cluster remove 0000000000000002"), "{text}");
    }
}
