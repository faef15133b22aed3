//! The members' wall clocks, asked when the leader's own is doubted (law 3).

use std::time::{Duration, Instant};

use conclave_coordinator_core::lead::{Leader, Moment, reached};
use conclave_proto::v1::command::Command as Body;

use super::{
    Input,
    lead::moment,
    task::{Task, unix_ms},
};
/// How long a member is given to say what time it is.
const WAIT: Duration = Duration::from_secs(1);

impl Task {
    /// Moves a caller's command onto the leader's time.
    pub(super) fn stamp(&mut self, body: &mut Body) {
        let moment = moment!(self);
        if let Some(leader) = &mut self.leader {
            leader.stamp(body, &moment);
        }
    }

    /// Asks every voter for its clock.
    pub(super) fn ask_clocks(&self) {
        let (network, handle) = (self.network.clone(), self.handle.clone());
        let (term, here) = (self.leadership.term, self.identity.node_id());
        let voters = self.node.conf_state().voters;
        self.runtime.spawn(async move {
            let ask = |id: u64| {
                let network = network.clone();
                async move {
                    if id == here {
                        return Some(unix_ms());
                    }
                    let address = network.address(id)?;
                    let answer = network.identify(&address, WAIT).await.ok()?;
                    (answer.node_id == id && answer.unix_ms > 0).then_some(answer.unix_ms)
                }
            };
            let clocks = futures::future::join_all(voters.into_iter().map(ask)).await;
            let reached_ms = reached(&clocks);
            // Unheard, it is asked again.
            let clocks = Input::Clocks { term, reached_ms };
            let _ = handle.send(clocks, Instant::now() + WAIT).await;
        });
    }

    /// What a majority of the clocks has reached: it explains this one's, or people must look.
    pub(super) fn clocks(&mut self, term: u64, reached_ms: Option<i64>) {
        let moment = moment!(self);
        let leads = |leader: &&mut Leader| leader.term() == term;
        let Some(leader) = self.leader.as_mut().filter(leads) else {
            return;
        };
        let doubted_ms = leader.doubts_clock();
        leader.clocks(reached_ms, &moment);
        if let Some(ahead_ms) = leader.doubts_clock() {
            tracing::warn!(
                ahead_seconds = ahead_ms / 1_000,
                majority_answered = reached_ms.is_some(),
                "this leader's clock is far ahead of the cluster's time, and no majority of the \
                 members' clocks is there: time goes on without it. Set this machine's clock, or \
                 start the members that do not answer"
            );
        } else if let Some(ahead_ms) = doubted_ms {
            tracing::warn!(
                ahead_seconds = ahead_ms / 1_000,
                "the cluster's time leaps forward: a majority of the members' clocks is there"
            );
        }
        self.begin_serving();
    }
}
