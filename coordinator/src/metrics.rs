//! Every metric of a coordinator: name, unit and meaning stand here, and
//! nowhere else is one named. Raft families use etcd's words.

pub mod answers;
pub mod tenants;

use std::{sync::Arc, time::Duration};

use metrics::{
    SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::auth::Reason;

/// The value of the label `node`: gauges of several members in one process stay
/// apart.
pub type Label = SharedString;

/// A node's label: its id, as everywhere else.
pub fn label(node_id: u64) -> Label {
    Arc::<str>::from(format!("{node_id:016x}")).into()
}

/// Registers HELP and unit of every metric; call it once the recorder is set.
pub fn describe() {
    describe_gauge!(
        "conclave_build_info",
        Unit::Count,
        "Always 1; the label `version` is the program's"
    );
    gauge!("conclave_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_raft();
    describe_disk();
    describe_clock();
    describe_jobs();
    describe_workers();
    answers::describe();
    tenants::describe();
    begin_at_zero();
    describe_histogram!(
        "conclave_grpc_handling_seconds",
        Unit::Seconds,
        "Time to answer a unary gRPC call, by method and code"
    );
    describe_counter!(
        "conclave_refusals_total",
        Unit::Count,
        "Calls and connections of those who may not, by reason"
    );
    describe_counter!(
        "conclave_grpc_server_handled_total",
        Unit::Count,
        "gRPC calls answered, by method and code"
    );
}

/// A counter that first appears at 1 has no rate of its first event: what may happen is there from the start.
fn begin_at_zero() {
    for name in [
        "conclave_raft_leader_changes_total",
        "conclave_raft_proposals_committed_total",
        "conclave_raft_proposals_failed_total",
        "conclave_raft_messages_dropped_total",
        "conclave_raft_snapshots_installed_total",
        "conclave_leases_renewed_total",
        "conclave_leases_withheld_total",
        "conclave_leases_lost_total",
    ] {
        counter!(name).increment(0);
    }
    for reason in Reason::ALL {
        counter!("conclave_refusals_total", "reason" => reason.name()).increment(0);
    }
    for reason in ["max_live_jobs", "max_keys", "disk_reserve"] {
        counter!("conclave_submissions_refused_total", "reason" => reason).increment(0);
    }
    for mode in ["instant", "thinking", "contemplating"] {
        counter!("conclave_jobs_submitted_total", "mode" => mode).increment(0);
        for outcome in ["done", "degraded", "failed", "rejected", "cancelled"] {
            counter!("conclave_jobs_ended_total", "outcome" => outcome, "mode" => mode)
                .increment(0);
        }
    }
    for kind in ["prompt", "cached", "thought", "answer"] {
        tokens(kind, 0);
    }
    for role in ["proposer", "refiner", "distiller", "chair"] {
        tokens_by_role(role.to_owned(), 0);
    }
}

/// Where raft stands: name and help.
const RAFT_GAUGES: [(&str, &str); 13] = [
    (
        "conclave_raft_has_leader",
        "1 if this member knows a leader",
    ),
    ("conclave_raft_is_leader", "1 if this member leads"),
    ("conclave_raft_term", "Raft term"),
    ("conclave_raft_commit_index", "Highest committed entry"),
    ("conclave_raft_applied_index", "Highest applied entry"),
    (
        "conclave_raft_snapshot_index",
        "Entry of the newest snapshot",
    ),
    (
        "conclave_raft_proposals_pending",
        "Proposals that wait for their entry",
    ),
    (
        "conclave_raft_log_entries",
        "Entries kept behind the newest snapshot",
    ),
    ("conclave_raft_voters", "Voters, as this member knows them"),
    (
        "conclave_raft_voters_active",
        "Voters that this leader hears from, itself included; 0 if it does not lead",
    ),
    (
        "conclave_raft_log_bytes",
        "Bytes of the log's entries in memory",
    ),
    (
        "conclave_jobs_kept",
        "Jobs in memory, those that have ended included",
    ),
    ("conclave_idempotency_keys", "Idempotency keys in memory"),
];

fn describe_raft() {
    for (name, help) in RAFT_GAUGES {
        describe_gauge!(name, Unit::Count, help);
    }
    let counters = [
        (
            "conclave_raft_leader_changes_total",
            "Changes of leader that this member saw",
        ),
        ("conclave_raft_proposals_committed_total", "Entries applied"),
        (
            "conclave_raft_proposals_failed_total",
            "Proposals refused, lost or timed out",
        ),
        (
            "conclave_raft_messages_dropped_total",
            "Raft messages dropped because a lane was full",
        ),
        (
            "conclave_raft_snapshots_installed_total",
            "Snapshots received and installed",
        ),
    ];
    for (name, help) in counters {
        describe_counter!(name, Unit::Count, help);
    }
    let seconds = [
        (
            "conclave_raft_wal_fsync_duration_seconds",
            "Append to the log and fsync",
        ),
        (
            "conclave_raft_apply_duration_seconds",
            "Apply a batch of committed entries",
        ),
        (
            "conclave_raft_propose_duration_seconds",
            "From proposing to applying, on the proposer",
        ),
        (
            "conclave_raft_snapshot_save_duration_seconds",
            "Encode and store a snapshot",
        ),
    ];
    for (name, help) in seconds {
        describe_histogram!(name, Unit::Seconds, help);
    }
}

fn describe_disk() {
    describe_gauge!(
        "conclave_disk_free_bytes",
        Unit::Bytes,
        "Bytes free on the disk of the data folder"
    );
    describe_gauge!(
        "conclave_disk_reserve_bytes",
        Unit::Bytes,
        "Free bytes below which submissions are refused"
    );
}

fn describe_clock() {
    describe_gauge!(
        "conclave_clock_ahead_seconds",
        Unit::Seconds,
        "How far this leader's clock is ahead of a time that a majority of clocks confirms; 0: it is believed"
    );
}

fn describe_jobs() {
    describe_counter!(
        "conclave_jobs_submitted_total",
        Unit::Count,
        "Jobs accepted, by mode; counted by the member that took the call"
    );
    describe_counter!(
        "conclave_jobs_ended_total",
        Unit::Count,
        "Jobs that ended while this member led, by outcome and mode"
    );
    describe_histogram!(
        "conclave_job_duration_seconds",
        Unit::Seconds,
        "From acceptance to the end of a job, by mode"
    );
    describe_counter!(
        "conclave_job_tokens_total",
        Unit::Count,
        "Tokens of ended jobs, by kind (prompt, cached, thought, answer)"
    );
    describe_counter!(
        "conclave_job_tokens_by_role_total",
        Unit::Count,
        "Generated tokens of ended jobs, by role"
    );
    describe_gauge!("conclave_jobs", Unit::Count, "Jobs in state, by state");
    describe_gauge!(
        "conclave_agents",
        Unit::Count,
        "Agents of live jobs, by state"
    );
    describe_gauge!(
        "conclave_watchers",
        Unit::Count,
        "WatchJob streams open here"
    );
    describe_counter!(
        "conclave_submissions_refused_total",
        Unit::Count,
        "Submissions refused, by reason"
    );
}

fn describe_workers() {
    describe_gauge!("conclave_workers", Unit::Count, "Workers that hold a lease");
    describe_gauge!(
        "conclave_worker_sessions",
        Unit::Count,
        "Worker sessions open here"
    );
    describe_counter!(
        "conclave_leases_renewed_total",
        Unit::Count,
        "Worker leases renewed by this member"
    );
    describe_counter!(
        "conclave_leases_lost_total",
        Unit::Count,
        "Leases that ran out under a worker that had not drained, while this member led"
    );
    describe_counter!(
        "conclave_leases_withheld_total",
        Unit::Count,
        "Heartbeats without renewal: work, but no steps"
    );
}

/// Where the raft node stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct RaftGauges {
    /// A leader is known.
    pub has_leader: bool,
    /// It is this node.
    pub is_leader: bool,
    /// Raft term.
    pub term: u64,
    /// Highest committed entry.
    pub commit: u64,
    /// Highest applied entry.
    pub applied: u64,
    /// Entry of the newest snapshot.
    pub snapshot: u64,
    /// Proposals that wait.
    pub pending: usize,
    /// Voters.
    pub voters: usize,
    /// Voters that the leader hears from; 0 elsewhere.
    pub voters_active: usize,
    /// Bytes of entries in memory.
    pub log_bytes: u64,
}

/// Shows where the raft node stands.
#[allow(
    clippy::cast_precision_loss,
    reason = "gauges are f64; indices stay below 2^53"
)]
pub fn raft(node: &Label, gauges: RaftGauges) {
    let set = |name: &'static str, value: f64| gauge!(name, "node" => node.clone()).set(value);
    set(
        "conclave_raft_has_leader",
        f64::from(u8::from(gauges.has_leader)),
    );
    set(
        "conclave_raft_is_leader",
        f64::from(u8::from(gauges.is_leader)),
    );
    set("conclave_raft_term", gauges.term as f64);
    set("conclave_raft_commit_index", gauges.commit as f64);
    set("conclave_raft_applied_index", gauges.applied as f64);
    set("conclave_raft_snapshot_index", gauges.snapshot as f64);
    let entries = gauges.applied.saturating_sub(gauges.snapshot);
    set("conclave_raft_log_entries", entries as f64);
    set("conclave_raft_proposals_pending", gauges.pending as f64);
    set("conclave_raft_voters", gauges.voters as f64);
    set("conclave_raft_voters_active", gauges.voters_active as f64);
    set("conclave_raft_log_bytes", gauges.log_bytes as f64);
}

