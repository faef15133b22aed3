//! What tenants may have, on the node's loop: asked before a submission is proposed, shown in metrics.

use std::collections::BTreeMap;

use conclave_coordinator_core::{lead::Moment, quota::Quotas, tenants::Share};
use conclave_proto::v1::{Job, command::Command as Body};

use super::{
    NodeError, Proposal,
    lead::moment,
    task::{Task, unix_ms},
    waiters::Waiter,
};
use crate::metrics::tenants as metrics;

impl Task {
    /// Proposes what a caller brings, unless it is a submission above its tenant's quota. A known
    /// idempotency key is answered whatever the quota says (law 7).
    pub(super) fn take_proposal(&mut self, mut proposal: Proposal) {
        self.stamp(&mut proposal.body);
        let mut submits = None;
        if let Body::SubmitJob(submit) = &proposal.body
            && self
                .state
                .key(&submit.tenant, &submit.idempotency_key)
                .is_none()
        {
            if let Err(error) = self.admit(&submit.tenant) {
                // A caller that went away needs no answer.
                let _ = proposal.reply.send(Err(error));
                return;
            }
            submits = Some(submit.tenant.clone());
        }
        let waiter = Waiter::Call(proposal.reply);
        self.propose(proposal.body, waiter, proposal.deadline);
        if let (Some(tenant), Some(leader)) = (submits, &mut self.leader) {
            leader.submission_proposed(&tenant, self.node.last_index());
        }
    }

    /// May this tenant submit one more job now?
    pub(super) fn admit(&mut self, tenant: &str) -> Result<(), NodeError> {
        let moment = moment!(self);
        let Some(leader) = &mut self.leader else {
            return Ok(());
        };
        leader.admit(tenant, &moment).map_err(|refusal| {
            metrics::refused(metrics::label(&self.quotas, tenant), refusal.quota());
            NodeError::OverQuota(refusal)
        })
    }

    /// These quotas count from now on; where the file cannot be used, those before go on.
    pub(super) fn set_quotas(&mut self, quotas: Result<Quotas, String>) {
        metrics::file_refused(quotas.is_err());
        let quotas = match quotas {
            Ok(quotas) => quotas,
            Err(why) => {
                self.quotas_refused = Some(why);
                return;
            }
        };
        self.quotas_refused = None;
        for gone in self.quotas.named().filter(|name| !quotas.names(name)) {
            metrics::show_nothing(&self.label, gone);
        }
        self.quotas = quotas;
        self.begin_tenants();
        if let Some(leader) = &mut self.leader {
            leader.set_quotas(self.quotas.clone());
        }
    }

    /// Counters of tenants that are named are there before anything is counted.
    pub(super) fn begin_tenants(&self) {
        self.quotas.named().for_each(metrics::begin_at_zero);
    }

    /// Shows what each tenant has under way, as this leader sees it.
    pub(super) fn count_tenants(&mut self) {
        let now_ms = self.now_ms();
        let Some(leader) = &self.leader else {
            return;
        };
        let quotas = &self.quotas;
        let none = (Share::default(), 0);
        let mut shown: BTreeMap<&str, (Share, u64)> =
            quotas.named().map(|name| (name, none)).collect();
        shown.insert(metrics::OTHER, none);
        for (tenant, share) in self.state.shares() {
            let of = shown.entry(metrics::label(quotas, tenant)).or_default();
            of.0.add(share);
        }
        for (tenant, debt) in leader.token_debts(now_ms) {
            shown.entry(metrics::label(quotas, tenant)).or_default().1 += debt;
        }
        for (tenant, (share, debt)) in shown {
            metrics::show(&self.label, tenant, share, debt, quotas.of(tenant));
        }
    }

    /// A leader that leads no more sees no tenants.
    pub(super) fn no_tenants(&self) {
        let named = self.quotas.named().chain([metrics::OTHER]);
        named.for_each(|tenant| metrics::show_nothing(&self.label, tenant));
    }

    /// Counts what a job that ended used.
    pub(super) fn count_tokens(&self, job: &Job) {
        let tenant = metrics::label(&self.quotas, &job.tenant);
        let usage = job.usage.unwrap_or_default();
        metrics::tokens(tenant, "prompt", usage.prompt_tokens);
        metrics::tokens(tenant, "cached", usage.cached_tokens);
        metrics::tokens(tenant, "thought", usage.thought_tokens);
        metrics::tokens(tenant, "answer", usage.answer_tokens);
        for (role, count) in &job.tokens_by_role {
            metrics::tokens_by_role(tenant, role.clone(), *count);
        }
    }
}
