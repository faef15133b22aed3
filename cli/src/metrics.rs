//! The process's metrics: one recorder, whatever parts it hosts.
use std::time::Duration;

use conclave_worker::metrics::HISTOGRAMS;
use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::error::CliError;

/// How often histograms that nobody scrapes are folded, so that they stay small.
const UPKEEP: Duration = Duration::from_secs(5);
/// From a fast fsync to a slow job, seconds.
const SECONDS: [f64; 16] = [
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
    120.0,
];
/// Jobs take from a moment to a quarter of an hour; a quantile is no finer than these bounds.
const JOB_SECONDS: [f64; 14] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0,
];

/// Installs the recorder. Once a process, inside the runtime.
pub fn install() -> Result<PrometheusHandle, CliError> {
    let failed = |error: &dyn std::fmt::Display| {
        CliError::Hosting(format!("the metrics recorder did not start: {error}"))
    };
    let mut builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            let name = Matcher::Full("conclave_job_duration_seconds".to_owned());
            builder.set_buckets_for_metric(name, &JOB_SECONDS)
        })
        .map_err(|error| failed(&error))?;
    for (name, buckets) in HISTOGRAMS {
        builder = builder
            .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
            .map_err(|error| failed(&error))?;
    }
    let handle = builder.install_recorder().map_err(|error| failed(&error))?;
    describe_memory();
    let folded = handle.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(UPKEEP);
        loop {
            every.tick().await;
            folded.run_upkeep();
            show_memory();
        }
    });
    Ok(handle)
}

fn describe_memory() {
    let gauges = [
        (
            "conclave_memory_allocated_bytes",
            "Bytes that the program has allocated and not freed",
        ),
        (
            "conclave_memory_resident_bytes",
            "Bytes of memory that the allocator holds, those that were freed and not yet given back included",
        ),
    ];
    for (name, help) in gauges {
        describe_gauge!(name, Unit::Bytes, help);
    }
}

/// Shows what the allocator counts; an allocator that does not answer shows nothing.
#[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
fn show_memory() {
    // Its counters are as of the last advance.
    if tikv_jemalloc_ctl::epoch::advance().is_err() {
        return;
    }
    if let Ok(bytes) = tikv_jemalloc_ctl::stats::allocated::read() {
        gauge!("conclave_memory_allocated_bytes").set(bytes as f64);
    }
    if let Ok(bytes) = tikv_jemalloc_ctl::stats::resident::read() {
        gauge!("conclave_memory_resident_bytes").set(bytes as f64);
    }
}