/// What the replicated state holds in memory.
#[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
pub fn kept(node: &Label, jobs: usize, keys: usize) {
    gauge!("conclave_jobs_kept", "node" => node.clone()).set(jobs as f64);
    gauge!("conclave_idempotency_keys", "node" => node.clone()).set(keys as f64);
}

/// Room on the disk of the data folder, bytes.
#[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
pub fn disk(node: &Label, free: u64, reserve: u64) {
    gauge!("conclave_disk_free_bytes", "node" => node.clone()).set(free as f64);
    gauge!("conclave_disk_reserve_bytes", "node" => node.clone()).set(reserve as f64);
}

/// A change of leader was seen.
pub fn leader_changed() {
    counter!("conclave_raft_leader_changes_total").increment(1);
}

/// Entries were applied in one go.
pub fn applied(entries: usize, took: Duration) {
    counter!("conclave_raft_proposals_committed_total").increment(entries as u64);
    histogram!("conclave_raft_apply_duration_seconds").record(took);
}

/// A proposal of this node's was applied.
pub fn proposal_done(took: Duration) {
    histogram!("conclave_raft_propose_duration_seconds").record(took);
}

/// Proposals were refused, lost or timed out.
pub fn proposals_failed(count: usize) {
    counter!("conclave_raft_proposals_failed_total").increment(count as u64);
}

