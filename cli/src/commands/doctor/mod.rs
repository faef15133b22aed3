//! `conclave doctor`: looks at a cluster from outside, and says what is wrong and what to do.

mod examine;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use conclave_proto::v1::{ListWorkersRequest, LostWorker, MembersRequest, StatusRequest};
use futures::future::join_all;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use self::examine::{Answer, Finding, Gone, Level, Node, Seen, examine};
use super::cluster::Print;
use crate::{
    args::Global,
    client::{Client, Link, QUIET, reason},
    error::CliError,
    out,
    refusal::{instead, is_misfit, refused_hint, tls_hint},
    view::json,
};

/// Longest wait for what only a leader answers: an election may be under way.
const LED: Duration = Duration::from_secs(5);

/// Flags of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Asks every --endpoint, and every member that one of them names: does it answer, is
it ready, who leads and do all agree, is the quorum safe, does one lag behind, do
versions differ, are clocks and disks sound, do certificates end soon, are there
workers that take agents, was one lost lately, can the quotas file be used. It
changes nothing. Needs a token of role operator.

Examples:
  conclave doctor --endpoint 10.0.0.5:7400
  conclave doctor --endpoint db1:7400 --ca ca.crt --token-file operator-token --json

Exit status: 0 nothing is wrong (notes are no problems), 1 there are problems.")]
pub struct DoctorArgs {
    /// How to print.
    #[command(flatten)]
    print: Print,
}

/// Looks, and says what it found.
pub async fn run(global: &Global, args: DoctorArgs) -> Result<(), CliError> {
    let client = global.client()?;
    let seen = look(global, &client).await?;
    let findings = examine(&seen);
    if args.print.json {
        out::document(&document(&seen, &findings))?;
    } else {
        findings.iter().try_for_each(print)?;
        if findings.is_empty() {
            out::line("nothing is wrong")?;
        }
        out::line(seen.summary())?;
    }
    let problems = findings.iter().filter(|f| f.level == Level::Problem);
    match problems.count() {
        0 => Ok(()),
        1 => Err(CliError::Differs("1 problem was found".to_owned())),
        count => Err(CliError::Differs(format!("{count} problems were found"))),
    }
}

fn print(finding: &Finding) -> Result<(), CliError> {
    let level = match finding.level {
        Level::Problem => "PROBLEM",
        Level::Note => "note   ",
    };
    out::line(format!("{level}  {}: {}", finding.about, finding.what))?;
    out::line(format!("         do: {}", finding.cure))?;
    let with_it = finding.with_it.iter();
    with_it
        .map(|line| format!("         - {line}"))
        .try_for_each(out::line)
}

fn document(seen: &Seen, findings: &[Finding]) -> Value {
    let node = |node: &Node| match &node.answer {
        Ok(answer) => json::status(&answer.status),
        Err(gone) => json!({ "address": node.address, "error": gone.why }),
    };
    let lost = |lost: &LostWorker| json!({ "worker_id": lost.worker_id, "unix_ms": lost.unix_ms });
    let finding = |finding: &Finding| {
        let level = match finding.level {
            Level::Problem => "problem",
            Level::Note => "note",
        };
        json!({
            "level": level,
            "about": finding.about,
            "what": finding.what,
            "do": finding.cure,
            "with_it": finding.with_it,
        })
    };
    json!({
        "healthy": findings.iter().all(|f| f.level != Level::Problem),
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "nodes": seen.nodes.iter().map(node).collect::<Vec<_>>(),
        "workers": seen.workers.iter().flatten().map(json::worker).collect::<Vec<_>>(),
        "lost_workers": seen.lost.iter().map(lost).collect::<Vec<_>>(),
    })
}

/// Asks everybody.
async fn look(global: &Global, client: &Client) -> Result<Seen, CliError> {
    let mut nodes = ask_all(client.links()).await;
    // Whom nobody named, and who is not there, is missed only as a member.
    if global.endpoints.is_empty() && nodes.iter().any(|node| node.answer.is_ok()) {
        nodes.retain(|node| node.answer.is_ok());
    }
    let nobody = || "no endpoint answers".to_owned();
    let mut seen = Seen {
        nodes,
        members: Err(nobody()),
        workers: Err(nobody()),
        lost: Vec::new(),
        here_unix_ms: unix_ms(),
    };
    let mut links = client.links().to_vec();
    let first = ask_led(&mut seen, &links).await;
    let others = ask_others(global, &mut seen).await?;
    links.extend(others);
    // An endpoint that is no member any more passes nothing on; members that it named do.
    if standing(&seen.nodes, &links)
        .is_some_and(|(best, _)| Some(best) > first && first < Some(MEMBER))
    {
        ask_led(&mut seen, &links).await;
        ask_others(global, &mut seen).await?;
    }
    Ok(seen)
}

