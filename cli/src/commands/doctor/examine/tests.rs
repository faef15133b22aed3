use conclave_proto::v1::{LineageRecord, RefusedFile};

use super::*;

const GIB: u64 = 1 << 30;

fn answer(id: u64, role: &str) -> Answer {
    Answer {
        status: StatusResponse {
            node_id: id,
            cluster_id: "c".to_owned(),
            address: format!("host-{id}"),
            role: role.to_owned(),
            term: 4,
            leader_id: 1,
            commit_index: 9_000,
            applied_index: 9_000,
            log_version: 3,
            cluster_log_version: 3,
            version: "1".to_owned(),
            unix_ms: 1_000_000,
            disk_free_bytes: 9 * GIB,
            disk_reserve_bytes: GIB,
            max_live_jobs: 100,
            ..StatusResponse::default()
        },
        here_unix_ms: 1_000_000,
        took: Duration::from_millis(2),
    }
}

/// Three coordinators, the first of which leads, and a worker.
fn healthy() -> Seen {
    let roles = [(1, "leader"), (2, "follower"), (3, "follower")];
    let node = |(id, role): (u64, &str)| Node {
        address: format!("host-{id}"),
        answer: Ok(answer(id, role)),
    };
    let member = |(id, _): (u64, &str)| Member {
        node_id: id,
        address: format!("host-{id}"),
        leader: id == 1,
        active: true,
        ..Member::default()
    };
    Seen {
        nodes: roles.map(node).into(),
        members: Ok(MembersResponse {
            members: roles.map(member).into(),
            ..MembersResponse::default()
        }),
        workers: Ok(vec![WorkerStatus {
            worker_id: "w1".to_owned(),
            agents: 3,
            lease_remaining_ms: 5_500,
            ..WorkerStatus::default()
        }]),
        lost: Vec::new(),
        here_unix_ms: 1_000_000,
    }
}

fn gone(why: &str) -> Gone {
    Gone {
        why: why.to_owned(),
        for_good: None,
    }
}

fn changed(seen: &mut Seen, at: usize, change: impl FnOnce(&mut StatusResponse)) {
    let answer = seen.nodes[at].answer.as_mut().ok();
    change(&mut answer.expect("it answers").status);
}

/// What is found after this change, as `level about: what`.
fn found(change: impl FnOnce(&mut Seen)) -> Vec<String> {
    let mut seen = healthy();
    change(&mut seen);
    let found = examine(&seen);
    assert!(found.iter().all(|f| !f.cure.is_empty()), "{found:?}");
    let text = |f: Finding| format!("{:?} {}: {}", f.level, f.about, f.what);
    found.into_iter().map(text).collect()
}

/// One thing is found, in these words.
fn one(change: impl FnOnce(&mut Seen), words: &str) {
    let found = found(change);
    assert!(
        found.len() == 1 && found[0].contains(words),
        "{words}: {found:?}"
    );
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(found(|_| {}), Vec::<String>::new());
    assert_eq!(
        healthy().summary(),
        "3 of 3 coordinators answer (the cluster has 3 voters); host-1 leads in term 4; 1 worker \
         runs 3 agents."
    );
}

#[test]
fn a_member_that_is_down_is_named_and_so_is_what_it_costs() {
    let down =
        |seen: &mut Seen| seen.nodes[2].answer = Err(gone("does not answer: connection refused"));
    let found = found(down);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(
        found[0],
        "Problem host-3: does not answer: connection refused"
    );
    assert!(found[1].contains("2 of 3 voters answer: after one more loss"));
    let mut seen = healthy();
    down(&mut seen);
    assert!(
        examine(&seen)[0]
            .cure
            .contains("cluster remove 0000000000000003")
    );
}

