//! What must hold, one law a file. The [`Ledger`] hears what happens and asks each of them; the first
//! that does not hold ends the run.

mod applied;
mod audit_chain;
mod blobs_present;
mod bounded_queues;
mod ends_have_causes;
mod ends_stay;
mod equal_states;
mod exact_answers;
mod gapless_events;
mod honest_time;
mod killed_drains;
mod leases_kept;
mod liveness;
mod log_matching;
mod nothing_lost;
mod one_job_a_key;
mod one_leader;
mod one_result;
mod poison_ends;
mod promises_kept;
mod quota_kept;
mod reads_go_forward;
mod sound_engine;
mod stuck_leases;
mod tokens_once;
mod versions;
mod watch_cursors;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use bounded_queues::Held;
use conclave_coordinator_core::{
    Applied, Reply, State,
    job::Job,
    node::{Committed, Restored},
    payload,
};
use conclave_proto::v1::{
    AttemptKey, Command, JobSpec, attempt_finished, command::Command as Body, decide::Next,
    watch_job_response::Update,
};
use conclave_worker_core::Fault;
pub(super) use honest_time::HONEST_MS;
pub(super) use killed_drains::Draining;
use raft::eraftpb::{Entry, Message};

/// A law that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub law: &'static str,
    /// How.
    pub what: String,
}

/// What a check comes to.
pub(super) type Check = Result<(), String>;

/// All laws, and what they remember.
#[derive(Default)]
pub(super) struct Ledger {
    /// The first that did not hold.
    pub violation: Option<Violation>,
    /// Highest applied index that any node reached.
    pub highest: u64,
    /// Jobs whose chain was seen sealed, and when they had ended, Unix ms.
    pub sealed: BTreeMap<String, i64>,
    /// How often each law was asked.
    asked: Vec<(&'static str, u64)>,
    open: BTreeSet<String>,
    one_leader: one_leader::OneLeader,
    log_matching: log_matching::LogMatching,
    promises: promises_kept::PromisesKept,
    equal_states: equal_states::EqualStates,
    nothing_lost: nothing_lost::NothingLost,
    one_job_a_key: one_job_a_key::OneJobAKey,
    one_result: one_result::OneResult,
    tokens_once: tokens_once::TokensOnce,
    gapless_events: gapless_events::GaplessEvents,
    stuck_leases: stuck_leases::StuckLeases,
    reads: reads_go_forward::ReadsGoForward,
    exact_answers: exact_answers::ExactAnswers,
    blobs: blobs_present::BlobsPresent,
    cursors: watch_cursors::WatchCursors,
    leases: leases_kept::LeasesKept,
    causes: ends_have_causes::EndsHaveCauses,
    ends: ends_stay::EndsStay,
}

impl Ledger {
    /// Takes down the first law that does not hold.
    pub(super) fn hold(&mut self, law: &'static str, check: Check) {
        // A law is named in one place, so that its name is one text: comparing addresses is quick. Where it
        // is not, its counts are added up later.
        let known = self
            .asked
            .iter_mut()
            .find(|(name, _)| std::ptr::eq(*name, law));
        match known {
            Some((_, count)) => *count += 1,
            None => self.asked.push((law, 1)),
        }
        if let (Err(what), None) = (check, &self.violation) {
            self.violation = Some(Violation { law, what });
        }
    }