/// The log was appended to and is durable.
pub fn fsync(took: Duration) {
    histogram!("conclave_raft_wal_fsync_duration_seconds").record(took);
}

/// A lane to a peer was full.
pub fn messages_dropped(count: usize) {
    counter!("conclave_raft_messages_dropped_total").increment(count as u64);
}

/// A snapshot of this node's own was stored.
pub fn snapshot_saved(took: Duration) {
    histogram!("conclave_raft_snapshot_save_duration_seconds").record(took);
}

/// A snapshot from the leader was installed.
pub fn snapshot_installed() {
    counter!("conclave_raft_snapshots_installed_total").increment(1);
}

/// A job was accepted.
pub fn submitted(mode: &'static str) {
    counter!("conclave_jobs_submitted_total", "mode" => mode).increment(1);
}

/// A submission was refused.
pub fn refused(reason: &'static str) {
    counter!("conclave_submissions_refused_total", "reason" => reason).increment(1);
}

/// A job ended while this node led.
pub fn job_ended(outcome: &'static str, mode: &'static str, took: Duration) {
    counter!("conclave_jobs_ended_total", "outcome" => outcome, "mode" => mode).increment(1);
    histogram!("conclave_job_duration_seconds", "mode" => mode).record(took);
}

/// Tokens of a job that ended.
pub fn tokens(kind: &'static str, count: u64) {
    counter!("conclave_job_tokens_total", "kind" => kind).increment(count);
}

/// Tokens that agents of one role generated in a job that ended.
pub fn tokens_by_role(role: String, count: u64) {
    counter!("conclave_job_tokens_by_role_total", "role" => role).increment(count);
}

/// Jobs or agents in one state. `family` is `conclave_jobs` or `conclave_agents`.
#[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
pub fn in_state(node: &Label, family: &'static str, state: &'static str, count: usize) {
    gauge!(family, "node" => node.clone(), "state" => state).set(count as f64);
}

/// A leader that leads no more sees no jobs and no workers.
pub fn nothing_led(node: &Label) {
    workers(node, 0, 0);
    crate::api::convert::count_live(node, &conclave_coordinator_core::State::new());
}

/// Workers with a lease, and sessions open here.
#[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
pub fn workers(node: &Label, leases: usize, sessions: usize) {
    gauge!("conclave_workers", "node" => node.clone()).set(leases as f64);
    gauge!("conclave_worker_sessions", "node" => node.clone()).set(sessions as f64);
}

/// This far is the leader's clock ahead of the cluster's time, while it is doubted.
pub fn clock_ahead(node: &Label, ahead_ms: i64) {
    gauge!("conclave_clock_ahead_seconds", "node" => node.clone()).set(ahead_ms as f64 / 1_000.0);
}

/// Leases were renewed.
pub fn leases_renewed(count: usize) {
    counter!("conclave_leases_renewed_total").increment(count as u64);
}

/// Leases ran out, and nobody had said goodbye.
pub fn leases_lost(count: usize) {
    counter!("conclave_leases_lost_total").increment(count as u64);
}

/// A worker has work and makes no steps.
pub fn lease_withheld() {
    counter!("conclave_leases_withheld_total").increment(1);
}

/// `WatchJob` streams open here.
#[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
pub fn watchers(node: &Label, count: usize) {
    gauge!("conclave_watchers", "node" => node.clone()).set(count as f64);
}

/// A gRPC call was answered.
pub fn grpc(method: &'static str, code: tonic::Code, took: Duration) {
    let code = format!("{code:?}");
    counter!("conclave_grpc_server_handled_total", "method" => method, "code" => code.clone())
        .increment(1);
    histogram!("conclave_grpc_handling_seconds", "method" => method, "code" => code).record(took);
}

/// Somebody was not let in.
pub fn not_let_in(reason: &'static str) {
    counter!("conclave_refusals_total", "reason" => reason).increment(1);
}
