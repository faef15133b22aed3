//! What 1,000 seeds must meet, or they prove less than they say. Everything that is counted stands here.

/// The number of seeds that the floors are for.
pub const SEEDS: u64 = 1_000;

/// Group, name, and how often it is met at least: half of the least of three thousands of seeds, or so.
pub const FLOORS: &[(&str, &str, u64)] = &[
    ("agents", "CANCELLED", 11000),
    ("agents", "DONE", 140000),
    ("agents", "FAILED", 11000),
    ("agents", "QUEUED", 57000),
    ("agents", "RUNNING", 100000),
    ("attempts", "accepted", 16000),
    ("attempts", "cancelled before it began", 10),
    ("attempts", "cut", 1700),
    ("attempts", "drains", 9),
    ("attempts", "hopeless", 650),
    ("attempts", "poisoned", 1800),
    ("attempts", "the queue is full", 3300),
    ("attempts", "the step failed", 71),
    ("attempts", "the worker restarted", 420),
    ("attempts", "the worker's lease ran out", 380),
    ("commands", "Assign refused", 120),
    ("commands", "Assign taken", 21000),
    ("commands", "AttemptFinished refused", 1700),
    ("commands", "AttemptFinished taken", 20000),
    ("commands", "CancelJob refused", 850),
    ("commands", "CancelJob taken", 1100),
    ("commands", "CreateCluster taken", 500),
    ("commands", "Decide refused", 480),
    ("commands", "Decide taken", 13000),
    ("commands", "DrainWorker refused", 18),
    ("commands", "DrainWorker taken", 460),
    ("commands", "ExpireJobs taken", 300),
    ("commands", "PrepareDone refused", 1200),
    ("commands", "PrepareDone taken", 5400),
    ("commands", "RegisterWorker taken", 5900),
    ("commands", "RenewLeases taken", 8300),
    ("commands", "ReviewJob refused", 19),
    ("commands", "ReviewJob taken", 400),
    ("commands", "SetLogVersion taken", 700),
    ("commands", "SetMemberAddress taken", 1500),
    ("commands", "SubmitJob refused", 350),
    ("commands", "SubmitJob taken", 7100),
    ("commands", "Tick taken", 24000),
    ("deeds", "a context on a majority", 390),
    ("deeds", "a draft on a majority", 4600),
    ("deeds", "a full disk kept a coordinator down", 640),
    ("deeds", "a killed drain counted", 22),
    ("deeds", "a killed drain not counted", 14),
    ("deeds", "a known key gave its job", 650),
    ("deeds", "a known key refused another request", 340),
    ("deeds", "a leader asked for the clocks", 75),
    ("deeds", "a leader that stood still asks first", 510),
    ("deeds", "a lower term refused by a worker", 730),
    ("deeds", "a partition healed", 1700),
    ("deeds", "a quota held agents back", 1700),
    ("deeds", "a read answered by a follower", 15000),
    ("deeds", "a retry found its job", 560),
    ("deeds", "a retry made its job", 1500),
    ("deeds", "a slow watcher waited for", 14000),
    ("deeds", "a spec on a majority", 1700),
    ("deeds", "a submission refused, disk reserve", 3000),
    ("deeds", "a watch came to its job's end", 3400),
    ("deeds", "a watch passed on", 3400),
    ("deeds", "a watcher left and came back", 480),
    ("deeds", "a watcher's text begun anew", 86),
    ("deeds", "an outcome unknown", 180),
    ("deeds", "applied at log version 1", 40000),
    ("deeds", "applied at log version 2", 38000),
    ("deeds", "applied at log version 3", 50000),
    ("deeds", "applied at log version 4", 430),
    ("deeds", "change of members applied", 21000),
    ("deeds", "disputed drafts read in full", 180),
    ("deeds", "engine step failed", 26),
    ("deeds", "exact answers compared", 2700),
    ("deeds", "leader elected", 2700),
    ("deeds", "lease withheld", 730),
    ("deeds", "leases get a full time to live", 2100),
    ("deeds", "log version raised", 800),
    ("deeds", "missing text asked for", 12),
    ("deeds", "payload dropped", 170),
    ("deeds", "payload fetched", 5200),
    ("deeds", "payload on no majority", 160),
    ("deeds", "sequence preempted", 33),
    ("deeds", "snapshot installed", 1300),
    ("deeds", "snapshot sent", 1400),
    ("deeds", "snapshot taken", 3200),
    ("deeds", "text that was known or old dropped", 160),
    ("faults", "all coordinators crashed", 230),
    ("faults", "client timed out", 15000),
    ("faults", "clock stepped back", 520),
    ("faults", "clock stepped by days", 290),
    ("faults", "clock stepped forward", 510),
    ("faults", "coordinator crashed", 2500),
    ("faults", "coordinator crashed compacting", 29),
    ("faults", "coordinator crashed in a write", 250),
    ("faults", "coordinator crashed installing a snapshot", 3),
    ("faults", "coordinator downgraded", 390),
    ("faults", "coordinator isolated", 990),
    ("faults", "coordinator stood still", 890),
    ("faults", "coordinator stopped, disk full", 58),
    ("faults", "coordinator stopped, program too old", 200),
    ("faults", "coordinator upgraded", 670),
    ("faults", "disk became slow", 1000),
    ("faults", "disk filled up", 820),
    ("faults", "engine hung", 640),
    ("faults", "engine hung with work", 350),
    ("faults", "engine step failed", 35),
    ("faults", "fsync failed", 730),
    ("faults", "latency spike", 1000),
    ("faults", "leadership handed over", 840),
    ("faults", "learner added", 1300),
    ("faults", "learner promoted", 1400),
    ("faults", "member removed", 250),
    ("faults", "message doubled", 6700),
    ("faults", "message dropped, queue full", 1800),
    ("faults", "message held back", 5100),
    ("faults", "message lost", 12000),
    ("faults", "message reordered", 150000),
    ("faults", "network split", 1000),
    ("faults", "no room for a received snapshot", 2),
    ("faults", "no room for a snapshot", 48),
    ("faults", "one-way link lost", 1000),
    ("faults", "payload lost before fsync", 130),
    ("faults", "request refused, queue full", 500),
    ("faults", "session broken", 5000),
    ("faults", "torn tail", 780),
    ("faults", "unsynced writes lost", 1500),
    ("faults", "weather changed", 1100),
    ("faults", "worker crashed", 800),
    ("faults", "worker drained", 840),
    ("faults", "worker stood still", 700),
    ("faults", "write on a slow disk", 5000),
    ("jobs", "AGGREGATING", 3400),
    ("jobs", "AWAITING_REVIEW", 1100),
    ("jobs", "CANCELLED", 1900),
    ("jobs", "DEGRADED", 190),
    ("jobs", "DISTILLING", 4600),
    ("jobs", "DONE", 4700),
    ("jobs", "FAILED", 1100),
    ("jobs", "PREPARING", 25000),
    ("jobs", "PROPOSING", 49000),
    ("jobs", "REFINING", 15000),
    ("laws asked", "a lease lasts as long as it is to", 110000),
    ("laws asked", "a program that is too old says so", 320),
    ("laws asked", "drains count by the log's version", 67),
    ("laws asked", "events without gaps", 120000),
    ("laws asked", "every job ends once faults stop", 500),
    ("laws asked", "exact jobs answer the same", 500),
    ("laws asked", "log matching", 1700000),
    ("laws asked", "no acknowledged job is lost", 810),
    (
        "laws asked",
        "no command is newer than what was agreed on",
        540000,
    ),
    ("laws asked", "no lease for a stuck engine", 42000),
    ("laws asked", "no tenant runs more than its quota", 110000),
    ("laws asked", "nothing fails for nothing", 5600),
    ("laws asked", "one current attempt, one result", 250000),
    ("laws asked", "one job a key", 120000),
    ("laws asked", "one leader a term", 2500),
    (
        "laws asked",
        "payloads are present wherever they are named",
        7100,
    ),
    ("laws asked", "poison agents end", 110000),
    ("laws asked", "queues are bounded", 330000),
    ("laws asked", "reads go forward", 31000),
    ("laws asked", "replicated time is never far ahead", 540000),
    ("laws asked", "states equal at equal index", 580000),
    ("laws asked", "the audit chain holds", 5600),
    ("laws asked", "the engine is sound", 6900),
    ("laws asked", "tokens counted once", 120000),
    (
        "laws asked",
        "watchers see all of it once and in order",
        91000,
    ),
    ("laws asked", "what has ended stays so", 110000),
    ("laws asked", "what is derived is what the state says", 1600),
    ("laws asked", "what was acknowledged is kept", 6800),
    ("modes", "CONTEMPLATING", 6000),
    ("modes", "INSTANT", 270),
    ("modes", "THINKING", 260),
    ("network", "blocked", 41000),
    ("network", "blocked on its way", 2600),
    ("network", "delivered", 2100000),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use conclave_proto::v1::{AgentState, JobState};

    use super::{super::words, *};

    /// The log's own words, so that a new command cannot be forgotten here.
    const LOG: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../proto/proto/conclave/v1/log.proto"
    ));

    fn listed(group: &str) -> BTreeSet<&'static str> {
        let of = FLOORS.iter().filter(|f| f.0 == group && f.2 > 0);
        of.map(|f| f.1).collect()
    }

    #[test]
    fn every_kind_of_command_has_a_floor() {
        let (_, command) = LOG.split_once("oneof command {").expect("it is there");
        let (kinds, _) = command.split_once('}').expect("it ends");
        let listed = listed("commands");
        let mut kinds: Vec<&str> = kinds
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        kinds.sort_unstable();
        assert!(kinds.len() >= 15, "{kinds:?}");
        for kind in kinds {
            let kind = kind.trim_end_matches("Command");
            let taken = format!("{kind} taken");
            assert!(listed.contains(taken.as_str()), "no floor for `{taken}`");
        }
    }

    #[test]
    fn every_state_has_a_floor() {
        let (jobs, agents) = (listed("jobs"), listed("agents"));
        for number in 1..64 {
            if let Ok(state) = JobState::try_from(number) {
                assert!(jobs.contains(words::state(state)), "no floor for {state:?}");
            }
            if let Ok(state) = AgentState::try_from(number) {
                assert!(
                    agents.contains(words::agent(state)),
                    "no floor for {state:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_left_to_chance() {
        for (group, name, floor) in FLOORS {
            assert!(*floor > 0, "{group}, {name}: nobody would see it go");
        }
    }

    #[test]
    fn nothing_is_listed_twice() {
        let names: BTreeSet<_> = FLOORS.iter().map(|f| (f.0, f.1)).collect();
        assert_eq!(names.len(), FLOORS.len());
    }
}
