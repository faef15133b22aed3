//! What is asked when a command is applied for the first time anywhere; the other nodes' states are compared
//! with that one's.

use conclave_coordinator_core::{
    Applied, Reply, State, agent::KILLED_DRAINS_VERSION, audit, job::Job,
};
use conclave_proto::v1::{Command, audit_event, command::Command as Body};

use super::{
    super::{cx::Cx, leader::RETENTION_MS, words},
    Draining, HONEST_MS,
    honest_time::SLACK_MS,
    quota_kept,
};

impl Cx {
    /// A node applied a command that may have lost these.
    pub(in super::super) fn lost_drains(&mut self, node: u64, doomed: &Draining, state: &State) {
        let (deed, check) = match doomed.lost(node, state) {
            Ok(0) => return,
            Ok(_) if state.log_version() < KILLED_DRAINS_VERSION => {
                ("a killed drain counted", Ok(()))
            }
            Ok(_) => ("a killed drain not counted", Ok(())),
            Err(what) => ("a killed drain counted wrongly", Err(what)),
        };
        self.coverage.hit("deeds", deed);
        self.ledger.hold("drains count by the log's version", check);
    }

    /// A node applied a command. The first one to reach an index is looked at; the others are compared
    /// with it by their states.
    pub(in super::super) fn applied(
        &mut self,
        node: u64,
        state: &State,
        command: &Command,
        applied: &Applied,
    ) {
        let index = state.applied_index();
        if index <= self.ledger.highest {
            return;
        }
        self.ledger.highest = index;
        let ((kind, about), reply) = (words::of(command), &applied.reply);
        let outcome = match reply {
            Reply::Ok | Reply::Submitted { .. } => "taken",
            _ => "refused",
        };
        self.coverage.hit("commands", format!("{kind} {outcome}"));
        let version = format!("applied at log version {}", state.log_version());
        self.coverage.hit("deeds", version);
        let term = state.applied_term();
        self.tell(|| {
            let reply = words::reply(reply);
            format!("coordinator {node}: applies {index} of term {term}, {kind} {about}: {reply}")
        });
        let check = self.ledger.one_result.applied(command, applied);
        self.ledger.hold("one current attempt, one result", check);
        let blobs = &self.ledger.blobs;
        let check = self.ledger.tokens_once.applied(command, applied, blobs);
        self.ledger.hold("tokens counted once", check);
        let most = self.running_agents;
        let check = quota_kept::check(most, state, command, applied);
        self.ledger
            .hold("no tenant runs more than its quota", check);
        let held_back = |most| {
            let share = state.share("t");
            share.running_agents == most && share.queued_agents > 0
        };
        if kind == "Assign" && most.is_some_and(held_back) {
            self.coverage.hit("deeds", "a quota held agents back");
        }
        let check = self.ledger.one_job_a_key.applied(command, applied);
        self.ledger.hold("one job a key", check);
        let check = self
            .ledger
            .leases
            .applied(command, applied, state, self.now);
        self.ledger.hold("a lease lasts as long as it is to", check);
        self.ledger.causes.applied(command, applied);
        // By the clock that is furthest ahead of those that are honest.
        let latest_ms = self.unix_ms() + HONEST_MS + SLACK_MS;
        if let Some(Body::ExpireJobs(c)) = &command.command {
            let due = latest_ms - RETENTION_MS;
            let sealed = &self.ledger.sealed;
            let lost = &mut self.ledger.nothing_lost;
            let check = lost.expired(&c.job_ids, sealed, due, state);
            self.ledger.hold("no acknowledged job is lost", check);
        }
        if let Some(Body::Decide(c)) = &command.command
            && applied.reply == Reply::Ok
            && c.reason.starts_with("expands: ")
        {
            self.coverage.hit("deeds", "disputed drafts read in full");
        }
        let touched = self.ledger.touched(command, applied);
        for job_id in touched {
            let Some(job) = state.job(&job_id) else {
                continue;
            };
            let sealed = self.ledger.sealed.contains_key(&job_id);
            if !sealed {
                self.ledger.open.insert(job_id.clone());
                self.coverage.hit("jobs", words::state(job.state));
                for agent in &job.agents {
                    self.coverage.hit("agents", words::agent(agent.state));
                }
            }
            self.ledger.inspect(job, latest_ms);
            if !sealed && self.ledger.sealed.contains_key(&job_id) {
                self.count_attempts(job);
            }
        }
    }

    /// How the attempts of a job ended.
    fn count_attempts(&mut self, job: &Job) {
        for event in job.audit.records().iter().filter_map(audit::open) {
            match event.event {
                Some(audit_event::Event::Draft(_)) => self.coverage.hit("attempts", "accepted"),
                Some(audit_event::Event::AttemptEnded(ended)) => {
                    self.coverage.hit("attempts", ended.reason);
                }
                _ => {}
            }
        }
    }
}