/// Of coordinators: it is a member, as far as it knows.
const MEMBER: u8 = 1;

/// Who is likeliest to know the members and workers, and how likely.
fn standing<'a>(nodes: &[Node], links: &'a [Link]) -> Option<(u8, &'a Link)> {
    let ranked = links.iter().rev().filter_map(|link| {
        let node = nodes.iter().find(|node| node.address == link.address())?;
        let status = &node.answer.as_ref().ok()?.status;
        let rank = match status.role.as_str() {
            "blank" | "removed" => 0,
            "leader" => MEMBER + 2,
            _ if status.unready.is_empty() => MEMBER + 1,
            _ => MEMBER,
        };
        Some((rank, link))
    });
    ranked.max_by_key(|(rank, _)| *rank)
}

/// Asks the best of `links` for what only the leader knows, to whom it passes that on; how good it was.
async fn ask_led(seen: &mut Seen, links: &[Link]) -> Option<u8> {
    let (rank, link) = standing(&seen.nodes, links)?;
    let members = within(LED, MembersRequest {}, async |request| {
        link.cluster().members(request).await
    });
    let workers = within(LED, ListWorkersRequest {}, async |request| {
        link.cluster().list_workers(request).await
    });
    let (members, workers) = tokio::join!(members, workers);
    let told = |status: Status| reason(&status);
    seen.members = members.map_err(told);
    (seen.workers, seen.lost) = match workers {
        Ok(found) => (Ok(found.workers), found.lost),
        Err(status) => (Err(told(status)), Vec::new()),
    };
    Some(rank)
}

/// Asks the members that were not asked yet.
async fn ask_others(global: &Global, seen: &mut Seen) -> Result<Vec<Link>, CliError> {
    let known: BTreeSet<String> = seen.nodes.iter().flat_map(Node::addresses).collect();
    let named = seen.known_members().iter();
    let others: Vec<String> = named
        .map(|member| member.address.clone())
        .filter(|address| !address.is_empty() && !known.contains(address))
        .collect();
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let others = global.client_of(&others)?;
    seen.nodes.extend(ask_all(others.links()).await);
    Ok(others.links().to_vec())
}

async fn ask_all(links: &[Link]) -> Vec<Node> {
    join_all(links.iter().map(ask)).await
}

/// What a node says of itself, and what time it is there and here.
async fn ask(link: &Link) -> Node {
    let started = Instant::now();
    let answer = within(2 * QUIET, StatusRequest {}, async |request| {
        link.cluster().status(request).await
    });
    let answer = answer.await.map(|status| {
        let took = started.elapsed();
        Answer {
            status,
            here_unix_ms: unix_ms() - i64::try_from(took.as_millis() / 2).unwrap_or(0),
            took,
        }
    });
    let answer = answer.map_err(|status| gone(&status, link.is_tls()));
    Node {
        address: link.address().to_owned(),
        answer,
    }
}

/// What a node did that did not answer; `tls`: we spoke it.
fn gone(status: &Status, tls: bool) -> Gone {
    let why = instead(status);
    let hint = tls_hint(&why, tls);
    match (refused_hint(status), hint) {
        (None, Some(maybe)) if !is_misfit(status) => Gone {
            why: format!("{why}. {maybe}"),
            for_good: None,
        },
        (token, tls) => Gone {
            why,
            for_good: token.or(tls),
        },
    }
}

/// Calls once, with a deadline.
async fn within<Q, R>(
    longest: Duration,
    message: Q,
    call: impl AsyncFnOnce(Request<Q>) -> Result<Response<R>, Status>,
) -> Result<R, Status> {
    let mut request = Request::new(message);
    request.set_timeout(longest);
    match tokio::time::timeout(longest, call(request)).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => {
            let late = format!("no answer within {} ms", longest.as_millis());
            Err(Status::deadline_exceeded(late))
        }
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_no_silence() {
        let refused = gone(&Status::unauthenticated("this token is not known"), true);
        assert!(
            refused.why.starts_with("answers, and refuses"),
            "{refused:?}"
        );
        assert!(
            refused
                .for_good
                .is_some_and(|cure| cure.contains("--token-file FILE"))
        );
        let silent = gone(&Status::deadline_exceeded("no answer"), true);
        assert!(silent.why.starts_with("does not answer"), "{silent:?}");
        assert_eq!(silent.for_good, None);
    }
}
