//! `conclave cluster ensure` and `keep`: bring the membership to a list of addresses, for programs that
//! install, grow and shrink a cluster. Both may be repeated; what is done already is left alone.
use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use conclave_proto::v1::{
    Member, MembersRequest, MembersResponse, RemoveRequest, StatusRequest, StatusResponse,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::Request;

use super::cluster::{LOOK, Print, add, init, print_members, transfer};
use crate::{
    args::Global,
    client::{Client, Link},
    duration,
    error::{CliError, below},
    out,
    refusal::{instead, is_misfit, refused_hint},
};

/// Longest wait for one endpoint to say what it is.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest wait for one coordinator to catch up; the server's own limit.
const CATCH_UP: Duration = Duration::from_secs(120);
/// Pause between two looks: nobody tells when a coordinator starts to listen.
const PAUSE: Duration = Duration::from_millis(500);

/// Flags of `cluster ensure`.
#[derive(Debug, Args)]
#[command(after_help = "\
Name every coordinator, those that are members already too: blank ones join the
cluster of the others. Waits for each to answer, and adds those that are blank, one
after another. Each is asked itself what it is: --endpoint plays no part. A member
that is down is left alone; one that came back with an empty folder is named, with
what to do. Members elsewhere are left alone: see `cluster keep`.

Example:
  conclave cluster ensure --init 10.0.0.5:7400 10.0.0.6:7400 10.0.0.7:7400

Exit status: 0 all of them are members, 1 or 2 it is refused, 3 not in time.")]
pub struct EnsureArgs {
    /// All coordinators, as they advertise themselves; with spaces or commas between
    #[arg(required = true, value_name = "HOST:PORT", value_delimiter = ',')]
    addresses: Vec<String>,
    /// Create the cluster, if all of them answer and all are blank
    #[arg(long)]
    init: bool,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    within: Duration,
    /// How to print.
    #[command(flatten)]
    print: Print,
}

/// Flags of `cluster keep`.
#[derive(Debug, Args)]
#[command(after_help = "\
Hands leadership to one that stays, and removes the others one after another.
If there are any, every address must be a member's; and none is removed when too
few would be left to decide. Whom --endpoint names is asked first, then those that
stay.

Example, from five coordinators to three:
  conclave cluster keep 10.0.0.5:7400 10.0.0.6:7400 10.0.0.7:7400

Exit status: 0 nobody else is a member, 1 or 2 it is refused, 3 not in time.")]
pub struct KeepArgs {
    /// Coordinators that stay, as `cluster members` shows them; with spaces or commas between
    #[arg(required = true, value_name = "HOST:PORT", value_delimiter = ',')]
    addresses: Vec<String>,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    within: Duration,
    /// How to print.
    #[command(flatten)]
    print: Print,
}

/// What an address says of itself.
type Found = (String, Option<StatusResponse>);

/// What is to be done next for the addresses to be members.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// All of them are.
    Done,
    /// These have not answered yet, and may be members, blank or nothing.
    Wait(Vec<String>),
    /// All are blank: the first one begins.
    Init,
    /// This one is blank, or still learns.
    Add(String),
    /// A person has to look.
    Refuse(String),
}

/// The next step, from what the addresses say and, once one of them is a member, who the members are.
fn next(found: &[Found], members: &[Member], may_init: bool) -> Step {
    let answers = || found.iter().filter_map(|(_, status)| status.as_ref());
    let clusters: BTreeSet<&str> = answers().map(|s| s.cluster_id.as_str()).collect();
    let silent = |(address, status): &Found| status.is_none().then(|| address.clone());
    let silent: Vec<String> = found.iter().filter_map(silent).collect();
    match clusters.iter().filter(|id| !id.is_empty()).count() {
        0 if !silent.is_empty() => return Step::Wait(silent),
        0 if may_init => return Step::Init,
        0 => {
            return Step::Refuse(
                "none of these belongs to a cluster. Are they to join one: name its members too; is there \
                 none yet: --init creates it. If they had one, their folders are lost: see \
                 docs/OPERATIONS.md, \"Backup and restore\""
                    .to_owned(),
            );
        }
        1 => {}
        _ => {
            return Step::Refuse(
                "they belong to more than one cluster: `conclave cluster status` shows which"
                    .to_owned(),
            );
        }
    }
    for (address, status) in found {
        let Some(status) = status else { continue };
        let other = members
            .iter()
            .find(|m| m.address == *address && m.node_id != status.node_id);
        match members.iter().find(|m| m.node_id == status.node_id) {
            Some(member) if !member.learner => {}
            None if other.is_some() => {
                let old = other.map_or(0, |member| member.node_id);
                return Step::Refuse(format!(
                    "{address} came back with another folder: the member {old:016x} that was there is \
                     lost. `conclave cluster remove {old:016x}`, then repeat this"
                ));
            }
            Some(_) | None => return Step::Add(address.clone()),
        }
    }
    let unknown = |address: &String| !members.iter().any(|m| m.address == *address && !m.learner);
    let missing: Vec<String> = silent.into_iter().filter(unknown).collect();
    if missing.is_empty() {
        Step::Done
    } else {
        Step::Wait(missing)
    }
}

