//! `conclave cluster status`: what each endpoint says of itself.
use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::v1::{LineageKind, LineageRecord, StatusRequest, StatusResponse};
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use super::cluster::Print;
use crate::{
    client::{Client, QUIET, reason},
    error::{CliError, below},
    out,
    refusal::{instead, is_misfit, refused_hint, tls_hint},
    view::{json, time::utc},
};

/// Asks each endpoint by itself: a node that is alone still answers.
///
/// # Errors
/// None answered, or they belong to more than one cluster.
pub async fn status(client: &Client, print: Print) -> Result<(), CliError> {
    let asked = client.links().iter().map(|link| async move {
        let mut request = Request::new(StatusRequest {});
        // Each answers by itself, at once: one that takes longer hangs.
        let within = client.timeout().min(2 * QUIET);
        request.set_timeout(within);
        let reply = tokio::time::timeout(within, link.cluster().status(request)).await;
        let late = format!("no answer within {} ms", within.as_millis());
        let reply = reply.unwrap_or_else(|_| Err(Status::deadline_exceeded(late)));
        (link.address().to_owned(), reply.map(Response::into_inner))
    });
    let answers = futures::future::join_all(asked).await;
    let mut clusters = BTreeSet::new();
    let mut lineage = BTreeMap::new();
    for status in answers.iter().filter_map(|(_, reply)| reply.as_ref().ok()) {
        if !status.cluster_id.is_empty() {
            clusters.insert(status.cluster_id.clone());
        }
        let rows = status.lineage.iter();
        lineage.extend(rows.map(|from| (from.cluster_id.clone(), lineage_row(from))));
    }
    if print.json {
        let document = |(address, reply): &(String, Result<StatusResponse, Status>)| match reply {
            Ok(status) => json::status(status),
            Err(error) => json!({ "address": address, "error": reason(error) }),
        };
        let nodes: Vec<Value> = answers.iter().map(document).collect();
        out::document(&json!({ "nodes": nodes }))?;
    } else {
        for (address, reply) in &answers {
            out::line(match reply {
                Ok(status) => status_row(address, status),
                Err(error) => format!("{address}  {}", instead(error)),
            })?;
        }
        lineage.values().try_for_each(out::line)?;
    }
    if clusters.len() > 1 {
        let clusters: Vec<String> = clusters.into_iter().collect();
        return Err(CliError::Differs(format!(
            "these endpoints belong to {} clusters: {}\n  {}",
            clusters.len(),
            clusters.join(", "),
            if lineage.is_empty() {
                "A coordinator with another cluster's data folder leads its own: stop it and give it its own folder."
            } else {
                "Of one cluster and the one that it came out of, only the newer may go on: stop the older one's coordinators and add them on empty folders."
            }
        )));
    }
    let failures: Vec<&Status> = answers
        .iter()
        .filter_map(|(_, r)| r.as_ref().err())
        .collect();
    ended(&failures, answers.len(), client.is_tls())
}

const NOBODY: &str =
    "Is a cluster running there? `conclave up` starts a local one; --endpoint names another.";

/// How a look at `asked` endpoints ends of which these gave no answer; `tls`: we spoke it.
fn ended(failures: &[&Status], asked: usize, tls: bool) -> Result<(), CliError> {
    let advice = |status: &&Status| refused_hint(status).or_else(|| tls_hint(&reason(status), tls));
    let advice = failures.iter().find_map(advice);
    if failures.len() < asked {
        // The others answered: it is told, and no failure.
        advice.into_iter().for_each(out::note);
        return Ok(());
    }
    let for_good = |status: &&&Status| is_misfit(status) || refused_hint(status).is_some();
    match failures.iter().all(|status| for_good(&status)) {
        true => Err(CliError::usage(format!(
            "no endpoint gave an answer{}",
            below(advice)
        ))),
        false => Err(CliError::Unavailable(format!(
            "no endpoint answered{}",
            below(advice.or(Some(NOBODY)))
        ))),
    }
}

fn status_row(address: &str, status: &StatusResponse) -> String {
    let leader = if status.leader_address.is_empty() {
        "none known"
    } else {
        &status.leader_address
    };
    format!(
        "{address}  {:<9}  term {}  leader {leader}  applied {}/{}  {}  {}  cluster {}",
        status.role,
        status.term,
        status.applied_index,
        status.commit_index,
        log_version(status),
        status.version,
        if status.cluster_id.is_empty() {
            "-"
        } else {
            &status.cluster_id
        },
    )
}

/// What the cluster uses, and what this node speaks if that is another.
fn log_version(status: &StatusResponse) -> String {
    match (status.cluster_log_version, status.log_version) {
        (0, speaks) => format!("log v{speaks}"),
        (uses, speaks) if uses == speaks => format!("log v{uses}"),
        (uses, speaks) => format!("log v{uses} (speaks v{speaks})"),
    }
}

/// What every operator of a cluster that was begun anew should see.
fn lineage_row(from: &LineageRecord) -> String {
    let how = match from.kind() {
        LineageKind::Restored => "was restored from a snapshot of",
        LineageKind::Recovered => "was recovered by one member of",
        LineageKind::Unspecified => "came out of",
    };
    format!(
        "cluster {} {how} {} at entry {}, {}",
        from.cluster_id,
        from.from_cluster_id,
        from.index,
        utc(from.unix_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_no_silence_and_names_the_option() {
        let refused = Status::unauthenticated("this token is not known");
        let gone = Status::deadline_exceeded("no answer within 2000 ms");
        let end = |failures: &[&Status], asked| {
            let end = ended(failures, asked, false);
            end.map_err(|error| (error.exit_code(), error.to_string()))
        };
        assert!(instead(&refused).starts_with("answers, and refuses"));
        let (code, text) = end(&[&refused, &refused], 2).unwrap_err();
        assert!(code == 2 && text.contains("--token-file FILE"), "{text}");
        // One that is away may be the one that knows it.
        let (code, text) = end(&[&refused, &gone], 2).unwrap_err();
        assert!(code == 3 && text.contains("--token-file FILE"), "{text}");
        assert_eq!(end(&[&refused], 2), Ok(()));
    }
}
