//! What is counted by tenant.
//!
//! Tenants that the quotas file names have series of their own; all others share the label `other`.
//! Names come with callers' tokens, and a series lives as long as its process: only what an operator
//! has written down bounds how many there are.

use conclave_coordinator_core::{
    quota::{Limits, Quotas},
    tenants::Share,
};
use metrics::{SharedString, Unit, counter, describe_counter, describe_gauge, gauge};

use super::Label;

/// The label of tenants that are not named.
pub const OTHER: &str = "other";

/// Families of gauges: name and help.
const GAUGES: [(&str, &str); 5] = [
    (
        "conclave_tenant_live_jobs",
        "Jobs of the tenant that have not ended, as the leader counts them",
    ),
    (
        "conclave_tenant_agents",
        "Agents of the tenant that wait for a worker or hold one, by state",
    ),
    (
        "conclave_tenant_token_debt",
        "Tokens that the tenant used above its quota and has not paid off",
    ),
    (
        "conclave_tenant_quota",
        "What each tenant may have, by quota; +Inf: as much as it likes. Of `other`: each one",
    ),
    (
        "conclave_quotas_file_refused",
        "1 if the quotas file cannot be used as it is: the quotas before it go on",
    ),
];

/// HELP and unit of every family.
pub(super) fn describe() {
    for (name, help) in GAUGES {
        describe_gauge!(name, Unit::Count, help);
    }
    let counters = [
        (
            "conclave_tenant_refusals_total",
            "Submissions refused while this member led, by tenant and quota",
        ),
        (
            "conclave_tenant_tokens_total",
            "Tokens of jobs that ended while this member led, by tenant and kind",
        ),
        (
            "conclave_tenant_tokens_by_role_total",
            "Generated tokens of jobs that ended while this member led, by tenant and role",
        ),
    ];
    for (name, help) in counters {
        describe_counter!(name, Unit::Count, help);
    }
    begin_at_zero(OTHER);
    file_refused(false);
}

/// A counter that first appears at 1 has no rate of its first event.
pub fn begin_at_zero(tenant: &str) {
    for quota in ["live_jobs", "tokens_per_minute"] {
        refusals(tenant, quota, 0);
    }
    for kind in ["prompt", "cached", "thought", "answer"] {
        tokens(tenant, kind, 0);
    }
    for role in ["proposer", "refiner", "distiller", "chair"] {
        tokens_by_role(tenant, role.to_owned(), 0);
    }
}

/// The label under which a tenant is counted.
pub fn label<'a>(quotas: &Quotas, tenant: &'a str) -> &'a str {
    if quotas.names(tenant) { tenant } else { OTHER }
}

fn name(tenant: &str) -> SharedString {
    SharedString::from(tenant.to_owned())
}

/// What a tenant has under way, owes, and may have.
#[allow(clippy::cast_precision_loss, reason = "gauges are f64")]
pub fn show(node: &Label, tenant: &str, share: Share, debt: u64, limits: Limits) {
    let set = |family: &'static str, value: u64| {
        gauge!(family, "node" => node.clone(), "tenant" => name(tenant)).set(value as f64);
    };
    set("conclave_tenant_live_jobs", share.live_jobs);
    set("conclave_tenant_token_debt", debt);
    let agents = [
        ("queued", share.queued_agents),
        ("running", share.running_agents),
    ];
    for (state, count) in agents {
        gauge!("conclave_tenant_agents", "node" => node.clone(), "tenant" => name(tenant),
            "state" => state)
        .set(count as f64);
    }
    let limits = [
        ("live_jobs", limits.live_jobs),
        ("running_agents", limits.running_agents),
        ("tokens_per_minute", limits.tokens_per_minute),
    ];
    for (quota, limit) in limits {
        gauge!("conclave_tenant_quota", "node" => node.clone(), "tenant" => name(tenant),
            "quota" => quota)
        .set(limit.map_or(f64::INFINITY, |limit| limit as f64));
    }
}

/// This member counts the tenant no more: it leads no more, or the quotas file names it no more.
pub fn show_nothing(node: &Label, tenant: &str) {
    let none = Limits {
        live_jobs: Some(0),
        running_agents: Some(0),
        tokens_per_minute: Some(0),
    };
    show(node, tenant, Share::default(), 0, none);
}

/// A submission was refused.
pub fn refused(tenant: &str, quota: &'static str) {
    refusals(tenant, quota, 1);
}

fn refusals(tenant: &str, quota: &'static str, count: u64) {
    counter!("conclave_tenant_refusals_total", "tenant" => name(tenant), "quota" => quota)
        .increment(count);
}

/// Tokens of a job that ended.
pub fn tokens(tenant: &str, kind: &'static str, count: u64) {
    counter!("conclave_tenant_tokens_total", "tenant" => name(tenant), "kind" => kind)
        .increment(count);
}

/// Tokens that agents of one role generated in a job that ended.
pub fn tokens_by_role(tenant: &str, role: String, count: u64) {
    counter!("conclave_tenant_tokens_by_role_total", "tenant" => name(tenant), "role" => role)
        .increment(count);
}

/// Whether the quotas file cannot be used as it is.
pub fn file_refused(refused: bool) {
    gauge!("conclave_quotas_file_refused").set(f64::from(u8::from(refused)));
}