/// Makes the addresses members.
pub async fn ensure(global: &Global, args: EnsureArgs) -> Result<(), CliError> {
    let client = global.client_of(&args.addresses)?;
    let until = Instant::now() + args.within;
    let mut said = Vec::new();
    loop {
        let found = ask(&client).await?;
        let member = found.iter().position(|(_, status)| {
            let status = status.as_ref();
            status.is_some_and(|s| !s.cluster_id.is_empty())
        });
        let known = match member {
            Some(_) => Some(members(&client).await?),
            None => None,
        };
        let listed = known.as_ref().map_or(&[][..], |known| &known.members);
        match next(&found, listed, args.init) {
            Step::Done => return known.map_or(Ok(()), |known| print_members(&known, args.print)),
            Step::Refuse(why) => return Err(CliError::Differs(why)),
            Step::Init => {
                init(&client.links()[0], Vec::new(), client.timeout()).await?;
                out::note(format!(
                    "{} began a new cluster.",
                    client.links()[0].address()
                ));
            }
            Step::Add(address) => {
                let link = &client.links()[member.unwrap_or(0)];
                add(link, &address, CATCH_UP.min(left(until))).await?;
                out::note(format!("{address} is a voter."));
            }
            Step::Wait(missing) if Instant::now() + PAUSE > until => {
                return Err(CliError::Unavailable(format!(
                    "no answer within {}: {}. Are they started, and is the network between open?",
                    duration::show(args.within),
                    missing.join(", ")
                )));
            }
            Step::Wait(missing) => {
                if said != missing {
                    out::note(format!("Waiting for {}.", missing.join(", ")));
                    said = missing;
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Each address by itself: what it says it is, or `None`.
///
/// # Errors
/// One of them refuses this caller, or the two ends do not fit: waiting would not help.
async fn ask(client: &Client) -> Result<Vec<Found>, CliError> {
    let asked = client.links().iter().map(|link: &Link| async move {
        let mut request = Request::new(StatusRequest {});
        request.set_timeout(ANSWER);
        let reply = timeout(ANSWER, link.cluster().status(request)).await;
        let status = match reply {
            Ok(Ok(status)) => Some(status.into_inner()),
            Ok(Err(status)) if is_misfit(&status) => {
                return Err(client.misfit("Status", link, &status));
            }
            Ok(Err(status)) if refused_hint(&status).is_some() => {
                let advice = below(refused_hint(&status));
                let why = format!("{} {}{advice}", link.address(), instead(&status));
                return Err(CliError::usage(why));
            }
            Ok(Err(_)) | Err(_) => None,
        };
        Ok((link.address().to_owned(), status))
    });
    futures::future::try_join_all(asked).await
}

async fn members(client: &Client) -> Result<MembersResponse, CliError> {
    let call = async |link: Link, request| link.cluster().members(request).await;
    client.unary("Members", MembersRequest {}, call).await
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// What is to be done next for nobody else to be a member.
#[derive(Debug, PartialEq, Eq)]
enum Parting {
    Done,
    /// The leader is to go: this voter leads instead.
    Transfer(u64),
    Remove(u64),
    Refuse(String),
}

fn part(members: &[Member], keep: &[String]) -> Parting {
    let stays = |member: &&Member| keep.contains(&member.address);
    // The leader last: leadership then moves once.
    let goes = |member: &&Member| !stays(member);
    let Some(member) = members.iter().filter(goes).min_by_key(|m| m.leader) else {
        return Parting::Done;
    };
    // A list that does not fit the cluster would remove the wrong ones.
    let unknown = |address: &&String| !members.iter().any(|m| m.address == **address);
    if let Some(address) = keep.iter().find(unknown) {
        return Parting::Refuse(format!(
            "{address} is no member's address, so nothing is removed: `conclave cluster members` \
             shows them"
        ));
    }
    if !member.leader {
        return Parting::Remove(member.node_id);
    }
    let able = members
        .iter()
        .filter(stays)
        .filter(|m| m.active && !m.learner);
    match able.max_by_key(|m| m.match_index) {
        Some(heir) => Parting::Transfer(heir.node_id),
        None => Parting::Refuse(format!(
            "{} leads, and none of those that stay answers it: start them first",
            member.address
        )),
    }
}

/// Whom `keep` asks: the endpoints that were named, from which alone the members may be in reach; then the
/// members that stay, for a named one may be about to go.
fn asked(global: &Global, addresses: &[String]) -> Vec<String> {
    let others = addresses.iter().filter(|a| !global.endpoints.contains(a));
    global.endpoints.iter().chain(others).cloned().collect()
}

/// Removes every member that is elsewhere.
pub async fn keep(global: &Global, args: KeepArgs) -> Result<(), CliError> {
    let client = global.client_of(&asked(global, &args.addresses))?;
    let until = Instant::now() + args.within;
    loop {
        let known = members(&client).await?;
        if left(until).is_zero() {
            return Err(CliError::Unavailable(format!(
                "not done within {}; `{LOOK}` shows how far it came",
                duration::show(args.within)
            )));
        }
        match part(&known.members, &args.addresses) {
            Parting::Done => return print_members(&known, args.print),
            Parting::Refuse(why) => return Err(CliError::Differs(why)),
            Parting::Transfer(node_id) => {
                transfer(&client, node_id, false).await?;
                out::note(format!("{node_id:016x} leads."));
            }
            Parting::Remove(node_id) => {
                let call = async |link: Link, request| link.cluster().remove(request).await;
                let request = RemoveRequest {
                    node_id,
                    force: false,
                };
                client.once("Remove", request, LOOK, call).await?;
                out::note(format!("{node_id:016x} is no member any more."));
            }
        }
    }
}

/// Why the node behind the first endpoint may stop without handing over leadership; `None`: it may not.
pub async fn nothing_to_hand_over(client: &Client) -> Result<Option<String>, CliError> {
    let link = &client.links()[0];
    if !leads(link).await? {
        return Ok(Some(format!("{} does not lead.", link.address())));
    }
    let members = members(client).await?.members;
    let voters = members.iter().filter(|member| !member.learner).count();
    let alone = "it is the only voter: there is nobody to hand over to.";
    Ok((voters == 1).then(|| alone.to_owned()))
}

/// Whether the node behind `link` leads.
async fn leads(link: &Link) -> Result<bool, CliError> {
    let mut request = Request::new(StatusRequest {});
    request.set_timeout(ANSWER);
    let status = link.cluster().status(request).await;
    let status = status.map_err(|status| CliError::Refused {
        call: "Status",
        status: Box::new(status),
    })?;
    let status = status.into_inner();
    Ok(status.leader_id != 0 && status.leader_id == status.node_id)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn says(address: &str, node_id: u64, cluster_id: &str) -> Found {
        let status = StatusResponse {
            node_id,
            cluster_id: cluster_id.to_owned(),
            ..StatusResponse::default()
        };
        (address.to_owned(), Some(status))
    }

    fn member(node_id: u64, address: &str) -> Member {
        Member {
            node_id,
            address: address.to_owned(),
            active: true,
            ..Member::default()
        }
    }

    #[test]
    fn a_cluster_is_created_only_when_all_are_blank_and_it_may_be() {
        let mut found = vec![says("a", 1, ""), ("b".to_owned(), None)];
        assert_eq!(next(&found, &[], true), Step::Wait(vec!["b".to_owned()]));
        found[1] = says("b", 2, "");
        assert_eq!(next(&found, &[], true), Step::Init);
        assert!(matches!(next(&found, &[], false), Step::Refuse(why) if why.contains("--init")));
        // One that is a member already: the blank one joins it, and nothing is created.
        found[1] = says("b", 2, "c1");
        let members = [member(2, "b")];
        assert_eq!(next(&found, &members, true), Step::Add("a".to_owned()));
    }

    #[test]
    fn members_that_are_down_are_left_alone_and_strangers_waited_for() {
        let found = [says("a", 1, "c1"), ("b".to_owned(), None)];
        let members = [member(1, "a"), member(2, "b")];
        assert_eq!(next(&found, &members, false), Step::Done);
        let wait = Step::Wait(vec!["b".to_owned()]);
        assert_eq!(next(&found, &members[..1], false), wait);
    }

    #[test]
    fn blank_ones_alone_are_told_to_name_the_members_too() {
        let found = [says("d", 4, ""), says("e", 5, "")];
        let Step::Refuse(why) = next(&found, &[], false) else {
            panic!("a second cluster");
        };
        assert!(why.contains("name its members too"), "{why}");
    }

    #[test]
    fn commas_part_addresses_as_spaces_do() {
        for command in ["ensure", "keep"] {
            let words = ["conclave", "cluster", command, "a:1,b:2", "c:3"];
            let text = format!("{:?}", Cli::try_parse_from(words).unwrap());
            assert!(text.contains(r#"["a:1", "b:2", "c:3"]"#), "{text}");
        }
    }

    #[test]
    fn a_learner_is_promoted_and_a_lost_folder_is_for_a_person() {
        let found = [says("a", 1, "c1"), says("b", 2, "c1")];
        let mut members = [member(1, "a"), member(2, "b")];
        members[1].learner = true;
        assert_eq!(next(&found, &members, false), Step::Add("b".to_owned()));
        let found = [says("a", 1, "c1"), says("b", 3, "")];
        let Step::Refuse(why) = next(&found, &members, true) else {
            panic!("a second member on the address of a first");
        };
        assert!(why.contains("remove 0000000000000002"), "{why}");
    }

    #[test]
    fn coordinators_of_two_clusters_are_not_mixed() {
        let found = [says("a", 1, "c1"), says("b", 2, "c2")];
        let step = next(&found, &[member(1, "a")], true);
        assert!(
            matches!(&step, Step::Refuse(why) if why.contains("more than one")),
            "{step:?}"
        );
    }

    #[test]
    fn others_go_first_and_the_leader_hands_over_before_it_goes() {
        let keep = ["a".to_owned()];
        let mut members = [member(1, "a"), member(2, "b"), member(3, "c")];
        members[1].leader = true;
        assert_eq!(part(&members, &keep), Parting::Remove(3));
        assert_eq!(part(&members[..2], &keep), Parting::Transfer(1));
        members[0].active = false;
        assert!(matches!(part(&members[..2], &keep), Parting::Refuse(_)));
        assert_eq!(part(&members[..1], &keep), Parting::Done);
        let more = ["a".to_owned(), "new".to_owned()];
        assert_eq!(part(&members[..1], &more), Parting::Done, "nobody goes");
    }

    #[test]
    fn keep_asks_the_named_endpoint_then_those_that_stay() {
        let global = |endpoints: &[&str]| {
            let words = ["conclave", "cluster", "keep", "a:1", "b:2"];
            let cli = Cli::try_parse_from(words).unwrap();
            let endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
            Global {
                endpoints,
                ..cli.global
            }
        };
        let stay = ["a:1".to_owned(), "b:2".to_owned()];
        assert_eq!(asked(&global(&[]), &stay), stay);
        assert_eq!(asked(&global(&["c:3"]), &stay), ["c:3", "a:1", "b:2"]);
        assert_eq!(asked(&global(&["b:2"]), &stay), ["b:2", "a:1"]);
    }

    #[test]
    fn a_misspelled_address_removes_nobody() {
        let members = [member(1, "a"), member(2, "b")];
        let parting = part(&members, &["a".to_owned(), "x".to_owned()]);
        assert!(
            matches!(&parting, Parting::Refuse(why) if why.contains("x is no member")),
            "{parting:?}"
        );
    }
}
