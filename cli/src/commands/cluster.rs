//! `conclave cluster`: create a cluster, change its members, see its health.
use std::time::Duration;

use clap::{Args, Subcommand};
use conclave_proto::v1::{
    AddRequest, InitRequest, ListWorkersRequest, MembersRequest, MembersResponse, RemoveRequest,
    TransferRequest, UpgradeRequest, UpgradeResponse, WorkerStatus,
};
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use super::{membership, status};
use crate::{
    args::Global,
    client::{Client, Link, may_retry, reason},
    error::{CliError, below},
    out,
    refusal::{is_misfit, tls_hint},
    view::json,
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
        #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = address)]
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
        /// Where it listens, HOST:PORT, as the other members dial it
        #[arg(value_name = "HOST:PORT", value_parser = address)]
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

/// Where a coordinator listens: a host and a port.
fn address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let is_host = !host.is_empty() && !host.contains(['/', ' ', '@']);
    if is_host && port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Ok(text.to_owned());
    }
    Err("it is not HOST:PORT, e.g. 10.0.0.6:7400".to_owned())
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
        ClusterCommand::Status(print) => status::status(&client, print).await,
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
    let address = link.address();
    if is_misfit(&status) {
        return Err(CliError::usage(format!(
            "{call}: {address}: {}{}",
            reason(&status),
            below(tls_hint(&reason(&status), link.is_tls()))
        )));
    }
    if !may_retry(&status) {
        return Err(CliError::Refused {
            call,
            status: Box::new(status),
        });
    }
    Err(CliError::Unavailable(format!(
        "{call}: {address}: {}; `conclave cluster status --endpoint {address}` shows what it is{}",
        reason(&status),
        below(tls_hint(&reason(&status), link.is_tls()))
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
    fn a_member_is_added_by_host_and_port() {
        for good in ["10.0.0.6:7400", "db2:7400", "[::1]:7400"] {
            assert_eq!(address(good).as_deref(), Ok(good));
        }
        for bad in ["foo", "foo:", ":7400", "foo:0", "http://foo:7400", "a b:1"] {
            assert!(address(bad).unwrap_err().contains("HOST:PORT"), "{bad}");
        }
    }

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