    /// How often each law was asked.
    pub(super) fn asked(&self) -> &[(&'static str, u64)] {
        &self.asked
    }

    /// Replicated time on a node, and what an honest clock says.
    pub(super) fn time(&mut self, node: u64, unix_ms: i64, honest_ms: i64) {
        let check = honest_time::check(node, unix_ms, honest_ms);
        self.hold("replicated time is never far ahead", check);
    }

    pub(super) fn leads(&mut self, node: u64, term: u64) {
        let check = self.one_leader.leads(node, term);
        self.hold("one leader a term", check);
    }

    pub(super) fn written(&mut self, node: u64, entries: &[Entry]) {
        let check = self.log_matching.written(node, entries);
        self.hold("log matching", check);
    }

    /// A node says this to another.
    pub(super) fn promised(&mut self, node: u64, message: &Message) {
        self.promises.said(node, message);
    }

    /// A node starts on what it finds on its disk.
    pub(super) fn woke(&mut self, node: u64, found: &Restored) {
        let check = self.promises.woke(node, found);
        self.hold("what was acknowledged is kept", check);
    }

    /// A node is about to apply a command.
    pub(super) fn meets(&mut self, node: u64, speaks: u32, state: &State, command: &Command) {
        let check = versions::meets(node, speaks, state.log_version(), command);
        self.hold("no command is newer than what was agreed on", check);
    }

    /// A node stops because the log is a newer program's.
    pub(super) fn too_old(&mut self, node: u64, why: &str) {
        self.hold(
            "a program that is too old says so",
            versions::stops(node, why),
        );
    }

    pub(super) fn blob_stored(&mut self, node: u64, hash: [u8; 32], bytes: &[u8]) {
        self.blobs.stored(node, hash, bytes);
    }

    pub(super) fn blob_gone(&mut self, node: u64, hash: &[u8; 32]) {
        self.blobs.gone(node, hash);
    }

    /// A node is switched off for good, and its disk with it; the others' state says what is needed.
    pub(super) fn left(&mut self, node: u64, state: &State) {
        self.blobs.left(node);
        let check = self.blobs.survives(state);
        self.hold("payloads are present wherever they are named", check);
    }

    /// A node that knows these voters proposes this.
    pub(super) fn proposes(&mut self, node: u64, voters: impl Fn() -> Vec<u64>, command: &Command) {
        if let Some(hash) = named(command) {
            let check = self.blobs.named(node, &voters(), &hash);
            self.hold("payloads are present wherever they are named", check);
        }
    }

    /// Why a member does not hold all that its state names, if so.
    pub(super) fn lacks(&self, node: u64, state: &State) -> Option<String> {
        self.blobs.missing(node, state)
    }

    /// A watcher is told this about its job.
    pub(super) fn watched(&mut self, watcher: u32, job_id: &str, update: &Update) {
        let at_end = self.ends.events(job_id);
        let check = self.cursors.told(watcher, job_id, update, at_end);
        self.hold("watchers see all of it once and in order", check);
    }

    /// What a process holds now.
    pub(super) fn held(&mut self, who: &str, held: &Held) {
        self.hold("queues are bounded", bounded_queues::check(who, held));
    }

    /// The faults are over, and so is the time to come to rest.
    pub(super) fn rested(&mut self, rested: bool, why: impl FnOnce() -> String) {
        self.hold(
            "every job ends once faults stop",
            liveness::check(rested, why),
        );
    }

    pub(super) fn committed(&mut self, node: u64, entry: &Committed) {
        let check = self.log_matching.committed(node, entry);
        self.hold("log matching", check);
    }

    pub(super) fn state_at(&mut self, node: u64, state: &State) {
        let check = self.equal_states.applied(node, state);
        self.hold("states equal at equal index", check);
    }

    pub(super) fn installed(&mut self, node: u64, state: &State) {
        let check = self.equal_states.compare(node, state);
        self.hold("states equal at equal index", check);
    }

    /// A client was told that its submission is job `job_id`.
    pub(super) fn acknowledged(&mut self, key: &str, job_id: &str) {
        self.nothing_lost.acknowledged(job_id);
        let check = self.one_job_a_key.told(key, job_id);
        self.hold("one job a key", check);
    }

    /// A linearizable read found no such job.
    pub(super) fn missing(&mut self, job_id: &str) {
        let check = self.nothing_lost.missing(job_id);
        self.hold("no acknowledged job is lost", check);
    }

    /// Events that a read that begins now must show at least.
    pub(super) fn floor(&self, job_id: &str) -> usize {
        self.reads.floor(job_id)
    }

    /// A read that came when some member had applied up to `least` is served.
    pub(super) fn served(&mut self, node: u64, index: u64, least: u64) {
        let check = reads_go_forward::ReadsGoForward::served(node, index, least);
        self.hold("reads go forward", check);
    }

    /// A leader tells a worker to start this.
    pub(super) fn starts(&mut self, state: &State, key: &AttemptKey) {
        let check = one_result::starts(state, key);
        self.hold("one current attempt, one result", check);
    }

    /// A leader tells a worker that it may forget these.
    pub(super) fn acked(&mut self, state: &State, keys: &[AttemptKey]) {
        let check = one_result::acked(state, keys);
        self.hold("one current attempt, one result", check);
    }

    /// A read showed so many events, and the job's end or not; its caller may have been `told` of that.
    pub(super) fn read(
        &mut self,
        job_id: &str,
        floor: usize,
        events: usize,
        told: bool,
        ended: bool,
    ) {
        let check = self.reads.done(job_id, floor, events);
        let check = check.and(reads_go_forward::ReadsGoForward::shows_end(
            job_id, told, ended,
        ));
        self.hold("reads go forward", check);
    }

    /// A worker process begins an attempt.
    pub(super) fn started(&mut self, key: &(String, u32, u32), worker: &str, boot: u64) {
        let check = self.one_result.started(key, worker, boot);
        self.hold("one current attempt, one result", check);
    }

    /// The leader of a term renews a process's lease after a sign of life.
    pub(super) fn renewed(&mut self, term: u64, incarnation: &str, steps: u64, has_work: bool) {
        let check = self
            .stuck_leases
            .renewed(term, incarnation, steps, has_work);
        self.hold("no lease for a stuck engine", check);
    }

    pub(super) fn engine(&mut self, worker: &str, fault: Option<Fault>) {
        self.hold("the engine is sound", sound_engine::check(worker, fault));
    }

    fn inspect(&mut self, job: &Job, latest_ms: i64) {
        let check = self.gapless_events.check(job);
        self.hold("events without gaps", check);
        let check = self.one_result.check(job);
        self.hold("one current attempt, one result", check);
        self.hold("poison agents end", poison_ends::check(job));
        let ended = self.ends.check(job);
        if ended == Ok(true) {
            self.hold(
                "nothing fails for nothing",
                self.causes.ended(job, latest_ms),
            );
        }
        self.hold("what has ended stays so", ended.map(drop));
        if !job.is_active() && !self.sealed.contains_key(&job.id) {
            self.sealed.insert(job.id.clone(), job.ended_unix_ms);
            self.open.remove(&job.id);
            self.hold(
                "the audit chain holds",
                audit_chain::check(job, &self.blobs),
            );
            self.hold(
                "events without gaps",
                gapless_events::GaplessEvents::tell_all(job),
            );
            let check = self.tokens_once.sealed(job, &self.blobs);
            self.hold("tokens counted once", check);
            self.exact_answers.ended(job, &self.blobs);
        }
    }

    /// Jobs that this command may have touched.
    fn touched(&self, command: &Command, applied: &Applied) -> Vec<String> {
        match &command.command {
            Some(Body::SubmitJob(_)) => match &applied.reply {
                Reply::Submitted { job_id, .. } => vec![job_id.clone()],
                _ => Vec::new(),
            },
            Some(Body::PrepareDone(c)) => c.prepared.iter().map(|p| p.job_id.clone()).collect(),
            Some(Body::Decide(c)) => vec![c.job_id.clone()],
            Some(Body::Assign(c)) => vec![c.job_id.clone()],
            Some(Body::AttemptFinished(c)) => c.key.iter().map(|k| k.job_id.clone()).collect(),
            Some(Body::CancelJob(c)) => vec![c.job_id.clone()],
            Some(Body::ReviewJob(c)) => vec![c.job_id.clone()],
            Some(Body::Tick(_) | Body::RegisterWorker(_)) => self.open.iter().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Jobs of exact answers: the effective spec and the answer given.
    pub(super) fn exact(&self) -> &BTreeMap<String, (JobSpec, String)> {
        self.exact_answers.given()
    }

    /// After the world has come to rest, on every node.
    pub(super) fn derived(&mut self, node: u64, state: &State) {
        let check = equal_states::EqualStates::restores(node, state);
        self.hold("what is derived is what the state says", check);
    }

    /// After the world has come to rest, on the leader's state.
    pub(super) fn at_rest(&mut self, state: &State) {
        let check = self.nothing_lost.at_rest(state);
        self.hold("no acknowledged job is lost", check);
        let check = self.one_job_a_key.at_rest(state);
        self.hold("one job a key", check);
        let check = self.exact_answers.at_rest();
        self.hold("exact jobs answer the same", check);
    }
}

/// Hashes of payloads that a command names.
fn named(command: &Command) -> Option<[u8; 32]> {
    let payload = match command.command.as_ref()? {
        Body::SubmitJob(c) => c.spec.as_ref(),
        Body::AttemptFinished(c) => match &c.result {
            Some(attempt_finished::Result::Draft(draft)) => Some(draft),
            _ => None,
        },
        Body::Decide(c) => match &c.next {
            Some(Next::StartRound(round)) => round.context.as_ref(),
            _ => None,
        },
        _ => None,
    };
    payload::blob_ref(payload?).map(|(hash, _)| hash)
}