/// Two of three are down: what the last one says, and what a leader would have said.
fn lost_quorum(seen: &mut Seen) {
    for node in &mut seen.nodes[..2] {
        node.answer = Err(gone("does not answer: connection refused"));
    }
    let members = seen.members.as_ref().expect("known").members.clone();
    changed(seen, 2, |s| {
        s.leader_id = 0;
        s.unready = "no leader is known".to_owned();
        s.members = members;
    });
    seen.members = Err("no leader with a quorum was found in time".to_owned());
    seen.workers = Err("no leader with a quorum was found in time".to_owned());
}

#[test]
fn a_lost_quorum_is_one_problem_and_what_follows_stands_with_it() {
    let mut seen = healthy();
    lost_quorum(&mut seen);
    let found = examine(&seen);
    let [lost] = found.as_slice() else {
        panic!("one cause: {found:?}");
    };
    assert_eq!(lost.about, "the quorum");
    assert!(
        lost.what
            .starts_with("is lost: 1 of 3 voters answers, 2 are needed"),
        "{lost:?}"
    );
    assert!(
        lost.cure.starts_with("start host-1 and host-2") && lost.cure.contains("A lost quorum"),
        "{lost:?}"
    );
    let with_it = lost.with_it.join("\n");
    for words in [
        "host-1 does not answer: connection refused",
        "host-2 does not answer",
        "host-3 is not ready: no leader is known",
        "members and workers",
    ] {
        assert!(with_it.contains(words), "{words}: {with_it}");
    }
    // A trouble of its own stays one.
    changed(&mut seen, 2, |s| s.disk_free_bytes = 1);
    assert_eq!(examine(&seen).len(), 2);
}

#[test]
fn a_leader_that_has_just_lost_the_others_is_none() {
    one(
        |seen| {
            for node in &mut seen.nodes[1..] {
                node.answer = Err(gone("does not answer: connection refused"));
            }
            seen.workers = Err("no leader with a quorum was found in time".to_owned());
        },
        "Problem the quorum: is lost: 1 of 3 voters answers",
    );
}

#[test]
fn members_that_answer_and_have_no_leader_are_one_problem() {
    one(
        |seen| {
            for at in 0..3 {
                changed(seen, at, |s| {
                    s.leader_id = 0;
                    s.role = "follower".to_owned();
                    s.unready = "no leader is known".to_owned();
                });
            }
            seen.members = Err("no leader".to_owned());
            seen.workers = Err("no leader".to_owned());
        },
        "Problem the cluster: no leader is known: nothing is accepted",
    );
}

#[test]
fn where_nobody_answers_or_all_are_blank_that_is_the_problem() {
    one(
        |seen| {
            for node in &mut seen.nodes {
                node.answer = Err(gone("does not answer: connection refused"));
            }
            seen.members = Err("no endpoint answers".to_owned());
            seen.workers = Err("no endpoint answers".to_owned());
        },
        "Problem the endpoints: none of 3 answers",
    );
    let blank = |seen: &mut Seen| {
        for at in 0..3 {
            changed(seen, at, |s| {
                s.role = "blank".to_owned();
                s.cluster_id.clear();
                s.leader_id = 0;
                s.unready = "this node belongs to no cluster yet".to_owned();
            });
        }
        seen.members = Err("this node belongs to no cluster yet".to_owned());
        seen.workers = Err("this node belongs to no cluster yet".to_owned());
    };
    one(blank, "Problem the cluster: none was created yet");
    let mut seen = healthy();
    blank(&mut seen);
    let cure = &examine(&seen)[0].cure;
    assert!(
        cure.contains("cluster init --endpoint host-1 --join host-2,host-3"),
        "{cure}"
    );
}

#[test]
fn a_member_that_refuses_the_token_is_there() {
    let refuses = |seen: &mut Seen, at: usize| {
        seen.nodes[at].answer = Err(Gone {
            why: "answers, and refuses this caller: who?".to_owned(),
            for_good: Some("--token-file FILE"),
        });
    };
    let mut seen = healthy();
    lost_quorum(&mut seen);
    refuses(&mut seen, 1);
    let found = examine(&seen);
    let about: Vec<&str> = found.iter().map(|f| f.about.as_str()).collect();
    assert_eq!(about, ["the cluster", "host-2"], "{found:?}");
    assert!(found[1].what.contains("refuses this caller"), "{found:?}");
    assert!(found[1].cure.contains("--token-file"), "{found:?}");
}

