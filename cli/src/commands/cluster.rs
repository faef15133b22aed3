//! `conclave cluster`: create a cluster, change its members, see its health.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use clap::{Args, Subcommand};
use conclave_proto::v1::{
    AddRequest, InitRequest, LineageKind, LineageRecord, ListWorkersRequest, MembersRequest,
    MembersResponse, RemoveRequest, StatusRequest, StatusResponse, TransferRequest, UpgradeRequest,
    UpgradeResponse, WorkerStatus,
};
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use super::membership;
use crate::{
    args::Global,
    client::{Client, Link, QUIET, may_retry, reason},
    error::CliError,
    out,
    refusal::tls_hint,
    view::{json, time::utc},
};

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Create a cluster of blank coordinators; only this ever creates one
    #[command(after_help = "\
The first --endpoint becomes the first voter; --join names the others.

Example, with three coordinators started by `conclave coordinator`:
  conclave cluster init --endpoint 127.0.0.1:7400 --join 127.0.0.1:7401,127.0.0.1:7402")]
    Init {
        /// Blank coordinators to add, HOST:PORT; repeat or separate by commas
        #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
        join: Vec<String>,
        /// How to print.
        #[command(flatten)]
        print: Print,
    },
    /// Make these coordinators members, those that are missing one after another
    Ensure(membership::EnsureArgs),
    /// Remove every coordinator that is not one of these
    Keep(membership::KeepArgs),
    /// List the coordinators
    Members(Print),
    /// Add a blank coordinator: a learner first, a voter once it caught up
    Add {
        /// Where it listens, HOST:PORT
        address: String,
        /// Keep it a learner
        #[arg(long)]
        learner: bool,
        /// How to print.
        #[command(flatten)]
        print: Print,
    },
    /// Remove a coordinator
    Remove {
        /// Its id, as `cluster members` lists it
        #[arg(value_parser = node_id)]
        node_id: u64,
        /// Even if the rest could then not decide
        #[arg(long)]
        force: bool,
        /// How to print.
        #[command(flatten)]
        print: Print,
    },
    /// Hand leadership to another coordinator
    #[command(after_help = "\
Before a coordinator is stopped, from beside it:
  conclave cluster transfer --if-leader --endpoint 127.0.0.1:7400")]
    Transfer {
        /// Its id [default: the one that is most caught up]
        #[arg(value_parser = node_id, default_value = "0", hide_default_value = true)]
        node_id: u64,
        /// Even to one that lags far behind: nothing is accepted until it has caught up
        #[arg(long)]
        force: bool,
        /// Only if the first --endpoint leads and is not the only voter; else nothing is done
        #[arg(long)]
        if_leader: bool,
        /// How to print.
        #[command(flatten)]
        print: Print,
    },
    /// Raise the log version to what every member speaks; there is no way back
    #[command(after_help = "\
After every member runs the newer program, and will stay with it: behind this, an
older one does not start any more. Refused while a member does not speak it.

Example:
  conclave cluster status && conclave cluster upgrade")]
    Upgrade(Print),
    /// Ask every endpoint what it is; needs no quorum
    Status(Print),
    /// List the workers
    Workers(Print),
}

/// A node's id as it is printed: 16 hexadecimal digits. What is longer, or all of decimal digits and not 16
/// long, is decimal, as the JSON documents have it; leading zeros may be left out of the others.
fn node_id(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None if text.len() != 16 && text.bytes().all(|b| b.is_ascii_digit()) => text.parse(),
        None => u64::from_str_radix(text, 16),
    };
    parsed.map_err(|_| {
        format!("`{text}` is no node id: 16 hexadecimal digits, as `cluster members` lists them")
    })
}

