//! Names, help texts and units of all that a worker counts.
//!
//! Labels: `worker` (several may live in one process), `role`, `kind`, `state`, `outcome`. Nothing that
//! grows with jobs is a label.

use std::time::Duration;

use conclave_proto::v1::{Role, Usage};
use conclave_worker_core::Stats;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

/// Bounds for histograms in seconds, for whoever installs the recorder
/// (`PrometheusBuilder::set_buckets_for_metric`).
pub const SECONDS_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Bounds for the histogram of tokens in a batch.
pub const BATCH_TOKENS_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// Every histogram of a worker with its bounds.
pub const HISTOGRAMS: &[(&str, &[f64])] = &[
    ("conclave_worker_step_seconds", SECONDS_BUCKETS),
    ("conclave_worker_prepare_seconds", SECONDS_BUCKETS),
    ("conclave_worker_batch_tokens", BATCH_TOKENS_BUCKETS),
];

/// Tells the recorder what each name means. Call once it is installed; calling again does no harm.
pub fn describe() {
    describe_gauge!(
        "conclave_build_info",
        Unit::Count,
        "Always 1; the label `version` is the program's"
    );
    gauge!("conclave_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_agents();
    describe_engine();
    describe_session();
}

fn describe_agents() {
    describe_counter!(
        "conclave_tokens_total",
        Unit::Count,
        "Tokens of ended attempts, by the agent's role and kind: prompt (all of it), cached (of the prompt, not computed), thought, answer."
    );
    describe_counter!(
        "conclave_worker_attempts_total",
        Unit::Count,
        "Attempts that ended, by role and outcome: done, cut, transient, permanent, drained."
    );
    describe_gauge!(
        "conclave_worker_sequences",
        Unit::Count,
        "Sequences by state: running (hold KV blocks), waiting, planning (being tokenized)."
    );
    describe_gauge!(
        "conclave_worker_results_unacknowledged",
        Unit::Count,
        "Results kept until their commit is acknowledged."
    );
}

fn describe_engine() {
    describe_counter!("conclave_worker_steps_total", Unit::Count, "Engine steps.");
    describe_histogram!(
        "conclave_worker_step_seconds",
        Unit::Seconds,
        "Time of one engine step."
    );
    describe_histogram!(
        "conclave_worker_batch_tokens",
        Unit::Count,
        "Tokens computed in one engine step."
    );
    describe_gauge!(
        "conclave_worker_kv_blocks",
        Unit::Count,
        "KV blocks of 16 tokens by state: free, cached (evictable prefixes), used."
    );
    describe_counter!(
        "conclave_worker_prefix_hit_tokens_total",
        Unit::Count,
        "Tokens whose KV was found in the prefix cache, in whole blocks."
    );
    describe_counter!(
        "conclave_worker_prefix_miss_tokens_total",
        Unit::Count,
        "Tokens of starting sequences, in whole blocks, whose KV was not in the prefix cache."
    );
    describe_counter!(
        "conclave_worker_evictions_total",
        Unit::Count,
        "Cached KV blocks that lost their content to an allocation."
    );
    describe_counter!(
        "conclave_worker_preemptions_total",
        Unit::Count,
        "Sequences that lost their KV blocks to an earlier one."
    );
    describe_counter!(
        "conclave_worker_computed_tokens_total",
        Unit::Count,
        "Tokens whose KV was computed."
    );
}

fn describe_session() {
    describe_histogram!(
        "conclave_worker_prepare_seconds",
        Unit::Seconds,
        "Time to check a job and count its prompt, or to plan an attempt."
    );
    describe_gauge!(
        "conclave_worker_session_connected",
        Unit::Count,
        "1 while the leader has welcomed this worker."
    );
    describe_counter!(
        "conclave_worker_session_ends_total",
        Unit::Count,
        "Dials and sessions that ended, by reason: unreachable, refused, not_leader, stale_term, silent, broken, closed."
    );
    describe_gauge!(
        "conclave_worker_term",
        Unit::Count,
        "Highest Raft term seen."
    );
    describe_gauge!(
        "conclave_worker_model_info",
        Unit::Count,
        "1 for each model served, with its name and numeric class."
    );
}

/// What the engine thread counts.
pub struct EngineMetrics {
    steps: Counter,
    step_seconds: Histogram,
    batch_tokens: Histogram,
    prefix_hits: Counter,
    prefix_misses: Counter,
    evictions: Counter,
    preemptions: Counter,
    computed: Counter,
    running: Gauge,
    waiting: Gauge,
    free: Gauge,
    cached: Gauge,
    used: Gauge,
}

/// Tokens of a KV block.
const BLOCK: u64 = conclave_worker_core::BLOCK as u64;

impl EngineMetrics {
    /// For the worker of this id.
    pub fn new(worker: &str) -> Self {
        let worker = worker.to_owned();
        let state = |name: &'static str, state: &'static str| gauge!(name, "worker" => worker.clone(), "state" => state);
        let count = |name: &'static str| counter!(name, "worker" => worker.clone());
        Self {
            steps: count("conclave_worker_steps_total"),
            step_seconds: histogram!("conclave_worker_step_seconds", "worker" => worker.clone()),
            batch_tokens: histogram!("conclave_worker_batch_tokens", "worker" => worker.clone()),
            prefix_hits: count("conclave_worker_prefix_hit_tokens_total"),
            prefix_misses: count("conclave_worker_prefix_miss_tokens_total"),
            evictions: count("conclave_worker_evictions_total"),
            preemptions: count("conclave_worker_preemptions_total"),
            computed: count("conclave_worker_computed_tokens_total"),
            running: state("conclave_worker_sequences", "running"),
            waiting: state("conclave_worker_sequences", "waiting"),
            free: state("conclave_worker_kv_blocks", "free"),
            cached: state("conclave_worker_kv_blocks", "cached"),
            used: state("conclave_worker_kv_blocks", "used"),
        }
    }

    /// One step took `time` and moved the engine's counters from `before` to `after`.
    pub fn stepped(&self, time: Duration, before: &Stats, after: &Stats) {
        self.steps.increment(1);
        self.step_seconds.record(time.as_secs_f64());
        self.batch_tokens.record(after.batch_tokens as f64);
        self.prefix_hits
            .increment(BLOCK * after.prefix_hits.saturating_sub(before.prefix_hits));
        self.prefix_misses
            .increment(BLOCK * after.prefix_misses.saturating_sub(before.prefix_misses));
        self.evictions
            .increment(after.evictions.saturating_sub(before.evictions));
        self.preemptions
            .increment(after.preemptions.saturating_sub(before.preemptions));
        self.computed
            .increment(after.computed_tokens.saturating_sub(before.computed_tokens));
    }

    /// How the engines stand, summed over models.
    pub fn standing(&self, total: &Stats) {
        self.running.set(total.running as f64);
        self.waiting.set(total.waiting as f64);
        self.free.set(total.blocks_free as f64);
        self.cached.set(total.blocks_cached as f64);
        let idle = total.blocks_free + total.blocks_cached;
        self.used
            .set(total.blocks_total.saturating_sub(idle) as f64);
    }
}

/// What the session counts.
pub struct SessionMetrics {
    worker: String,
    connected: Gauge,
    term: Gauge,
    planning: Gauge,
    unacknowledged: Gauge,
    prepare_seconds: Histogram,
}

impl SessionMetrics {
    /// For the worker of this id.
    pub fn new(worker: &str) -> Self {
        let owned = worker.to_owned();
        begin_at_zero(worker);
        Self {
            connected: gauge!("conclave_worker_session_connected", "worker" => owned.clone()),
            term: gauge!("conclave_worker_term", "worker" => owned.clone()),
            planning: gauge!("conclave_worker_sequences", "worker" => owned.clone(), "state" => "planning"),
            unacknowledged: gauge!("conclave_worker_results_unacknowledged", "worker" => owned.clone()),
            prepare_seconds: histogram!("conclave_worker_prepare_seconds", "worker" => owned.clone()),
            worker: owned,
        }
    }

    /// A model that is served.
    pub fn model(&self, name: &str, class: &str) {
        let labels = [
            ("worker", self.worker.clone()),
            ("model", name.to_owned()),
            ("class", class.to_owned()),
        ];
        gauge!("conclave_worker_model_info", &labels).set(1.0);
    }

    /// Whether the leader has welcomed us.
    pub fn connected(&self, yes: bool) {
        self.connected.set(if yes { 1.0 } else { 0.0 });
    }

    /// A session or the try of one ended.
    pub fn session_ended(&self, reason: &'static str) {
        counter!("conclave_worker_session_ends_total", "worker" => self.worker.clone(), "reason" => reason).increment(1);
    }

    /// How the session stands.
    pub fn standing(&self, term: u64, planning: usize, unacknowledged: usize) {
        self.term.set(term as f64);
        self.planning.set(planning as f64);
        self.unacknowledged.set(unacknowledged as f64);
    }

    /// A blocking job took so long.
    pub fn prepared(&self, time: Duration) {
        self.prepare_seconds.record(time.as_secs_f64());
    }

    /// An attempt ended.
    pub fn ended(&self, role: Role, outcome: &'static str, usage: Option<&Usage>) {
        let role = role_label(role);
        let labels = [
            ("worker", self.worker.clone()),
            ("role", role.into()),
            ("outcome", outcome.into()),
        ];
        counter!("conclave_worker_attempts_total", &labels).increment(1);
        let Some(usage) = usage else { return };
        for (kind, tokens) in [
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("thought", usage.thought_tokens),
            ("answer", usage.answer_tokens),
        ] {
            let labels = [
                ("worker", self.worker.clone()),
                ("role", role.into()),
                ("kind", kind.into()),
            ];
            counter!("conclave_tokens_total", &labels).increment(tokens);
        }
    }
}

/// A counter that first appears at 1 has no rate of its first event: what may happen is there from the start.
fn begin_at_zero(worker: &str) {
    let count = |name: &'static str, more: &[(&'static str, &'static str)]| {
        let own = [("worker", worker.to_owned())].into_iter();
        let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
        let labels: Vec<(&'static str, String)> = own.chain(more).collect();
        counter!(name, &labels).increment(0);
    };
    for reason in [
        "unreachable",
        "refused",
        "not_leader",
        "stale_term",
        "silent",
        "broken",
        "closed",
    ] {
        count("conclave_worker_session_ends_total", &[("reason", reason)]);
    }
    for role in [Role::Proposer, Role::Refiner, Role::Distiller, Role::Chair].map(role_label) {
        for outcome in ["done", "cut", "transient", "permanent", "drained"] {
            let more = [("role", role), ("outcome", outcome)];
            count("conclave_worker_attempts_total", &more);
        }
        for kind in ["prompt", "cached", "thought", "answer"] {
            count("conclave_tokens_total", &[("role", role), ("kind", kind)]);
        }
    }
}

/// A role as labels and spans have it.
pub(crate) fn role_label(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "unspecified",
        Role::Proposer => "proposer",
        Role::Refiner => "refiner",
        Role::Distiller => "distiller",
        Role::Chair => "chair",
    }
}
