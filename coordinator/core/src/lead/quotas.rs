//! What tenants may have: asked before a submission is proposed, and with each placement.

use super::{Leader, Moment};
use crate::quota::{Now, Quotas, Refusal};

impl Leader {
    /// May this tenant submit one more job now? An idempotency key that is known may come whatever
    /// this says: whoever asks looks for it before a refusal is passed on (law 7).
    ///
    /// # Errors
    /// Its quota, and when to come again.
    pub fn admit(&mut self, tenant: &str, moment: &Moment<'_>) -> Result<(), Refusal> {
        let moment = &self.believed(moment);
        // What is not paid for yet would count twice in a bucket that begins now.
        self.charge(moment);
        self.gate.admit(tenant, moment.state, now(moment))
    }

    /// A submission that was admitted is proposed, at this index of the log: it counts until that
    /// index is applied.
    pub fn submission_proposed(&mut self, tenant: &str, index: u64) {
        self.gate.proposed(tenant, index);
    }

    /// These quotas count from now on. Nothing that was accepted is ended for them.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.gate.set(quotas);
        // Agents that waited for their quota may have room.
        self.placements.ask();
    }

    /// Tenants that used more tokens than their quota, and by how much.
    pub fn token_debts(&self, now_ms: u64) -> impl Iterator<Item = (&str, u64)> {
        self.gate.debts(now_ms)
    }

    /// Results that were accepted are paid for.
    pub(super) fn charge(&mut self, moment: &Moment<'_>) {
        let keys = std::mem::take(&mut self.accepted);
        self.gate
            .accepted(&keys, moment.state, moment.payloads, now(moment));
    }

    /// Forgets tenants that owe nothing and do nothing.
    pub(super) fn tidy_quotas(&mut self, moment: &Moment<'_>) {
        self.gate.tidy(moment.state.applied_index(), moment.now_ms);
    }
}

fn now(moment: &Moment<'_>) -> Now {
    Now {
        now_ms: moment.now_ms,
        unix_ms: moment.wall_ms(),
    }
}