#[test]
fn members_that_do_not_agree_are_named() {
    one(
        |seen| changed(seen, 2, |s| s.leader_id = 7),
        "Problem the cluster: members do not agree on who leads: host-1 says 0000000000000001",
    );
    one(
        |seen| changed(seen, 2, |s| s.cluster_id = "d".to_owned()),
        "2 clusters answer",
    );
}

#[test]
fn each_coordinators_own_trouble_is_told() {
    let set = |change: fn(&mut StatusResponse), words: &str| {
        one(|seen| changed(seen, 2, change), words);
    };
    set(
        |s| s.applied_index = 7_000,
        "Problem host-3: is 2000 entries behind host-1",
    );
    set(
        |s| s.disk_free_bytes = GIB / 2,
        "Problem host-3: 512 MiB of its disk are free",
    );
    set(|s| s.disk_free_bytes = 3 * GIB / 2, "Note host-3: 1536 MiB");
    set(
        |s| s.unix_ms += 2_000,
        "Note host-3: its clock is 2.0 s or more from that of host-1",
    );
    set(
        |s| s.unix_ms -= 3_600_000,
        "Problem host-3: its clock is 3600.0 s",
    );
    set(
        |s| s.quotas_refused = true,
        "Problem host-3: cannot use its quotas file",
    );
    set(|s| s.version = "2".to_owned(), "different programs: 1, 2");
    one(
        |seen| changed(seen, 0, |s| s.live_jobs = 90),
        "Problem host-1: 90 jobs have not ended, 100 may",
    );
    one(
        |seen| (0..3).for_each(|at| changed(seen, at, |s| s.log_version = 4)),
        "the log is at version 3, every coordinator that answers speaks 4",
    );
}

#[test]
fn workers_that_are_not_there_or_not_heard_of_are_told() {
    let workers = |change: fn(&mut Vec<WorkerStatus>), words: &str| {
        one(|seen| change(seen.workers.as_mut().expect("known")), words);
    };
    workers(Vec::clear, "Note workers: none holds a lease");
    workers(
        |w| w[0].lease_remaining_ms = 900,
        "Problem w1: was not heard of lately: its lease ends in 0.9 s",
    );
    let mut both = found(|seen| {
        let workers = seen.workers.as_mut().expect("known");
        workers[0].draining = true;
    });
    both.sort();
    assert!(both[0].starts_with("Note w1: drains"), "{both:?}");
    assert!(
        both[1].starts_with("Problem workers: all of them drain"),
        "{both:?}"
    );
    one(
        |seen| {
            seen.workers.as_mut().expect("known").clear();
            changed(seen, 0, |s| s.live_jobs = 3);
        },
        "Problem workers: none holds a lease; 3 jobs",
    );
}

#[test]
fn a_certificate_that_ends_soon_is_told_before_it_does() {
    const DAY_S: u64 = 24 * 3_600;
    let ends = |days: u64| {
        found(|seen| {
            changed(seen, 1, |s| {
                s.certificate_expires_unix_s = 1_000 + days * DAY_S
            })
        })
    };
    assert!(ends(31).is_empty());
    assert_eq!(ends(20), ["Note host-2: its certificate ends in 20.0 days"]);
    assert_eq!(
        ends(2),
        ["Problem host-2: its certificate ends in 2.0 days"]
    );
    let ended = found(|seen| changed(seen, 1, |s| s.certificate_expires_unix_s = 7));
    assert!(
        ended[0].starts_with("Problem host-2: its certificate has ended"),
        "{ended:?}"
    );
}