/// Shows what a change of the members came to.
pub const LOOK: &str = "conclave cluster members";

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub struct Print {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub async fn run(global: &Global, command: ClusterCommand) -> Result<(), CliError> {
    let client = global.client()?;
    match command {
        ClusterCommand::Init { join, print } => {
            let members = init(&client.links()[0], join, client.timeout()).await?;
            print_members(&members, print)
        }
        ClusterCommand::Ensure(args) => membership::ensure(global, args).await,
        ClusterCommand::Keep(args) => membership::keep(global, args).await,
        ClusterCommand::Members(print) => {
            let call = async |link: Link, request| link.cluster().members(request).await;
            print_members(
                &client.unary("Members", MembersRequest {}, call).await?,
                print,
            )
        }
        ClusterCommand::Add {
            address,
            learner,
            print,
        } => {
            let call = async |link: Link, request| link.cluster().add(request).await;
            print_members(
                &client
                    .unary("Add", AddRequest { address, learner }, call)
                    .await?,
                print,
            )
        }
        ClusterCommand::Remove {
            node_id,
            force,
            print,
        } => {
            let call = async |link: Link, request| link.cluster().remove(request).await;
            print_members(
                &client
                    .once("Remove", RemoveRequest { node_id, force }, LOOK, call)
                    .await?,
                print,
            )
        }
        ClusterCommand::Transfer {
            node_id,
            force,
            if_leader,
            print,
        } => {
            if if_leader && let Some(why) = membership::nothing_to_hand_over(&client).await? {
                out::note(why);
                return Ok(());
            }
            let members = transfer(&client, node_id, force).await?;
            print_members(&members, print)
        }
        ClusterCommand::Upgrade(print) => upgrade(&client, print).await,
        ClusterCommand::Status(print) => status(&client, print).await,
        ClusterCommand::Workers(print) => {
            let workers = workers(&client).await?;
            if print.json {
                let rows: Vec<Value> = workers.iter().map(json::worker).collect();
                return out::document(&json!({ "workers": rows }));
            }
            workers
                .iter()
                .try_for_each(|worker| out::line(worker_row(worker)))
        }
    }
}

/// Creates a cluster on the node behind `link`. Not repeated: a second try on
/// another node would found a second cluster.
pub async fn init(
    link: &Link,
    join: Vec<String>,
    within: Duration,
) -> Result<MembersResponse, CliError> {
    let mut service = link.cluster();
    let call = async |request| service.init(request).await;
    on_this_node(link, "Init", InitRequest { join }, within, call).await
}

/// Adds the node on `address` by way of the node behind `link`, which must be a member.
pub async fn add(
    link: &Link,
    address: &str,
    within: Duration,
) -> Result<MembersResponse, CliError> {
    let message = AddRequest {
        address: address.to_owned(),
        learner: false,
    };
    let mut service = link.cluster();
    let call = async |request| service.add(request).await;
    on_this_node(link, "Add", message, within, call).await
}

/// One call to one node, whatever others could serve it.
async fn on_this_node<M>(
    link: &Link,
    call: &'static str,
    message: M,
    within: Duration,
    send: impl AsyncFnOnce(Request<M>) -> Result<Response<MembersResponse>, Status>,
) -> Result<MembersResponse, CliError> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    let status = match tokio::time::timeout(within, send(request)).await {
        Ok(Ok(reply)) => return Ok(reply.into_inner()),
        Ok(Err(status)) => status,
        Err(_) => Status::deadline_exceeded(format!("no answer within {} s", within.as_secs())),
    };
    if !may_retry(&status) {
        return Err(CliError::Refused {
            call,
            status: Box::new(status),
        });
    }
    let address = link.address();
    Err(CliError::Unavailable(format!(
        "{call}: {address}: {}; `conclave cluster status --endpoint {address}` shows what it is",
        reason(&status)
    )))
}

/// Hands leadership to this node, or, for 0, to the one that is most caught up.
pub async fn transfer(
    client: &Client,
    node_id: u64,
    force: bool,
) -> Result<MembersResponse, CliError> {
    let call = async |link: Link, request| link.cluster().transfer(request).await;
    client
        .once("Transfer", TransferRequest { node_id, force }, LOOK, call)
        .await
}

async fn upgrade(client: &Client, print: Print) -> Result<(), CliError> {
    let call = async |link: Link, request| link.cluster().upgrade(request).await;
    let raised: UpgradeResponse = client
        .unary("Upgrade", UpgradeRequest::default(), call)
        .await?;
    if print.json {
        return out::document(&json!({ "before": raised.before, "after": raised.after }));
    }
    out::line(if raised.before == raised.after {
        format!("log v{}: as before", raised.after)
    } else {
        format!("log v{}, before v{}", raised.after, raised.before)
    })
}

