//! What one tenant may have under way, and spend: decided at the leader, by what is replicated.
//!
//! Quotas are settings, not state: `apply` never asks them, so that members whose settings differ
//! apply one log alike. A submission above its tenant's quota is refused before it is proposed
//! ([`crate::lead::Leader::admit`]); agents above it wait ([`crate::placement`]).

mod bucket;
mod history;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conclave_proto::v1::AttemptKey;

use self::bucket::Bucket;
use crate::{payload::Payloads, state::State};

/// When a submission that was refused for its tenant's jobs may come again, ms.
const LATER_MS: u64 = 1_000;

/// What one tenant may have; `None`: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Jobs that have not ended; more are refused. 0 takes none.
    pub live_jobs: Option<u64>,
    /// Agents that hold a worker; more wait. 0 lets none begin.
    pub running_agents: Option<u64>,
    /// Tokens computed in a minute, on average: generated ones, and those of prompts that no cache
    /// had. A minute's worth may be spent at once; submissions are refused while it is overdrawn. At
    /// least 1.
    pub tokens_per_minute: Option<u64>,
}

/// What every tenant may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quotas {
    default: Limits,
    tenants: BTreeMap<String, Limits>,
}

/// Why a submission is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many of its tenant's jobs have not ended.
    #[error("{}", live_jobs(tenant, *live, *limit))]
    LiveJobs {
        /// Whose.
        tenant: String,
        /// Those that have not ended, submissions under way included.
        live: u64,
        /// The quota.
        limit: u64,
    },
    /// Its tenant has used more tokens than it may.
    #[error(
        "tenant `{tenant}` has used {debt} tokens more than its quota of {limit} a minute \
         (tokens_per_minute): that is paid off in {} s",
        .paid_off_ms.div_ceil(1_000)
    )]
    Tokens {
        /// Whose.
        tenant: String,
        /// Tokens above the quota.
        debt: u64,
        /// The quota.
        limit: u64,
        /// When it is paid off, ms from now.
        paid_off_ms: u64,
    },
}

fn live_jobs(tenant: &str, live: u64, limit: u64) -> String {
    if limit == 0 {
        return format!(
            "no job of tenant `{tenant}` is taken: its quota is 0 (live_jobs), until an operator raises it"
        );
    }
    format!(
        "{live} jobs of tenant `{tenant}` have not ended, its quota is {limit} (live_jobs): come again once \
         one has"
    )
}

impl Refusal {
    /// When the submission may come again, ms.
    pub fn retry_ms(&self) -> u64 {
        match self {
            Refusal::LiveJobs { .. } => LATER_MS,
            Refusal::Tokens { paid_off_ms, .. } => *paid_off_ms,
        }
    }

    /// The quota's name, as settings and metrics have it.
    pub fn quota(&self) -> &'static str {
        match self {
            Refusal::LiveJobs { .. } => "live_jobs",
            Refusal::Tokens { .. } => "tokens_per_minute",
        }
    }
}

impl Quotas {
    /// What every tenant may have, and what these may: each of their limits that is set stands for
    /// the default one.
    pub fn new(default: Limits, tenants: BTreeMap<String, Limits>) -> Quotas {
        let own = |limits: Limits| Limits {
            live_jobs: limits.live_jobs.or(default.live_jobs),
            running_agents: limits.running_agents.or(default.running_agents),
            tokens_per_minute: limits.tokens_per_minute.or(default.tokens_per_minute),
        };
        let tenants = tenants.into_iter().map(|(name, set)| (name, own(set)));
        Quotas {
            default,
            tenants: tenants.collect(),
        }
    }

    /// What this tenant may have.
    pub fn of(&self, tenant: &str) -> Limits {
        self.tenants.get(tenant).copied().unwrap_or(self.default)
    }

    /// Some tenant may not run all the agents that it has.
    pub(crate) fn bound_agents(&self) -> bool {
        let mut all = self.tenants.values().chain([&self.default]);
        all.any(|limits| limits.running_agents.is_some())
    }

    /// This tenant is named.
    pub fn names(&self, tenant: &str) -> bool {
        self.tenants.contains_key(tenant)
    }

    /// Tenants that are named, in order.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.tenants.keys().map(String::as_str)
    }
}

/// The time, for a [`Gate`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Monotonic, of this process, ms.
    pub now_ms: u64,
    /// Replicated wall time, ms.
    pub unix_ms: i64,
}

/// Where a leader turns away what is above a tenant's quota.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    quotas: Quotas,
    /// Submissions that were proposed and are not applied, as their indices in the log.
    under_way: BTreeMap<String, VecDeque<u64>>,
    /// Of tenants with a quota of tokens, once something is asked of it.
    buckets: BTreeMap<String, Bucket>,
}