#[test]
fn a_worker_that_was_lost_is_named_a_problem_while_it_is_news() {
    let lost = |minutes: i64| {
        let lost = LostWorker {
            worker_id: "w9".to_owned(),
            unix_ms: 1_000_000 - minutes * 60_000,
        };
        found(|seen| seen.lost.push(lost))
    };
    let words = "was lost 3 min ago, and has not come back: its lease ran out";
    assert_eq!(lost(3), [format!("Problem w9: {words}")]);
    assert!(lost(50)[0].starts_with("Note w9: was lost 50 min ago"));
}

#[test]
fn a_file_that_could_not_be_read_again_is_named_with_its_member() {
    let file = RefusedFile {
        setting: "tokens_file".to_owned(),
        paths: vec!["/etc/tokens.jsonl".to_owned()],
        why: "tokens file, line 3: not JSON (column 5)".to_owned(),
    };
    let refused = |seen: &mut Seen| {
        changed(seen, 2, |s| {
            s.quotas_refused = true;
            s.refused_files.push(file.clone());
        })
    };
    one(
        refused,
        "Problem host-3: tokens_file changed and cannot be used, what it said before goes on: \
         tokens file, line 3",
    );
    let mut seen = healthy();
    refused(&mut seen);
    let cure = &examine(&seen)[0].cure;
    assert!(cure.contains("mend /etc/tokens.jsonl"), "{cure}");
}

#[test]
fn a_lost_folder_is_told_with_the_member_that_it_was() {
    let blank = |seen: &mut Seen| {
        changed(seen, 2, |status| {
            status.node_id = 9;
            status.role = "blank".to_owned();
            status.leader_id = 0;
        });
    };
    let mut seen = healthy();
    blank(&mut seen);
    let found = examine(&seen);
    let lost = found.iter().find(|f| f.what.contains("is lost"));
    let lost = lost.expect("it is told");
    assert_eq!(
        lost.cure,
        "`conclave cluster remove 0000000000000003`, then `conclave cluster add host-3`"
    );
}

#[test]
fn a_member_whose_address_another_one_has_is_told() {
    let mut seen = healthy();
    changed(&mut seen, 2, |status| status.node_id = 9);
    let new = Member {
        node_id: 9,
        address: "host-3".to_owned(),
        active: true,
        ..Member::default()
    };
    seen.members
        .as_mut()
        .expect("they are known")
        .members
        .push(new);
    let found = examine(&seen);
    let ghost = found
        .iter()
        .find(|f| f.cure.contains("remove 0000000000000003"));
    assert!(
        ghost.is_some_and(|f| f.what.contains("0000000000000009 answers there")),
        "{found:?}"
    );
}

#[test]
fn a_workers_file_that_cannot_be_used_is_told() {
    let refused = |seen: &mut Seen| {
        let file = RefusedFile {
            setting: "token_file".to_owned(),
            paths: vec!["/etc/worker-token".to_owned()],
            why: "no token".to_owned(),
        };
        let workers = seen.workers.as_mut().expect("they are known");
        workers[0].refused_files.push(file);
    };
    one(refused, "Problem w1: token_file changed and cannot be used");
}

#[test]
fn of_two_clusters_the_one_that_came_out_of_the_other_goes_on() {
    let mut seen = healthy();
    changed(&mut seen, 0, |status| {
        status.cluster_id = "new".to_owned();
        status.lineage.push(LineageRecord {
            from_cluster_id: "c".to_owned(),
            cluster_id: "new".to_owned(),
            ..LineageRecord::default()
        });
    });
    let found = examine(&seen);
    let two = found.iter().find(|f| f.what.starts_with("2 clusters"));
    let two = two.expect("it is told");
    assert!(two.cure.contains("new came out of c") && two.cure.contains("stop host-2 and host-3"));
    assert_eq!(two.with_it, ["c: host-2, host-3", "new: host-1"]);
}
