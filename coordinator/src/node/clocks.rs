//! The members' wall clocks, asked when the leader's own is doubted (law 3).

use std::time::{Duration, Instant};

use conclave_coordinator_core::lead::{LEAP_MS, Leader, Moment, reached};
use conclave_proto::v1::command::Command as Body;
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::{
    Input,
    lead::moment,
    task::{Task, unix_ms},
};
use crate::transport::Network;

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

    /// Asks every voter for its clock, and goes on as soon as enough of them confirm this one: a
    /// member that is gone holds nobody up.
    pub(super) fn ask_clocks(&self) {
        let (network, handle) = (self.network.clone(), self.handle.clone());
        let (term, here) = (self.leadership.term, self.identity.node_id());
        let voters = self.node.conf_state().voters;
        self.runtime.spawn(async move {
            let mut clocks: Vec<Option<i64>> = vec![None; voters.len()];
            let ask = |(place, id): (usize, u64)| {
                let network = network.clone();
                async move {
                    if id == here {
                        return (place, Some(unix_ms()));
                    }
                    (place, clock_of(&network, id).await)
                }
            };
            let mut answers: FuturesUnordered<_> =
                voters.into_iter().enumerate().map(ask).collect();
            while let Some((place, clock)) = answers.next().await {
                clocks[place] = clock;
                if reached(&clocks).is_some_and(|ms| unix_ms() - ms <= LEAP_MS) {
                    break;
                }
            }
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
            let ahead_seconds = ahead_ms / 1_000;
            if leader.serving() {
                tracing::warn!(
                    ahead_seconds,
                    "the cluster's time leaps forward: a majority of the members' clocks is there"
                );
            } else {
                tracing::info!(
                    ahead_seconds,
                    "the cluster rested: a majority of the members' clocks confirms the time"
                );
            }
        }
        self.begin_serving();
    }
}

/// A member's wall clock, Unix ms, if it answers. A program from before there was this question
/// answers without it: it counts as agreeing, as every clock did then.
async fn clock_of(network: &Network, id: u64) -> Option<i64> {
    let address = network.address(id)?;
    let answer = network.identify(&address, WAIT).await.ok()?;
    let says = if answer.unix_ms > 0 {
        answer.unix_ms
    } else {
        unix_ms()
    };
    (answer.node_id == id).then_some(says)
}