/// The registered workers.
pub async fn workers(client: &Client) -> Result<Vec<WorkerStatus>, CliError> {
    let call = async |link: Link, request| link.cluster().list_workers(request).await;
    Ok(client
        .unary("ListWorkers", ListWorkersRequest {}, call)
        .await?
        .workers)
}

/// The members, a line each.
pub fn print_members(members: &MembersResponse, print: Print) -> Result<(), CliError> {
    if print.json {
        return out::document(&json::members(members));
    }
    out::line(format!(
        "cluster {}  term {}",
        members.cluster_id, members.term
    ))?;
    // Only a leader hears from members: one that just handed over knows of nobody.
    let heard = members.members.iter().any(|member| member.active);
    for member in &members.members {
        let role = if member.leader {
            "leader"
        } else if member.learner {
            "learner"
        } else {
            "voter"
        };
        let health = match (member.active, heard) {
            (true, _) => "active",
            (false, true) => "silent",
            (false, false) => "-",
        };
        out::line(format!(
            "{:016x}  {:<7}  {health}  {}",
            member.node_id, role, member.address
        ))?;
    }
    Ok(())
}

/// Asks each endpoint by itself: a node that is alone still answers.
async fn status(client: &Client, print: Print) -> Result<(), CliError> {
    let asked = client.links().iter().map(|link| async move {
        let mut request = Request::new(StatusRequest {});
        // Each answers by itself, at once: one that takes longer hangs.
        let within = client.timeout().min(2 * QUIET);
        request.set_timeout(within);
        let reply = tokio::time::timeout(within, link.cluster().status(request)).await;
        (
            link.address().to_owned(),
            reply.map_err(|_| format!("no answer within {} ms", within.as_millis())),
        )
    });
    let answers = futures::future::join_all(asked).await;
    let mut any = false;
    let mut advice = None;
    let mut clusters = BTreeSet::new();
    let mut documents = Vec::new();
    let mut lineage = BTreeMap::new();
    for (address, reply) in answers {
        let reply = reply.and_then(|reply| reply.map_err(|status| reason(&status)));
        any |= reply.is_ok();
        let tls = |error: &String| tls_hint(error, client.is_tls());
        advice = advice.or(reply.as_ref().err().and_then(tls));
        if let Ok(reply) = &reply
            && !reply.get_ref().cluster_id.is_empty()
        {
            clusters.insert(reply.get_ref().cluster_id.clone());
            let rows = reply.get_ref().lineage.iter();
            lineage.extend(rows.map(|from| (from.cluster_id.clone(), lineage_row(from))));
        }
        match (reply, print.json) {
            (Ok(reply), true) => documents.push(json::status(&reply.into_inner())),
            (Err(error), true) => documents.push(json!({ "address": address, "error": error })),
            (Ok(reply), false) => out::line(status_row(&address, &reply.into_inner()))?,
            (Err(error), false) => out::line(format!("{address}  does not answer: {error}"))?,
        }
    }
    if print.json {
        out::document(&json!({ "nodes": documents }))?;
    }
    if !print.json {
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
    if any {
        Ok(())
    } else {
        let advice = advice.map_or_else(String::new, |advice| format!("\n  {advice}"));
        Err(CliError::Unavailable(format!(
            "no endpoint answered{advice}"
        )))
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

fn worker_row(worker: &WorkerStatus) -> String {
    let state = if worker.draining { "draining" } else { "ready" };
    format!(
        "{:<20}  {state:<8}  {}/{} agents  {}  {}  lease {:.1} s",
        worker.worker_id,
        worker.agents,
        worker.max_sequences,
        worker.models.join(","),
        worker.numeric_class,
        worker.lease_remaining_ms as f64 / 1e3,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_is_read_as_it_is_printed() {
        let id = 0x00c0_ffee_0000_0017_u64;
        assert_eq!(node_id(&format!("{id:016x}")), Ok(id));
        assert_eq!(node_id("0xff"), Ok(255));
        assert_eq!(node_id("42"), Ok(42));
        // 17 digits and more: decimal, as the JSON documents have it.
        assert_eq!(node_id(&u64::MAX.to_string()), Ok(u64::MAX));
        // As some tool printed it: without its zeros.
        assert_eq!(node_id("c0ffee0000000017"), node_id("0xc0ffee0000000017"));
        assert_eq!(node_id("c0ffee"), Ok(0x00c0_ffee));
        assert!(node_id("coffee").is_err());
    }
}