impl Gate {
    pub(crate) fn new(quotas: Quotas) -> Gate {
        Gate {
            quotas,
            ..Gate::default()
        }
    }

    pub(crate) fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// These count from now on; what was used stays used.
    pub(crate) fn set(&mut self, quotas: Quotas) {
        self.quotas = quotas;
        let quotas = &self.quotas;
        self.buckets
            .retain(|tenant, _| quotas.of(tenant).tokens_per_minute.is_some());
    }

    /// May this tenant submit one more job?
    pub(crate) fn admit(&mut self, tenant: &str, state: &State, now: Now) -> Result<(), Refusal> {
        let limits = self.quotas.of(tenant);
        if let Some(limit) = limits.live_jobs {
            let under_way = self.under_way(tenant, state.applied_index());
            let live = state.share(tenant).live_jobs + under_way;
            if live >= limit {
                let tenant = tenant.to_owned();
                return Err(Refusal::LiveJobs {
                    tenant,
                    live,
                    limit,
                });
            }
        }
        let Some(limit) = limits.tokens_per_minute else {
            return Ok(());
        };
        let bucket = self.bucket(tenant, limit, state, now);
        let debt = bucket.debt(limit, now.now_ms);
        if debt == 0 {
            return Ok(());
        }
        Err(Refusal::Tokens {
            tenant: tenant.to_owned(),
            debt,
            limit,
            paid_off_ms: bucket.paid_off_ms(limit),
        })
    }

    /// A submission that was admitted is proposed at this index.
    pub(crate) fn proposed(&mut self, tenant: &str, index: u64) {
        if self.quotas.of(tenant).live_jobs.is_none() {
            return;
        }
        match self.under_way.get_mut(tenant) {
            Some(indices) => indices.push_back(index),
            None => drop(self.under_way.insert(tenant.to_owned(), [index].into())),
        }
    }

    /// How many of the tenant's submissions are proposed and not applied. Whatever was committed at
    /// an index that is applied, a leader's own proposal there is under way no more.
    fn under_way(&mut self, tenant: &str, applied: u64) -> u64 {
        let Some(indices) = self.under_way.get_mut(tenant) else {
            return 0;
        };
        while indices.pop_front_if(|index| *index <= applied).is_some() {}
        let count = indices.len() as u64;
        if count == 0 {
            self.under_way.remove(tenant);
        }
        count
    }

    /// Results were accepted, and are applied: their tenants pay for them, each once.
    pub(crate) fn accepted(
        &mut self,
        keys: &[AttemptKey],
        state: &State,
        blobs: &dyn Payloads,
        now: Now,
    ) {
        let mut begun = BTreeSet::new();
        for key in keys {
            let Some(job) = state.job(&key.job_id) else {
                continue;
            };
            let Some(limit) = self.quotas.of(&job.tenant).tokens_per_minute else {
                continue;
            };
            if let Some(bucket) = self.buckets.get_mut(&job.tenant) {
                // What a new bucket read of the state has all of these in it.
                if !begun.contains(job.tenant.as_str()) {
                    let agent = job.agent(key.agent);
                    let used = agent.map_or(0, |agent| history::used(agent, Some(blobs)));
                    bucket.spend(used, limit, now.now_ms);
                }
            } else {
                begun.insert(job.tenant.as_str());
                self.bucket(&job.tenant, limit, state, now);
            }
        }
    }

    /// The tenant's bucket; a new one as the last minutes left it.
    fn bucket(&mut self, tenant: &str, limit: u64, state: &State, now: Now) -> &mut Bucket {
        self.buckets
            .entry(tenant.to_owned())
            .or_insert_with(|| history::bucket(tenant, limit, state, now))
    }

    /// Forgets what says no more than its absence: tenants are many, and most of them idle.
    pub(crate) fn tidy(&mut self, applied: u64, now_ms: u64) {
        let quotas = &self.quotas;
        self.buckets.retain(|tenant, bucket| {
            let limit = quotas.of(tenant).tokens_per_minute;
            limit.is_some_and(|limit| !bucket.is_full(limit, now_ms))
        });
        self.under_way
            .retain(|_, indices| indices.back().is_some_and(|last| *last > applied));
    }

    /// Tenants that used more tokens than their quota, as far as anything was asked of it, and by
    /// how much.
    pub(crate) fn debts(&self, now_ms: u64) -> impl Iterator<Item = (&str, u64)> {
        self.buckets.iter().filter_map(move |(tenant, bucket)| {
            let limit = self.quotas.of(tenant).tokens_per_minute?;
            let debt = bucket.clone().debt(limit, now_ms);
            (debt > 0).then_some((tenant.as_str(), debt))
        })
    }
}

#[cfg(test)]
mod tests;
